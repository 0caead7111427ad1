#include "services/gateway/defaults.h"

#include "common/file.h"
#include "common/json.h"
#include "common/log.h"
#include "services/gateway/fields.h"

#include <stdlib.h>
#include <string.h>

#define CONFIG_BYTES_MAX 1048576

void defaults_init(struct proto_sampling *s)
{
    memset(s, 0, sizeof *s);
    s->temperature = 1.0;
    s->top_p = 1.0;
    s->top_k = -1;
    s->repetition_penalty = 1.0;
    s->logprobs = -1;
}

/* The same rows as a request's, read from the file's object. */
static void read_fields(const json_t *config, struct proto_sampling *s)
{
    static const struct field rows[] = {
        FIELD_F64("temperature", generate.sampling.temperature, RANGE_temperature),
        FIELD_F64("top_p", generate.sampling.top_p, RANGE_top_p),
        FIELD_I64("top_k", generate.sampling.top_k, -1, HIGH_top_k),
        FIELD_F64("min_p", generate.sampling.min_p, RANGE_min_p),
        FIELD_F64("repetition_penalty", generate.sampling.repetition_penalty,
                  RANGE_repetition_penalty),
    };
    struct params params = {.prefix = "", .generate.sampling = *s};

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const json_t *value = json_object_get(config, rows[i].name);
        struct problem problem = {0};

        if (value && !json_is_null(value) && rows[i].parse(&params, &rows[i], value, &problem))
            log_warn("file=generation_config.json \"%s\"", problem.message);
        else
            *s = params.generate.sampling;
    }
}

void defaults_load(const char *model_dir, struct proto_sampling *s)
{
    char *path = file_join(model_dir, "generation_config.json");
    json_t *config = NULL;
    struct err err = {0};

    if (file_exists(path)) {
        if (json_load_path(path, CONFIG_BYTES_MAX, &config, &err)) {
            log_warn("\"%s\"", err.msg);
        } else {
            read_fields(config, s);
            if (json_is_false(json_object_get(config, "do_sample")))
                s->temperature = 0.0;
        }
    }
    json_decref(config);
    free(path);
}

#include "services/bench/config.h"

#include "common/json.h"
#include "common/mem.h"
#include "services/bench/workload.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RATE_MAX 1e6
#define SCALE_MAX 1e6
#define LIMIT_MAX 1e6

static const struct {
    const char *name;
    enum shape shape;
} backends[] = {
    {"openai", SHAPE_COMPLETIONS}, {"vllm", SHAPE_COMPLETIONS}, {"sglang-oai", SHAPE_COMPLETIONS},
    {"openai-chat", SHAPE_CHAT},   {"vllm-chat", SHAPE_CHAT},   {"sglang-oai-chat", SHAPE_CHAT},
    {"generate", SHAPE_GENERATE},  {"sglang", SHAPE_GENERATE},
};

static const char *const paths[] = {
    [SHAPE_COMPLETIONS] = "/v1/completions",
    [SHAPE_CHAT] = "/v1/chat/completions",
    [SHAPE_GENERATE] = "/generate",
};

static bool number_read(const char *text, size_t len, double low, double high, bool inf,
                        double *out)
{
    char copy[40];
    char *end;

    if (!len || len >= sizeof copy)
        return false;
    memcpy(copy, text, len);
    copy[len] = '\0';
    if (inf && strcmp(copy, "inf") == 0) {
        *out = INFINITY;
        return true;
    }
    if (copy[strspn(copy, "0123456789.eE+-")]) /* no blanks, hexadecimal, nan */
        return false;
    *out = strtod(copy, &end);
    return !*end && *out >= low && *out <= high;
}

int list_read(const char *name, const char *text, double low, double high, bool inf, double *out,
              size_t *count, struct err *err)
{
    for (*count = 0;; (*count)++) {
        size_t len = strcspn(text, ",");

        if (*count == SWEEP_MAX)
            return err_set(err, ERR_LIMIT, "--%s: more than %d values", name, SWEEP_MAX);
        if (!number_read(text, len, low, high, inf, &out[*count]))
            return err_set(err, ERR_INVALID, "--%s: '%.*s' is not a number from %g to %g%s", name,
                           (int)(len < 64 ? len : 64), text, low, high, inf ? " or inf" : "");
        text += len;
        if (!*text)
            break;
        text++;
    }
    (*count)++;
    return 0;
}

static int read_loads(struct bench_config *c, const struct options *o, struct err *err)
{
    const char *rate = options_str(o, OPT_REQUEST_RATE);
    const char *limit = options_str(o, OPT_MAX_CONCURRENCY);
    int rc = 0;

    c->rates[0] = c->trace ? NAN : INFINITY;
    c->rates_count = 1;
    if (*rate)
        rc = list_read("request-rate", rate, 1e-3, RATE_MAX, true, c->rates, &c->rates_count, err);
    if (!rc)
        rc = list_read("trace-scale", options_str(o, OPT_TRACE_SCALE), 0, SCALE_MAX, false,
                       c->scales, &c->scales_count, err);
    c->limits[0] = INFINITY;
    c->limits_count = 1;
    if (!rc && *limit)
        rc = list_read("max-concurrency", limit, 1, LIMIT_MAX, false, c->limits, &c->limits_count,
                       err);
    for (size_t i = 0; i < c->limits_count && !rc; i++)
        if (c->limits[i] != floor(c->limits[i]))
            rc =
                err_set(err, ERR_INVALID, "--max-concurrency: %g is no whole number", c->limits[i]);
    if (!rc && (c->rates_count > 1) + (c->scales_count > 1) + (c->limits_count > 1) > 1)
        rc = err_set(err, ERR_INVALID,
                     "only one of --request-rate, --trace-scale and "
                     "--max-concurrency can be a sweep");
    c->runs_count = c->rates_count * c->scales_count * c->limits_count;
    if (c->limits_count > 1)
        c->swept = LOAD_CONCURRENCY;
    else if (c->trace && !*rate)
        c->swept = LOAD_SCALE;
    return rc;
}

static int check_together(const struct options *o, const struct bench_config *c, struct err *err)
{
    if (c->trace && !*options_str(o, OPT_DATASET_PATH))
        return err_set(err, ERR_INVALID, "--dataset-name trace needs --dataset-path");
    if (!c->trace && *options_str(o, OPT_DATASET_PATH))
        return err_set(err, ERR_INVALID, "--dataset-path is for --dataset-name trace");
    if (!c->trace && o->set[OPT_TRACE_SCALE])
        return err_set(err, ERR_INVALID, "--trace-scale is for --dataset-name trace");
    if (o->set[OPT_TRACE_SCALE] && *options_str(o, OPT_REQUEST_RATE))
        return err_set(err, ERR_INVALID,
                       "--trace-scale stretches the trace's own times, which "
                       "--request-rate replaces: give one of them");
    if (*options_str(o, OPT_PLOT) && c->runs_count < 2)
        return err_set(err, ERR_INVALID, "--plot needs a sweep, as in --request-rate 1,2,4,8");
    return 0;
}

/* An object's inside, so that it can stand behind other members. */
static int read_extra(struct bench_config *c, const char *text, struct err *err)
{
    json_t *json = NULL;
    int rc = 0;

    c->extra = mem_strdup("");
    if (!*text)
        return 0;
    rc = json_parse(text, strlen(text), JSON_DEPTH_REQUEST, &json, err);
    if (!rc && !json_is_object(json))
        rc = err_set(err, ERR_INVALID, "it is no JSON object");
    if (rc) {
        (void)err_prefix(err, "--extra-request-body");
    } else if (json_object_size(json)) {
        char *dump = json_dumps(json, JSON_COMPACT);

        free(c->extra);
        c->extra = mem_strndup(dump + 1, strlen(dump) - 2);
        free(dump);
    }
    json_decref(json);
    return rc;
}

int bench_config_read(struct bench_config *c, const struct options *o, struct err *err)
{
    int rc;

    memset(c, 0, sizeof *c);
    c->options = o;
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
        if (strcmp(backends[i].name, options_str(o, OPT_BACKEND)) == 0)
            c->shape = backends[i].shape;
    c->path = paths[c->shape];
    c->trace = strcmp(options_str(o, OPT_DATASET_NAME), "trace") == 0;
    c->num_prompts = (size_t)options_int(o, OPT_NUM_PROMPTS);
    c->warmups = (size_t)options_int(o, OPT_WARMUP_REQUESTS);
    c->input_max = (uint32_t)options_int(o, OPT_RANDOM_INPUT_LEN);
    c->output_max = (uint32_t)options_int(o, OPT_RANDOM_OUTPUT_LEN);
    c->range_ratio = options_float(o, OPT_RANDOM_RANGE_RATIO);
    c->vocab = (uint32_t)options_int(o, OPT_RANDOM_VOCAB);
    c->seed = (uint64_t)options_int(o, OPT_SEED);
    c->temperature = options_float(o, OPT_TEMPERATURE);
    c->ignore_eos = !options_bool(o, OPT_DISABLE_IGNORE_EOS);
    c->progress = !options_bool(o, OPT_DISABLE_TQDM) && isatty(STDERR_FILENO);
    c->details = options_bool(o, OPT_OUTPUT_DETAILS);
    c->stall_us = (int64_t)(options_float(o, OPT_STALL_TIMEOUT) * 1e6);
    rc = read_extra(c, options_str(o, OPT_EXTRA_REQUEST_BODY), err);
    if (!rc)
        rc = read_loads(c, o, err);
    return rc ? rc : check_together(o, c, err);
}

void bench_config_fini(struct bench_config *c)
{
    free(c->extra);
    c->extra = NULL;
}

double bench_config_rate(const struct bench_config *c, size_t run)
{
    return c->rates[c->rates_count > 1 ? run : 0];
}

double bench_config_scale(const struct bench_config *c, size_t run)
{
    return c->scales[c->scales_count > 1 ? run : 0];
}

double bench_config_limit(const struct bench_config *c, size_t run)
{
    return c->limits[c->limits_count > 1 ? run : 0];
}

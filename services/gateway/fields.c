#include "services/gateway/fields.h"

#include "common/mem.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    double low, high;
    const char *what;
} ranges[RANGES_COUNT] = {
#define SAMPLING(field, low, high, what) {low, high, what},
#include "proto/limits.def"
};

static void *member_of(struct params *p, const struct field *f)
{
    return (char *)p + f->offset;
}

const char *field_show(const json_t *value, char out[static 64])
{
    switch (json_typeof(value)) {
    case JSON_STRING:
        (void)snprintf(out, 64, "\"%.48s%s\"", json_string_value(value),
                       json_string_length(value) > 48 ? "..." : "");
        break;
    case JSON_INTEGER:
        (void)snprintf(out, 64, "%lld", (long long)json_integer_value(value));
        break;
    case JSON_REAL:
        (void)snprintf(out, 64, "%.17g", json_real_value(value));
        break;
    case JSON_OBJECT:
        (void)snprintf(out, 64, "an object");
        break;
    case JSON_ARRAY:
        (void)snprintf(out, 64, "a list of %zu", json_array_size(value));
        break;
    default:
        (void)snprintf(out, 64, "%s",
                       json_is_null(value)   ? "null"
                       : json_is_true(value) ? "true"
                                             : "false");
    }
    return out;
}

int field_refuse(const struct params *p, const struct field *f, const json_t *value,
                 const char *must, struct problem *problem)
{
    char name[128], shown[64];

    (void)snprintf(name, sizeof name, "%s%s", p->prefix, f->name);
    return problem_set(problem, 400, "invalid_value", name, "%s is %s: %s", name,
                       field_show(value, shown), must);
}

bool field_whole(const json_t *value, int64_t *out)
{
    double real;

    if (json_is_integer(value)) {
        *out = json_integer_value(value);
        return true;
    }
    if (!json_is_real(value))
        return false;
    real = json_real_value(value);
    if (!(fabs(real) <= 9007199254740992.0) || floor(real) < real)
        return false;
    *out = (int64_t)real;
    return true;
}

int fields_apply(const struct field *table, const char *prefix, struct params *p,
                 const json_t *object, struct problem *problem)
{
    void *it = json_object_iter((json_t *)(uintptr_t)object);

    for (; it; it = json_object_iter_next((json_t *)(uintptr_t)object, it)) {
        const char *key = json_object_iter_key(it);
        const json_t *value = json_object_iter_value(it);
        const struct field *f = table;
        char name[128];

        while (f->name && strcmp(f->name, key) != 0)
            f++;
        p->prefix = prefix;
        if (!f->name) {
            (void)snprintf(name, sizeof name, "%s%.90s", prefix, key);
            return problem_set(problem, 400, "unknown_field", name, "unknown field \"%s\"", name);
        }
        if (!json_is_null(value) && f->parse(p, f, value, problem))
            return -1;
    }
    return 0;
}

int field_bool(struct params *p, const struct field *f, const json_t *value,
               struct problem *problem)
{
    bool *out = member_of(p, f);

    if (!json_is_boolean(value))
        return field_refuse(p, f, value, "must be true or false", problem);
    *out = json_is_true(value);
    return 0;
}

int field_f64(struct params *p, const struct field *f, const json_t *value, struct problem *problem)
{
    double *out = member_of(p, f);
    double low = ranges[f->range].low, high = ranges[f->range].high;
    char must[160];
    double number;

    (void)snprintf(must, sizeof must, "must be a number from %g to %g (%s)", low, high,
                   ranges[f->range].what);
    if (!json_is_number(value))
        return field_refuse(p, f, value, must, problem);
    number = json_number_value(value);
    if (!(number >= low && number <= high))
        return field_refuse(p, f, value, must, problem);
    *out = number;
    return 0;
}

int field_i64(struct params *p, const struct field *f, const json_t *value, struct problem *problem)
{
    int64_t *out = member_of(p, f);
    char must[120];

    (void)snprintf(must, sizeof must, "must be a whole number from %lld to %lld", (long long)f->low,
                   (long long)f->high);
    if (!field_whole(value, out) || *out < f->low || *out > f->high)
        return field_refuse(p, f, value, must, problem);
    return 0;
}

int field_u32(struct params *p, const struct field *f, const json_t *value, struct problem *problem)
{
    uint32_t *out = member_of(p, f);
    char must[120];
    int64_t number = 0;

    (void)snprintf(must, sizeof must, "must be a whole number from %lld to %lld", (long long)f->low,
                   (long long)f->high);
    if (!field_whole(value, &number) || number < f->low || number > f->high)
        return field_refuse(p, f, value, must, problem);
    *out = (uint32_t)number;
    return 0;
}

int field_string(struct params *p, const struct field *f, const json_t *value,
                 struct problem *problem)
{
    const char **out = member_of(p, f);

    if (!json_is_string(value))
        return field_refuse(p, f, value, "must be a string", problem);
    *out = json_string_value(value);
    return 0;
}

int field_checked(struct params *p, const struct field *f, const json_t *value,
                  struct problem *problem)
{
    if (!json_is_string(value))
        return field_refuse(p, f, value, "must be a string", problem);
    return 0;
}

int field_seed(struct params *p, const struct field *f, const json_t *value,
               struct problem *problem)
{
    if (!field_whole(value, &p->seed))
        return field_refuse(p, f, value, "must be a whole number of 64 bits", problem);
    p->seeded = true;
    return 0;
}

int field_model(struct params *p, const struct field *f, const json_t *value,
                struct problem *problem)
{
    char shown[64];

    if (!json_is_string(value))
        return field_refuse(p, f, value, "must be a string", problem);
    if (strcmp(json_string_value(value), p->context->model) != 0)
        return problem_set(problem, 404, "model_not_found", "model",
                           "model %s does not exist; this server has \"%.200s\"",
                           field_show(value, shown), p->context->model);
    return 0;
}

static int stop_add(struct params *p, const struct field *f, const json_t *value,
                    struct problem *problem)
{
    struct proto_generate *g = &p->generate;
    size_t len = json_string_length(value);

    if (!json_is_string(value))
        return field_refuse(p, f, value, "must be a string or a list of strings", problem);
    if (!len || len > LIMIT_STOP_BYTES)
        return field_refuse(p, f, value, "each must have 1 to 1024 bytes", problem);
    g->stops[g->stops_count].text.data = json_string_value(value);
    g->stops[g->stops_count++].text.len = len;
    return 0;
}

int field_stop(struct params *p, const struct field *f, const json_t *value,
               struct problem *problem)
{
    struct proto_generate *g = &p->generate;
    size_t count = json_is_array(value) ? json_array_size(value) : 1;

    if (count > LIMIT_STOPS)
        return field_refuse(p, f, value, "must be at most 16 strings", problem);
    free(g->stops);
    g->stops = mem_array(LIMIT_STOPS, sizeof *g->stops);
    g->stops_count = 0;
    if (!json_is_array(value))
        return stop_add(p, f, value, problem);
    for (size_t i = 0; i < count; i++)
        if (stop_add(p, f, json_array_get(value, i), problem))
            return -1;
    return 0;
}

/* A token id, against the width of the logits where it is known. */
static int token_id(struct params *p, const struct field *f, const json_t *value, uint32_t *out,
                    struct problem *problem)
{
    int64_t high = p->context->vocab_size ? (int64_t)p->context->vocab_size - 1 : INT32_MAX;
    int64_t id = 0;
    char must[96];

    (void)snprintf(must, sizeof must, "must be token ids from 0 to %lld", (long long)high);
    if (!field_whole(value, &id) || id < 0 || id > high)
        return field_refuse(p, f, value, must, problem);
    *out = (uint32_t)id;
    return 0;
}

int field_stop_ids(struct params *p, const struct field *f, const json_t *value,
                   struct problem *problem)
{
    struct proto_sampling *s = &p->generate.sampling;
    size_t count = json_array_size(value);

    if (!json_is_array(value) || count > LIMIT_STOP_IDS)
        return field_refuse(p, f, value, "must be a list of at most 128 token ids", problem);
    free(s->stop_token_ids);
    s->stop_token_ids = mem_array(count ? count : 1, sizeof *s->stop_token_ids);
    s->stop_token_ids_count = 0;
    for (size_t i = 0; i < count; i++) {
        if (token_id(p, f, json_array_get(value, i), &s->stop_token_ids[i], problem))
            return -1;
        s->stop_token_ids_count++;
    }
    return 0;
}

/* Reads a key of logit_bias: decimal digits of an id. */
static bool bias_id(const char *key, const struct params *p, uint32_t *out)
{
    uint64_t high = p->context->vocab_size ? p->context->vocab_size - 1 : INT32_MAX;
    unsigned long long id;
    char *end;

    if (key[0] < '0' || key[0] > '9')
        return false;
    errno = 0;
    id = strtoull(key, &end, 10);
    if (errno || *end || id > high)
        return false;
    *out = (uint32_t)id;
    return true;
}

int field_bias(struct params *p, const struct field *f, const json_t *value,
               struct problem *problem)
{
    struct proto_sampling *s = &p->generate.sampling;
    size_t count = json_object_size(value);
    json_t *object = (json_t *)(uintptr_t)value;

    if (!json_is_object(value) || count > LIMIT_BIASES)
        return field_refuse(p, f, value, "must be an object of at most 1024 entries", problem);
    free(s->logit_bias);
    s->logit_bias = mem_array(count ? count : 1, sizeof *s->logit_bias);
    s->logit_bias_count = 0;
    for (void *it = json_object_iter(object); it; it = json_object_iter_next(object, it)) {
        const json_t *bias = json_object_iter_value(it);
        struct proto_bias *out = &s->logit_bias[s->logit_bias_count];

        if (!bias_id(json_object_iter_key(it), p, &out->id))
            return problem_set(problem, 400, "invalid_value", f->name,
                               "%s has the key \"%.48s\": must be a token id of the vocabulary",
                               f->name, json_object_iter_key(it));
        out->value = json_number_value(bias);
        if (!json_is_number(bias) || !(out->value >= -100.0 && out->value <= 100.0))
            return field_refuse(p, f, bias, "each must be a number from -100 to 100", problem);
        s->logit_bias_count++;
    }
    return 0;
}

int field_kwargs(struct params *p, const struct field *f, const json_t *value,
                 struct problem *problem)
{
    if (!json_is_object(value))
        return field_refuse(p, f, value, "must be an object", problem);
    free(p->template_kwargs);
    p->template_kwargs = json_dumps(value, JSON_COMPACT);
    if (!p->template_kwargs || strlen(p->template_kwargs) > 65536)
        return field_refuse(p, f, value, "must have at most 65536 bytes", problem);
    p->generate.template_kwargs = proto_str(p->template_kwargs);
    return 0;
}

int field_members(struct params *p, const struct field *f, const json_t *value,
                  struct problem *problem)
{
    char prefix[64];
    int rc;

    if (!json_is_object(value))
        return field_refuse(p, f, value, "must be an object", problem);
    (void)snprintf(prefix, sizeof prefix, "%s.", f->name);
    rc = fields_apply(f->members, prefix, p, value, problem);
    p->prefix = "";
    return rc;
}

int field_stream_options(struct params *p, const struct field *f, const json_t *value,
                         struct problem *problem)
{
    static const struct field members[] = {
        FIELD_BOOL("include_usage", include_usage),
        FIELD_REFUSED("include_obfuscation", "[false]"),
        FIELD_REFUSED("continuous_usage_stats", "[false]"),
        {0},
    };
    struct field object = *f;

    object.members = members;
    p->stream_options = true;
    return field_members(p, &object, value, problem);
}

/* json_equal, but 1 and 1.0 are the same. */
static bool same_value(const json_t *a, const json_t *b)
{
    if (json_is_number(a) && json_is_number(b))
        return !(json_number_value(a) < json_number_value(b)) &&
               !(json_number_value(a) > json_number_value(b));
    return json_equal(a, b);
}

int field_refused(struct params *p, const struct field *f, const json_t *value,
                  struct problem *problem)
{
    json_t *noops = json_loads(f->noop, 0, NULL);
    bool fine = false;
    char name[128];

    for (size_t i = 0; i < json_array_size(noops) && !fine; i++)
        fine = same_value(value, json_array_get(noops, i));
    json_decref(noops);
    if (fine)
        return 0;
    (void)snprintf(name, sizeof name, "%s%s", p->prefix, f->name);
    return problem_set(problem, 400, "unsupported_field", name,
                       "field \"%s\" is not supported by this server", name);
}

/* A priority that nobody would mind is refused. */
int field_priority(struct params *p, const struct field *f, const json_t *value,
                   struct problem *problem)
{
    return p->context->priorities ? field_i64(p, f, value, problem)
                                  : field_refused(p, f, value, problem);
}

int field_max_tokens(struct params *p, const struct field *f, const json_t *value,
                     struct problem *problem)
{
    struct field row = *f;

    row.offset = FIELD_AT(max_tokens);
    row.low = 0;
    row.high = HIGH_max_tokens;
    if (field_i64(p, &row, value, problem))
        return -1;
    p->generate.prompt_only = p->max_tokens == 0;
    if (p->generate.prompt_only)
        p->max_tokens = 1;
    return 0;
}

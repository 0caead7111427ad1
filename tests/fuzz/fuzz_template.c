/* A template, and behind a NUL byte the JSON object of its variables (a chat when there is none).
 */
#include "services/tokenizer/template.h"
#include "services/tokenizer/tokenizer.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char chat[] =
    "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"<b> "
    "\\u00e9\\n\"},{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"function\":{"
    "\"name\":\"f\",\"arguments\":{\"a\":[1,2.5,true,null]}}}]}],\"tools\":[{\"type\":"
    "\"function\"}],\"add_generation_prompt\":true,\"bos_token\":\"<s>\",\"n\":3,\"l\":[3,1,2]}";

static json_t *shield(json_t *v)
{
    json_t *out, *item;
    const char *key;
    struct buf b = {0};
    size_t i;

    switch (json_typeof(v)) {
    case JSON_OBJECT:
        out = json_object();
        json_object_foreach(v, key, item) json_object_set_new_nocheck(out, key, shield(item));
        return out;
    case JSON_ARRAY:
        out = json_array();
        json_array_foreach(v, i, item) json_array_append_new(out, shield(item));
        return out;
    case JSON_STRING:
        for (i = 0; i < json_string_length(v); i++) {
            buf_putc(&b, json_string_value(v)[i]);
            if (i % 3 == 0)
                buf_putc(&b, TOKENIZER_SHIELD);
        }
        out = json_stringn_nocheck(b.data ? b.data : "", b.len);
        buf_fini(&b);
        return out;
    default:
        return json_incref(v);
    }
}

static void render(const struct template *t, json_t *vars, const struct template_limits *limits)
{
    struct buf out = {0};
    struct err err = {0};
    int rc = template_render(t, vars, 1721995511, limits, &out, &err);

    if (rc < 0 ? out.len != 0 || !err.code : out.len > limits->output)
        abort();
    buf_fini(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* Small, so that a hostile template costs the fuzzer little time. */
    const struct template_limits limits = {
        .fuel = 20000, .depth = 100, .range = 1000, .output = 65536, .time_us = 0};
    const char *source = (const char *)data;
    size_t len = strnlen(source, size);
    const char *vars_text = len + 1 < size ? source + len + 1 : chat;
    size_t vars_len = len + 1 < size ? size - len - 1 : sizeof chat - 1;
    struct template *t = NULL;
    struct err err = {0};
    json_t *vars = NULL, *shielded;

    if (json_parse(vars_text, vars_len, JSON_DEPTH_FILE, &vars, &err) != 0)
        vars = json_object();
    if (template_parse(source, len, &t, &err) == 0) {
        shielded = shield(vars);
        render(t, vars, &limits);
        render(t, shielded, &limits);
        json_decref(shielded);
    }
    template_free(&t);
    json_decref(vars);
    return 0;
}

/* Renders templates for tests/golden/test_template.py. A request on stdin is a line "MODE N M", N
 * bytes of template source and M bytes of JSON variables; the answer is "ok LEN" or "err LEN" and
 * LEN bytes. MODE "shield" puts TOKENIZER_SHIELD bytes into every string of the variables and takes
 * them out of the result: the text must be the same as without. */
#include "services/tokenizer/template.h"
#include "services/tokenizer/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NOW = 1721995511 }; /* 2024-07-26 12:05:11 UTC */

static json_t *shield_text(const char *text, size_t len)
{
    struct buf b = {0};
    json_t *out;

    for (size_t i = 0; i < len; i++) {
        buf_putc(&b, text[i]);
        if (strchr("<|/ e", text[i]) && text[i])
            buf_putc(&b, TOKENIZER_SHIELD);
    }
    out = json_stringn_nocheck(b.data ? b.data : "", b.len);
    buf_fini(&b);
    return out;
}

static json_t *shield(json_t *v)
{
    json_t *out, *item;
    const char *key;
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
        return shield_text(json_string_value(v), json_string_length(v));
    default:
        return json_incref(v);
    }
}

static void unshield(struct buf *b)
{
    size_t n = 0;

    for (size_t i = 0; i < b->len; i++) {
        if (b->data[i] != TOKENIZER_SHIELD)
            b->data[n++] = b->data[i];
    }
    b->len = n;
}

static char *read_bytes(size_t len)
{
    char *data = malloc(len + 1);

    if (!data || fread(data, 1, len, stdin) != len)
        exit(1);
    data[len] = '\0';
    return data;
}

static void answer(bool shielded, size_t source_len, size_t vars_len)
{
    char *source = read_bytes(source_len), *text = read_bytes(vars_len);
    struct template_limits limits = template_limits_default;
    struct template *t = NULL;
    struct buf out = {0};
    struct err err = {0};
    json_t *vars = NULL;
    int rc = json_parse(text, vars_len, 100, &vars, &err);

    limits.time_us = 0; /* what a test gives must not hang on the machine's speed */
    if (rc == 0 && shielded) {
        json_t *with = shield(vars);

        json_decref(vars);
        vars = with;
    }
    if (rc == 0)
        rc = template_parse(source, source_len, &t, &err);
    if (rc == 0)
        rc = template_render(t, vars, NOW, &limits, &out, &err);
    if (shielded)
        unshield(&out);
    if (rc < 0)
        printf("err %zu\n%s", strlen(err.msg), err.msg);
    else
        printf("ok %zu\n", out.len);
    if (rc == 0 && out.len)
        fwrite(out.data, 1, out.len, stdout);
    fflush(stdout);
    template_free(&t);
    json_decref(vars);
    buf_fini(&out);
    free(source);
    free(text);
}

int main(void)
{
    char line[128], mode[16];
    size_t source_len, vars_len;

    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "%15s %zu %zu", mode, &source_len, &vars_len) != 3)
            return 1;
        answer(strcmp(mode, "shield") == 0, source_len, vars_len);
    }
    return 0;
}

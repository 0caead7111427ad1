#include "services/tokenizer/template.h"

#include "common/mem.h"
#include "common/utf8.h"
#include "services/tokenizer/template/render.h"

#include <stdlib.h>

enum { SOURCE_MAX = 1024 * 1024 };

const struct template_limits template_limits_default = {
    .fuel = 10 * 1000 * 1000,
    .depth = 100,
    .range = 10 * 1000,
    .output = 8 * 1024 * 1024,
    .time_us = 50 * 1000,
};

int template_parse(const char *source, size_t len, struct template **out, struct err *err)
{
    struct template *t;
    struct token *tokens;
    int rc;

    *out = NULL;
    if (len > SOURCE_MAX)
        return err_set(err, ERR_LIMIT, "the chat template has %zu bytes, more than %d", len,
                       SOURCE_MAX);
    if (!utf8_valid(source, len))
        return err_set(err, ERR_INVALID, "the chat template is not UTF-8");
    t = mem_zalloc(sizeof *t);
    rc = lex_source(&t->arena, (struct text){source, len}, &tokens, err);
    if (rc == 0)
        rc = parse_tokens(&t->arena, tokens, &t->root, err);
    if (rc < 0) {
        err_prefix(err, "chat template");
        template_free(&t);
    }
    *out = t;
    return rc;
}

void template_free(struct template **self)
{
    if (!*self)
        return;
    arena_fini(&(*self)->arena);
    free(*self);
    *self = NULL;
}

static int vars_define(struct render *r, json_t *vars)
{
    const char *key;
    json_t *item;

    json_object_foreach(vars, key, item)
    {
        struct value v;
        int rc = value_from_json(r, item, &v);

        if (rc < 0)
            return rc;
        scope_set(r, r->root, text_of(key), v);
        rc = render_tick(r, r->root->count / 16);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int template_render(const struct template *t, json_t *vars, int64_t now,
                    const struct template_limits *limits, struct buf *out, struct err *err)
{
    struct sink sink = {0};
    struct scope globals = {0}, root = {.parent = &globals};
    struct render r = {.limits = limits, .err = err, .now = now, .out = &sink, .root = &root};
    int rc;

    render_start(&r);
    globals_define(&r, &globals);
    rc = vars_define(&r, vars);
    if (rc == 0)
        rc = exec_body(&r, &root, &t->root);
    if (rc == 0)
        buf_append(out, sink.data, sink.len);
    arena_fini(&r.arena);
    return rc;
}

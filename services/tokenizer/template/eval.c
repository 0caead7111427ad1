/* Expressions. */
#include "services/tokenizer/template/render.h"

#include <string.h>

enum { SPINE_MAX = 64 };

static int eval_name(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    for (; s; s = s->parent) {
        int rc = render_tick(r, s->count / 16);

        if (rc < 0)
            return rc;
        for (size_t i = 0; i < s->count; i++) {
            if (text_equal(s->bindings[i].name, n->name)) {
                *out = s->bindings[i].value;
                return 0;
            }
        }
    }
    *out = value_undefined(n->name);
    return 0;
}

static int eval_items(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct list *l = list_new(r);
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < n->count; i++) {
        struct value v;

        rc = eval(r, s, n->items[i], &v);
        if (rc == 0)
            list_push(r, l, v);
    }
    *out = value_list(n->kind == NODE_LIST ? VALUE_LIST : VALUE_TUPLE, l);
    return rc;
}

static int eval_dict(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct dict *d = dict_new(r);
    int rc = 0;

    for (size_t i = 0; rc == 0 && i + 1 < n->count; i += 2) {
        struct value key, v;

        rc = eval(r, s, n->items[i], &key);
        if (rc == 0)
            rc = eval(r, s, n->items[i + 1], &v);
        if (rc == 0)
            rc = dict_set(r, d, key, v);
    }
    *out = value_dict(VALUE_DICT, d);
    return rc;
}

static int eval_slice(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    const struct node *nodes[3] = {n->b, n->c, n->d};
    struct value subject, parts[3];
    int rc = eval(r, s, n->a, &subject);

    for (int i = 0; i < 3 && rc == 0; i++) {
        parts[i] = value_none();
        if (nodes[i])
            rc = eval(r, s, nodes[i], &parts[i]);
    }
    r->line = n->line;
    return rc < 0 ? rc : get_slice(r, &subject, parts, out);
}

int eval_args(struct render *r, struct scope *s, const struct call_args *n, struct args *out)
{
    struct list *positional = list_new(r);
    struct scope *keywords = scope_new(r, NULL);
    struct value v;
    int rc = 0;

    memset(out, 0, sizeof *out);
    for (size_t i = 0; n && rc == 0 && i < n->positional_count; i++) {
        rc = eval(r, s, n->positional[i], &v);
        list_push(r, positional, v);
    }
    if (n && rc == 0 && n->star) {
        struct list *more;

        rc = eval(r, s, n->star, &v);
        if (rc == 0)
            rc = value_to_list(r, &v, &more);
        for (size_t i = 0; rc == 0 && i < more->len; i++)
            list_push(r, positional, more->items[i]);
    }
    for (size_t i = 0; n && rc == 0 && i < n->keywords_count; i++) {
        rc = eval(r, s, n->keywords[i].value, &v);
        scope_set(r, keywords, n->keywords[i].name, v);
    }
    if (n && rc == 0 && n->star_star) {
        rc = eval(r, s, n->star_star, &v);
        if (rc == 0 && v.kind != VALUE_DICT)
            rc = render_fail(r, "argument after ** must be a mapping");
        for (size_t i = 0; rc == 0 && i < v.u.dict->len; i++) {
            rc = v.u.dict->entries[i].key.kind == VALUE_STRING
                     ? render_tick(r, 1 + keywords->count / 16)
                     : render_fail(r, "keywords must be strings");
            if (rc == 0)
                scope_set(r, keywords, v.u.dict->entries[i].key.u.text, v.u.dict->entries[i].value);
        }
    }
    *out = (struct args){positional->items, positional->len, keywords->bindings, keywords->count};
    return rc;
}

static int eval_call(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct value callee;
    struct args args;
    int rc = eval(r, s, n->a, &callee);

    if (rc == 0)
        rc = eval_args(r, s, n->args, &args);
    r->line = n->line;
    return rc < 0 ? rc : call_value(r, &callee, &args, out);
}

static int eval_filter(struct render *r, struct scope *s, const struct node *n,
                       const struct value *subject, struct value *out)
{
    struct args args;
    int rc = eval_args(r, s, n->args, &args);

    r->line = n->line;
    return rc < 0 ? rc : filter_call(r, n->name, subject, &args, out);
}

/* A chain of filters whose innermost one takes subject. */
int eval_filters(struct render *r, struct scope *s, const struct node *n,
                 const struct value *subject, struct value *out)
{
    struct value inner = *subject;
    int rc = render_enter(r);

    if (rc < 0)
        return rc;
    if (n->a)
        rc = eval_filters(r, s, n->a, subject, &inner);
    if (rc == 0)
        rc = eval_filter(r, s, n, &inner, out);
    render_leave(r);
    return rc;
}

static int eval_test(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct value subject;
    struct args args;
    bool result = false;
    int rc = eval(r, s, n->a, &subject);

    if (rc == 0)
        rc = eval_args(r, s, n->args, &args);
    r->line = n->line;
    if (rc == 0)
        rc = test_call(r, n->name, &subject, &args, &result);
    *out = value_bool(result);
    return rc;
}

static int eval_sign(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct value v;
    int64_t i;
    int rc = eval(r, s, n->a, &v);

    if (rc < 0)
        return rc;
    r->line = n->line;
    if (v.kind == VALUE_UNDEFINED)
        return render_undefined(r, &v);
    if (!value_number(&v))
        return render_fail(r, "bad operand type for unary %c: '%s'",
                           n->kind == NODE_NEG ? '-' : '+', value_type_name(&v));
    if (v.kind == VALUE_FLOAT) {
        *out = value_float(n->kind == NODE_NEG ? -v.u.number : v.u.number);
        return 0;
    }
    value_integral(&v, &i);
    if (n->kind == NODE_NEG && __builtin_sub_overflow(0, i, &i))
        return render_fail(r, "integer overflow");
    *out = value_int(i);
    return 0;
}

/* not, and, or, x if y else z. */
static int eval_logic(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    bool truth = false;
    int rc = eval(r, s, n->a, out);

    if (rc == 0)
        rc = value_truth(r, out, &truth);
    if (rc < 0)
        return rc;
    switch (n->kind) {
    case NODE_NOT:
        *out = value_bool(!truth);
        return 0;
    case NODE_AND:
        return truth ? eval(r, s, n->b, out) : 0;
    case NODE_OR:
        return truth ? 0 : eval(r, s, n->b, out);
    default:
        if (truth)
            return eval(r, s, n->b, out);
        *out = value_undefined((struct text){0});
        return n->c ? eval(r, s, n->c, out) : 0;
    }
}

/* Long chains of + lean to the left: walked in a loop, so that they cost no depth. */
static int eval_binary(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    const struct node *spine[SPINE_MAX];
    int count = 0, rc;

    for (; n->kind == NODE_BINARY && count < SPINE_MAX; n = n->a)
        spine[count++] = n;
    rc = eval(r, s, n, out);
    while (rc == 0 && count-- > 0) {
        struct value right, left = *out;

        rc = eval(r, s, spine[count]->b, &right);
        r->line = spine[count]->line;
        if (rc == 0)
            rc = binary(r, spine[count]->op, &left, &right, out);
    }
    return rc;
}

static int eval_concat(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct sink sink = {0};
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < n->count; i++) {
        struct value v;
        struct text t;

        rc = eval(r, s, n->items[i], &v);
        if (rc == 0)
            rc = value_str(r, &v, &t);
        if (rc == 0)
            rc = sink_put(r, &sink, t);
    }
    *out = value_text(sink_text(&sink));
    return rc;
}

static int compare_one(struct render *r, enum token_kind op, const struct value *a,
                       const struct value *b, bool *out)
{
    int order = 0, rc;

    if (op == TOKEN_EQ || op == TOKEN_NE) {
        rc = value_equal(r, a, b, out);
        *out = *out == (op == TOKEN_EQ);
        return rc;
    }
    if (op == TOKEN_IN || op == TOKEN_NOT_IN) {
        rc = value_contains(r, b, a, out);
        *out = *out == (op == TOKEN_IN);
        return rc;
    }
    rc = value_compare(r, a, b, token_name(op), &order);
    *out = op == TOKEN_LT   ? order < 0
           : op == TOKEN_LE ? order <= 0
           : op == TOKEN_GT ? order > 0 && order != 2
                            : order >= 0 && order != 2;
    return rc;
}

static int eval_compare(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct value left, right;
    bool result = true;
    int rc = eval(r, s, n->a, &left);

    for (size_t i = 0; rc == 0 && result && i < n->count; i++) {
        rc = eval(r, s, n->items[i], &right);
        r->line = n->line;
        if (rc == 0)
            rc = compare_one(r, n->ops[i], &left, &right, &result);
        left = right;
    }
    *out = value_bool(result);
    return rc;
}

static int eval_access(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct value subject, key;
    int rc = eval(r, s, n->a, &subject);

    if (rc < 0)
        return rc;
    if (n->kind == NODE_ATTR) {
        r->line = n->line;
        return get_attribute(r, &subject, n->name, out);
    }
    rc = eval(r, s, n->b, &key);
    r->line = n->line;
    return rc < 0 ? rc : get_item(r, &subject, &key, out);
}

static int eval_kind(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct value subject;
    int rc;

    switch (n->kind) {
    case NODE_LIST:
    case NODE_TUPLE:
        return eval_items(r, s, n, out);
    case NODE_DICT:
        return eval_dict(r, s, n, out);
    case NODE_ATTR:
    case NODE_ITEM:
        return eval_access(r, s, n, out);
    case NODE_SLICE:
        return eval_slice(r, s, n, out);
    case NODE_CALL:
        return eval_call(r, s, n, out);
    case NODE_FILTER:
        rc = eval(r, s, n->a, &subject);
        return rc < 0 ? rc : eval_filter(r, s, n, &subject, out);
    case NODE_TEST:
        return eval_test(r, s, n, out);
    case NODE_NEG:
    case NODE_POS:
        return eval_sign(r, s, n, out);
    case NODE_BINARY:
        return eval_binary(r, s, n, out);
    case NODE_CONCAT:
        return eval_concat(r, s, n, out);
    case NODE_COMPARE:
        return eval_compare(r, s, n, out);
    default:
        return eval_logic(r, s, n, out);
    }
}

int eval(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    int rc;

    *out = value_none();
    if (n->kind == NODE_CONST) {
        *out = n->constant;
        return render_tick(r, 1);
    }
    r->line = n->line;
    if (n->kind == NODE_NAME) {
        rc = eval_name(r, s, n, out);
        return rc < 0 ? rc : render_tick(r, 1);
    }
    rc = render_enter(r);
    if (rc < 0)
        return rc;
    rc = render_tick(r, 1);
    if (rc == 0)
        rc = eval_kind(r, s, n, out);
    render_leave(r);
    return rc;
}

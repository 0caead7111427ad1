/* Statements. */
#include "services/tokenizer/template/render.h"

#include <string.h>

static int exec(struct render *r, struct scope *s, const struct node *n);

int exec_body(struct render *r, struct scope *s, const struct body *body)
{
    int rc = render_enter(r);

    if (rc < 0)
        return rc;
    for (size_t i = 0; rc == 0 && i < body->count; i++) {
        rc = render_tick(r, 1);
        if (rc == 0)
            rc = exec(r, s, body->nodes[i]);
    }
    render_leave(r);
    return rc;
}

/* The output of a body as a string. */
int exec_capture(struct render *r, struct scope *s, const struct body *body, struct value *out)
{
    struct sink sink = {0}, *outer = r->out;
    int rc;

    r->out = &sink;
    rc = exec_body(r, s, body);
    r->out = outer;
    *out = value_text(sink_text(&sink));
    return rc;
}

static int print(struct render *r, const struct value *v)
{
    struct text t;
    int rc = value_str(r, v, &t);

    return rc < 0 ? rc : sink_put(r, r->out, t);
}

static int assign_attribute(struct render *r, struct scope *s, const struct node *target,
                            const struct value *v)
{
    struct value owner;
    int rc = eval(r, s, target->a, &owner);

    if (rc < 0)
        return rc;
    if (owner.kind != VALUE_NAMESPACE)
        return render_fail(r, "cannot assign attribute on non-namespace object");
    return dict_set(r, owner.u.dict, value_text(target->name), *v);
}

int exec_assign(struct render *r, struct scope *s, const struct node *target, const struct value *v)
{
    struct list *parts;
    int rc;

    if (target->kind == NODE_NAME) {
        scope_set(r, s, target->name, *v);
        return render_tick(r, s->count / 16);
    }
    if (target->kind == NODE_ATTR)
        return assign_attribute(r, s, target, v);
    rc = value_to_list(r, v, &parts);
    if (rc < 0)
        return rc;
    if (parts->len != target->count)
        return render_fail(r, "cannot unpack %zu values into %zu names", parts->len, target->count);
    for (size_t i = 0; rc == 0 && i < parts->len; i++)
        rc = exec_assign(r, s, target->items[i], &parts->items[i]);
    return rc;
}

static int exec_if(struct render *r, struct scope *s, const struct node *n)
{
    for (size_t i = 0; i < n->count; i++) {
        struct value v;
        bool truth = false;
        int rc = eval(r, s, n->items[i], &v);

        if (rc == 0)
            rc = value_truth(r, &v, &truth);
        if (rc < 0)
            return rc;
        if (truth)
            return exec_body(r, s, &n->bodies[i]);
    }
    return exec_body(r, s, &n->else_body);
}

static int exec_set(struct render *r, struct scope *s, const struct node *n)
{
    struct value v, filtered;
    int rc;

    if (n->kind == NODE_SET) {
        rc = eval(r, s, n->b, &v);
    } else {
        rc = exec_capture(r, scope_new(r, s), n->bodies, &v);
        if (rc == 0 && n->b) {
            rc = eval_filters(r, s, n->b, &v, &filtered);
            v = filtered;
        }
    }
    r->line = n->line;
    return rc != 0 ? rc : exec_assign(r, s, n->a, &v);
}

static struct value macro_new(struct render *r, struct scope *s, const struct node *n,
                              struct text name)
{
    struct macro *m = arena_alloc(&r->arena, sizeof *m);

    *m = (struct macro){name, n->params, n->bodies, s};
    return (struct value){.kind = VALUE_MACRO, .u.macro = m};
}

static int exec_call_block(struct render *r, struct scope *s, const struct node *n)
{
    struct value callee, result;
    struct args args;
    int rc = eval(r, s, n->a->a, &callee);

    if (rc == 0)
        rc = eval_args(r, s, n->a->args, &args);
    if (rc == 0) {
        size_t count = args.keywords_count;
        struct binding *keywords = arena_alloc(&r->arena, (count + 1) * sizeof *keywords);

        if (count)
            memcpy(keywords, args.keywords, count * sizeof *keywords);
        keywords[count] = (struct binding){TEXT("caller"), macro_new(r, s, n, TEXT("caller"))};
        args.keywords = keywords;
        args.keywords_count = count + 1;
        r->line = n->line;
        rc = call_value(r, &callee, &args, &result);
    }
    return rc < 0 ? rc : print(r, &result);
}

static int exec_filter_block(struct render *r, struct scope *s, const struct node *n)
{
    struct value v, filtered;
    int rc = exec_capture(r, scope_new(r, s), n->bodies, &v);

    if (rc == 0)
        rc = eval_filters(r, s, n->a, &v, &filtered);
    return rc != 0 ? rc : print(r, &filtered);
}

static int exec_with(struct render *r, struct scope *s, const struct node *n)
{
    struct scope *inner = scope_new(r, s);
    int rc = 0;

    for (size_t i = 0; rc == 0 && i + 1 < n->count; i += 2) {
        struct value v;

        rc = eval(r, s, n->items[i + 1], &v);
        if (rc == 0)
            rc = exec_assign(r, inner, n->items[i], &v);
    }
    return rc < 0 ? rc : exec_body(r, inner, n->bodies);
}

static int exec(struct render *r, struct scope *s, const struct node *n)
{
    struct value v;
    int rc;

    r->line = n->line;
    switch (n->kind) {
    case NODE_DATA:
        return sink_put(r, r->out, n->constant.u.text);
    case NODE_PRINT:
        rc = eval(r, s, n->a, &v);
        return rc < 0 ? rc : print(r, &v);
    case NODE_IF:
        return exec_if(r, s, n);
    case NODE_FOR:
        return exec_for(r, s, n);
    case NODE_SET:
    case NODE_SET_BLOCK:
        return exec_set(r, s, n);
    case NODE_MACRO:
        scope_set(r, s, n->name, macro_new(r, s, n, n->name));
        return 0;
    case NODE_CALL_BLOCK:
        return exec_call_block(r, s, n);
    case NODE_FILTER_BLOCK:
        return exec_filter_block(r, s, n);
    case NODE_WITH:
        return exec_with(r, s, n);
    case NODE_SCOPE:
        return exec_body(r, scope_new(r, s), n->bodies);
    default:
        return n->kind == NODE_BREAK ? FLOW_BREAK : FLOW_CONTINUE;
    }
}

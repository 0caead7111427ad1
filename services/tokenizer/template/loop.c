/* for loops and their loop variable. */
#include "services/tokenizer/template/render.h"

struct loop {
    const struct node *node;
    struct scope *scope; /* around the loop */
    struct iter source;
    struct list *taken; /* items that passed the loop's condition, as far as looked at */
    bool exhausted;
    size_t at; /* of the current item in taken */
    size_t depth;
    struct value changed; /* what loop.changed() saw last; VALUE_MISSING before */
};

/* Makes taken hold at least n items, fewer when there are no more. */
static int loop_fill(struct render *r, struct loop *loop, size_t n)
{
    while (!loop->exhausted && loop->taken->len < n) {
        const struct node *condition = loop->node->c;
        struct value item, v;
        bool pass = true;
        int rc = iter_next(r, &loop->source, &item);

        if (rc < 0)
            return rc;
        if (rc == 0) {
            loop->exhausted = true;
            break;
        }
        if (condition) {
            struct scope *s = scope_new(r, loop->scope);

            rc = exec_assign(r, s, loop->node->a, &item);
            if (rc == 0)
                rc = eval(r, s, condition, &v);
            if (rc == 0)
                rc = value_truth(r, &v, &pass);
            if (rc < 0)
                return rc;
        }
        if (pass)
            list_push(r, loop->taken, item);
    }
    return 0;
}

static int loop_run(struct render *r, struct scope *s, const struct node *n,
                    const struct value *iterable, size_t depth)
{
    struct loop *loop = arena_zalloc(&r->arena, sizeof *loop);
    int rc = iter_init(r, &loop->source, iterable);

    if (rc < 0)
        return rc;
    loop->node = n;
    loop->scope = s;
    loop->taken = list_new(r);
    loop->depth = depth;
    for (;; loop->at++) {
        struct scope *inner;

        rc = loop_fill(r, loop, loop->at + 1);
        if (rc < 0 || loop->at >= loop->taken->len)
            break;
        inner = scope_new(r, s);
        scope_set(r, inner, TEXT("loop"), (struct value){.kind = VALUE_LOOP, .u.loop = loop});
        rc = exec_assign(r, inner, n->a, &loop->taken->items[loop->at]);
        if (rc == 0)
            rc = exec_body(r, inner, n->bodies);
        if (rc < 0 || rc == FLOW_BREAK)
            break;
    }
    if (rc == 0 && loop->taken->len == 0)
        return exec_body(r, scope_new(r, s), &n->else_body);
    return rc < 0 ? rc : 0;
}

int exec_for(struct render *r, struct scope *s, const struct node *n)
{
    struct value iterable;
    int rc = eval(r, s, n->b, &iterable);

    r->line = n->line;
    return rc < 0 ? rc : loop_run(r, s, n, &iterable, 0);
}

static int loop_cycle(struct render *r, const struct value *self, struct bound *b,
                      struct value *out)
{
    if (b->args->positional_count == 0)
        return render_fail(r, "no items for cycling given");
    *out = b->args->positional[self->u.loop->at % b->args->positional_count];
    return 0;
}

static int loop_changed(struct render *r, const struct value *self, struct bound *b,
                        struct value *out)
{
    struct loop *loop = self->u.loop;
    struct list *l = list_new(r);
    struct value now;
    bool same = false;
    int rc = 0;

    for (size_t i = 0; i < b->args->positional_count; i++)
        list_push(r, l, b->args->positional[i]);
    now = value_list(VALUE_TUPLE, l);
    if (loop->changed.kind != VALUE_MISSING)
        rc = value_equal(r, &loop->changed, &now, &same);
    loop->changed = now;
    *out = value_bool(!same);
    return rc;
}

static int loop_method(struct render *r, struct loop *loop, const struct native *native,
                       struct value *out)
{
    struct function *f = arena_alloc(&r->arena, sizeof *f);

    *f = (struct function){native, {.kind = VALUE_LOOP, .u.loop = loop}};
    *out = (struct value){.kind = VALUE_FUNCTION, .u.function = f};
    return 0;
}

/* Attributes that have to look ahead. */
static int loop_ahead(struct render *r, struct loop *loop, struct text name, struct value *out)
{
    bool whole = text_is(name, "length") || text_is(name, "revindex") || text_is(name, "revindex0");
    int rc = loop_fill(r, loop, whole ? SIZE_MAX : loop->at + 2);
    int64_t len = (int64_t)loop->taken->len, at = (int64_t)loop->at;

    if (rc < 0)
        return rc;
    if (text_is(name, "last"))
        *out = value_bool(at + 1 >= len);
    else if (text_is(name, "length"))
        *out = value_int(len);
    else if (text_is(name, "revindex"))
        *out = value_int(len - at);
    else if (text_is(name, "revindex0"))
        *out = value_int(len - at - 1);
    else if (text_is(name, "nextitem") && at + 1 < len)
        *out = loop->taken->items[at + 1];
    return 0;
}

int loop_attribute(struct render *r, struct loop *loop, struct text name, struct value *out)
{
    static const struct native cycle = {"cycle", "*", loop_cycle};
    static const struct native changed = {"changed", "*", loop_changed};

    if (text_is(name, "index0"))
        *out = value_int((int64_t)loop->at);
    else if (text_is(name, "index"))
        *out = value_int((int64_t)loop->at + 1);
    else if (text_is(name, "first"))
        *out = value_bool(loop->at == 0);
    else if (text_is(name, "depth"))
        *out = value_int((int64_t)loop->depth + 1);
    else if (text_is(name, "depth0"))
        *out = value_int((int64_t)loop->depth);
    else if (text_is(name, "previtem") && loop->at > 0)
        *out = loop->taken->items[loop->at - 1];
    else if (text_is(name, "cycle"))
        return loop_method(r, loop, &cycle, out);
    else if (text_is(name, "changed"))
        return loop_method(r, loop, &changed, out);
    else
        return loop_ahead(r, loop, name, out);
    return 0;
}

/* loop(items): the same loop one level deeper, in a recursive for. */
int loop_call(struct render *r, struct loop *loop, const struct args *args, struct value *out)
{
    struct sink sink = {0}, *outer = r->out;
    int rc;

    if (!loop->node->recursive)
        return render_fail(r, "the loop is not recursive");
    if (args->positional_count != 1 || args->keywords_count)
        return render_fail(r, "a recursive loop takes one argument");
    r->calls++;
    rc = render_enter(r);
    if (rc < 0)
        return rc;
    r->out = &sink;
    rc = loop_run(r, loop->scope, loop->node, &args->positional[0], loop->depth + 1);
    r->out = outer;
    render_leave(r);
    r->calls--;
    *out = value_text(sink_text(&sink));
    return rc;
}

/* Calls: native functions with their arguments bound by name, and macros. */
#include "services/tokenizer/template/render.h"

#include <string.h>

/* The next word of a params string; false at its end. */
static bool next_param(const char **params, struct text *name, bool *required)
{
    const char *p = *params + strspn(*params, " ");

    *required = *p == '!';
    p += *required;
    *name = (struct text){p, strcspn(p, " ")};
    *params = p + name->len;
    return name->len > 0;
}

static int bind_keyword(struct render *r, const struct native *native, const struct binding *kw,
                        struct bound *b)
{
    const char *params = native->params;
    struct text name;
    bool required;

    for (size_t i = 0; next_param(&params, &name, &required); i++) {
        if (!text_equal(name, kw->name))
            continue;
        if (b->v[i].kind != VALUE_MISSING)
            return render_fail(r, "%s() got two values for '%.*s'", native->name, (int)name.len,
                               name.data);
        b->v[i] = kw->value;
        return 0;
    }
    return render_fail(r, "%s() has no argument '%.*s'", native->name,
                       (int)(kw->name.len > 64 ? 64 : kw->name.len), kw->name.data);
}

static int bind(struct render *r, const struct native *native, const struct args *args,
                struct bound *b)
{
    const char *params = native->params;
    struct text name;
    bool required;
    size_t count = 0;
    int rc = 0;

    while (next_param(&params, &name, &required))
        count++;
    if (args->positional_count > count)
        return render_fail(r, "%s() takes at most %zu arguments (%zu given)", native->name, count,
                           args->positional_count);
    for (size_t i = 0; i < args->positional_count; i++)
        b->v[i] = args->positional[i];
    for (size_t i = 0; rc == 0 && i < args->keywords_count; i++)
        rc = bind_keyword(r, native, &args->keywords[i], b);
    params = native->params;
    for (size_t i = 0; rc == 0 && next_param(&params, &name, &required); i++) {
        if (required && b->v[i].kind == VALUE_MISSING)
            rc = render_fail(r, "%s() misses its argument '%.*s'", native->name, (int)name.len,
                             name.data);
    }
    return rc;
}

int call_native(struct render *r, const struct native *native, const struct value *self,
                const struct args *args, struct value *out)
{
    struct bound b = {.args = args};
    int rc = render_enter(r);

    if (rc < 0)
        return rc;
    if (strcmp(native->params, "*") != 0)
        rc = bind(r, native, args, &b);
    if (rc == 0)
        rc = native->fn(r, self, &b, out);
    render_leave(r);
    return rc;
}

/* Takes a keyword out of what is left of them. */
static bool take_keyword(struct args *args, struct text name, struct value *out)
{
    for (size_t i = 0; i < args->keywords_count; i++) {
        if (!text_equal(args->keywords[i].name, name))
            continue;
        *out = args->keywords[i].value;
        args->keywords[i] = args->keywords[--args->keywords_count];
        return true;
    }
    return false;
}

static int macro_extra(struct render *r, const struct macro *m, struct scope *s, struct args *args)
{
    size_t count = m->params->count;
    struct value v = value_undefined(TEXT("caller"));
    int rc = 0;

    if (m->params->uses_caller) {
        take_keyword(args, TEXT("caller"), &v);
        scope_set(r, s, TEXT("caller"), v);
    }
    if (m->params->uses_kwargs) {
        struct dict *d = dict_new(r);

        for (size_t i = 0; rc == 0 && i < args->keywords_count; i++)
            rc = dict_set(r, d, value_text(args->keywords[i].name), args->keywords[i].value);
        scope_set(r, s, TEXT("kwargs"), value_dict(VALUE_DICT, d));
    } else if (args->keywords_count) {
        struct text name = args->keywords[0].name;

        return render_fail(r, "macro '%.*s' takes no keyword argument '%.*s'",
                           (int)(m->name.len > 64 ? 64 : m->name.len), m->name.data,
                           (int)(name.len > 64 ? 64 : name.len), name.data);
    }
    if (m->params->uses_varargs) {
        struct list *l = list_new(r);

        for (size_t i = count; i < args->positional_count; i++)
            list_push(r, l, args->positional[i]);
        scope_set(r, s, TEXT("varargs"), value_list(VALUE_TUPLE, l));
    } else if (args->positional_count > count) {
        return render_fail(r, "macro '%.*s' takes not more than %zu argument(s)",
                           (int)(m->name.len > 64 ? 64 : m->name.len), m->name.data, count);
    }
    return rc;
}

static int macro_call(struct render *r, const struct macro *m, struct args *args, struct value *out)
{
    struct scope *s = scope_new(r, m->scope);
    const struct params *params = m->params;
    int rc = 0;

    r->calls++;
    rc = render_enter(r);
    if (rc < 0)
        return rc;
    for (size_t i = 0; rc == 0 && i < params->count; i++) {
        struct value v = value_undefined(params->names[i]);

        if (i < args->positional_count)
            v = args->positional[i];
        else if (!take_keyword(args, params->names[i], &v) && params->defaults[i])
            rc = eval(r, s, params->defaults[i], &v);
        scope_set(r, s, params->names[i], v);
    }
    if (rc == 0)
        rc = macro_extra(r, m, s, args);
    if (rc == 0)
        rc = exec_capture(r, s, m->body, out);
    render_leave(r);
    r->calls--;
    return rc;
}

int call_value(struct render *r, const struct value *callee, struct args *args, struct value *out)
{
    switch (callee->kind) {
    case VALUE_FUNCTION:
        return call_native(r, callee->u.function->native, &callee->u.function->self, args, out);
    case VALUE_MACRO:
        return macro_call(r, callee->u.macro, args, out);
    case VALUE_LOOP:
        return loop_call(r, callee->u.loop, args, out);
    case VALUE_UNDEFINED:
        return render_undefined(r, callee);
    default:
        return render_fail(r, "'%s' object is not callable", value_type_name(callee));
    }
}

/* Attributes, items, slices and membership. */
#include "services/tokenizer/template/render.h"

#include <string.h>

static bool from_dict(const struct value *v, struct text name, struct value *out)
{
    struct value *found;

    if (v->kind != VALUE_DICT && v->kind != VALUE_NAMESPACE)
        return false;
    found = dict_get_text(v->u.dict, name);
    if (found)
        *out = *found;
    return found != NULL;
}

/* What getattr() of Python finds: methods, and the attributes of namespaces and loops. */
static int own_attribute(struct render *r, const struct value *v, struct text name,
                         struct value *out)
{
    const struct native *method = method_find(v, name);

    *out = value_undefined(name);
    if (v->kind == VALUE_LOOP)
        return loop_attribute(r, v->u.loop, name, out);
    if (v->kind == VALUE_MACRO && text_is(name, "name"))
        *out = value_text(v->u.macro->name);
    if (v->kind == VALUE_NAMESPACE)
        from_dict(v, name, out);
    if (method) {
        struct function *f = arena_alloc(&r->arena, sizeof *f);

        *f = (struct function){method, *v};
        *out = (struct value){.kind = VALUE_FUNCTION, .u.function = f};
    }
    return 0;
}

int get_attribute(struct render *r, const struct value *v, struct text name, struct value *out)
{
    int rc;

    if (v->kind == VALUE_UNDEFINED)
        return render_undefined(r, v);
    rc = own_attribute(r, v, name, out);
    if (rc < 0 || out->kind != VALUE_UNDEFINED)
        return rc;
    if (v->kind == VALUE_DICT) {
        from_dict(v, name, out);
        return render_tick(r, v->u.dict->len / 8);
    }
    return 0;
}

static bool index_of(const struct value *key, size_t len, size_t *at)
{
    int64_t i;

    if (!value_integral(key, &i))
        return false;
    if (i < 0)
        i += (int64_t)len;
    *at = (size_t)i;
    return i >= 0 && (size_t)i < len;
}

static int string_item(struct render *r, const struct value *v, const struct value *key,
                       struct value *out)
{
    struct text rest = v->u.text, unit;
    size_t at;
    uint32_t cp;
    int64_t i;
    int rc;

    if (!value_integral(key, &i))
        return 0;
    rc = render_tick(r, v->u.text.len / 32);
    if (rc < 0)
        return rc;
    if (!index_of(key, text_length(v->u.text), &at))
        return 0;
    rest = text_sub(rest, text_offset(rest, at), rest.len);
    if (text_next(&rest, &unit, &cp)) {
        *out = value_text(unit);
        out->markup = v->markup;
    }
    return 0;
}

int get_item(struct render *r, const struct value *v, const struct value *key, struct value *out)
{
    struct entry *e;
    size_t at;
    int rc = 0;

    *out = value_undefined(key->kind == VALUE_STRING ? key->u.text : (struct text){0});
    switch (v->kind) {
    case VALUE_UNDEFINED:
        return render_undefined(r, v);
    case VALUE_DICT:
        /* An unhashable key is a TypeError, which jinja2 turns into undefined. */
        if (key->kind != VALUE_LIST && key->kind != VALUE_DICT && key->kind != VALUE_TUPLE) {
            rc = dict_find(r, v->u.dict, key, &e);
            if (rc == 0 && e)
                *out = e->value;
        }
        break;
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
        if (index_of(key, v->u.list->len, &at))
            *out = v->u.list->items[at];
        break;
    case VALUE_STRING:
        rc = string_item(r, v, key, out);
        break;
    default:
        break;
    }
    if (rc == 0 && out->kind == VALUE_UNDEFINED && key->kind == VALUE_STRING)
        rc = own_attribute(r, v, key->u.text, out);
    return rc;
}

struct span {
    int64_t start, stop, step;
};

static int slice_part(struct render *r, const struct value *v, int64_t len, int64_t low,
                      int64_t high, int64_t fallback, int64_t *out)
{
    *out = fallback;
    if (v->kind == VALUE_NONE || v->kind == VALUE_MISSING)
        return 0;
    if (!value_integral(v, out))
        return render_fail(r, "slice indices must be integers or None");
    if (*out < 0)
        *out += len;
    if (*out < low)
        *out = low;
    if (*out > high)
        *out = high;
    return 0;
}

/* As slice.indices(len) of Python. */
static int span_of(struct render *r, const struct value parts[3], int64_t len, struct span *s)
{
    bool back;
    int rc;

    s->step = 1;
    if (parts[2].kind != VALUE_NONE && parts[2].kind != VALUE_MISSING &&
        !value_integral(&parts[2], &s->step))
        return render_fail(r, "slice indices must be integers or None");
    if (s->step == 0)
        return render_fail(r, "slice step cannot be zero");
    if (s->step < -INT64_MAX)
        s->step = -INT64_MAX;
    back = s->step < 0;
    rc = slice_part(r, &parts[0], len, back ? -1 : 0, back ? len - 1 : len, back ? len - 1 : 0,
                    &s->start);
    if (rc == 0)
        rc = slice_part(r, &parts[1], len, back ? -1 : 0, back ? len - 1 : len, back ? -1 : len,
                        &s->stop);
    return rc;
}

static size_t span_count(const struct span *s)
{
    if (s->step > 0 && s->stop > s->start)
        return (size_t)((s->stop - s->start - 1) / s->step + 1);
    if (s->step < 0 && s->stop < s->start)
        return (size_t)((s->start - s->stop - 1) / -s->step + 1);
    return 0;
}

/* Code points of t in steps, copied. */
static int text_pick(struct render *r, struct text t, size_t length, const struct span *s,
                     struct text *out)
{
    size_t count = span_count(s), *offsets, n = 0;
    struct text rest = t, unit;
    uint32_t cp;
    char *data;
    int rc = text_new(r, t.len, &data);

    if (rc == 0)
        rc = render_tick(r, length / 8);
    if (rc < 0)
        return rc;
    offsets = arena_alloc(&r->arena, (length + 1) * sizeof *offsets);
    for (size_t i = 0; i < length; i++) {
        offsets[i] = t.len - rest.len;
        text_next(&rest, &unit, &cp);
    }
    offsets[length] = t.len;
    for (size_t i = 0; i < count; i++) {
        size_t at = (size_t)(s->start + (int64_t)i * s->step);
        struct text piece = text_sub(t, offsets[at], offsets[at + 1]);

        memcpy(data + n, piece.data, piece.len);
        n += piece.len;
    }
    *out = (struct text){data, n};
    return 0;
}

static int slice_text(struct render *r, const struct value *v, const struct value parts[3],
                      struct value *out)
{
    struct text t = v->u.text;
    size_t length = text_length(t);
    struct span s;
    int rc = render_tick(r, t.len / 32);

    if (rc == 0)
        rc = span_of(r, parts, (int64_t)length, &s);
    if (rc < 0)
        return rc;
    if (s.step == 1) {
        size_t from = text_offset(t, (size_t)s.start);
        size_t to = s.stop > s.start ? text_offset(t, (size_t)s.stop) : from;

        *out = value_text(text_sub(t, from, to));
    } else {
        *out = value_text((struct text){0});
        rc = text_pick(r, t, length, &s, &out->u.text);
    }
    out->markup = v->markup;
    return rc;
}

int get_slice(struct render *r, const struct value *v, const struct value parts[3],
              struct value *out)
{
    struct list *l;
    struct span s;
    size_t count;
    int rc;

    if (v->kind == VALUE_UNDEFINED)
        return render_undefined(r, v);
    if (v->kind == VALUE_STRING)
        return slice_text(r, v, parts, out);
    if (v->kind != VALUE_LIST && v->kind != VALUE_TUPLE && v->kind != VALUE_RANGE)
        return render_fail(r, "'%s' object cannot be sliced", value_type_name(v));
    rc = span_of(r, parts, (int64_t)v->u.list->len, &s);
    if (rc < 0)
        return rc;
    count = span_count(&s);
    rc = render_tick(r, count);
    if (rc < 0)
        return rc;
    l = list_new(r);
    for (size_t i = 0; i < count; i++)
        list_push(r, l, v->u.list->items[(size_t)(s.start + (int64_t)i * s.step)]);
    if (v->kind == VALUE_RANGE) {
        l->start = v->u.list->start + s.start * v->u.list->step;
        l->stop = v->u.list->start + s.stop * v->u.list->step;
        if (__builtin_mul_overflow(v->u.list->step, s.step, &l->step))
            return render_fail(r, "integer overflow");
    }
    *out = value_list(v->kind, l);
    return 0;
}

int value_contains(struct render *r, const struct value *container, const struct value *item,
                   bool *out)
{
    struct text_finder finder;
    struct iter it;
    struct value member;
    struct entry *e;
    size_t start, end;
    int rc;

    *out = false;
    if (container->kind == VALUE_STRING) {
        if (item->kind != VALUE_STRING)
            return render_fail(r, "'in <string>' requires string as left operand, not %s",
                               value_type_name(item));
        rc = render_tick(r, container->u.text.len / 64);
        text_finder_init(&finder, &r->arena, container->u.text, item->u.text);
        *out = finder.needle.len == 0 || text_find(&finder, &start, &end);
        return rc;
    }
    if (container->kind == VALUE_DICT) {
        rc = dict_find(r, container->u.dict, item, &e);
        *out = rc == 0 && e;
        return rc;
    }
    rc = iter_init(r, &it, container);
    while (rc >= 0 && !*out && (rc = iter_next(r, &it, &member)) > 0)
        rc = value_equal(r, item, &member, out);
    return rc < 0 ? rc : 0;
}

/* Equality and order of values. */
#include "services/tokenizer/template/render.h"

#include <math.h>

static int number_compare(const struct value *a, const struct value *b, int *out)
{
    int64_t i, j;

    if (value_integral(a, &i) && value_integral(b, &j)) {
        *out = (i > j) - (i < j);
        return 0;
    }
    /* int with float: long double of this platform holds both exactly. */
    long double x = value_integral(a, &i) ? (long double)i : (long double)a->u.number;
    long double y = value_integral(b, &j) ? (long double)j : (long double)b->u.number;

    *out = (x > y) - (x < y);
    return isnan(x) || isnan(y) ? 1 : 0;
}

static int items_equal(struct render *r, const struct list *a, const struct list *b, bool *out)
{
    int rc = 0;

    *out = a->len == b->len;
    for (size_t i = 0; rc == 0 && *out && i < a->len; i++)
        rc = value_equal(r, &a->items[i], &b->items[i], out);
    return rc;
}

static int dicts_equal(struct render *r, const struct dict *a, const struct dict *b, bool *out)
{
    int rc = 0;

    *out = a->len == b->len;
    for (size_t i = 0; rc == 0 && *out && i < a->len; i++) {
        struct entry *e;

        rc = dict_find(r, b, &a->entries[i].key, &e);
        if (rc == 0 && !e)
            *out = false;
        else if (rc == 0)
            rc = value_equal(r, &a->entries[i].value, &e->value, out);
    }
    return rc;
}

static int same_kind_equal(struct render *r, const struct value *a, const struct value *b,
                           bool *out)
{
    *out = false;
    switch (a->kind) {
    case VALUE_UNDEFINED:
    case VALUE_NONE:
        *out = true;
        return 0;
    case VALUE_STRING:
        *out = text_equal(a->u.text, b->u.text);
        return render_tick(r, a->u.text.len / 64);
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
        return items_equal(r, a->u.list, b->u.list, out);
    case VALUE_DICT:
        return dicts_equal(r, a->u.dict, b->u.dict, out);
    case VALUE_VIEW:
    case VALUE_ITERATOR:
        *out = a->u.list == b->u.list;
        return 0;
    case VALUE_FUNCTION:
        *out = a->u.function->native == b->u.function->native;
        return 0;
    default:
        *out = a->u.dict == b->u.dict;
        return 0;
    }
}

int value_equal(struct render *r, const struct value *a, const struct value *b, bool *out)
{
    int order, rc = render_tick(r, 1);

    *out = false;
    if (rc < 0)
        return rc;
    if (value_number(a) && value_number(b)) {
        *out = number_compare(a, b, &order) == 0 && order == 0;
        return 0;
    }
    if (a->kind != b->kind)
        return 0;
    rc = render_enter(r);
    if (rc < 0)
        return rc;
    rc = same_kind_equal(r, a, b, out);
    render_leave(r);
    return rc;
}

static int lists_compare(struct render *r, const struct list *a, const struct list *b,
                         const char *op, int *out)
{
    size_t n = a->len < b->len ? a->len : b->len;

    for (size_t i = 0; i < n; i++) {
        bool equal;
        int rc = value_equal(r, &a->items[i], &b->items[i], &equal);

        if (rc < 0)
            return rc;
        if (!equal)
            return value_compare(r, &a->items[i], &b->items[i], op, out);
    }
    *out = (a->len > b->len) - (a->len < b->len);
    return 0;
}

int value_compare(struct render *r, const struct value *a, const struct value *b, const char *op,
                  int *out)
{
    int rc = render_tick(r, 1);

    if (rc < 0)
        return rc;
    if (value_number(a) && value_number(b)) {
        /* NaN has no order: every comparison is false, which 2 stands for. */
        if (number_compare(a, b, out) != 0)
            *out = 2;
        return 0;
    }
    if (a->kind == VALUE_UNDEFINED || b->kind == VALUE_UNDEFINED)
        return render_undefined(r, a->kind == VALUE_UNDEFINED ? a : b);
    if (a->kind == b->kind && a->kind == VALUE_STRING) {
        *out = text_compare(a->u.text, b->u.text);
        return render_tick(r, a->u.text.len / 64);
    }
    if (a->kind == b->kind && (a->kind == VALUE_LIST || a->kind == VALUE_TUPLE)) {
        rc = render_enter(r);
        if (rc < 0)
            return rc;
        rc = lists_compare(r, a->u.list, b->u.list, op, out);
        render_leave(r);
        return rc;
    }
    return render_fail(r, "'%s' not supported between instances of '%s' and '%s'", op,
                       value_type_name(a), value_type_name(b));
}

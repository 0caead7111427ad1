/* Binary operators. */
#include "services/tokenizer/template/render.h"

#include <math.h>
#include <string.h>

static const char *spelling(enum token_kind op)
{
    return op == TOKEN_POW ? "** or pow()" : token_name(op);
}

static int unsupported(struct render *r, enum token_kind op, const struct value *a,
                       const struct value *b)
{
    if (a->kind == VALUE_UNDEFINED || b->kind == VALUE_UNDEFINED)
        return render_undefined(r, a->kind == VALUE_UNDEFINED ? a : b);
    return render_fail(r, "unsupported operand types for %s: '%s' and '%s'", spelling(op),
                       value_type_name(a), value_type_name(b));
}

static int int_floordiv(int64_t a, int64_t b, int64_t *out)
{
    if (b == -1)
        return __builtin_sub_overflow(0, a, out) ? -1 : 0;
    *out = a / b - ((a % b != 0) && ((a < 0) != (b < 0)));
    return 0;
}

static int int_pow(int64_t a, int64_t b, int64_t *out)
{
    int64_t result = 1;

    while (b > 0) {
        if ((b & 1) && __builtin_mul_overflow(result, a, &result))
            return -1;
        b >>= 1;
        if (b && __builtin_mul_overflow(a, a, &a))
            return -1;
    }
    *out = result;
    return 0;
}

static int ints(struct render *r, enum token_kind op, int64_t a, int64_t b, struct value *out)
{
    int64_t result = 0;
    int overflow = 0;

    if (b == 0 && (op == TOKEN_DIV || op == TOKEN_FLOORDIV || op == TOKEN_MOD))
        return render_fail(r, "division by zero");
    if (b < 0 && op == TOKEN_POW) {
        if (a == 0)
            return render_fail(r, "0 cannot be raised to a negative power");
        *out = value_float(pow((double)a, (double)b));
        return 0;
    }
    switch (op) {
    case TOKEN_ADD:
        overflow = __builtin_add_overflow(a, b, &result);
        break;
    case TOKEN_SUB:
        overflow = __builtin_sub_overflow(a, b, &result);
        break;
    case TOKEN_MUL:
        overflow = __builtin_mul_overflow(a, b, &result);
        break;
    case TOKEN_DIV:
        *out = value_float((double)((long double)a / (long double)b));
        return 0;
    case TOKEN_FLOORDIV:
        overflow = int_floordiv(a, b, &result);
        break;
    case TOKEN_MOD:
        result = b == -1 ? 0 : a % b;
        if (result != 0 && (result < 0) != (b < 0))
            result += b;
        break;
    default:
        overflow = int_pow(a, b, &result);
        break;
    }
    if (overflow)
        return render_fail(r, "integer overflow");
    *out = value_int(result);
    return 0;
}

static double float_mod(double a, double b)
{
    double m = fmod(a, b);

    if (m != 0)
        return (m < 0) != (b < 0) ? m + b : m;
    return copysign(0.0, b);
}

static double float_floordiv(double a, double b)
{
    double m = fmod(a, b), d = (a - m) / b;

    if (m != 0 && (m < 0) != (b < 0))
        d -= 1;
    if (d == 0)
        return copysign(0.0, a / b);
    return d - floor(d) > 0.5 ? floor(d) + 1 : floor(d);
}

static int floats(struct render *r, enum token_kind op, double a, double b, struct value *out)
{
    double result;

    if (b == 0 && (op == TOKEN_DIV || op == TOKEN_FLOORDIV || op == TOKEN_MOD))
        return render_fail(r, "float division by zero");
    switch (op) {
    case TOKEN_ADD:
        result = a + b;
        break;
    case TOKEN_SUB:
        result = a - b;
        break;
    case TOKEN_MUL:
        result = a * b;
        break;
    case TOKEN_DIV:
        result = a / b;
        break;
    case TOKEN_FLOORDIV:
        result = float_floordiv(a, b);
        break;
    case TOKEN_MOD:
        result = float_mod(a, b);
        break;
    default:
        result = pow(a, b);
        if ((a == 0 && b < 0) || (isfinite(a) && isfinite(b) && !isfinite(result)))
            return render_fail(r, "no number is the result of this power");
        break;
    }
    *out = value_float(result);
    return 0;
}

static int numbers(struct render *r, enum token_kind op, const struct value *a,
                   const struct value *b, struct value *out)
{
    int64_t i = 0, j = 0;
    bool whole_a = value_integral(a, &i), whole_b = value_integral(b, &j);

    if (whole_a && whole_b)
        return ints(r, op, i, j, out);
    return floats(r, op, whole_a ? (double)i : a->u.number, whole_b ? (double)j : b->u.number, out);
}

static int strings_add(struct render *r, const struct value *a, const struct value *b,
                       struct value *out)
{
    struct text x = a->u.text, y = b->u.text;
    char *data;
    int rc = 0;

    /* As markupsafe does: text beside markup is escaped. */
    if (a->markup && !b->markup)
        rc = text_escape(r, y, &y);
    else if (b->markup && !a->markup)
        rc = text_escape(r, x, &x);
    if (rc == 0)
        rc = text_new(r, x.len + y.len, &data);
    if (rc < 0)
        return rc;
    if (x.len)
        memcpy(data, x.data, x.len);
    if (y.len)
        memcpy(data + x.len, y.data, y.len);
    *out = value_text((struct text){data, x.len + y.len});
    out->markup = a->markup || b->markup;
    return 0;
}

static int lists_add(struct render *r, const struct value *a, const struct value *b,
                     struct value *out)
{
    struct list *l = list_new(r);
    int rc = render_tick(r, a->u.list->len + b->u.list->len);

    if (rc < 0)
        return rc;
    for (size_t i = 0; i < a->u.list->len; i++)
        list_push(r, l, a->u.list->items[i]);
    for (size_t i = 0; i < b->u.list->len; i++)
        list_push(r, l, b->u.list->items[i]);
    *out = value_list(a->kind, l);
    return 0;
}

static int string_repeat(struct render *r, struct text t, size_t times, struct value *out)
{
    char *data;
    int rc;

    if (t.len && times > r->limits->output / t.len)
        times = r->limits->output / t.len + 1;
    rc = text_new(r, t.len * times, &data);
    if (rc < 0)
        return rc;
    for (size_t i = 0; t.len && i < times; i++)
        memcpy(data + i * t.len, t.data, t.len);
    *out = value_text((struct text){data, t.len * times});
    return 0;
}

/* A sequence times an integer, in either order. */
static int repeat(struct render *r, const struct value *v, int64_t times, struct value *out)
{
    size_t n = times > 0 ? (size_t)times : 0;
    struct list *l;

    if (v->kind == VALUE_STRING) {
        int rc = string_repeat(r, v->u.text, n, out);

        out->markup = v->markup;
        return rc;
    }
    l = list_new(r);
    for (size_t k = 0; v->u.list->len && k < n; k++) {
        int rc = render_tick(r, v->u.list->len);

        if (rc < 0)
            return rc;
        for (size_t i = 0; i < v->u.list->len; i++)
            list_push(r, l, v->u.list->items[i]);
    }
    *out = value_list(v->kind, l);
    return 0;
}

static bool repeatable(const struct value *v)
{
    return v->kind == VALUE_STRING || v->kind == VALUE_LIST || v->kind == VALUE_TUPLE;
}

/* "%s and %s" % (a, b) */
static int percent(struct render *r, const struct value *a, const struct value *b,
                   struct value *out)
{
    struct value operand = *b;
    struct args args = {.positional = &operand, .positional_count = 1};

    if (b->kind == VALUE_TUPLE) {
        args.positional = b->u.list->items;
        args.positional_count = b->u.list->len;
    }
    return format_percent(r, a->u.text, &args, b->kind == VALUE_TUPLE, out);
}

int binary(struct render *r, enum token_kind op, const struct value *a, const struct value *b,
           struct value *out)
{
    int64_t times;

    if (value_number(a) && value_number(b))
        return numbers(r, op, a, b, out);
    if (op == TOKEN_ADD && a->kind == b->kind) {
        if (a->kind == VALUE_STRING)
            return strings_add(r, a, b, out);
        if (a->kind == VALUE_LIST || a->kind == VALUE_TUPLE)
            return lists_add(r, a, b, out);
    }
    if (op == TOKEN_MUL && repeatable(a) && value_integral(b, &times))
        return repeat(r, a, times, out);
    if (op == TOKEN_MUL && repeatable(b) && value_integral(a, &times))
        return repeat(r, b, times, out);
    if (op == TOKEN_MOD && a->kind == VALUE_STRING)
        return percent(r, a, b, out);
    return unsupported(r, op, a, b);
}

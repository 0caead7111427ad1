/* Values as Python prints them. */
#include "services/tokenizer/template/render.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* The shortest digits that read back as d, and the exponent of the first one. */
static int float_digits(double d, char digits[24], int *exponent)
{
    char buffer[40];
    int n = 0;
    const char *p = buffer;

    for (int precision = 0; precision <= 16; precision++) {
        snprintf(buffer, sizeof buffer, "%.*e", precision, d);
        if (strtod(buffer, NULL) == d)
            break;
    }
    for (; *p && *p != 'e'; p++) {
        if (*p >= '0' && *p <= '9')
            digits[n++] = *p;
    }
    digits[n] = '\0';
    *exponent = *p == 'e' ? (int)strtol(p + 1, NULL, 10) : 0;
    return n;
}

size_t float_repr(double d, char out[40])
{
    char digits[24], *p = out;
    int exponent, n;

    if (isnan(d) || isinf(d))
        return (size_t)snprintf(out, 40, "%s", isnan(d) ? "nan" : d < 0 ? "-inf" : "inf");
    if (signbit(d))
        *p++ = '-';
    n = float_digits(fabs(d), digits, &exponent);
    if (exponent < -4 || exponent >= 16) {
        p += snprintf(p, 30, "%c%s%s", digits[0], n > 1 ? "." : "", digits + 1);
        p += snprintf(p, 8, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
        return (size_t)(p - out);
    }
    if (exponent < 0) {
        p += snprintf(p, 30, "0.%.*s%s", -exponent - 1, "000", digits);
        return (size_t)(p - out);
    }
    for (int i = 0; i <= exponent; i++)
        *p++ = i < n ? digits[i] : '0';
    p += snprintf(p, 24, ".%s", n > exponent + 1 ? digits + exponent + 1 : "0");
    return (size_t)(p - out);
}

static bool printable(uint32_t cp)
{
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return false;
    case UTF8PROC_CATEGORY_ZS:
        return cp == ' ';
    default:
        return true;
    }
}

/* The escape of cp in a literal, or "" when it stands for itself. */
static void escape_of(uint32_t cp, char quote, char out[12])
{
    out[0] = '\0';
    if (cp == '\n' || cp == '\r' || cp == '\t')
        snprintf(out, 12, "\\%c", cp == '\n' ? 'n' : cp == '\r' ? 'r' : 't');
    else if (cp == '\\' || cp == (uint32_t)quote)
        snprintf(out, 12, "\\%c", (char)cp);
    else if (cp >= 0x20 && cp < 0x7f)
        return;
    else if (!printable(cp))
        snprintf(out, 12, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
}

static int text_repr(struct render *r, struct sink *s, struct text t)
{
    bool single = t.len && memchr(t.data, '\'', t.len);
    bool twofold = t.len && memchr(t.data, '"', t.len);
    char quote = single && !twofold ? '"' : '\'', escape[12];
    struct text rest = t, unit;
    uint32_t cp;
    int rc = sink_put(r, s, (struct text){&quote, 1});

    while (rc == 0 && text_next(&rest, &unit, &cp)) {
        escape_of(cp, quote, escape);
        rc = escape[0] ? sink_puts(r, s, escape) : sink_put(r, s, unit);
        if (rc == 0)
            rc = render_tick(r, 1);
    }
    return rc < 0 ? rc : sink_put(r, s, (struct text){&quote, 1});
}

static int items_repr(struct render *r, struct sink *s, const struct list *l, const char *open,
                      const char *close)
{
    int rc = sink_puts(r, s, open);

    for (size_t i = 0; rc == 0 && i < l->len; i++) {
        if (i)
            rc = sink_puts(r, s, ", ");
        if (rc == 0)
            rc = value_repr(r, s, &l->items[i]);
    }
    return rc < 0 ? rc : sink_puts(r, s, close);
}

static int dict_repr(struct render *r, struct sink *s, const struct dict *d, const char *open,
                     const char *close)
{
    int rc = sink_puts(r, s, open);

    for (size_t i = 0; rc == 0 && i < d->len; i++) {
        if (i)
            rc = sink_puts(r, s, ", ");
        if (rc == 0)
            rc = value_repr(r, s, &d->entries[i].key);
        if (rc == 0)
            rc = sink_puts(r, s, ": ");
        if (rc == 0)
            rc = value_repr(r, s, &d->entries[i].value);
    }
    return rc < 0 ? rc : sink_puts(r, s, close);
}

static int range_repr(struct render *r, struct sink *s, const struct list *l)
{
    char out[96];

    if (l->step == 1)
        snprintf(out, sizeof out, "range(%" PRId64 ", %" PRId64 ")", l->start, l->stop);
    else
        snprintf(out, sizeof out, "range(%" PRId64 ", %" PRId64 ", %" PRId64 ")", l->start, l->stop,
                 l->step);
    return sink_puts(r, s, out);
}

static int container_repr(struct render *r, struct sink *s, const struct value *v)
{
    char open[40];

    switch (v->kind) {
    case VALUE_LIST:
        return items_repr(r, s, v->u.list, "[", "]");
    case VALUE_TUPLE:
        return items_repr(r, s, v->u.list, "(", v->u.list->len == 1 ? ",)" : ")");
    case VALUE_VIEW:
        snprintf(open, sizeof open, "%s([", v->u.list->view);
        return items_repr(r, s, v->u.list, open, "])");
    case VALUE_DICT:
        return dict_repr(r, s, v->u.dict, "{", "}");
    default:
        return dict_repr(r, s, v->u.dict, "<Namespace {", "}>");
    }
}

static int scalar_repr(struct render *r, struct sink *s, const struct value *v)
{
    char out[64];

    switch (v->kind) {
    case VALUE_NONE:
        return sink_puts(r, s, "None");
    case VALUE_BOOL:
        return sink_puts(r, s, v->u.boolean ? "True" : "False");
    case VALUE_INT:
        snprintf(out, sizeof out, "%" PRId64, v->u.integer);
        return sink_puts(r, s, out);
    case VALUE_FLOAT:
        return sink_put(r, s, (struct text){out, float_repr(v->u.number, out)});
    case VALUE_RANGE:
        return range_repr(r, s, v->u.list);
    case VALUE_FUNCTION:
        snprintf(out, sizeof out, "<function %.40s>", v->u.function->native->name);
        return sink_puts(r, s, out);
    default:
        snprintf(out, sizeof out, v->kind == VALUE_UNDEFINED ? "%s" : "<%s object>",
                 value_type_name(v));
        return sink_puts(r, s, out);
    }
}

int value_repr(struct render *r, struct sink *s, const struct value *v)
{
    int rc = render_enter(r);

    if (rc < 0)
        return rc;
    rc = render_tick(r, 1);
    if (rc == 0 && v->kind == VALUE_STRING) {
        if (v->markup)
            rc = sink_puts(r, s, "Markup(");
        if (rc == 0)
            rc = text_repr(r, s, v->u.text);
        if (rc == 0 && v->markup)
            rc = sink_puts(r, s, ")");
    } else if (rc == 0 &&
               (v->kind == VALUE_LIST || v->kind == VALUE_TUPLE || v->kind == VALUE_VIEW ||
                v->kind == VALUE_DICT || v->kind == VALUE_NAMESPACE)) {
        rc = container_repr(r, s, v);
    } else if (rc == 0) {
        rc = scalar_repr(r, s, v);
    }
    render_leave(r);
    return rc;
}

int value_str(struct render *r, const struct value *v, struct text *out)
{
    struct sink s = {0};
    int rc;

    *out = (struct text){"", 0};
    if (v->kind == VALUE_UNDEFINED || v->kind == VALUE_MISSING)
        return 0;
    if (v->kind == VALUE_STRING) {
        *out = v->u.text;
        return 0;
    }
    rc = value_repr(r, &s, v);
    *out = sink_text(&s);
    return rc;
}

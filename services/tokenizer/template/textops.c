/* Work on text that filters and methods share. */
#include "services/tokenizer/template/filters.h"

#include "common/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

int argument_text(struct render *r, const struct value *v, const char *what, struct text *out)
{
    if (v->kind == VALUE_UNDEFINED)
        return render_undefined(r, v);
    if (v->kind != VALUE_STRING)
        return render_fail(r, "%s must be a string, not '%s'", what, value_type_name(v));
    *out = v->u.text;
    return 0;
}

int argument_int(struct render *r, const struct value *v, const char *what, int64_t *out)
{
    if (v->kind == VALUE_UNDEFINED)
        return render_undefined(r, v);
    if (!value_integral(v, out))
        return render_fail(r, "%s must be an integer, not '%s'", what, value_type_name(v));
    return 0;
}

/* Upper-case forms of more than one letter that templates' texts may hold. */
static const struct special_case {
    uint32_t cp;
    const char *upper;
} special_upper[] = {
    {0xdf, "SS"},   {0x149, "\xca\xbcN"}, {0x1f0, "J\xcc\x8c"}, {0xfb00, "FF"}, {0xfb01, "FI"},
    {0xfb02, "FL"}, {0xfb03, "FFI"},      {0xfb04, "FFL"},      {0xfb05, "ST"}, {0xfb06, "ST"},
};

static int put_cp(struct render *r, struct sink *s, uint32_t cp)
{
    char bytes[4];
    int n = utf8_encode(cp, bytes);

    return sink_put(r, s, (struct text){bytes, (size_t)n});
}

static int put_upper(struct render *r, struct sink *s, uint32_t cp)
{
    for (size_t i = 0; i < sizeof special_upper / sizeof *special_upper; i++) {
        if (special_upper[i].cp == cp)
            return sink_puts(r, s, special_upper[i].upper);
    }
    return put_cp(r, s, (uint32_t)utf8proc_toupper((utf8proc_int32_t)cp));
}

static bool is_letter(uint32_t cp)
{
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);

    return c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
}

/* A capital sigma at the end of a word has a lower-case form of its own. */
static int put_lower(struct render *r, struct sink *s, uint32_t cp, bool after_letter,
                     struct text rest)
{
    struct text unit;
    uint32_t next;

    if (cp == 0x130)
        return sink_puts(r, s, "i\xcc\x87");
    if (cp == 0x3a3 && after_letter && !(text_next(&rest, &unit, &next) && is_letter(next)))
        return put_cp(r, s, 0x3c2);
    return put_cp(r, s, (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp));
}

int text_recase(struct render *r, struct text t, enum text_case how, struct text *out)
{
    struct sink s = {0};
    struct text rest = t, unit;
    uint32_t cp;
    bool after_letter = false, first = true;
    int rc = 0;

    while (rc == 0 && text_next(&rest, &unit, &cp)) {
        bool upper = how == CASE_UPPER || (how == CASE_CAPITALIZE && first) ||
                     (how == CASE_TITLE && !after_letter) ||
                     (how == CASE_SWAP && utf8proc_islower((utf8proc_int32_t)cp));
        size_t shields = 0;

        while (shields < unit.len && (unsigned char)unit.data[shields] == 0xff)
            shields++;
        rc = sink_put(r, &s, text_sub(unit, 0, shields));
        if (rc == 0)
            rc = upper ? put_upper(r, &s, cp) : put_lower(r, &s, cp, after_letter, rest);
        after_letter = is_letter(cp);
        first = false;
        if (rc == 0)
            rc = render_tick(r, 1);
    }
    *out = sink_text(&s);
    return rc;
}

int text_escape(struct render *r, struct text t, struct text *out)
{
    struct sink s = {0};
    size_t from = 0;
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < t.len; i++) {
        const char *entity = t.data[i] == '&'    ? "&amp;"
                             : t.data[i] == '<'  ? "&lt;"
                             : t.data[i] == '>'  ? "&gt;"
                             : t.data[i] == '"'  ? "&#34;"
                             : t.data[i] == '\'' ? "&#39;"
                                                 : NULL;

        if (!entity)
            continue;
        rc = sink_put(r, &s, text_sub(t, from, i));
        if (rc == 0)
            rc = sink_puts(r, &s, entity);
        from = i + 1;
    }
    if (rc == 0)
        rc = sink_put(r, &s, text_sub(t, from, t.len));
    *out = sink_text(&s);
    return rc;
}

/* Replacing the empty string puts the new text around every code point. */
static int replace_empty(struct render *r, struct text t, struct text new_text, int64_t count,
                         struct sink *s)
{
    struct text rest = t, unit;
    uint32_t cp;
    int rc = 0;

    while (rc == 0 && count != 0) {
        rc = sink_put(r, s, new_text);
        count -= count > 0;
        if (rc < 0 || !text_next(&rest, &unit, &cp))
            return rc;
        rc = sink_put(r, s, unit);
        if (rc == 0)
            rc = render_tick(r, 1);
    }
    return rc < 0 ? rc : sink_put(r, s, rest);
}

int text_replace(struct render *r, struct text t, struct text old, struct text new_text,
                 int64_t count, struct text *out)
{
    struct text_finder f;
    struct sink s = {0};
    size_t start, end, from = 0;
    int rc = render_tick(r, t.len / 64);

    text_finder_init(&f, &r->arena, t, old);
    if (f.needle.len == 0)
        rc = replace_empty(r, t, new_text, count, &s);
    while (rc == 0 && f.needle.len && count != 0 && text_find(&f, &start, &end)) {
        rc = sink_put(r, &s, text_sub(t, from, start));
        /* What was cut out may have kept two halves of a special token apart. */
        if (rc == 0 && f.raw.len != f.plain.len)
            rc = sink_puts(r, &s, "\xff");
        if (rc == 0)
            rc = sink_put(r, &s, new_text);
        if (rc == 0)
            rc = render_tick(r, 1);
        from = end;
        count -= count > 0;
    }
    if (rc == 0 && f.needle.len)
        rc = sink_put(r, &s, text_sub(t, from, t.len));
    *out = sink_text(&s);
    return rc;
}

int text_lines(struct render *r, struct text t, bool keep_ends, struct list *out)
{
    struct text rest = t, unit;
    size_t start = 0;
    uint32_t cp;
    int rc = 0;

    while (rc == 0 && text_next(&rest, &unit, &cp)) {
        size_t end = t.len - rest.len - unit.len, after;

        rc = render_tick(r, 1);
        if (!text_line_end(cp))
            continue;
        if (cp == '\r' && rest.len && rest.data[0] == '\n')
            rest = text_sub(rest, 1, rest.len);
        after = t.len - rest.len;
        list_push(r, out, value_text(text_sub(t, start, keep_ends ? after : end)));
        start = after;
    }
    if (start < t.len)
        list_push(r, out, value_text(text_sub(t, start, t.len)));
    return rc;
}

int text_join(struct render *r, const struct value *items, struct text separator, bool strict,
              struct text *out)
{
    struct sink s = {0};
    struct iter it;
    struct value v;
    bool first = true;
    int rc = iter_init(r, &it, items);

    while (rc >= 0 && (rc = iter_next(r, &it, &v)) > 0) {
        struct text t;

        if (strict && v.kind != VALUE_STRING)
            rc = render_fail(r, "sequence item: expected str instance, %s found",
                             value_type_name(&v));
        else
            rc = value_str(r, &v, &t);
        if (rc == 0 && !first)
            rc = sink_put(r, &s, separator);
        if (rc == 0)
            rc = sink_put(r, &s, t);
        first = false;
    }
    *out = sink_text(&s);
    return rc;
}

/* Copies t without white space around it and without underscores between digits. */
static bool number_text(struct text t, char *out, size_t size)
{
    size_t n = 0;

    t = text_strip(t, NULL, TEXT_BOTH);
    for (size_t i = 0; i < t.len; i++) {
        char c = t.data[i];

        if ((unsigned char)c == 0xff)
            continue;
        if (c == '_') {
            bool inside = i > 0 && i + 1 < t.len && t.data[i - 1] != '_' && t.data[i + 1] != '_' &&
                          n > 0 && strchr("0123456789abcdefABCDEF", out[n - 1]);

            if (!inside)
                return false;
            continue;
        }
        if (n + 1 >= size || !c)
            return false;
        out[n++] = c;
    }
    out[n] = '\0';
    return n > 0;
}

bool text_to_float(struct text t, double *out)
{
    char digits[512], *end;
    const char *body;

    if (!number_text(t, digits, sizeof digits))
        return false;
    body = digits + (digits[0] == '-' || digits[0] == '+');
    /* strtod also reads hexadecimal numbers, Python's float does not. */
    if (strspn(body, "0123456789.eE+-") != strlen(body) && strcasecmp(body, "inf") != 0 &&
        strcasecmp(body, "infinity") != 0 && strcasecmp(body, "nan") != 0)
        return false;
    *out = strtod(digits, &end);
    return *end == '\0';
}

bool text_to_int(struct text t, int base, int64_t *out)
{
    char digits[128], *p = digits;
    bool minus;
    int64_t value = 0;

    if (!number_text(t, digits, sizeof digits))
        return false;
    minus = *p == '-';
    p += *p == '-' || *p == '+';
    if (p[0] == '0' && p[1]) {
        char mark = (char)(p[1] | 0x20);
        int marked = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;

        if (marked && (base == marked || base == 0)) {
            base = marked;
            p += 2;
        }
    }
    if (!*p)
        return false;
    for (base = base ? base : 10; *p; p++) {
        const char *all = "0123456789abcdefghijklmnopqrstuvwxyz";
        const char *at = strchr(all, *p >= 'A' && *p <= 'Z' ? *p | 0x20 : *p);
        int digit = at ? (int)(at - all) : 99;

        if (digit >= base || __builtin_mul_overflow(value, base, &value) ||
            __builtin_sub_overflow(value, digit, &value))
            return false;
    }
    return minus ? (*out = value, true) : !__builtin_sub_overflow(0, value, out);
}

bool text_word(uint32_t cp)
{
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);

    return cp == '_' || is_letter(cp) || (c >= UTF8PROC_CATEGORY_ND && c <= UTF8PROC_CATEGORY_NO);
}

int text_pad(struct render *r, struct text t, int64_t width, struct text fill, enum pad_side side,
             struct value *out)
{
    int64_t length = (int64_t)text_length(t);
    size_t missing = width > length ? (size_t)(width - length) : 0;
    size_t left = side == PAD_LEFT    ? missing
                  : side == PAD_RIGHT ? 0
                                      : missing / 2 + (missing & (size_t)width & 1);
    struct sink s = {0};
    int rc = missing > r->limits->output ? err_set(r->err, ERR_LIMIT,
                                                   "line %d: the chat template passes its limit of "
                                                   "output (%zu bytes)",
                                                   r->line, r->limits->output)
                                         : 0;

    for (size_t i = 0; rc == 0 && i < left; i++)
        rc = sink_put(r, &s, fill);
    if (rc == 0)
        rc = sink_put(r, &s, t);
    for (size_t i = left; rc == 0 && i < missing; i++)
        rc = sink_put(r, &s, fill);
    *out = value_text(sink_text(&s));
    return rc;
}

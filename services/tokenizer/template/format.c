/* "%s" % x and "{}".format(x). */
#include "services/tokenizer/template/filters.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIELD_MAX = 1024 * 1024, PRECISION_MAX = 100 };

struct spec {
    struct text fill;
    char align; /* '<', '>', '^', '=', or 0 for what the type has */
    char sign;  /* '+', ' ' or 0 */
    bool comma, alternate;
    int64_t width;
    int precision; /* -1: none */
    char type;     /* 0: none */
};

static int64_t read_width(struct text t, size_t *at)
{
    int64_t n = 0;

    while (*at < t.len && t.data[*at] >= '0' && t.data[*at] <= '9' && n < FIELD_MAX)
        n = n * 10 + (t.data[(*at)++] - '0');
    return n;
}

/* Digits of the whole part in groups of three. */
static void group_digits(const char *digits, char *out)
{
    size_t whole = strspn(digits, "0123456789");

    for (size_t i = 0; i < whole; i++) {
        if (i && (whole - i) % 3 == 0)
            *out++ = ',';
        *out++ = digits[i];
    }
    strcpy(out, digits + whole);
}

static void int_digits(uint64_t magnitude, const struct spec *s, char out[80])
{
    char *p = out + 79;

    *p = '\0';
    if (s->type == 'x' || s->type == 'X' || s->type == 'o' || s->type == 'b') {
        const char *all = s->type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef";
        unsigned base = s->type == 'o' ? 8 : s->type == 'b' ? 2 : 16;

        do {
            *--p = all[magnitude % base];
            magnitude /= base;
        } while (magnitude);
        if (s->alternate) {
            *--p = s->type;
            *--p = '0';
        }
        memmove(out, p, strlen(p) + 1);
        return;
    }
    snprintf(out, 80, "%" PRIu64, magnitude);
}

static void float_digits(double d, const struct spec *s, char *out, size_t size)
{
    int precision = s->precision < 0 ? 6 : s->precision;

    switch (s->type) {
    case 'f':
    case 'F':
        snprintf(out, size, "%.*f", precision, d);
        break;
    case '%':
        snprintf(out, size, "%.*f%%", precision, d * 100);
        break;
    case 'e':
        snprintf(out, size, "%.*e", precision, d);
        break;
    case 'E':
        snprintf(out, size, "%.*E", precision, d);
        break;
    case 'G':
        snprintf(out, size, "%.*G", precision, d);
        break;
    default:
        snprintf(out, size, "%.*g", precision, d);
        break;
    }
}

/* Pads sign and body; numbers ('=') have the padding between them. */
static int put_field(struct render *r, struct sink *out, const struct spec *s, const char *sign,
                     struct text body, char align)
{
    int64_t length = (int64_t)(text_length(body) + strlen(sign));
    int64_t missing = s->width > length ? s->width - length : 0;
    int64_t before = align == '>' || align == '=' ? missing : align == '^' ? missing / 2 : 0;
    struct text fill = s->fill.len ? s->fill : TEXT(" ");
    int rc = align == '=' ? sink_puts(r, out, sign) : 0;

    for (int64_t i = 0; rc == 0 && i < before; i++)
        rc = sink_put(r, out, fill);
    if (rc == 0 && align != '=')
        rc = sink_puts(r, out, sign);
    if (rc == 0)
        rc = sink_put(r, out, body);
    for (int64_t i = before; rc == 0 && i < missing; i++)
        rc = sink_put(r, out, fill);
    return rc;
}

static int put_number(struct render *r, struct sink *out, const struct spec *s,
                      const struct value *v)
{
    bool fractional = s->type && strchr("fFeEgG%", s->type);
    char digits[512], grouped[700], sign[2] = {s->sign, '\0'};
    int64_t i;
    double d;

    if (value_integral(v, &i) && !fractional) {
        if (i < 0)
            sign[0] = '-';
        int_digits(i < 0 ? 0 - (uint64_t)i : (uint64_t)i, s, digits);
    } else {
        d = v->kind == VALUE_FLOAT ? v->u.number : (double)i;
        if (!fractional && s->type && s->type != 'n')
            return render_fail(r, "unknown format code '%c' for float", s->type);
        if (signbit(d))
            sign[0] = '-';
        if (!fractional && s->precision < 0)
            digits[float_repr(fabs(d), digits)] = '\0';
        else
            float_digits(fabs(d), s, digits, sizeof digits);
    }
    if (s->comma)
        group_digits(digits, grouped);
    return put_field(r, out, s, sign, text_of(s->comma ? grouped : digits),
                     s->align ? s->align : '>');
}

static int put_text(struct render *r, struct sink *out, const struct spec *s, struct text t)
{
    if (s->precision >= 0)
        t = text_sub(t, 0, text_offset(t, (size_t)s->precision));
    return put_field(r, out, s, "", t, s->align ? s->align : '<');
}

/* One "%" conversion of v. */
static int put_percent(struct render *r, struct sink *out, struct spec *s, const struct value *v)
{
    struct value whole = *v;
    struct sink repr = {0};
    struct text t;
    int rc;

    if (!s->align)
        s->align = '>';
    if (s->type == 's' || s->type == 'r') {
        rc = s->type == 'r' ? value_repr(r, &repr, v) : value_str(r, v, &t);
        return rc < 0 ? rc : put_text(r, out, s, s->type == 'r' ? sink_text(&repr) : t);
    }
    if (!s->type || !strchr("diufFeEgGxXo", s->type))
        return render_fail(r, "unsupported format character '%c'", s->type ? s->type : '?');
    if (!value_number(v))
        return render_fail(r, "%%%c format: a number is required, not %s", s->type,
                           value_type_name(v));
    if (strchr("diu", s->type)) {
        s->type = 'd';
        if (v->kind == VALUE_FLOAT) {
            if (!(fabs(v->u.number) < 9.2e18))
                return render_fail(r, "cannot convert float to integer");
            whole = value_int((int64_t)v->u.number);
        }
    }
    return put_number(r, out, s, &whole);
}

/* Flags, width and precision of a "%" conversion; *at moves to its type. */
static int read_percent_spec(struct render *r, struct text f, size_t *at, struct spec *s)
{
    *s = (struct spec){.precision = -1};
    for (; *at < f.len && f.data[*at] && strchr("-+ 0#", f.data[*at]); (*at)++) {
        char c = f.data[*at];

        if (c == '-') {
            s->align = '<';
        } else if (c == '0' && s->align != '<') {
            s->align = '=';
            s->fill = TEXT("0");
        } else if (c == '+' || (c == ' ' && !s->sign)) {
            s->sign = c;
        } else {
            s->alternate = true;
        }
    }
    s->width = read_width(f, at);
    if (*at < f.len && f.data[*at] == '.') {
        (*at)++;
        s->precision = (int)read_width(f, at);
    }
    if (s->width >= FIELD_MAX || s->precision > PRECISION_MAX)
        return render_fail(r, "format: width or precision is too large");
    while (*at < f.len && f.data[*at] && strchr("hlL", f.data[*at]))
        (*at)++;
    if (*at >= f.len)
        return render_fail(r, "incomplete format");
    if (s->align == '=' && (f.data[*at] == 's' || f.data[*at] == 'r')) {
        s->align = '>';
        s->fill = TEXT(" ");
    }
    s->type = f.data[*at];
    return 0;
}

/* "%(name)s": the value of name in the keywords, or in the only argument, a dict. */
static int percent_named(struct render *r, struct text f, size_t *at, const struct args *args,
                         struct value *v)
{
    const char *end = memchr(f.data + *at, ')', f.len - *at);
    struct text name;
    const struct value *found = NULL;

    if (!end)
        return render_fail(r, "incomplete format key");
    name = text_sub(f, *at + 1, (size_t)(end - f.data));
    *at = (size_t)(end - f.data) + 1;
    for (size_t i = 0; i < args->keywords_count; i++) {
        if (text_equal(args->keywords[i].name, name))
            found = &args->keywords[i].value;
    }
    if (!found && args->positional_count == 1 && args->positional[0].kind == VALUE_DICT)
        found = dict_get_text(args->positional[0].u.dict, name);
    if (!found)
        return render_fail(r, "format: no value for '%.*s'", (int)(name.len > 64 ? 64 : name.len),
                           name.data);
    *v = *found;
    return 0;
}

static bool indexable(const struct value *v)
{
    return v->kind == VALUE_DICT || v->kind == VALUE_LIST || v->kind == VALUE_RANGE ||
           v->kind == VALUE_UNDEFINED;
}

/* tuple: the operand is one. An operand that can be indexed is never left over otherwise. */
int format_percent(struct render *r, struct text f, const struct args *args, bool tuple,
                   struct value *out)
{
    struct sink s = {0};
    size_t next = 0, at = 0;
    bool named = false;
    int rc = 0;

    while (rc == 0 && at < f.len) {
        const char *mark = memchr(f.data + at, '%', f.len - at);
        size_t end = mark ? (size_t)(mark - f.data) : f.len;
        struct value v = value_none();
        struct spec spec = {0};
        bool by_name;

        rc = sink_put(r, &s, text_sub(f, at, end));
        at = end + 1;
        if (rc < 0 || !mark)
            break;
        by_name = at < f.len && f.data[at] == '(';
        named |= by_name;
        if (by_name)
            rc = percent_named(r, f, &at, args, &v);
        if (rc == 0)
            rc = read_percent_spec(r, f, &at, &spec);
        if (rc < 0)
            break;
        at++;
        if (spec.type == '%') {
            rc = sink_puts(r, &s, "%");
            continue;
        }
        if (!by_name && next >= args->positional_count)
            return render_fail(r, "not enough arguments for format string");
        if (!by_name)
            v = args->positional[next++];
        rc = put_percent(r, &s, &spec, &v);
    }
    if (rc == 0 && !named && next < args->positional_count &&
        (tuple || !indexable(&args->positional[0])))
        return render_fail(r, "not all arguments converted during string formatting");
    *out = value_text(sink_text(&s));
    return rc;
}

static bool is_align(char c)
{
    return c == '<' || c == '>' || c == '^' || c == '=';
}

/* [[fill]align][sign][#][0][width][,][.precision][type] */
static int read_brace_spec(struct render *r, struct text f, struct spec *s)
{
    struct text rest = f, unit = {0};
    uint32_t cp;
    size_t at = 0;

    *s = (struct spec){.precision = -1};
    if (text_next(&rest, &unit, &cp) && rest.len && is_align(rest.data[0])) {
        s->fill = unit;
        s->align = rest.data[0];
        at = unit.len + 1;
    } else if (f.len && is_align(f.data[0])) {
        s->align = f.data[at++];
    }
    if (at < f.len && strchr("+- ", f.data[at]) && f.data[at]) {
        s->sign = f.data[at] == '-' ? '\0' : f.data[at];
        at++;
    }
    if (at < f.len && f.data[at] == '#') {
        s->alternate = true;
        at++;
    }
    if (at < f.len && f.data[at] == '0' && !s->align) {
        s->align = '=';
        s->fill = TEXT("0");
        at++;
    }
    s->width = read_width(f, &at);
    if (at < f.len && f.data[at] == ',') {
        s->comma = true;
        at++;
    }
    if (at < f.len && f.data[at] == '.') {
        at++;
        s->precision = (int)read_width(f, &at);
    }
    if (at < f.len)
        s->type = f.data[at++];
    if (at < f.len || s->width >= FIELD_MAX || s->precision > PRECISION_MAX)
        return render_fail(r, "format: invalid format specifier");
    return 0;
}

static int put_brace(struct render *r, struct sink *out, struct text spec, const struct value *v)
{
    struct spec s;
    struct text t;
    int rc = read_brace_spec(r, spec, &s);

    if (rc < 0)
        return rc;
    if (value_number(v) && spec.len && !(v->kind == VALUE_BOOL && !s.type)) {
        if (s.type && !strchr(v->kind == VALUE_FLOAT ? "fFeEgG%n" : "dfFeEgG%xXobn", s.type))
            return render_fail(r, "unknown format code '%c'", s.type);
        return put_number(r, out, &s, v);
    }
    if (spec.len && v->kind != VALUE_STRING && v->kind != VALUE_BOOL)
        return render_fail(r, "unsupported format string for %s", value_type_name(v));
    if ((s.type && s.type != 's') || s.align == '=' || s.sign || s.comma)
        return render_fail(r, "format: invalid format specifier for a string");
    rc = value_str(r, v, &t);
    return rc < 0 ? rc : put_text(r, out, &s, t);
}

/* "0", "name", "" (number *next), then ".attribute" and "[item]". */
static int brace_value(struct render *r, struct text field, const struct args *args, int64_t *next,
                       struct value *out)
{
    size_t head = 0;
    struct text name;
    int64_t index;
    int rc = 0;

    while (head < field.len && field.data[head] != '.' && field.data[head] != '[')
        head++;
    name = text_sub(field, 0, head);
    *out = value_undefined(name);
    if (name.len == 0 || text_to_int(name, 10, &index)) {
        /* Numbered and unnumbered fields do not mix: next is -1 after a numbered one. */
        if ((name.len == 0 && *next < 0) || (name.len && *next > 0))
            return render_fail(r, "format: numbered and unnumbered fields are mixed");
        if (name.len)
            *next = -1;
        else
            index = (*next)++;
        if (index < 0 || (uint64_t)index >= args->positional_count)
            return render_fail(r, "format: replacement index out of range");
        *out = args->positional[index];
    } else {
        bool found = false;

        for (size_t i = 0; i < args->keywords_count; i++) {
            if (text_equal(args->keywords[i].name, name)) {
                *out = args->keywords[i].value;
                found = true;
            }
        }
        if (!found)
            return render_fail(r, "format: no argument of that name");
    }
    while (rc == 0 && head < field.len) {
        bool item = field.data[head] == '[';
        size_t end = ++head;
        struct value subject = *out, key;

        while (end < field.len &&
               (item ? field.data[end] != ']' : field.data[end] != '.' && field.data[end] != '['))
            end++;
        key = value_text(text_sub(field, head, end));
        if (item && text_to_int(key.u.text, 10, &index))
            key = value_int(index);
        rc = item ? get_item(r, &subject, &key, out) : get_attribute(r, &subject, key.u.text, out);
        head = end + item;
    }
    return rc;
}

/* A replacement field, its text between the braces. */
static int put_replacement(struct render *r, struct sink *s, struct text body,
                           const struct args *args, int64_t *next)
{
    const char *colon = body.len ? memchr(body.data, ':', body.len) : NULL;
    struct text field = text_sub(body, 0, colon ? (size_t)(colon - body.data) : body.len);
    struct text spec = text_sub(body, field.len + 1, body.len);
    char conversion = '\0';
    struct sink repr = {0};
    struct value v;
    int rc;

    if (body.len && memchr(body.data, '{', body.len))
        return render_fail(r, "format: nested fields are not supported");
    if (field.len >= 2 && field.data[field.len - 2] == '!') {
        conversion = field.data[field.len - 1];
        field.len -= 2;
    }
    rc = brace_value(r, field, args, next, &v);
    if (rc == 0 && conversion == 'r') {
        rc = value_repr(r, &repr, &v);
        v = value_text(sink_text(&repr));
    } else if (rc == 0 && conversion == 's') {
        struct text t;

        rc = value_str(r, &v, &t);
        v = value_text(t);
    } else if (rc == 0 && conversion) {
        rc = render_fail(r, "format: unknown conversion");
    }
    return rc < 0 ? rc : put_brace(r, s, spec, &v);
}

int format_braces(struct render *r, struct text f, const struct args *args, struct value *out)
{
    struct sink s = {0};
    int64_t next = 0;
    int rc = 0;

    for (size_t at = 0; rc == 0 && at < f.len;) {
        char c = f.data[at];
        const char *end;
        size_t stop = at;

        if ((c == '{' || c == '}') && at + 1 < f.len && f.data[at + 1] == c) {
            rc = sink_put(r, &s, text_sub(f, at, at + 1));
            at += 2;
            continue;
        }
        if (c == '}')
            return render_fail(r, "single '}' encountered in format string");
        if (c == '{') {
            end = memchr(f.data + at, '}', f.len - at);
            if (!end)
                return render_fail(r, "expected '}' before end of string");
            rc = put_replacement(r, &s, text_sub(f, at + 1, (size_t)(end - f.data)), args, &next);
            at = (size_t)(end - f.data) + 1;
            continue;
        }
        while (stop < f.len && f.data[stop] != '{' && f.data[stop] != '}')
            stop++;
        rc = sink_put(r, &s, text_sub(f, at, stop));
        at = stop;
    }
    *out = value_text(sink_text(&s));
    return rc;
}

/* Literals of template source: numbers and the escapes of strings. */
#include "common/utf8.h"
#include "services/tokenizer/template/lexer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int digit_of(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return 99;
}

/* Digits of a base with single underscores between them; bytes taken. */
static size_t digits_end(struct text t, size_t at, int base)
{
    size_t end = at;

    while (at < t.len) {
        if (digit_of(t.data[at]) < base)
            end = ++at;
        else if (t.data[at] == '_' && at == end && end > 0 && at + 1 < t.len)
            at++;
        else
            break;
    }
    return end;
}

static int read_integer(struct text t, size_t from, size_t to, int base, struct token *out,
                        struct err *err)
{
    int64_t value = 0;

    for (size_t i = from; i < to; i++) {
        if (t.data[i] == '_')
            continue;
        if (__builtin_mul_overflow(value, base, &value) ||
            __builtin_add_overflow(value, digit_of(t.data[i]), &value))
            return err_set(err, ERR_INVALID, "integer does not fit into 64 bits");
    }
    out->kind = TOKEN_INT;
    out->integer = value;
    return (int)to;
}

static int read_float(struct text t, size_t to, struct token *out, struct err *err)
{
    char digits[512];
    size_t n = 0;

    for (size_t i = 0; i < to; i++) {
        if (t.data[i] == '_')
            continue;
        if (n + 1 == sizeof digits)
            return err_set(err, ERR_INVALID, "number is too long");
        digits[n++] = t.data[i];
    }
    digits[n] = '\0';
    out->kind = TOKEN_FLOAT;
    out->number = strtod(digits, NULL);
    return (int)to;
}

/* End of an exponent that starts at `at`, or `at`. */
static size_t exponent_end(struct text t, size_t at)
{
    size_t digits = at + 1, end;

    if (at >= t.len || (t.data[at] != 'e' && t.data[at] != 'E'))
        return at;
    if (digits < t.len && (t.data[digits] == '+' || t.data[digits] == '-'))
        digits++;
    end = digits < t.len && digit_of(t.data[digits]) < 10 ? digits_end(t, digits, 10) : digits;
    return end > digits ? end : at;
}

int lex_number(struct text t, struct token *out, struct err *err)
{
    size_t whole = digits_end(t, 0, 10), end = whole;

    if (t.len > 2 && t.data[0] == '0' && t.data[1] && strchr("xXoObB", t.data[1])) {
        char mark = (char)(t.data[1] | 0x20);
        int base = mark == 'x' ? 16 : mark == 'o' ? 8 : 2;
        size_t start = t.data[2] == '_' ? 3 : 2;

        end = digits_end(t, start, base);
        if (end > start)
            return read_integer(t, start, end, base, out, err);
        end = whole;
    }
    if (whole == 0)
        return 0;
    if (whole + 1 < t.len && t.data[whole] == '.' && digit_of(t.data[whole + 1]) < 10)
        end = digits_end(t, whole + 1, 10);
    end = exponent_end(t, end);
    if (end > whole)
        return read_float(t, end, out, err);
    if (t.data[0] == '0' && whole > 1 && strspn(t.data, "0_") < whole)
        return err_set(err, ERR_INVALID, "integer with a leading zero");
    return read_integer(t, 0, whole, 10, out, err);
}

/* \xHH, \uHHHH, \UHHHHHHHH: count hex digits at t[at]. */
static int read_hex(struct text t, size_t at, int count, uint32_t *cp)
{
    *cp = 0;
    for (int i = 0; i < count; i++) {
        if (at + (size_t)i >= t.len || digit_of(t.data[at + (size_t)i]) > 15)
            return -1;
        *cp = *cp * 16 + (uint32_t)digit_of(t.data[at + (size_t)i]);
    }
    return *cp > 0x10ffff || (*cp >= 0xd800 && *cp <= 0xdfff) ? -1 : 0;
}

/* One escape; t[at] is the character after the backslash. Returns the bytes it takes from there,
 * -1 when it is malformed; writes to out and moves *n. */
static int read_escape(struct text t, size_t at, char *out, size_t *n)
{
    static const char from[] = "nrtabfv\\'\"", to[] = "\n\r\t\a\b\f\v\\'\"";
    char c = t.data[at];
    const char *simple = c ? strchr(from, c) : NULL;
    int hex = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    uint32_t cp = 0;
    int used = 0;

    if (simple) {
        out[(*n)++] = to[simple - from];
        return 1;
    }
    if (c == '\n')
        return 1;
    if (hex) {
        if (read_hex(t, at + 1, hex, &cp) < 0)
            return -1;
        *n += (size_t)utf8_encode(cp, out + *n);
        return 1 + hex;
    }
    while (used < 3 && at + (size_t)used < t.len && digit_of(t.data[at + (size_t)used]) < 8)
        cp = cp * 8 + (uint32_t)digit_of(t.data[at + (size_t)used++]);
    if (used) {
        *n += (size_t)utf8_encode(cp, out + *n);
        return used;
    }
    if (c == 'N')
        return -1;
    out[(*n)++] = '\\';
    out[(*n)++] = c;
    return 1;
}

int lex_unescape(struct arena *a, struct text literal, int line, struct text *out, struct err *err)
{
    char *copy;
    size_t n = 0;

    *out = literal;
    if (!literal.len || !memchr(literal.data, '\\', literal.len))
        return 0;
    copy = arena_alloc(a, literal.len + 4);
    for (size_t i = 0; i < literal.len; i++) {
        int used;

        if (literal.data[i] != '\\' || i + 1 == literal.len) {
            copy[n++] = literal.data[i];
            continue;
        }
        used = read_escape(literal, i + 1, copy, &n);
        if (used < 0)
            return err_set(err, ERR_INVALID, "line %d: bad escape '\\%c' in a string", line,
                           literal.data[i + 1]);
        i += (size_t)used;
    }
    *out = (struct text){copy, n};
    return 0;
}

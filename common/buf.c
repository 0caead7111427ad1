#include "common/buf.h"

#include "common/mem.h"
#include "common/utf8.h"

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buf_fini(struct buf *b)
{
    free(b->data);
    memset(b, 0, sizeof *b);
}

void buf_clear(struct buf *b)
{
    b->len = 0;
    if (b->data)
        b->data[0] = '\0';
}

void buf_reserve(struct buf *b, size_t n)
{
    size_t need = b->len + n + 1;
    size_t cap = b->cap ? b->cap : 64;

    if (need <= b->cap)
        return;
    while (cap < need)
        cap *= 2;
    b->data = mem_resize(b->data, cap, 1);
    b->cap = cap;
}

void buf_append(struct buf *b, const void *data, size_t len)
{
    buf_reserve(b, len);
    if (len)
        memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = '\0';
}

void buf_puts(struct buf *b, const char *text)
{
    buf_append(b, text, strlen(text));
}

void buf_putc(struct buf *b, char c)
{
    buf_append(b, &c, 1);
}

static void append_number(struct buf *b, uint64_t value, unsigned base)
{
    char digits[20], *at = digits + sizeof digits;

    do {
        *--at = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    buf_append(b, at, (size_t)(digits + sizeof digits - at));
}

void buf_uint(struct buf *b, uint64_t value)
{
    append_number(b, value, 10);
}

void buf_hex(struct buf *b, uint64_t value)
{
    append_number(b, value, 16);
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap, again;
    int n;

    va_start(ap, fmt);
    va_copy(again, ap);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    assert(n >= 0);
    buf_reserve(b, (size_t)n);
    (void)vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
    va_end(again);
    b->len += (size_t)n;
}

void buf_consume(struct buf *b, size_t n)
{
    assert(n <= b->len);
    if (!n)
        return;
    memmove(b->data, b->data + n, b->len - n);
    b->len -= n;
    b->data[b->len] = '\0';
}

char *buf_take(struct buf *b)
{
    char *data;

    buf_reserve(b, 0);
    b->data[b->len] = '\0';
    data = b->data;
    memset(b, 0, sizeof *b);
    return data;
}

static void buf_json_escape(struct buf *b, unsigned char c)
{
    static const char shorts[] = "\"\"\\\\\bb\ff\nn\rr\tt";

    for (const char *s = shorts; *s; s += 2)
        if ((unsigned char)*s == c) {
            buf_putc(b, '\\');
            buf_putc(b, s[1]);
            return;
        }
    buf_printf(b, "\\u%04x", c);
}

void buf_json_string(struct buf *b, const char *text, size_t len)
{
    size_t start = 0;

    buf_reserve(b, len + 2);
    buf_putc(b, '"');
    for (size_t i = 0; i < len;) {
        unsigned char c = (unsigned char)text[i];
        uint32_t cp;
        int n;

        if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') {
            i++;
            continue;
        }
        n = utf8_decode(text + i, len - i, &cp);
        if (n > 1) {
            i += (size_t)n;
            continue;
        }
        buf_append(b, text + start, i - start);
        if (n == 1)
            buf_json_escape(b, c);
        else
            buf_puts(b, "\xef\xbf\xbd");
        start = ++i;
    }
    buf_append(b, text + start, len - start);
    buf_putc(b, '"');
}

void buf_json_number(struct buf *b, double value)
{
    char text[40];

    if (!isfinite(value)) {
        buf_puts(b, "null");
        return;
    }
    for (int digits = 6; digits <= 17; digits++) {
        (void)snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) /* exact round trip wanted */
            break;
    }
    buf_puts(b, text);
}

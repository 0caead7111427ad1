/* Growable byte buffer. Zero-initialise it (`struct buf b = {0}`), end with buf_fini.
 *
 * data is always NUL-terminated once something was appended (the NUL is not counted in len), so it
 * can be read as a C string when the content has no NUL of its own. */
#ifndef PHALANX_COMMON_BUF_H
#define PHALANX_COMMON_BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf {
    char *data; /* owned; NULL while cap is 0 */
    size_t len; /* bytes in use */
    size_t cap; /* bytes allocated */
};

void buf_fini(struct buf *b);              /* frees, zeroes */
void buf_clear(struct buf *b);             /* len = 0, keeps the memory */
void buf_reserve(struct buf *b, size_t n); /* room for n more bytes and a NUL */
void buf_append(struct buf *b, const void *data, size_t len);
void buf_puts(struct buf *b, const char *text);
void buf_putc(struct buf *b, char c);
/* A number as text, without the cost of a format. */
void buf_uint(struct buf *b, uint64_t value);
void buf_hex(struct buf *b, uint64_t value);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_consume(struct buf *b, size_t n); /* drops the first n bytes (n <= len) */
char *buf_take(struct buf *b);             /* hands over data (never NULL), zeroes b */

/* Appends text as a JSON string with its quotes. Control characters, quote and backslash are
 * escaped, bytes that are no valid UTF-8 become U+FFFD, so the result is always valid JSON. */
void buf_json_string(struct buf *b, const char *text, size_t len);

/* Appends the shortest decimal that reads back as the same double; NaN and infinities as null. */
void buf_json_number(struct buf *b, double value);

#endif

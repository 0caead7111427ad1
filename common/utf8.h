/* UTF-8, strict (RFC 3629): no overlong forms, no surrogates, nothing above U+10FFFF. */
#ifndef PHALANX_COMMON_UTF8_H
#define PHALANX_COMMON_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Reads one code point from the first bytes of text. Returns the bytes it takes (1..4), 0 when the
 * bytes are no valid sequence, -1 when they are a proper prefix of one that len cuts short. */
int utf8_decode(const char *text, size_t len, uint32_t *cp);

/* Writes cp (a Unicode scalar value) to out; returns the bytes written (1..4). */
int utf8_encode(uint32_t cp, char out[4]);

/* True when the whole text is valid. */
bool utf8_valid(const char *text, size_t len);

/* Length of the longest prefix of text that does not end inside a sequence that more bytes could
 * complete. What follows (at most 3 bytes) is to be held back by a streaming writer. */
size_t utf8_complete(const char *text, size_t len);

#endif

/* Errors as values.
 *
 * A function that can fail returns 0 or one of the negative codes below and takes a `struct err *`
 * as its last parameter. The message is filled where the fact is known: it names the field, the
 * value and the limit. Callers pass the same err up untouched, or add context with err_prefix.
 */
#ifndef PHALANX_COMMON_ERR_H
#define PHALANX_COMMON_ERR_H

#include <stddef.h>

/* X(name, code, text) */
#define ERR_CODES(X)                                                                               \
    X(ERR_INVALID, -1, "invalid argument")                                                         \
    X(ERR_LIMIT, -2, "limit exceeded")                                                             \
    X(ERR_NOT_FOUND, -3, "not found")                                                              \
    X(ERR_BUSY, -4, "busy")                                                                        \
    X(ERR_IO, -5, "input/output error")                                                            \
    X(ERR_UNSUPPORTED, -6, "not supported")                                                        \
    X(ERR_PROTOCOL, -7, "protocol error")                                                          \
    X(ERR_TIMEOUT, -8, "timed out")                                                                \
    X(ERR_PEER, -9, "peer failed")                                                                 \
    X(ERR_NOMEM, -10, "out of memory")                                                             \
    X(ERR_INTERNAL, -11, "internal error")

enum err_code {
    ERR_NONE = 0,
#define X(name, code, text) name = code,
    ERR_CODES(X)
#undef X
};

struct err {
    int code;      /* 0 or an err_code */
    char msg[512]; /* NUL-terminated, one line, no trailing period needed */
};

/* Fills err (may be NULL) and returns code, so that `return err_set(err, ERR_X, ...)` works. */
int err_set(struct err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts "text: " before the message that is there; returns err->code. */
int err_prefix(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Like err_set, and appends ": <strerror(errno)>". */
int err_errno(struct err *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Static text of a code. */
const char *err_text(int code);

#endif

/* HTTP/1.1 exchanges with one server on a libuv loop: as many at once as there are descriptors.
 *
 * Connections are kept open and used again. A request on a connection that the server closed in
 * the meantime, without a byte of an answer, is sent once more on a fresh one. */
#ifndef PHALANX_BENCH_HTTP_H
#define PHALANX_BENCH_HTTP_H

#include "common/buf.h"
#include "services/bench/target.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#define HTTP_READ_BYTES 65536

struct http_conn;

/* What an exchange tells its owner. */
struct http_handler {
    /* Bytes of the body, with the status of the reply. False ends the exchange: the connection is
     * closed and end is called with "". */
    bool (*body)(void *ctx, int status, const char *data, size_t len);
    /* Last call. reason: NULL when the reply is complete, else why there is none (a line). */
    void (*end)(void *ctx, int status, const char *reason);
};

struct http {
    uv_loop_t *loop;             /* borrowed */
    const struct target *target; /* borrowed */
    struct http_conn *conns;     /* all of them */
    struct http_conn *idle;      /* the last used first */
    uv_timer_t tick;             /* looks for silent servers */
    int64_t stall_us;
    char input[HTTP_READ_BYTES]; /* of whoever reads at the moment */
};

void http_init(struct http *h, uv_loop_t *loop, const struct target *target, int64_t stall_us);

/* Takes over the request's bytes. Handlers are called by the loop, never from in here. */
void http_send(struct http *h, struct buf *request, const struct http_handler *handler, void *ctx);

/* Closes every connection; handlers of unfinished exchanges are not called any more. The loop has
 * to run until it has nothing to do. */
void http_close(struct http *h);

#endif

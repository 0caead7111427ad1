/* A ZeroMQ socket in a libuv loop.
 *
 * ZMQ_FD tells of changes by edges, and every send, receive or option read can consume the edge.
 * So the descriptor only wakes the loop; the work is done in `turn`, before and after every poll,
 * and ends with a receive that finds nothing. When turn stops earlier (its budget is used up) or
 * bus_uv_wake was called, the loop does not sleep before the next turn. */
#ifndef PHALANX_PROTO_BUS_UV_H
#define PHALANX_PROTO_BUS_UV_H

#include "common/err.h"

#include <stdbool.h>
#include <uv.h>

struct bus_uv {
    uv_prepare_t prepare;
    uv_check_t check;
    uv_idle_t idle;
    uv_timer_t timer;
    int handles;               /* not yet closed */
    bool (*turn)(void *ctx);   /* true: there is more to do */
    void (*tick)(void *ctx);   /* the timer */
    void (*closed)(void *ctx); /* after bus_uv_stop, when no handle is left */
    void *ctx;
};

/* turn, tick, closed and ctx are filled by the caller. */
void bus_uv_start(struct bus_uv *u, uv_loop_t *loop, uint64_t tick_ms);
void bus_uv_wake(struct bus_uv *u);
void bus_uv_stop(struct bus_uv *u);

/* Wakes the loop and sets *readable when fd becomes readable, until bus_uv_unwatch (fd may be
 * closed and *readable be gone after it). */
int bus_uv_watch(uv_loop_t *loop, int fd, bool *readable, uv_poll_t **out, struct err *err);
void bus_uv_unwatch(uv_poll_t **poll);

#endif

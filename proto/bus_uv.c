#include "proto/bus_uv.h"

#include "common/mem.h"

#include <stdlib.h>

static void turn(struct bus_uv *u)
{
    if (uv_is_closing((uv_handle_t *)&u->idle))
        return;
    const bool more = u->turn(u->ctx);
    if (uv_is_closing((uv_handle_t *)&u->idle))
        return;
    if (more)
        bus_uv_wake(u);
    else
        uv_idle_stop(&u->idle);
}

static void on_prepare(uv_prepare_t *handle)
{
    turn(handle->data);
}

static void on_check(uv_check_t *handle)
{
    turn(handle->data);
}

/* An active idle handle is what keeps the loop from sleeping. */
static void on_idle(uv_idle_t *handle)
{
    (void)handle;
}

static void on_timer(uv_timer_t *handle)
{
    struct bus_uv *u = handle->data;
    u->tick(u->ctx);
}

static void on_readable(uv_poll_t *handle, int status, int events)
{
    bool *readable = handle->data;
    (void)status;
    (void)events;
    *readable = true;
}

static void on_closed(uv_handle_t *handle)
{
    struct bus_uv *u = handle->data;
    if (--u->handles == 0)
        u->closed(u->ctx);
}

void bus_uv_start(struct bus_uv *u, uv_loop_t *loop, uint64_t tick_ms)
{
    uv_prepare_init(loop, &u->prepare);
    uv_check_init(loop, &u->check);
    uv_idle_init(loop, &u->idle);
    uv_timer_init(loop, &u->timer);
    u->prepare.data = u;
    u->check.data = u;
    u->idle.data = u;
    u->timer.data = u;
    u->handles = 4;
    uv_prepare_start(&u->prepare, on_prepare);
    uv_check_start(&u->check, on_check);
    uv_timer_start(&u->timer, on_timer, tick_ms, tick_ms);
}

void bus_uv_wake(struct bus_uv *u)
{
    uv_idle_start(&u->idle, on_idle);
}

void bus_uv_stop(struct bus_uv *u)
{
    uv_close((uv_handle_t *)&u->prepare, on_closed);
    uv_close((uv_handle_t *)&u->check, on_closed);
    uv_close((uv_handle_t *)&u->idle, on_closed);
    uv_close((uv_handle_t *)&u->timer, on_closed);
}

int bus_uv_watch(uv_loop_t *loop, int fd, bool *readable, uv_poll_t **out, struct err *err)
{
    uv_poll_t *poll = mem_zalloc(sizeof(*poll));
    int rc = uv_poll_init(loop, poll, fd);
    if (rc < 0) {
        free(poll);
        return err_set(err, ERR_IO, "can not watch a socket: %s", uv_strerror(rc));
    }
    poll->data = readable;
    uv_poll_start(poll, UV_READABLE, on_readable);
    *out = poll;
    return 0;
}

static void on_poll_closed(uv_handle_t *handle)
{
    free(handle);
}

void bus_uv_unwatch(uv_poll_t **poll)
{
    if (*poll)
        uv_close((uv_handle_t *)*poll, on_poll_closed);
    *poll = NULL;
}

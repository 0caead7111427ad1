#include "services/bench/http.h"

#include "common/clock.h"
#include "common/mem.h"

#include <llhttp.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TICK_MS 100

struct http_conn {
    uv_tcp_t tcp;
    uv_connect_t connect;
    uv_write_t write;
    llhttp_t parser;
    struct http *http;
    struct http_conn *prev, *next; /* in http.conns */
    struct http_conn *idle_next;
    const struct http_handler *handler; /* NULL: no exchange */
    void *ctx;
    struct buf request; /* kept until the first byte of the reply */
    int64_t heard_us;   /* the last byte, or the start of the exchange */
    int error;          /* could not connect or write; the tick says so */
    bool idle;          /* in http.idle */
    bool reused;        /* another exchange went before */
    bool answered;      /* a byte of the reply came */
    bool complete;      /* the reply is */
    bool refused;       /* the handler wants no more of it */
    bool writing, closing;
};

static void conn_start(struct http *h, struct buf *request, const struct http_handler *handler,
                       void *ctx);

/* ---- life of a connection ---- */

static void on_closed(uv_handle_t *handle)
{
    struct http_conn *c = handle->data;

    buf_fini(&c->request);
    free(c);
}

static void idle_remove(struct http_conn *c)
{
    if (!c->idle)
        return;
    c->idle = false;
    for (struct http_conn **p = &c->http->idle; *p; p = &(*p)->idle_next)
        if (*p == c) {
            *p = c->idle_next;
            return;
        }
}

static void conn_close(struct http_conn *c)
{
    if (c->closing)
        return;
    c->closing = true;
    c->handler = NULL;
    idle_remove(c);
    if (c->prev)
        c->prev->next = c->next;
    else
        c->http->conns = c->next;
    if (c->next)
        c->next->prev = c->prev;
    uv_close((uv_handle_t *)&c->tcp, on_closed);
}

/* Ends the exchange without a complete reply. */
static void conn_fail(struct http_conn *c, const char *reason)
{
    const struct http_handler *handler = c->handler;
    struct http *h = c->http;
    void *ctx = c->ctx;
    int status = c->parser.status_code;

    if (handler && c->reused && !c->answered) { /* it was closed while it was idle */
        struct buf request = c->request;

        memset(&c->request, 0, sizeof c->request);
        conn_close(c);
        conn_start(h, &request, handler, ctx);
        return;
    }
    conn_close(c);
    if (handler)
        handler->end(ctx, status, reason);
}

static void conn_fail_uv(struct http_conn *c, const char *what, int code)
{
    char reason[128];

    (void)snprintf(reason, sizeof reason, "%s: %s", what, uv_strerror(code));
    conn_fail(c, reason);
}

/* The reply is complete. */
static void conn_done(struct http_conn *c, bool keep)
{
    const struct http_handler *handler = c->handler;
    void *ctx = c->ctx;
    int status = c->parser.status_code;

    c->handler = NULL;
    if (keep && !c->writing) {
        c->idle = true;
        c->idle_next = c->http->idle;
        c->http->idle = c;
    } else {
        conn_close(c);
    }
    handler->end(ctx, status, NULL);
}

/* ---- the reply ---- */

static int on_body(llhttp_t *parser, const char *data, size_t len)
{
    struct http_conn *c = parser->data;

    c->refused = !c->handler->body(c->ctx, parser->status_code, data, len);
    return c->refused ? HPE_USER : 0;
}

static int on_complete(llhttp_t *parser)
{
    struct http_conn *c = parser->data;

    if (parser->status_code < 200) /* 100 Continue and its like: the reply follows */
        return 0;
    c->complete = true;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {.on_body = on_body, .on_message_complete = on_complete};

static void conn_feed(struct http_conn *c, const char *data, size_t len)
{
    llhttp_errno_t code = llhttp_execute(&c->parser, data, len);

    if (c->refused) {
        const struct http_handler *handler = c->handler;
        void *ctx = c->ctx;
        int status = c->parser.status_code;

        conn_close(c);
        handler->end(ctx, status, "");
    } else if (c->complete) {
        bool all = llhttp_get_error_pos(&c->parser) == data + len;

        conn_done(c, all && llhttp_should_keep_alive(&c->parser));
    } else if (code != HPE_OK) {
        char reason[128];

        (void)snprintf(reason, sizeof reason, "malformed HTTP reply: %s",
                       llhttp_get_error_reason(&c->parser));
        conn_fail(c, reason);
    }
}

static void on_alloc(uv_handle_t *handle, size_t size, uv_buf_t *out)
{
    struct http_conn *c = handle->data;

    (void)size;
    *out = uv_buf_init(c->http->input, sizeof c->http->input);
}

static void conn_eof(struct http_conn *c)
{
    if (!c->answered) {
        conn_fail(c, "the server closed the connection without a reply");
        return;
    }
    (void)llhttp_finish(&c->parser);
    if (c->complete)
        conn_done(c, false); /* a body that ends with the connection */
    else
        conn_fail(c, "the server closed the connection in the middle of its reply");
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *bytes)
{
    struct http_conn *c = stream->data;

    if (!n || c->closing)
        return;
    if (!c->handler) { /* idle: closed by the server, or words out of turn */
        conn_close(c);
    } else if (n == UV_EOF) {
        conn_eof(c);
    } else if (n < 0) {
        conn_fail_uv(c, c->answered ? "reading the reply" : "waiting for the reply", (int)n);
    } else {
        c->heard_us = clock_mono_us();
        c->answered = true;
        if (!c->writing)
            buf_fini(&c->request);
        conn_feed(c, bytes->base, (size_t)n);
    }
}

/* ---- the request ---- */

static void on_written(uv_write_t *write, int status)
{
    struct http_conn *c = write->data;

    c->writing = false;
    /* A reply may come although the request could not be written to its end (413): read on. */
    if (status < 0 && status != UV_EPIPE && status != UV_ECONNRESET && !c->closing)
        conn_fail_uv(c, "sending the request", status);
}

static void conn_write(struct http_conn *c)
{
    uv_buf_t bytes = uv_buf_init(c->request.data, (unsigned)c->request.len);

    c->write.data = c;
    c->writing = true;
    c->error = uv_write(&c->write, (uv_stream_t *)&c->tcp, &bytes, 1, on_written);
    if (c->error)
        c->writing = false;
}

static void conn_begin(struct http_conn *c, struct buf *request, const struct http_handler *handler,
                       void *ctx)
{
    buf_fini(&c->request);
    c->request = *request;
    memset(request, 0, sizeof *request);
    c->handler = handler;
    c->ctx = ctx;
    c->answered = c->complete = c->refused = false;
    c->heard_us = clock_mono_us();
    llhttp_init(&c->parser, HTTP_RESPONSE, &settings);
    c->parser.data = c;
}

static void on_connected(uv_connect_t *connect, int status)
{
    struct http_conn *c = connect->data;

    if (c->closing)
        return;
    if (status < 0) {
        conn_fail_uv(c, "connecting", status);
        return;
    }
    (void)uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
    conn_write(c);
}

static void conn_start(struct http *h, struct buf *request, const struct http_handler *handler,
                       void *ctx)
{
    struct http_conn *c = mem_zalloc(sizeof *c);

    c->http = h;
    c->next = h->conns;
    if (c->next)
        c->next->prev = c;
    h->conns = c;
    conn_begin(c, request, handler, ctx);
    (void)uv_tcp_init(h->loop, &c->tcp);
    c->tcp.data = c->connect.data = c;
    (void)uv_tcp_nodelay(&c->tcp, 1);
    c->error = uv_tcp_connect(&c->connect, &c->tcp, (const struct sockaddr *)&h->target->address,
                              on_connected);
}

void http_send(struct http *h, struct buf *request, const struct http_handler *handler, void *ctx)
{
    struct http_conn *c = h->idle;

    if (!c) {
        conn_start(h, request, handler, ctx);
        return;
    }
    h->idle = c->idle_next;
    c->idle = false;
    c->reused = true;
    conn_begin(c, request, handler, ctx);
    conn_write(c);
}

/* ---- all of them ---- */

static void on_tick(uv_timer_t *tick)
{
    struct http *h = tick->data;
    int64_t now_us = clock_mono_us();
    struct http_conn *next;

    for (struct http_conn *c = h->conns; c; c = next) {
        next = c->next;
        if (c->handler && c->error) {
            conn_fail_uv(c, "connecting", c->error);
        } else if (c->handler && now_us - c->heard_us >= h->stall_us) {
            c->reused = false; /* no second try */
            conn_fail(c, "the server was silent for too long (--stall-timeout)");
        }
    }
}

void http_init(struct http *h, uv_loop_t *loop, const struct target *target, int64_t stall_us)
{
    memset(h, 0, sizeof *h);
    h->loop = loop;
    h->target = target;
    h->stall_us = stall_us;
    (void)uv_timer_init(loop, &h->tick);
    h->tick.data = h;
    (void)uv_timer_start(&h->tick, on_tick, TICK_MS, TICK_MS);
}

void http_close(struct http *h)
{
    while (h->conns)
        conn_close(h->conns);
    uv_close((uv_handle_t *)&h->tick, NULL);
}

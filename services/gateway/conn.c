#include "services/gateway/conn.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "services/gateway/call.h"
#include "services/gateway/reply.h"
#include "services/gateway/routes.h"

#include <ctype.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#define READ_BUF_BYTES 65536

static void conn_consume_ahead(struct conn *c);

/* ---- life ---- */

static void unmark(struct conn *c)
{
    struct conn **at = &c->gw->dirty;

    while (c->dirty && *at != c)
        at = &(*at)->dirty_next;
    if (c->dirty)
        *at = c->dirty_next;
    c->dirty = false;
}

static void on_closed(uv_handle_t *handle)
{
    struct conn *c = handle->data;
    struct gateway *gw = c->gw;

    unmark(c);
    if (c->prev)
        c->prev->next = c->next;
    else
        gw->conns = c->next;
    if (c->next)
        c->next->prev = c->prev;
    gw->conns_count--;
    metric_set(&gw->metrics, METRIC_HTTP_CONNECTIONS, (double)gw->conns_count);
    http_parser_fini(&c->http);
    buf_fini(&c->ahead);
    buf_fini(&c->out);
    free(c->writing);
    free(c);
}

static void body_recount(struct conn *c)
{
    c->gw->bodies_bytes += c->http.body.cap - c->body_counted;
    c->body_counted = c->http.body.cap;
}

void conn_drop(struct conn *c, const char *why)
{
    if (c->state == CONN_CLOSED)
        return;
    if (c->call)
        call_cancel(c->call, why);
    buf_fini(&c->http.body);
    body_recount(c);
    c->state = CONN_CLOSED;
    uv_close((uv_handle_t *)&c->tcp, on_closed);
}

/* ---- writing ---- */

size_t conn_unsent(const struct conn *c)
{
    return c->out.len + uv_stream_get_write_queue_size((const uv_stream_t *)&c->tcp);
}

void conn_mark(struct conn *c)
{
    if (c->dirty)
        return;
    c->dirty = true;
    c->dirty_next = c->gw->dirty;
    c->gw->dirty = c;
}

static void on_shutdown(uv_shutdown_t *request, int status)
{
    (void)request;
    (void)status;
}

/* Everything that was written has left. */
static void conn_drained(struct conn *c)
{
    if (c->state == CONN_LINGER && !c->shut) {
        c->shut = true;
        c->since_us = clock_mono_us();
        (void)uv_shutdown(&c->shutdown, (uv_stream_t *)&c->tcp, on_shutdown);
    }
    if (c->call)
        call_resume(c->call);
    else if (c->eof && c->state != CONN_BUSY)
        conn_drop(c, "closed");
    else if (c->state == CONN_READ && c->ahead.len)
        conn_consume_ahead(c);
}

static void on_written(uv_write_t *request, int status)
{
    struct conn *c = request->data;

    free(c->writing);
    c->writing = NULL;
    if (c->state == CONN_CLOSED)
        return;
    if (status) {
        conn_drop(c, "client went away");
        return;
    }
    c->progress_us = clock_mono_us();
    if (c->out.len)
        conn_mark(c);
    else
        conn_drained(c);
    if (c->call && conn_unsent(c) < HTTP_WRITE_PAUSE_BYTES)
        call_resume(c->call);
}

void conn_flush(struct conn *c)
{
    uv_buf_t buf;
    size_t sent = 0;
    int rc;

    if (c->state == CONN_CLOSED || c->writing)
        return;
    if (c->out.len) {
        rc = uv_try_write((uv_stream_t *)&c->tcp, &(uv_buf_t){c->out.data, c->out.len}, 1);
        if (rc < 0 && rc != UV_EAGAIN) {
            conn_drop(c, "client went away");
            return;
        }
        sent = rc > 0 ? (size_t)rc : 0;
    }
    if (sent == c->out.len) {
        c->progress_us = clock_mono_us();
        if (c->call)
            buf_clear(&c->out);
        else
            buf_fini(&c->out);
        conn_drained(c);
        return;
    }
    buf = uv_buf_init(c->out.data + sent, (unsigned)(c->out.len - sent));
    c->writing = buf_take(&c->out);
    c->write.data = c;
    if (uv_write(&c->write, (uv_stream_t *)&c->tcp, &buf, 1, on_written))
        conn_drop(c, "client went away");
}

/* ---- requests ---- */

static void trace_set(struct conn *c)
{
    size_t len, used = 0;
    const char *given = http_parser_field(&c->http, HTTP_FIELD_REQUEST_ID, &len);

    for (size_t i = 0; given && i < len && used < HTTP_TRACE_BYTES_MAX; i++) {
        unsigned char ch = (unsigned char)given[i];

        c->trace[used++] = isalnum(ch) || (ch && strchr("-_.:/+=@", ch)) ? (char)ch : '_';
    }
    c->trace[used] = '\0';
    if (!used)
        (void)snprintf(c->trace, sizeof c->trace, "req-%016llx",
                       (unsigned long long)gateway_random(c->gw));
}

/* What the answer needs to know of the head, which is freed before. */
static void request_begin(struct conn *c)
{
    size_t len;

    c->keep_alive = c->http.keep_alive && !c->gw->draining && !c->gw->stopping;
    c->http10 = c->http.llhttp.http_minor == 0;
    c->method = c->http.llhttp.method;
    c->head_only = c->method == HTTP_HEAD;
    c->cors = http_parser_field(&c->http, HTTP_FIELD_ORIGIN, &len) != NULL;
    c->fresh = false;
    trace_set(c);
    metric_add(&c->gw->metrics, METRIC_HTTP_REQUESTS, 1);
}

/* The answer that also ends the connection, as the rest of the request is not read. */
static void refuse_and_end(struct conn *c)
{
    struct problem problem = c->problem;

    if (!c->http.head_done) {
        c->http10 = c->head_only = c->cors = false;
        trace_set(c);
        metric_add(&c->gw->metrics, METRIC_HTTP_REQUESTS, 1);
    }
    c->keep_alive = false;
    c->state = CONN_BUSY;
    buf_clear(&c->ahead);
    reply_problem(c, &problem);
}

static void on_head(struct conn *c)
{
    struct problem problem = {0};
    const char *allow = NULL, *expect;
    size_t len;

    request_begin(c);
    c->body_since_us = clock_mono_us();
    if (!c->http.has_body)
        return;
    expect = http_parser_field(&c->http, HTTP_FIELD_EXPECT, &len);
    if (routes_check(c, &problem, &allow)) {
        c->keep_alive = false;
        c->state = CONN_BUSY;
        routes_dispatch(c); /* finds the same problem and answers it */
    } else if (expect && (len != 12 || strncasecmp(expect, "100-continue", 12) != 0)) {
        (void)problem_set(&c->problem, 417, NULL, NULL, "Expect: only 100-continue is known");
        refuse_and_end(c);
    } else if (expect && !c->http10) {
        buf_puts(&c->out, "HTTP/1.1 100 Continue\r\n\r\n");
        conn_mark(c);
    }
}

static void on_parsed(struct conn *c, enum http_parsed event)
{
    if (event == PARSED_BAD) {
        refuse_and_end(c);
    } else if (event == PARSED_HEAD) {
        on_head(c);
    } else if (event == PARSED_DONE) {
        c->state = CONN_BUSY;
        c->body_since_us = 0;
        routes_dispatch(c);
    }
    body_recount(c);
    if (c->state == CONN_READ && c->gw->bodies_bytes > HTTP_BODIES_BYTES_MAX) {
        (void)problem_set(&c->problem, 503, NULL, NULL, "too many bodies are being read");
        refuse_and_end(c);
    }
}

/* Consumes bytes as long as a request may be read; returns how many. */
static size_t conn_consume(struct conn *c, const char *data, size_t len)
{
    size_t at = 0;
    bool again = false;

    c->consuming = true;
    while (c->state == CONN_READ && (at < len || again) &&
           conn_unsent(c) < HTTP_WRITE_PAUSE_BYTES) {
        size_t used = 0;
        enum http_parsed event;

        if (!c->http.started && at < len)
            c->since_us = clock_mono_us();
        event = http_parser_feed(&c->http, data + at, len - at, &used);
        at += used;
        on_parsed(c, event);
        again = event == PARSED_HEAD;
    }
    c->consuming = false;
    return c->state == CONN_LINGER || c->state == CONN_CLOSED ? len : at;
}

static void on_read(uv_stream_t *stream, ssize_t nread, const uv_buf_t *buf);

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct conn *c = handle->data;

    (void)suggested;
    *buf = uv_buf_init(c->gw->read_buf, READ_BUF_BYTES);
}

/* Reads on unless enough lies ahead of a request that is being answered. */
static void reading_adjust(struct conn *c)
{
    bool want = c->state != CONN_CLOSED && !c->eof && c->ahead.len < HTTP_PIPELINE_BYTES_MAX;

    if (want && !c->reading)
        (void)uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
    else if (!want && c->reading && c->state != CONN_CLOSED)
        (void)uv_read_stop((uv_stream_t *)&c->tcp);
    c->reading = want;
}

static void conn_consume_ahead(struct conn *c)
{
    size_t used;

    if (c->consuming)
        return;
    used = conn_consume(c, c->ahead.data, c->ahead.len);
    if (c->state == CONN_CLOSED)
        return;
    if (used >= c->ahead.len)
        buf_fini(&c->ahead);
    else
        buf_consume(&c->ahead, used);
    reading_adjust(c);
}

static void on_end(struct conn *c, ssize_t code)
{
    c->eof = true;
    c->reading = false;
    (void)uv_read_stop((uv_stream_t *)&c->tcp);
    if (code == UV_EOF && c->state != CONN_BUSY && conn_unsent(c))
        return; /* closed when that has left */
    conn_drop(c, "client went away");
}

static void on_read(uv_stream_t *stream, ssize_t nread, const uv_buf_t *buf)
{
    struct conn *c = stream->data;
    size_t len = nread > 0 ? (size_t)nread : 0, used = 0;

    if (nread < 0) {
        on_end(c, nread);
        return;
    }
    if (c->state == CONN_LINGER)
        return;
    if (c->state == CONN_READ && !c->ahead.len)
        used = conn_consume(c, buf->base, len);
    if (c->state == CONN_CLOSED)
        return;
    buf_append(&c->ahead, buf->base + used, len - used);
    if (!c->ahead.len)
        buf_fini(&c->ahead);
    reading_adjust(c);
}

void conn_request_release(struct conn *c)
{
    buf_fini(&c->http.head);
    buf_fini(&c->http.body);
    memset(c->http.field, 0, sizeof c->http.field);
    memset(&c->http.target, 0, sizeof c->http.target);
    body_recount(c);
}

void conn_request_end(struct conn *c)
{
    c->call = NULL;
    c->since_us = clock_mono_us();
    c->body_since_us = 0;
    conn_mark(c);
    if (!c->keep_alive) {
        c->state = CONN_LINGER;
        conn_request_release(c);
        buf_fini(&c->ahead);
        reading_adjust(c);
        return;
    }
    c->state = CONN_READ;
    http_parser_next(&c->http);
    body_recount(c);
    if (c->ahead.len)
        conn_consume_ahead(c);
}

/* ---- deadlines ---- */

/* Data that is not read hides the client's end: ask the kernel. */
static bool peer_closed(const struct conn *c)
{
    struct tcp_info info;
    socklen_t len = sizeof info;
    uv_os_fd_t fd;

    if (uv_fileno((const uv_handle_t *)&c->tcp, &fd) ||
        getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len))
        return false;
    return info.tcpi_state != TCP_ESTABLISHED;
}

static void tick_read(struct conn *c, int64_t now_us)
{
    int64_t age_ms = (now_us - c->since_us) / 1000;
    int64_t body_ms = (now_us - c->body_since_us) / 1000;

    if (!c->http.started) {
        if (!c->ahead.len && age_ms > (c->fresh ? HTTP_HEAD_MS_MAX : HTTP_IDLE_MS_MAX))
            conn_drop(c, "idle");
    } else if (!c->http.head_done) {
        if (age_ms <= HTTP_HEAD_MS_MAX)
            return;
        (void)problem_set(&c->problem, 408, NULL, NULL, "the head did not arrive within 10 s");
        refuse_and_end(c);
    } else if (body_ms > HTTP_BODY_GRACE_MS &&
               (int64_t)c->http.body.len < body_ms * HTTP_BODY_BYTES_S_MIN / 1000) {
        (void)problem_set(&c->problem, 408, NULL, NULL,
                          "the body arrives slower than 8192 bytes a second");
        refuse_and_end(c);
    }
}

void conn_tick(struct conn *c, int64_t now_us)
{
    size_t unsent;

    if (c->state == CONN_CLOSED)
        return;
    unsent = conn_unsent(c);
    if (!unsent || unsent < c->unsent_seen)
        c->progress_us = now_us;
    c->unsent_seen = unsent;
    if ((now_us - c->progress_us) / 1000 > HTTP_READER_MS_MAX)
        conn_drop(c, "the client reads too slowly");
    else if (c->state == CONN_LINGER && c->shut &&
             (now_us - c->since_us) / 1000 > HTTP_LINGER_MS_MAX)
        conn_drop(c, "closed");
    else if (c->state == CONN_BUSY && !c->reading && peer_closed(c))
        conn_drop(c, "client went away");
    else if (c->state == CONN_READ)
        tick_read(c, now_us);
    else if (c->call && now_us > c->call->deadline_us)
        call_expire(c->call);
}

/* ---- new ones ---- */

/* A reader that is behind fills our memory, where it is bounded and seen, not the kernel's. */
static void socket_bound(struct conn *c)
{
    int bytes = HTTP_SOCKET_UNSENT_BYTES;
    uv_os_fd_t fd;

    (void)uv_tcp_nodelay(&c->tcp, 1);
    if (!uv_fileno((const uv_handle_t *)&c->tcp, &fd))
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &bytes, sizeof bytes);
}

void conn_accept(struct gateway *gw)
{
    struct conn *c = mem_zalloc(sizeof *c);

    c->gw = gw;
    c->fresh = true;
    c->since_us = c->progress_us = clock_mono_us();
    http_parser_init(&c->http, &c->problem);
    (void)uv_tcp_init(&gw->loop, &c->tcp);
    c->tcp.data = c;
    c->next = gw->conns;
    if (c->next)
        c->next->prev = c;
    gw->conns = c;
    gw->conns_count++;
    metric_set(&gw->metrics, METRIC_HTTP_CONNECTIONS, (double)gw->conns_count);
    if (uv_accept((uv_stream_t *)&gw->listener, (uv_stream_t *)&c->tcp) ||
        gw->conns_count > gw->conns_max + HTTP_SHED_MAX) {
        conn_drop(c, "too many connections");
        return;
    }
    socket_bound(c);
    if (gw->conns_count > gw->conns_max)
        reply_shed(c);
    reading_adjust(c);
}

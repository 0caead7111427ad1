#include "services/gateway/reply.h"

#include "common/log.h"

#include <string.h>
#include <time.h>

static const char *status_text(int status)
{
    static const struct {
        int status;
        const char *text;
    } texts[] = {
        {200, "OK"},
        {204, "No Content"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {413, "Content Too Large"},
        {415, "Unsupported Media Type"},
        {417, "Expectation Failed"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {503, "Service Unavailable"},
        {505, "HTTP Version Not Supported"},
    };

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (texts[i].status == status)
            return texts[i].text;
    return "Unknown";
}

/* Status line and the fields every answer has; the caller ends the head. */
static void head_begin(struct conn *c, int status, const char *type)
{
    struct buf *out = &c->out;
    time_t now = time(NULL);
    char date[40];
    struct tm tm;

    (void)gmtime_r(&now, &tm);
    (void)strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", &tm);
    buf_printf(out, "HTTP/1.1 %d %s\r\nDate: %s\r\nX-Request-Id: %s\r\n", status,
               status_text(status), date, c->trace);
    if (type)
        buf_printf(out, "Content-Type: %s\r\n", type);
    if (c->cors)
        buf_puts(out, "Access-Control-Allow-Origin: *\r\n"
                      "Access-Control-Expose-Headers: X-Request-Id\r\n");
    if (status == 429 || status == 503)
        buf_puts(out, "Retry-After: 1\r\n");
    if (status == 401)
        buf_puts(out, "WWW-Authenticate: Bearer\r\n");
    if (!c->keep_alive)
        buf_puts(out, "Connection: close\r\n");
    else if (c->http10)
        buf_puts(out, "Connection: keep-alive\r\n");
    if (status >= 500)
        metric_add(&c->gw->metrics, METRIC_HTTP_5XX, 1);
    else if (status >= 400)
        metric_add(&c->gw->metrics, METRIC_HTTP_4XX, 1);
}

void reply_send(struct conn *c, const struct reply *r)
{
    head_begin(c, r->status, r->type);
    if (r->extra)
        buf_puts(&c->out, r->extra);
    if (r->status != 204)
        buf_printf(&c->out, "Content-Length: %zu\r\n", r->len);
    buf_puts(&c->out, "\r\n");
    if (!c->head_only)
        buf_append(&c->out, r->data, r->len);
    log_debug("id=%s status=%d bytes=%zu", c->trace, r->status, r->len);
    conn_mark(c);
    conn_request_end(c);
}

void reply_json(struct conn *c, int status, const struct buf *body)
{
    struct reply r = {
        .status = status, .type = "application/json", .data = body->data, .len = body->len};

    reply_send(c, &r);
}

void reply_problem(struct conn *c, const struct problem *p)
{
    struct buf body = {0};

    problem_render(p, &body);
    reply_json(c, p->status, &body);
    buf_fini(&body);
}

void reply_stream_begin(struct conn *c)
{
    c->chunked = !c->http10;
    if (c->http10)
        c->keep_alive = false; /* the end of the connection is the end of the stream */
    head_begin(c, 200, "text/event-stream; charset=utf-8");
    buf_puts(&c->out, "Cache-Control: no-cache\r\n");
    buf_puts(&c->out, c->chunked ? "Transfer-Encoding: chunked\r\n\r\n" : "\r\n");
    conn_mark(c);
}

void reply_stream_data(struct conn *c, const struct buf *data)
{
    if (!data->len)
        return;
    if (c->chunked) {
        buf_hex(&c->out, data->len);
        buf_puts(&c->out, "\r\n");
    }
    buf_append(&c->out, data->data, data->len);
    if (c->chunked)
        buf_puts(&c->out, "\r\n");
    conn_mark(c);
}

void reply_stream_end(struct conn *c)
{
    if (c->chunked)
        buf_puts(&c->out, "0\r\n\r\n");
    c->chunked = false;
    conn_request_end(c);
}

void reply_shed(struct conn *c)
{
    struct problem p = {0};

    (void)problem_set(&p, 503, "too_many_connections", NULL,
                      "this server has as many connections as it can hold");
    c->trace[0] = '-';
    c->trace[1] = '\0';
    c->keep_alive = false;
    c->state = CONN_BUSY;
    reply_problem(c, &p);
}

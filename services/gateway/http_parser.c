#include "services/gateway/http_parser.h"

#include "services/gateway/limits.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

static const char *const field_names[HTTP_FIELDS_KNOWN] = {
#define X(ID, name) name,
    HTTP_FIELDS(X)
#undef X
};

static int refuse(struct http_parser *p, int status, const char *message)
{
    if (!p->problem->status)
        (void)problem_set(p->problem, status, NULL, NULL, "%s", message);
    return HPE_USER;
}

static void span_extend(struct http_parser *p, struct http_span *span, const char *at, size_t len)
{
    if (!span->present) {
        span->at = (uint32_t)p->head.len;
        span->present = true;
    }
    buf_append(&p->head, at, len);
    span->len += (uint32_t)len;
}

static int on_url(llhttp_t *llhttp, const char *at, size_t len)
{
    struct http_parser *p = llhttp->data;

    span_extend(p, &p->target, at, len);
    return 0;
}

static int on_field(llhttp_t *llhttp, const char *at, size_t len)
{
    struct http_parser *p = llhttp->data;

    for (size_t i = 0; i < len && p->name_len < sizeof p->name; i++)
        p->name[p->name_len++] = (char)tolower((unsigned char)at[i]);
    return 0;
}

static int on_field_complete(llhttp_t *llhttp)
{
    struct http_parser *p = llhttp->data;

    p->reading = -1;
    if (!p->name_len)
        return refuse(p, 400, "malformed HTTP request: header field without a name");
    if (++p->fields_count > HTTP_FIELDS_MAX)
        return refuse(p, 431, "more than 100 header fields");
    if (p->head_done) /* trailers mean nothing here */
        return 0;
    for (int i = 0; i < HTTP_FIELDS_KNOWN; i++) {
        if (strlen(field_names[i]) != p->name_len || memcmp(field_names[i], p->name, p->name_len))
            continue;
        if (p->field[i].present)
            return refuse(p, 400, "a header field that may stand once is repeated");
        p->reading = (int8_t)i;
        span_extend(p, &p->field[i], "", 0);
    }
    return 0;
}

static int on_value(llhttp_t *llhttp, const char *at, size_t len)
{
    struct http_parser *p = llhttp->data;

    if (p->reading >= 0)
        span_extend(p, &p->field[p->reading], at, len);
    return 0;
}

static int on_value_complete(llhttp_t *llhttp)
{
    struct http_parser *p = llhttp->data;
    struct http_span *span;

    p->name_len = 0;
    if (p->reading < 0)
        return 0;
    span = &p->field[p->reading];
    while (span->len && strchr(" \t", p->head.data[span->at + span->len - 1]))
        span->len--;
    return 0;
}

static int on_head(llhttp_t *llhttp)
{
    struct http_parser *p = llhttp->data;

    if (llhttp->http_major != 1 || llhttp->http_minor > 1)
        return refuse(p, 505, "only HTTP/1.0 and HTTP/1.1 are spoken here");
    if (llhttp->http_minor == 1 && !p->field[HTTP_FIELD_HOST].present)
        return refuse(p, 400, "HTTP/1.1 request without Host");
    p->has_body = (llhttp->flags & F_CHUNKED) || llhttp->content_length > 0;
    p->keep_alive = llhttp_should_keep_alive(llhttp);
    if (llhttp->method != HTTP_CONNECT)
        llhttp->upgrade = 0; /* offers to change the protocol are not taken up */
    else
        return refuse(p, 405, "CONNECT is not for this server");
    p->head_done = true;
    if (!(llhttp->flags & F_CHUNKED) && llhttp->content_length > HTTP_BODY_BYTES_MAX)
        return refuse(p, 413, "body larger than 8388608 bytes");
    return HPE_PAUSED;
}

static int on_body(llhttp_t *llhttp, const char *at, size_t len)
{
    struct http_parser *p = llhttp->data;

    if (p->body.len + len > HTTP_BODY_BYTES_MAX)
        return refuse(p, 413, "body larger than 8388608 bytes");
    buf_append(&p->body, at, len);
    return 0;
}

static int on_done(llhttp_t *llhttp)
{
    struct http_parser *p = llhttp->data;

    p->done = true;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_url = on_url,
    .on_header_field = on_field,
    .on_header_field_complete = on_field_complete,
    .on_header_value = on_value,
    .on_header_value_complete = on_value_complete,
    .on_headers_complete = on_head,
    .on_body = on_body,
    .on_message_complete = on_done,
};

void http_parser_init(struct http_parser *p, struct problem *problem)
{
    memset(p, 0, sizeof *p);
    llhttp_init(&p->llhttp, HTTP_REQUEST, &settings);
    p->llhttp.data = p;
    p->problem = problem;
    p->reading = -1;
}

void http_parser_fini(struct http_parser *p)
{
    buf_fini(&p->head);
    buf_fini(&p->body);
}

void http_parser_next(struct http_parser *p)
{
    llhttp_t llhttp = p->llhttp;
    struct problem *problem = p->problem;

    http_parser_fini(p);
    memset(p, 0, sizeof *p);
    p->llhttp = llhttp;
    p->problem = problem;
    p->reading = -1;
}

/* A CR that no LF follows is read as a line's end by some and not by others: refused. */
static bool has_bare_cr(struct http_parser *p, const char *data, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (p->after_cr && data[i] != '\n')
            return true;
        p->after_cr = data[i] == '\r';
    }
    return false;
}

static enum http_parsed bad(struct http_parser *p, llhttp_errno_t code)
{
    const char *reason = llhttp_get_error_reason(&p->llhttp);
    bool version = reason && strcmp(reason, "Invalid HTTP version") == 0;

    if (!p->problem->status)
        (void)problem_set(p->problem, version ? 505 : 400, NULL, NULL, "malformed HTTP request: %s",
                          reason ? reason : llhttp_errno_name(code));
    return PARSED_BAD;
}

/* Consumes one piece: up to the head's bound while the head is read. */
static llhttp_errno_t feed_piece(struct http_parser *p, const char *data, size_t len, size_t *used)
{
    size_t body_before = p->body.len;
    bool in_head = !p->head_done;
    llhttp_errno_t code;

    if (in_head && len > HTTP_HEAD_BYTES_MAX - p->head_bytes)
        len = HTTP_HEAD_BYTES_MAX - p->head_bytes;
    if (llhttp_get_errno(&p->llhttp) == HPE_PAUSED)
        llhttp_resume(&p->llhttp);
    code = llhttp_execute(&p->llhttp, data, len);
    *used = code == HPE_OK ? len : (size_t)(llhttp_get_error_pos(&p->llhttp) - data);
    if (in_head) {
        p->head_bytes += *used;
        if (has_bare_cr(p, data, *used)) {
            (void)refuse(p, 400, "malformed HTTP request: CR without LF");
            return HPE_USER;
        }
    } else {
        p->framing_bytes += *used - (p->body.len - body_before);
    }
    return code;
}

enum http_parsed http_parser_feed(struct http_parser *p, const char *data, size_t len, size_t *used)
{
    *used = 0;
    if (p->problem->status)
        return PARSED_BAD;
    do { /* once even without bytes: a request without a body ends when the head is resumed */
        bool in_head = !p->head_done;
        size_t n = 0;
        llhttp_errno_t code = feed_piece(p, data + *used, len - *used, &n);

        p->started = true;
        *used += n;
        if (code == HPE_PAUSED)
            return p->done ? PARSED_DONE : PARSED_HEAD;
        if (code != HPE_OK)
            return bad(p, code);
        if (in_head && p->head_bytes >= HTTP_HEAD_BYTES_MAX) {
            (void)refuse(p, 431, "request line and header fields larger than 16384 bytes");
            return PARSED_BAD;
        }
        if (p->framing_bytes > HTTP_BODY_BYTES_MAX) {
            (void)refuse(p, 413, "chunk framing larger than 8388608 bytes");
            return PARSED_BAD;
        }
    } while (*used < len);
    return PARSED_MORE;
}

const char *http_parser_field(const struct http_parser *p, enum http_field id, size_t *len)
{
    const struct http_span *span = &p->field[id];

    *len = span->len;
    return span->present && p->head.data ? p->head.data + span->at : NULL;
}

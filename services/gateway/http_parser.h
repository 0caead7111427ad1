/* Bytes of a connection into requests: llhttp behind the limits of limits.def. No sockets. */
#ifndef PHALANX_GATEWAY_HTTP_PARSER_H
#define PHALANX_GATEWAY_HTTP_PARSER_H

#include "common/buf.h"
#include "services/gateway/problem.h"

#include <llhttp.h>
#include <stdbool.h>
#include <stdint.h>

/* Fields whose values are kept; a request that repeats one is refused. X(ID, name) */
#define HTTP_FIELDS(X)                                                                             \
    X(HOST, "host")                                                                                \
    X(AUTHORIZATION, "authorization")                                                              \
    X(CONTENT_TYPE, "content-type")                                                                \
    X(CONTENT_ENCODING, "content-encoding")                                                        \
    X(EXPECT, "expect")                                                                            \
    X(ORIGIN, "origin")                                                                            \
    X(REQUEST_ID, "x-request-id")                                                                  \
    X(CORS_METHOD, "access-control-request-method")                                                \
    X(CORS_HEADERS, "access-control-request-headers")

enum http_field {
#define X(ID, name) HTTP_FIELD_##ID,
    HTTP_FIELDS(X)
#undef X
        HTTP_FIELDS_KNOWN
};

enum http_parsed {
    PARSED_MORE, /* everything was used, nothing is complete */
    PARSED_HEAD, /* the head of a request is complete; feed the rest */
    PARSED_DONE, /* the request is complete; http_parser_next before more is fed */
    PARSED_BAD,  /* problem is filled; the connection can not be read any further */
};

struct http_span {
    uint32_t at, len; /* in head */
    bool present;
};

struct http_parser {
    llhttp_t llhttp;
    struct buf head; /* target and known values, as spans */
    struct buf body;
    struct http_span target;
    struct http_span field[HTTP_FIELDS_KNOWN];
    char name[32];    /* of the field being read, lower case */
    uint8_t name_len; /* sizeof name: too long to be a known one */
    int8_t reading;   /* enum http_field being read, or -1 */
    uint8_t fields_count;
    bool started; /* a byte of the request was seen */
    bool head_done;
    bool done;
    bool after_cr;
    bool keep_alive;
    bool has_body;           /* the head announces one */
    size_t head_bytes;       /* consumed */
    size_t framing_bytes;    /* consumed behind the head, less the body's own */
    struct problem *problem; /* borrowed; filled at PARSED_BAD */
};

void http_parser_init(struct http_parser *p, struct problem *problem);
void http_parser_fini(struct http_parser *p);

/* Forgets the request, frees its memory, makes ready for the next of the connection. */
void http_parser_next(struct http_parser *p);

/* Feeds bytes; *used is how many were consumed. */
enum http_parsed http_parser_feed(struct http_parser *p, const char *data, size_t len,
                                  size_t *used);

/* The value of a field (not NUL-terminated), NULL when absent. Valid until http_parser_next. */
const char *http_parser_field(const struct http_parser *p, enum http_field id, size_t *len);

#endif

/* One client's connection: bytes in, bytes out, one request at a time (later ones of a pipeline
 * wait). Deadlines are looked at by conn_tick. */
#ifndef PHALANX_GATEWAY_CONN_H
#define PHALANX_GATEWAY_CONN_H

#include "services/gateway/gateway.h"
#include "services/gateway/http_parser.h"
#include "services/gateway/limits.h"

struct call;

enum conn_state {
    CONN_READ,   /* a request is awaited or read */
    CONN_BUSY,   /* it is being answered */
    CONN_LINGER, /* the last answer was given; what still comes is dropped */
    CONN_CLOSED, /* uv_close was called */
};

struct conn {
    uv_tcp_t tcp;
    struct gateway *gw;
    struct conn *prev, *next;
    struct conn *dirty_next;
    enum conn_state state;
    bool dirty;                               /* in gw->dirty */
    bool consuming;                           /* inside conn_consume */
    bool reading;                             /* uv_read_start is on */
    bool fresh;                               /* no request yet */
    bool shut;                                /* our side said its end */
    bool eof;                                 /* the client's side did */
    bool keep_alive, http10, head_only, cors; /* of the present request */
    bool chunked;                             /* a stream is being written in chunks */
    uint8_t method;                           /* enum llhttp_method */
    struct http_parser http;
    struct problem problem;
    char trace[HTTP_TRACE_BYTES_MAX + 1];
    struct buf ahead; /* read, not yet consumed: behind the present request */
    struct buf out;   /* not yet handed to the kernel */
    uv_write_t write;
    uv_shutdown_t shutdown;
    char *writing;         /* memory of the write in flight, or NULL */
    size_t unsent_seen;    /* at the last tick */
    size_t body_counted;   /* in gw->bodies_bytes */
    int64_t since_us;      /* state, or the present request's first byte */
    int64_t body_since_us; /* 0: no body is read */
    int64_t progress_us;   /* the reader last took something */
    struct call *call;     /* running for the present request, or NULL */
};

/* A connection waits at the listener. */
void conn_accept(struct gateway *gw);

/* Bytes were put into out: they leave at the end of the loop's turn. */
void conn_mark(struct conn *c);
void conn_flush(struct conn *c);

/* Bytes that the client has not taken yet. */
size_t conn_unsent(const struct conn *c);

/* The present request was answered; goes on with the next. */
void conn_request_end(struct conn *c);

/* Frees head and body of the present request (its handler is done with them). */
void conn_request_release(struct conn *c);

/* Ends the connection now; a running call is aborted. */
void conn_drop(struct conn *c, const char *why);

/* Deadlines. */
void conn_tick(struct conn *c, int64_t now_us);

#endif

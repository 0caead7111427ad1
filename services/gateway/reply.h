/* Answers: heads, whole bodies, event streams. */
#ifndef PHALANX_GATEWAY_REPLY_H
#define PHALANX_GATEWAY_REPLY_H

#include "services/gateway/conn.h"

struct reply {
    int status;
    const char *type;  /* NULL: no body */
    const char *extra; /* further header lines, each with its CRLF; or NULL */
    const char *data;
    size_t len;
};

/* Answers the connection's present request; afterwards it is over. */
void reply_send(struct conn *c, const struct reply *r);
void reply_json(struct conn *c, int status, const struct buf *body);
void reply_problem(struct conn *c, const struct problem *p);

/* An event stream: begin, data..., end (the request is then over). */
void reply_stream_begin(struct conn *c);
void reply_stream_data(struct conn *c, const struct buf *data);
void reply_stream_end(struct conn *c);

/* For a connection that is not let in: status 503 and the end. */
void reply_shed(struct conn *c);

#endif

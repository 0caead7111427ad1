/* What the files of the tokenizer process share: service.c (links and life), requests.c (requests
 * from gateways on their way to schedulers), tokens.c (tokens on their way back). */
#ifndef PHALANX_TOKENIZER_STATE_H
#define PHALANX_TOKENIZER_STATE_H

#include "common/metrics.h"
#include "services/tokenizer/chunks.h"
#include "services/tokenizer/request.h"
#include "services/tokenizer/service.h"

struct service {
    uv_loop_t loop;
    const char *name;
    struct tokenizer *tokenizer;
    struct chat *chat;
    struct bus *gateways;
    struct bus *launcher; /* NULL: there is none */
    struct replicas replicas;
    bool was_ready;             /* a scheduler was, once: from then on requests wait for one */
    struct request *requests;   /* by key, in the order they came */
    struct sequence *sequences; /* by sid */
    uint64_t next_sid;
    struct metrics metrics;
    uv_timer_t stats_timer;
    uv_signal_t sigterm, sigint;
    struct outbox *outboxes;
    int status;
    struct err err;
};

/* ---- requests.c ---- */

/* A message of a gateway. Those of requests that are over are ignored. */
void requests_generate(struct service *s, struct bus_peer *gateway,
                       const struct proto_header *header, const struct proto_generate *g);
void requests_abort(struct service *s, struct bus_peer *gateway, uint64_t rid);
void requests_pause(struct service *s, struct bus_peer *gateway, uint64_t rid, bool paused);

/* The gateway is gone: its requests end. Returns how many. */
uint32_t requests_drop(struct service *s, const struct bus_peer *gateway);

/* The scheduler is gone: what ran there begins anew at another or waits, unless that happened too
 * often. Returns how many there were. */
uint32_t requests_move(struct service *s, const struct replica *gone);

/* A scheduler takes requests: it gets those that wait. */
void requests_resume(struct service *s);

/* Ends a request; the scheduler is told about sequences it still runs. */
void request_end(struct service *s, struct request *r, const char *reason);

/* Likewise, and the gateway is told. */
void request_fail(struct service *s, struct request *r, const struct proto_failed *why);

/* The scheduler sends no more of it. */
void sequence_close(struct sequence *q);

/* ---- tokens.c ---- */

void tokens_take(struct service *s, const struct replica *from, const struct proto_tokens *tokens);
void tokens_scored(struct service *s, const struct replica *from, uint64_t sid,
                   const struct proto_scored *m);
void tokens_failed(struct service *s, const struct replica *from, uint64_t sid,
                   const struct proto_failed *failed);

#endif

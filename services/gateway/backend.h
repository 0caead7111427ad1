/* The gateway's side of the bus: what the tokenizer says of the model's state, and which call the
 * chunks belong to. */
#ifndef PHALANX_GATEWAY_BACKEND_H
#define PHALANX_GATEWAY_BACKEND_H

#include "common/err.h"
#include "common/metrics.h"
#include "proto/bus.h"
#include "services/gateway/pending.h"

#include <stdbool.h>

struct gateway;

/* Metrics of one process behind the tokenizer. */
struct backend_source {
    char name[65];
    struct metrics metrics;
};

struct backend {
    struct bus *bus;
    struct bus_peer *peer; /* NULL: down */
    bool ready;            /* the last STATE said so */
    char reason[257];      /* why not */
    uint32_t context_length, vocab_size, max_running;
    struct pending pending;
    uint64_t rid;                   /* last one handed out */
    struct backend_source *sources; /* owned; the last STATS */
    size_t sources_count;
};

/* Connects to the tokenizer; gw->backend is filled. */
int backend_open(struct gateway *gw, const char *endpoint, const struct bus_security *security,
                 const char *name, int64_t silence_ms_max, struct err *err);
void backend_close(struct backend *b); /* the bus; backend_fini when its loop has ended */
void backend_fini(struct backend *b);

/* True when a request would be served; otherwise *why is a short reason. */
bool backend_ready(const struct backend *b, const char **why);

/* Tells the tokenizer that a request ended here. */
void backend_abort(struct backend *b, uint64_t rid, const char *reason);

#endif

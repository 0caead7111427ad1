/* The gateway's side of the bus: tokenizers, what they say of the model's state, and which call the
 * chunks belong to. Requests go to the tokenizer with the fewest in flight. */
#ifndef PHALANX_GATEWAY_BACKEND_H
#define PHALANX_GATEWAY_BACKEND_H

#include "common/err.h"
#include "common/metrics.h"
#include "proto/bus.h"
#include "services/gateway/pending.h"

#include <stdbool.h>

#define BACKEND_LINKS_MAX 32

struct gateway;

/* Metrics of one process behind a tokenizer. */
struct backend_source {
    char name[65];
    struct metrics metrics;
};

/* One tokenizer. */
struct backend_link {
    struct gateway *gw;
    struct bus *bus;
    struct bus_peer *peer;                /* NULL: down */
    bool ready;                           /* the last STATE said so */
    char reason[257];                     /* why not */
    uint32_t context_length, max_running; /* as it said when it was ready */
    size_t in_flight;                     /* prompts */
    struct backend_source *sources;       /* owned; the last STATS */
    size_t sources_count;
};

struct backend {
    struct backend_link links[BACKEND_LINKS_MAX];
    size_t links_count;
    size_t next; /* the link that is looked at first */
    struct pending pending;
    uint64_t rid; /* last one handed out, over all links */
};

/* Connects to the tokenizers (endpoints are separated by commas); gw->backend is filled. */
int backend_open(struct gateway *gw, const char *endpoints, const struct bus_security *security,
                 const char *name, int64_t silence_ms_max, struct err *err);
void backend_close(struct backend *b); /* the buses; backend_fini when their loop has ended */
void backend_fini(struct backend *b);

/* True when a request would be served; otherwise *why is a short reason. */
bool backend_ready(const struct backend *b, const char **why);

/* The ready tokenizer with the fewest prompts in flight, in turn among equals; NULL: none. */
struct backend_link *backend_choose(struct backend *b);

/* What the model takes, as the tokenizers say: 0 while not known. */
uint32_t backend_context_length(const struct backend *b);
uint32_t backend_max_running(const struct backend *b);

/* Tells the tokenizer that a request ended here. */
void backend_abort(struct backend_link *link, uint64_t rid, const char *reason);

#endif

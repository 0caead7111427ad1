/* The schedulers a tokenizer is connected to: their state, their load, their metrics. */
#ifndef PHALANX_TOKENIZER_REPLICAS_H
#define PHALANX_TOKENIZER_REPLICAS_H

#include "proto/bus.h"
#include "services/tokenizer/dispatch.h"

struct service;

struct replica {
    struct service *service;
    uint32_t index;
    struct bus *bus;
    struct bus_peer *peer;    /* NULL: not connected */
    struct proto_state state; /* the last one; not ready while not connected */
    bool was_ready;           /* this process was: it takes requests while its ranks recover */
    char device[16];
    char reason[256];
    uint32_t in_flight; /* our own sequences there */
    int64_t reported;   /* all sequences by its last STATS, and ours begun less ended since */
    struct proto_arena arena;
    const struct proto_stats *stats; /* the last one, in arena; NULL: none */
};

struct replicas {
    struct replica list[DISPATCH_REPLICAS_MAX];
    uint32_t count;
    const struct dispatch_policy *policy;
    void *policy_state;
};

/* Connects to the schedulers (endpoints are separated by commas) as config says but for endpoint
 * and ctx, which is the replica. ERR_INVALID for an unknown policy. */
int replicas_open(struct replicas *r, struct service *service, const char *endpoints,
                  const char *policy, const struct bus_config *config, struct err *err);
void replicas_close(struct replicas *r); /* the buses */
void replicas_fini(struct replicas *r);

/* The one that takes a prompt: one that is ready, else one that will be again; NULL: none. */
struct replica *replicas_choose(struct replicas *r, const uint32_t *prompt, size_t prompt_count);

/* A sequence of ours began there or ended. */
void replica_began(struct replica *r);
void replica_ended(struct replica *r);

void replica_up(struct replica *r, struct bus_peer *peer);
void replica_down(struct replicas *all, struct replica *r);
void replica_state(struct replica *r, const struct proto_state *state);
void replica_stats(struct replica *r, const struct proto_header *header,
                   const struct proto_stats *stats);

/* Tells all to forget what they have cached, and forgets which of them had what. */
void replicas_flush(struct replicas *r, const struct proto_flush *message);

/* What gateways are told: ready when one is; sums of what the ready ones have. Strings are borrowed
 * from the replicas. */
struct proto_state replicas_state(const struct replicas *r);

/* Appends the metrics of all that are connected; returns the new count, at most max. */
uint32_t replicas_sources(const struct replicas *r, struct proto_source *sources, uint32_t count,
                          uint32_t max);

#endif

/* The launchers of several nodes, which serve one model together (--nnodes).
 *
 * Node 0's binds --dist-init-addr, the others connect and say what they are (NODE_JOIN). Node 0
 * compares, says every 5 s who is missing, and when all are there its owner starts the ranks: its
 * own, and by nodes_start those of the others. A rank that dies anywhere is reported to node 0,
 * whose owner kills the epoch everywhere and starts the next. A node that goes away makes the nodes
 * incomplete again: on_parted, and on_complete once it has come back.
 *
 * Whoever waits longer than --dist-timeout ends, with the reason, and takes the others along: every
 * node ends with one line. All functions are called from the loop's thread; every callback may call
 * nodes_end and nodes_close. */
#ifndef PHALANX_LAUNCHER_NODES_H
#define PHALANX_LAUNCHER_NODES_H

#include "proto/bus.h"
#include "services/launcher/node_agree.h"
#include "services/launcher/node_place.h"

#include <uv.h>

struct nodes;

/* What a node other than 0 is to run. */
struct node_ranks {
    uint32_t replica;
    uint64_t epoch;
    uint32_t first, count;
    const char *endpoint; /* the scheduler's, for its ranks */
};

struct nodes_callbacks {
    /* Node 0: all nodes are here and agree; no rank runs on the others. */
    void (*on_complete)(void *ctx);
    /* Node 0: that epoch is over, a rank died on another node. */
    void (*on_rank_down)(void *ctx, uint32_t replica, uint64_t epoch, const char *reason);
    /* Others: start these ranks; those of the replica that run are of an earlier epoch. */
    void (*on_start)(void *ctx, const struct node_ranks *ranks);
    /* Others: the ranks of the replica up to that epoch are over. */
    void (*on_kill)(void *ctx, uint32_t replica, uint64_t epoch);
    /* Others: whether the server as a whole is ready, and why not. */
    void (*on_state)(void *ctx, bool ready, const char *reason);
    /* Node 0: another node is gone. Others: node 0 is. Every rank everywhere is over. */
    void (*on_parted)(void *ctx, const char *reason);
    /* This node is to end, with that line: the others know, or are the ones who say so. */
    void (*on_end)(void *ctx, bool failed, const char *reason);
};

struct nodes_config {
    uv_loop_t *loop;
    const struct node_place *place; /* borrowed */
    const struct node_self *self;   /* borrowed */
    const struct bus_security *security;
    double heartbeat_timeout_s;
    struct nodes_callbacks on;
    void *ctx;
};

/* ERR_BUSY: node 0's port is in use. Never calls back before it returns. */
int nodes_open(const struct nodes_config *config, struct nodes **out, struct err *err);
/* Frees when the loop has run the close callbacks. NULL is fine. */
void nodes_close(struct nodes **self);
/* After the end: runs the loop (so not from inside of it) until those who were told have gone, or
 * for a second. A socket that is closed while bytes come in may lose what it has just sent. */
void nodes_wait(struct nodes *n);

/* ---- node 0 ---- */

bool nodes_complete(const struct nodes *n);
/* Every other node starts its ranks of that replica, or ends those of epochs up to this one. */
void nodes_start(struct nodes *n, uint32_t replica, uint64_t epoch, const char *endpoint);
void nodes_kill(struct nodes *n, uint32_t replica, uint64_t epoch);
/* For the others' /health. */
void nodes_state(struct nodes *n, bool ready, const char *reason);

/* ---- others ---- */

/* A rank of this node died. */
void nodes_rank_down(struct nodes *n, uint32_t replica, uint64_t epoch, const char *reason);

/* ---- both ---- */

/* This node ends: node 0 takes all others along, another leaves its place empty. Does not close. */
void nodes_end(struct nodes *n, bool failed, const char *reason);

#endif

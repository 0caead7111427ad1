/* `phalanx serve` as one of several nodes: node 0 does what a lone one does, and starts the ranks
 * when all nodes are there; another runs its ranks and a gateway that answers /health. */
#ifndef PHALANX_LAUNCHER_NODE_SERVE_H
#define PHALANX_LAUNCHER_NODE_SERVE_H

#include "services/launcher/commands.h"
#include "services/launcher/nodes.h"
#include "services/launcher/recovery.h"

struct node_serve {
    struct node_place place; /* count 1: a lone node, nothing else is set */
    struct bus_security security;
    struct node_self self;
    struct nodes *nodes;
    struct recovery *recovery; /* node 0: borrowed */
    bool ended;                /* node 0: the loop was stopped because of the others */
};

/* Reads the place from the options and sets those that follow from it (--dist-interface; with
 * several nodes --disable-custom-all-reduce: GPUs of two machines share no memory). */
int node_serve_init(struct node_serve *n, struct options *o, struct err *err);
void node_serve_fini(struct node_serve *n);

/* What the others have to have, too. */
int node_serve_model(struct node_serve *n, const struct options *o, const char *model_path,
                     struct err *err);

/* Where a scheduler binds for ranks of all nodes; the caller's string, NULL with err. */
char *node_serve_endpoint(const struct node_serve *n, struct err *err);

/* ---- node 0; with a lone node they do nothing ---- */

/* Before recovery_start: the groups are held until all nodes are there. */
int node_zero_open(struct node_serve *n, uv_loop_t *loop, const struct options *o,
                   struct recovery *r, struct err *err);
/* recovery's on_epoch. */
void node_zero_epoch(struct node_serve *n, int replica, uint64_t epoch);
void node_zero_state(struct node_serve *n, bool ready);
/* The other nodes end, too, and know why; then, outside of the loop, the link is closed. */
void node_zero_end(struct node_serve *n, bool failed, const char *reason);
void node_zero_close(struct node_serve *n);

/* ---- others ---- */

/* Until node 0 or a signal ends it: the exit status. */
int node_other_run(struct node_serve *n, const struct commands *commands, struct err *err);

#endif

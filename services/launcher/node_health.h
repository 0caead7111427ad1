/* What a node that does not serve says on /health: its launcher is what a tokenizer is to a
 * gateway, with nothing but STATE to say. */
#ifndef PHALANX_LAUNCHER_NODE_HEALTH_H
#define PHALANX_LAUNCHER_NODE_HEALTH_H

#include "proto/bus.h"

#include <stdbool.h>

struct node_health {
    struct bus *bus;
    bool ready;
    char reason[256]; /* why not */
};

/* Binds the ipc endpoint at which the gateway looks for a tokenizer. */
int node_health_open(struct node_health *h, uv_loop_t *loop, const char *endpoint, struct err *err);
void node_health_set(struct node_health *h, bool ready, const char *reason);
void node_health_close(struct node_health *h);

#endif

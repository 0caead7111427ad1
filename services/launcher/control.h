/* The control endpoint: bound by the launcher, one link to each gateway, tokenizer and scheduler of
 * this node; and `phalanx status` asks there. */
#ifndef PHALANX_LAUNCHER_CONTROL_H
#define PHALANX_LAUNCHER_CONTROL_H

#include "common/err.h"
#include "proto/bus.h"
#include "services/launcher/supervise.h"

#include <stdbool.h>
#include <stdint.h>

struct control_callbacks {
    /* The scheduler says that its ranks of that epoch are lost. */
    void (*on_group_down)(void *ctx, int replica, uint64_t epoch, const char *reason);
    /* A process of the node has connected; its name is a child's. */
    void (*on_linked)(void *ctx, const struct bus_peer *peer);
    /* No byte came from it for too long (stopped, or hung), or it broke the protocol, or it ends.
     */
    void (*on_silent)(void *ctx, const struct bus_peer *peer, const char *reason);
    /* A scheduler has sent its status. */
    void (*on_status)(void *ctx);
    /* Somebody wants a NODE_STATUS. */
    void (*on_reader)(void *ctx, struct bus_peer *peer);
};

struct control_link {
    struct bus_peer *peer;              /* NULL: not connected */
    struct proto_replica_status status; /* the last one; all zero before it */
    char reason[257];                   /* its reason */
};

struct control {
    struct bus *bus;
    struct control_link links[GROUPS_MAX]; /* by replica */
    struct control_callbacks on;
    void *ctx;
};

/* endpoint is ipc; silence_ms_max as in bus_config. */
int control_open(struct control *c, uv_loop_t *loop, const char *endpoint, int64_t silence_ms_max,
                 const struct control_callbacks *on, void *ctx, struct err *err);

/* Epoch `epoch` of that replica is over. A scheduler that is not connected hears of it otherwise:
 * from ranks of the next one. */
void control_say_down(struct control *c, int replica, uint64_t epoch, const char *reason);

/* The scheduler has said that its ranks of that epoch are ready. */
bool control_ready(const struct control *c, int replica, uint64_t epoch);

/* The scheduler has said that all ranks of that epoch have come to it. */
bool control_loaded(const struct control *c, int replica, uint64_t epoch);

/* That scheduler has ended: its link says nothing more. */
void control_forget(struct control *c, int replica);

void control_close(struct control *c);

#endif

/* Whoever dies after the server was ready once is started again: gateways and tokenizers as they
 * were, a lost rank with its whole group and the next epoch, a scheduler alone: its ranks keep
 * their weights and join the next one in the same epoch. If they do not, or that one dies before it
 * is ready, they start again, too. At most RESTARTS_MAX times a minute each; then, and at any death
 * before the first readiness, the node ends with one line. Who hangs is killed, and has died.
 *
 * On the node of the schedulers. Its rule for epochs: "epoch e is over, e + 1 is next", whoever
 * says so first (a pidfd here, the scheduler, another node); what is past e already ignores it. */
#ifndef PHALANX_LAUNCHER_RECOVERY_H
#define PHALANX_LAUNCHER_RECOVERY_H

#include "common/err.h"
#include "services/launcher/commands.h"
#include "services/launcher/control.h"
#include "services/launcher/group.h"
#include "services/launcher/restarts.h"
#include "services/launcher/supervise.h"

#include <stdbool.h>
#include <stdint.h>

#define SERVICES_MAX 32 /* gateways; tokenizers */

struct recovery_callbacks {
    /* The node must end; the line was said. */
    void (*on_fatal)(void *ctx, const char *why);
    /* Something died: /health/ready is to be asked until it is well again (recovery_ready). */
    void (*on_lost)(void *ctx);
    /* After recovery_drain: no gateway is left. */
    void (*on_drained)(void *ctx);
    /* May be NULL. Epoch `epoch` of the replica begins: ranks of earlier ones on other nodes are to
     * be killed and theirs of this one started. */
    void (*on_epoch)(void *ctx, int replica, uint64_t epoch, const char *reason);
};

/* One scheduler and its ranks. */
struct replica {
    struct group group; /* its ranks on this node */
    uint64_t epoch;
    struct restarts scheduler_restarts, group_restarts;
    uint64_t whole;        /* the epoch in which its running scheduler was ready; 0: none yet */
    int64_t join_until_us; /* ranks without a scheduler join the next one; 0: they have */
};

struct recovery {
    const struct commands *commands;
    struct supervisor *children;
    struct control *control;
    struct recovery_callbacks on;
    void *ctx;
    int gateways, tokenizers, replicas_count;
    struct replica replicas[GROUPS_MAX];
    struct restarts gateway_restarts[SERVICES_MAX], tokenizer_restarts[SERVICES_MAX];
    bool started; /* the server was ready once */
    int64_t start_us;
    int64_t lost_us; /* since when not all is well; 0: it is */
    bool answered;   /* the server has, since the last loss */
    uv_timer_t hang; /* until silent children are killed */
    uv_timer_t join; /* looks at the replicas' join_until_us */
    bool draining;   /* gateways that end stay ended */
    bool held;       /* epochs are counted, but no ranks started: nodes are missing */
    bool fatal;
};

/* Before all else; recovery_fini closes what it opened, and the loop must run once more. */
void recovery_init(struct recovery *r, uv_loop_t *loop);
void recovery_fini(struct recovery *r);

/* Starts all: schedulers and ranks with epoch 1, tokenizers, gateways. */
int recovery_start(struct recovery *r, struct err *err);

/* The supervisor's on_end. */
void recovery_child_ended(struct recovery *r, const struct child *child, const char *how);

/* Epoch `epoch` of a replica is over, for that reason: said by its scheduler or another node. */
void recovery_group_down(struct recovery *r, int replica, uint64_t epoch, const char *reason);

/* A node is gone: the running epochs are over, and the next ones begin at recovery_release. Before
 * the first readiness this node ends, as at any death. Who waits for nodes from the beginning sets
 * `held` before recovery_start. */
void recovery_hold(struct recovery *r, const char *reason);
void recovery_release(struct recovery *r);

/* Says the line and ends the node. */
void recovery_end(struct recovery *r, const char *why);

/* A child has a link to the control endpoint. When that is down and the child neither ends nor
 * comes back it hangs, and is killed. */
void recovery_linked(struct recovery *r, const struct bus_peer *peer);
void recovery_silent(struct recovery *r, const struct bus_peer *peer, const char *reason);

/* The server answered that it is ready: true the first time. */
bool recovery_ready(struct recovery *r);

/* A scheduler has sent its status. */
void recovery_status(struct recovery *r);

/* Gateways are asked to take nobody in any more and to end when what runs has ended; all others go
 * on. False when there is nothing to wait for. */
bool recovery_drain(struct recovery *r);

#endif

/* The ranks of one replica that run on this node: they start and die together, epoch by epoch.
 *
 * No decisions in here: which epoch is next is said by recovery.c on the node of the scheduler, and
 * by messages of that node on others. A rank starts when all of earlier epochs have been reaped:
 * their devices and memory are free then. */
#ifndef PHALANX_LAUNCHER_GROUP_H
#define PHALANX_LAUNCHER_GROUP_H

#include "common/err.h"
#include "services/launcher/commands.h"
#include "services/launcher/supervise.h"

#include <stdbool.h>
#include <stdint.h>

struct group_config {
    const struct commands *commands; /* how a child's command line begins */
    struct supervisor *children;
    int replica;
    int first_rank, last_rank;   /* those of this node, both included */
    int first_device;            /* of first_rank; each next rank takes the next device */
    int first_name;              /* number in the name of rank 0: "worker-4" */
    const char *worker_endpoint; /* where the group's scheduler is bound for ranks */
};

struct group {
    struct group_config config;
    uint64_t epoch; /* running, or about to; 0: none was wanted yet */
    bool waiting;   /* for ranks of earlier epochs to be gone */
};

void group_configure(struct group *g, const struct group_config *config);

/* Epoch `epoch`, greater than the one before, begins: local ranks of earlier ones get SIGKILL and
 * its own are started, now or by the group_settle that follows the end of the last old one. */
int group_start(struct group *g, uint64_t epoch, struct err *err);

/* SIGKILL to the local ranks of epochs up to `epoch`, to stopped ones too. Returns at once; the
 * supervisor's on_end tells of each. */
void group_kill(struct group *g, uint64_t epoch);

/* To be called when a worker of this replica has ended (the supervisor's on_end). */
int group_settle(struct group *g, struct err *err);

/* Whether the end of that child means that the running epoch is lost. */
bool group_lost(const struct group *g, const struct child *child);

#endif

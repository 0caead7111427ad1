/* How the ranks of a group find each other: an all-gather of small blobs. Knows workers by their
 * links and sends GATHERED itself. */
#ifndef PHALANX_SCHEDULER_GATHER_H
#define PHALANX_SCHEDULER_GATHER_H

#include "common/buf.h"
#include "proto/bus.h"
#include "services/scheduler/group.h"

struct gather {
    uint32_t size;
    uint32_t round;                          /* the one that is being gathered */
    uint64_t come;                           /* bit r: rank r's blob of that round is there */
    struct bus_peer *peers[GROUP_RANKS_MAX]; /* of ranks that have come to any round */
    struct buf blobs[GROUP_RANKS_MAX];
    int64_t begin_us, said_us; /* of the round */
};

void gather_init(struct gather *g, uint32_t size);
void gather_fini(struct gather *g);

/* The group is lost: the next one begins with round 0. */
void gather_reset(struct gather *g);

/* Takes a worker's blob; the last one of a round is answered to all. A worker whose message does
 * not fit is refused. Negative when the group can not go on. */
int gather_take(struct gather *g, struct bus_peer *peer, const struct proto_gather *m,
                int64_t now_us, struct err *err);

/* The worker's link is down. 0: it took no part, or another one may take its place; negative: ranks
 * have met it already, and the group can not go on. */
int gather_down(struct gather *g, const struct bus_peer *peer, const char *reason, struct err *err);

/* Says now and then who is missing; ERR_TIMEOUT when it takes too long. */
int gather_check(struct gather *g, int64_t now_us, double timeout_s, struct err *err);

#endif

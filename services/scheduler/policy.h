/* Order in which waiting sequences start. One policy: one file and a row in policies.c. */
#ifndef PHALANX_SCHEDULER_POLICY_H
#define PHALANX_SCHEDULER_POLICY_H

#include "services/scheduler/sequence.h"

struct queue {
    struct sequence *list; /* linked by prev and next, in the policy's order */
    uint32_t count;
};

struct policy {
    const char *name;
    /* Whether requests' priorities count. */
    bool priorities;
    /* The one to start next, left in the queue; NULL when empty. While it does not fit, none of the
     * others is started: what waits longest is never passed by for good. */
    struct sequence *(*next)(const struct queue *q, const struct prefix *tree);
    /* Told of the one that starts, still in the queue; may be NULL. */
    void (*started)(const struct queue *q, const struct sequence *seq);
};

extern const struct policy policy_fcfs, policy_lpm, policy_priority;

/* NULL when there is none of that name. */
const struct policy *policy_find(const char *name);

/* Whether a comes before b: the higher priority, then the earlier arrival. */
bool sequence_before(const struct sequence *a, const struct sequence *b);

/* Puts seq into its place. O(1) for the newest and for those that come back. */
void queue_insert(struct queue *q, struct sequence *seq);
void queue_remove(struct queue *q, struct sequence *seq);
struct sequence *queue_first(const struct queue *q, const struct prefix *tree);

#endif

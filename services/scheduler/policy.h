/* Order in which waiting sequences start. One policy: one file and a row in policies.c. */
#ifndef PHALANX_SCHEDULER_POLICY_H
#define PHALANX_SCHEDULER_POLICY_H

#include "services/scheduler/sequence.h"

struct queue {
    struct sequence *list; /* linked by prev and next */
    uint32_t count;
};

struct policy {
    const char *name;
    void (*push)(struct queue *q, struct sequence *seq);
    /* The one to start next, left in the queue; NULL when empty. While it does not fit, none of the
     * others is started: what waits longest is never passed by for good. */
    struct sequence *(*next)(const struct queue *q);
    void (*remove)(struct queue *q, struct sequence *seq);
};

extern const struct policy policy_fcfs;

/* NULL when there is none of that name. */
const struct policy *policy_find(const char *name);

#endif

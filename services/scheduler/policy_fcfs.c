/* First come, first served. */
#include "services/scheduler/policy.h"

#include <utlist.h>

static void fcfs_push(struct queue *q, struct sequence *seq)
{
    DL_APPEND(q->list, seq);
    q->count++;
}

static struct sequence *fcfs_next(const struct queue *q)
{
    return q->list;
}

static void fcfs_remove(struct queue *q, struct sequence *seq)
{
    DL_DELETE(q->list, seq);
    q->count--;
}

const struct policy policy_fcfs = {
    .name = "fcfs",
    .push = fcfs_push,
    .next = fcfs_next,
    .remove = fcfs_remove,
};

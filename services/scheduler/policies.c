#include "services/scheduler/policy.h"

#include <string.h>
#include <utlist.h>

static const struct policy *const policies[] = {
    &policy_fcfs,
    &policy_lpm,
    &policy_priority,
};

const struct policy *policy_find(const char *name)
{
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++)
        if (strcmp(policies[i]->name, name) == 0)
            return policies[i];
    return NULL;
}

bool sequence_before(const struct sequence *a, const struct sequence *b)
{
    return a->priority != b->priority ? a->priority > b->priority : a->arrival < b->arrival;
}

/* From both ends at once: new sequences belong to the end, those that come back to the front. */
void queue_insert(struct queue *q, struct sequence *seq)
{
    struct sequence *front = q->list;
    struct sequence *back = front ? front->prev : NULL; /* utlist: the head's prev is the tail */

    q->count++;
    while (back && !sequence_before(back, seq) && sequence_before(front, seq)) {
        back = back->prev;
        front = front->next;
    }
    if (back && sequence_before(back, seq))
        front = back->next;
    DL_PREPEND_ELEM(q->list, front, seq); /* NULL: the last */
}

void queue_remove(struct queue *q, struct sequence *seq)
{
    DL_DELETE(q->list, seq);
    q->count--;
}

struct sequence *queue_first(const struct queue *q, const struct prefix *tree)
{
    (void)tree;
    return q->list;
}

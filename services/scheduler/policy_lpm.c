/* The longest match with the prefix tree first.
 *
 * Looking all of a long queue up costs more than it brings: then it is first come, first served.
 * And a sequence that many have passed goes before all, so that none waits for good. */
#include "services/scheduler/policy.h"

#define LPM_QUEUE_MAX 128u
#define LPM_PASSED_MAX 64u

static uint32_t match_depth(struct sequence *seq, const struct prefix *tree)
{
    uint32_t pages_max = (sequence_known(seq) - 1) / tree->page_size;

    prefix_match(tree, seq->tokens, pages_max, &seq->place);
    return seq->place.depth;
}

static struct sequence *lpm_next(const struct queue *q, const struct prefix *tree)
{
    struct sequence *best = q->list;
    uint32_t best_depth = 0;

    if (q->count > LPM_QUEUE_MAX || !tree->nodes)
        return best;
    for (struct sequence *seq = q->list; seq; seq = seq->next) {
        uint32_t depth;

        if (seq->retractions || seq->passed >= LPM_PASSED_MAX)
            return seq;
        depth = match_depth(seq, tree);
        if (depth > best_depth) {
            best = seq;
            best_depth = depth;
        }
    }
    return best;
}

static void lpm_started(const struct queue *q, const struct sequence *started)
{
    if (q->count > LPM_QUEUE_MAX)
        return;
    for (struct sequence *seq = q->list; seq != started; seq = seq->next)
        seq->passed++;
}

const struct policy policy_lpm = {
    .name = "lpm",
    .next = lpm_next,
    .started = lpm_started,
};

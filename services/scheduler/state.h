/* Inside of the core: shared by core.c, plan.c, apply.c, memory.c and recover.c. */
#ifndef PHALANX_SCHEDULER_STATE_H
#define PHALANX_SCHEDULER_STATE_H

#include "services/scheduler/core.h"
#include "services/scheduler/pages.h"
#include "services/scheduler/policy.h"
#include "services/scheduler/prefix.h"
#include "services/scheduler/sequence.h"

/* A step and the memory of its arrays: slots_max elements each, taken once. */
struct step {
    struct scheduler_step out;
    struct sequence **sequences; /* of each row */
    int64_t *queue_us;
    uint32_t scores_left; /* positions that may still be scored: bounds the answer */
};

struct scheduler {
    struct scheduler_config config;
    uint32_t *eos_ids;
    const struct policy *policy;
    struct queue queue;
    struct sequence *by_key;  /* all that have not ended */
    struct sequence *prefill; /* the one whose prompt is not done: a list of one, or NULL */
    struct sequence *decode;  /* in the order in which their prompts were done */
    struct sequence *parked;  /* waiting and paused: not in the queue */
    uint32_t parked_count;
    uint32_t running;       /* in either of the two */
    uint32_t retracted;     /* in none: they wait for the steps that have a row of them */
    uint64_t arrivals;      /* sequences that ever came */
    struct pages pages;     /* in no sequence and not in the tree */
    struct prefix tree;     /* empty without config.prefix_cache */
    uint32_t pages_resting; /* of ended and retracted ones, until their steps are applied */
    double new_token_ratio; /* memory.h */
    double new_token_ratio_min;
    uint32_t *slots; /* stack of free slots */
    uint32_t slots_count;
    uint32_t *closed; /* slots that workers have not been told of yet */
    uint32_t closed_count;
    struct step steps[SCHEDULER_STEPS_MAX]; /* a ring: step n is steps[n % steps_in_flight_max] */
    uint64_t planned;                       /* newest step; 0: none */
    uint64_t applied;
    bool lost;                   /* there are no ranks */
    uint32_t prefill_tokens_max; /* of one step */
    uint32_t tokens_max;         /* of one step, decode rows too */
    struct scheduler_output *outputs;
    uint64_t prompt_tokens;
    uint64_t generation_tokens;
    uint64_t surplus_tokens;
    uint64_t prefix_queries;
    uint64_t prefix_hits;
    uint64_t preemptions;
    uint64_t replays;
    uint64_t steps_applied; /* by all groups of ranks */
    struct scheduler_failure *failures;
    uint32_t failures_cap;
};

static inline struct step *scheduler_step_at(struct scheduler *s, uint64_t number)
{
    return &s->steps[number % s->config.steps_in_flight_max];
}

/* Pages, slots and steps as of ranks that know nothing. No sequence may hold any. */
void scheduler_pool_init(struct scheduler *s, uint32_t num_pages);
void scheduler_pool_fini(struct scheduler *s);

/* Frees the sequences that have ended and wait for steps in flight. */
void scheduler_free_retiring(struct scheduler *s);

/* Ends a sequence that does not wait. Its slot and pages come back at once when no step in
 * flight has a row of it, else when the last of them is applied. */
void scheduler_end(struct scheduler *s, struct sequence *seq);

/* Takes a running sequence out of the batch; it waits then, in front. */
void scheduler_retract(struct scheduler *s, struct sequence *seq);

/* Puts a sequence that waits where it belongs, and takes it from there. */
void scheduler_wait(struct scheduler *s, struct sequence *seq);
void scheduler_unwait(struct scheduler *s, struct sequence *seq);

/* Takes back what an ended or retracted sequence holds, if no step in flight has a row of it. */
void scheduler_release(struct scheduler *s, struct sequence *seq);

#endif

/* The scheduler's core: which sequence does what in which step.
 *
 * A pure state machine: no I/O, no clock, no randomness, no globals. Time comes in as now_us, work
 * goes out as steps (scheduler_plan), results come back (scheduler_apply). The same calls in the
 * same order give the same steps.
 *
 * Every step holds one row for each sequence that decodes; prompts take what is left of the token
 * budget, in chunks. A sequence starts when a slot is free and an estimate says that there are
 * pages for it (memory.h); where the estimate fails, some are retracted and computed again later.
 * Whole pages are shared through the prefix tree (prefix.h).
 *
 * Up to steps_in_flight_max steps are out at a time. With more than one, a sequence's row is
 * planned before the token of the step before is known: an end token is noticed late and the
 * surplus token dropped. A slot or page is handed out again only after the last step with a row of
 * its old owner was applied.
 *
 * The core outlives the ranks: scheduler_group_lost forgets what they had, scheduler_group_joined
 * goes on with others. A sequence goes on where it was, at the same index; as its random numbers
 * are fixed by seed and index, with the same tokens (recover.c). */
#ifndef PHALANX_SCHEDULER_CORE_H
#define PHALANX_SCHEDULER_CORE_H

#include "common/err.h"
#include "proto/proto.h"

#include <stdbool.h>
#include <stdint.h>

#define SCHEDULER_SLOTS_MAX 4096u /* bound of the arrays of proto's STEP */
#define SCHEDULER_PAGES_MAX 268435456u
#define SCHEDULER_STEPS_MAX 8u

struct scheduler_config {
    uint32_t slots_max;  /* sequences in the running batch */
    uint32_t queued_max; /* sequences waiting for a slot */
    uint32_t page_size;  /* tokens in one page */
    uint32_t num_pages;
    int32_t prefill_tokens_max; /* prompt tokens in one step; -1: prompts are not cut */
    uint32_t context_length;    /* most tokens of a sequence, prompt and output */
    uint32_t vocab_size;
    uint32_t steps_in_flight_max;
    const char *policy;      /* a name of policies.c */
    bool prefix_cache;       /* pages are kept and shared */
    uint64_t hash_seed;      /* of the prefix tree: random */
    double conservativeness; /* of the estimate of what sequences will need; 1 is usual */
    int64_t preempt_above;   /* difference of priority, see memory_preempt */
    bool prompt_logprobs;    /* the workers can compute them */
    const uint32_t *eos_ids; /* copied */
    uint32_t eos_ids_count;
};

/* A sequence to come. (owner, id) must be unique among those that have not ended. Everything is
 * copied. */
struct scheduler_request {
    uint64_t owner;
    uint64_t id;
    const uint32_t *prompt;
    uint32_t prompt_count;
    const struct proto_sampling *sampling;
    /* Chosen before it came here, from index 0 on: the first token given out has the index
     * resumed_count. max_tokens, min_tokens and the workers' penalties count them. */
    const uint32_t *resumed;
    uint32_t resumed_count;
    uint32_t replays; /* how often it was begun anew so far */
};

/* What was wrong with a request, for proto's FAILED; both are static strings, or "". */
struct scheduler_refusal {
    const char *param; /* field at fault */
    const char *code;  /* "context_length_exceeded", "replays_exhausted" */
};

/* A sequence that can not go on; it has ended. */
struct scheduler_failure {
    uint64_t owner;
    uint64_t id;
    const char *code; /* as of a refusal */
    char message[160];
};

/* A planned step. Pointers in it are valid until the next call for this scheduler. */
struct scheduler_step {
    struct proto_step message;
    const int64_t *queue_us; /* how long each of message.opened has waited */
};

/* A new token or log probabilities of the prompt (or both), for the owner of the sequence. */
struct scheduler_output {
    uint64_t owner;
    bool chosen;                /* there is a token; token.sid is always there */
    struct proto_token token;   /* logprob points to the results given to scheduler_apply */
    struct proto_scored prompt; /* so does logprobs; none: logprobs_count is 0 */
};

struct scheduler_stats {
    uint32_t waiting;
    uint32_t parked; /* of those that wait: paused */
    uint32_t running;
    uint32_t slots_free;
    uint32_t steps_in_flight;
    uint32_t pages_total;
    uint32_t pages_free;        /* in no sequence, cached or not */
    uint32_t pages_cached;      /* in the prefix tree, in use or not */
    uint64_t prompt_tokens;     /* computed so far */
    uint64_t generation_tokens; /* handed out so far */
    uint64_t surplus_tokens;    /* dropped: their sequence had ended */
    uint64_t steps;             /* applied so far */
    uint64_t prefix_queries;    /* prompt tokens of the sequences that started */
    uint64_t prefix_hits;       /* of these, found in the cache */
    uint64_t preemptions;       /* sequences retracted */
    uint64_t replays;           /* sequences begun anew because the ranks were lost */
};

struct scheduler;

/* ERR_INVALID names the value that can not be. */
int scheduler_new(const struct scheduler_config *config, struct scheduler **out, struct err *err);
void scheduler_free(struct scheduler **self);

/* Most tokens that the rows of one step add up to. */
uint32_t scheduler_tokens_max(const struct scheduler *s);

/* Puts a sequence into the queue, also while there is no group. ERR_BUSY: the queue is full, or as
 * many again are paused.
 * ERR_PEER: it was begun anew too often (LIMIT_REPLAYS). ERR_INVALID, ERR_LIMIT: it can not run
 * here, or `resumed` has all tokens that it may get; refusal (may be NULL) says which field, err
 * the value and the limit. */
int scheduler_admit(struct scheduler *s, const struct scheduler_request *request, int64_t now_us,
                    struct scheduler_refusal *refusal, struct err *err);

/* Pauses a sequence, or lets it go on; both may come twice. While paused it gets no row but for
 * what is left of its prompt; what is in flight still comes. It keeps slot and pages as long as
 * nobody needs them: a sequence that waits, or the next rows of others, take them from it before
 * from anybody else, and it goes on later as after a retraction. Without a slot it waits apart from
 * the queue, so that it holds up nobody. ERR_NOT_FOUND: there is none. */
int scheduler_pause(struct scheduler *s, uint64_t owner, uint64_t id, bool paused);

/* Ends a sequence, in whatever state; no output for it follows. ERR_NOT_FOUND: there is none. */
int scheduler_abort(struct scheduler *s, uint64_t owner, uint64_t id);

/* Ends all sequences of owner; returns how many. */
uint32_t scheduler_abort_owner(struct scheduler *s, uint64_t owner);

/* The next step, NULL when there is nothing to do or too many steps are in flight. */
const struct scheduler_step *scheduler_plan(struct scheduler *s, int64_t now_us);

/* Takes the result of the oldest step in flight: one proto_sampled a row with sample or score, in
 * order. *out is valid until the next scheduler_apply. ERR_PROTOCOL (nothing has changed then):
 * another step, slot or count than planned, or an id outside of the vocabulary. */
int scheduler_apply(struct scheduler *s, uint64_t number, const struct proto_sampled *results,
                    uint32_t results_count, const struct scheduler_output **out,
                    uint32_t *out_count, struct err *err);

/* Forgets all cached pages that no sequence uses. */
void scheduler_flush(struct scheduler *s);

/* The ranks are lost, with all pages, slots and steps in flight. What ran waits again in its old
 * order, in front of what has not started, with the tokens it has; that is a replay, and those over
 * LIMIT_REPLAYS end. Nothing is planned until scheduler_group_joined. *failed is valid until the
 * next call for this scheduler; returns how many have. */
uint32_t scheduler_group_lost(struct scheduler *s, const struct scheduler_failure **failed);

/* New ranks, which know nothing: steps count from 1 again. Where they have fewer pages, sequences
 * that asked for no number of tokens get what fits now, and what can no longer run ends. *failed
 * and the result as above; scheduler_tokens_max may have changed. num_pages is in 1 ..
 * SCHEDULER_PAGES_MAX. */
uint32_t scheduler_group_joined(struct scheduler *s, uint32_t num_pages,
                                const struct scheduler_failure **failed);

void scheduler_stats(const struct scheduler *s, struct scheduler_stats *out);

#endif

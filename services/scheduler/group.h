/* The tensor-parallel ranks as the scheduler sees them: who has come, what they agreed on, and
 * which of them have answered a step. No I/O. */
#ifndef PHALANX_SCHEDULER_GROUP_H
#define PHALANX_SCHEDULER_GROUP_H

#include "common/err.h"
#include "proto/proto.h"
#include "services/scheduler/core.h"
#include "services/scheduler/deadline.h"

#include <stdbool.h>
#include <stdint.h>

#define GROUP_RANKS_MAX 64u
#define GROUP_STEPS_MAX 4u /* in flight */

/* rank 0's results, copied: other ranks may answer after it. */
struct results {
    struct proto_sampled *sampled;
    struct proto_logprob *logprobs;
    struct proto_alternative *alternatives;
    uint32_t sampled_cap, logprobs_cap, alternatives_cap;
    uint32_t count;
};

/* A step in flight. */
struct round {
    uint64_t step;
    int64_t sent_us;
    uint64_t done; /* bit r: rank r has answered */
    uint64_t hash; /* of the first that has */
    uint32_t hash_rank;
    uint64_t compute_us; /* of the slowest */
    struct results results;
    /* The owner's: */
    struct deadline_shape shape;
    bool decodes; /* no row has more than one token */
};

struct group {
    uint32_t size;
    uint32_t page_size; /* ours: the ranks' must be the same */
    uint64_t loaded;    /* bit r: rank r has sent LOADED, KV_READY */
    uint64_t ready;
    /* What all ranks agree on; pages_max is the least of them, pages_most and the bytes are the
     * most. */
    uint32_t first_rank; /* the one that the others are compared with */
    uint32_t vocab_size;
    uint32_t context_length;
    uint64_t fingerprint;
    uint64_t communicator;
    uint32_t pages_max, pages_max_rank;
    uint32_t pages_most, pages_most_rank;
    uint64_t page_bytes;
    uint64_t weight_bytes;
    uint32_t eos_ids[64];
    uint32_t eos_ids_count;
    bool prompt_logprobs; /* every rank can compute them */
    uint32_t steps_ahead; /* every rank can have begun so many */
    char device[17];
    bool known; /* these stay from one group to the next, but for pages and bytes */
    struct round rounds[SCHEDULER_STEPS_MAX]; /* the oldest first */
    uint32_t rounds_count;
    uint64_t step_us; /* computing, of the last that was dropped; 0: not known */
};

void group_init(struct group *g, uint32_t size, uint32_t page_size);
void group_fini(struct group *g);

/* Other ranks are to come; they must be like those that were all loaded before. Results given out
 * stay valid until the next group_step_done. */
void group_reset(struct group *g);

/* Whether the rank has met those that are loaded already, and done as many steps with them. */
bool group_together(const struct group *g, const struct proto_loaded *m);

/* ERR_PROTOCOL names the rank and what it does not share with the others. */
int group_loaded(struct group *g, const struct proto_loaded *m, struct err *err);
int group_kv_ready(struct group *g, const struct proto_kv_ready *m, struct err *err);

/* Whether one rank has room for so much less than another that somebody should look. */
bool group_uneven(const struct group *g);

bool group_all_loaded(const struct group *g);
bool group_all_ready(const struct group *g);

/* Whether another step may be sent: one computes while the next waits at the ranks, so that they do
 * not wait for a plan. Where steps are so short that the next may have ended before it comes, more
 * wait, up to GROUP_STEPS_MAX, but not behind prompts: what comes meanwhile is to wait for short
 * steps alone. */
bool group_step_wanted(const struct group *g);

void group_step_sent(struct group *g, uint64_t step, int64_t now_us);

/* Takes one rank's answer. Sets *complete when it was the last that the oldest round waited for;
 * *results then are rank 0's, valid until group_step_drop or the end of m, whichever is first.
 * ERR_PROTOCOL: an answer that nobody waits for, or (named) ranks that have come apart. */
int group_step_done(struct group *g, uint32_t rank, const struct proto_step_done *m, bool *complete,
                    const struct proto_sampled **results, uint32_t *results_count, struct err *err);

/* Forgets the oldest round. Where the one after it is complete already, its rank 0 results are in
 * its results. */
void group_step_drop(struct group *g);
bool group_step_complete(const struct group *g);

/* "0, 2": ranks of a mask that are not set, for error lines. text holds at least 256 bytes. */
const char *group_missing(const struct group *g, uint64_t mask, char *text, size_t size);

#endif

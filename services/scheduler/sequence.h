/* One sequence: its tokens, how far they are computed, and what it holds. */
#ifndef PHALANX_SCHEDULER_SEQUENCE_H
#define PHALANX_SCHEDULER_SEQUENCE_H

#include "services/scheduler/core.h"

#include <stdbool.h>
#include <stdint.h>
#include <uthash.h>

enum sequence_state {
    SEQUENCE_WAITING, /* in the queue: no slot, no pages */
    SEQUENCE_PREFILL, /* a part of the prompt is not planned yet */
    SEQUENCE_DECODE,
    SEQUENCE_ENDED, /* kept until no step in flight has a row of it */
};

struct sequence_key {
    uint64_t owner;
    uint64_t id;
};

struct sequence {
    struct sequence_key key;
    UT_hash_handle hh;            /* while not ended */
    struct sequence *prev, *next; /* in the list of its state */
    enum sequence_state state;
    uint32_t *tokens; /* known ones: the prompt, then `generated` */
    uint32_t prompt_count;
    uint32_t cached; /* prompt tokens that were computed before it came */
    uint32_t generated;
    uint32_t planned;   /* tokens after the prompt, with those that steps in flight will choose */
    uint32_t computed;  /* positions computed, with those of steps in flight */
    uint64_t last_step; /* newest step with a row of this sequence */
    uint32_t slot;
    uint32_t *pages;
    uint32_t pages_count;
    uint32_t pages_max;             /* taken and promised */
    struct proto_sampling sampling; /* arrays owned */
    int64_t arrived_us;
};

/* sampling: with max_tokens and min_tokens resolved (admission.h). */
struct sequence *sequence_new(const struct scheduler_request *request,
                              const struct proto_sampling *sampling, int64_t now_us);
void sequence_free(struct sequence **self);

/* Makes room for all tokens and pages that the sequence can come to have. */
void sequence_start(struct sequence *seq, uint32_t slot, uint32_t pages_max);

/* Tokens that can be planned now: known or about to be chosen, and not computed. */
uint32_t sequence_pending(const struct sequence *seq);

/* Appends a chosen token and says whether the sequence ends with it. */
enum proto_finish sequence_append(struct sequence *seq, uint32_t id, const uint32_t *eos_ids,
                                  uint32_t eos_ids_count);

#endif

/* One sequence: its tokens, how far they are computed, and what it holds. */
#ifndef PHALANX_SCHEDULER_SEQUENCE_H
#define PHALANX_SCHEDULER_SEQUENCE_H

#include "services/scheduler/core.h"
#include "services/scheduler/prefix.h"

#include <stdbool.h>
#include <stdint.h>
#include <uthash.h>

enum sequence_state {
    SEQUENCE_WAITING, /* in the queue, or parked: no slot, no pages */
    SEQUENCE_PREFILL, /* a part of its known tokens is not planned yet */
    SEQUENCE_DECODE,
    SEQUENCE_RETRACTED, /* waits again, as soon as no step in flight has a row of it */
    SEQUENCE_ENDED,     /* kept until no step in flight has a row of it */
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
    uint32_t scored;    /* positions before it have had their log probabilities, or want none */
    uint64_t last_step; /* newest step with a row of this sequence */
    uint32_t slot;
    uint32_t *pages;
    uint32_t pages_count;
    uint32_t pages_told;   /* of them, to the workers */
    uint32_t pages_shared; /* of them, those found in the tree */
    uint32_t node;         /* of the prefix tree, locked while it holds a slot */
    uint32_t node_depth;
    struct prefix_place place;      /* how far the tree knew its tokens when last asked */
    struct proto_sampling sampling; /* arrays owned */
    bool max_asked;                 /* else max_tokens is what fits */
    bool paused;
    int64_t arrived_us;
    uint64_t arrival;     /* counts sequences */
    int64_t priority;     /* 0 where the policy has none */
    uint32_t retractions; /* how often it was; those by a loss of the ranks count too */
    uint32_t replays;     /* how often it was begun anew */
    uint32_t passed;      /* later ones that have started before it */
};

/* sampling: with max_tokens and min_tokens resolved (admission.h). */
struct sequence *sequence_new(const struct scheduler_request *request,
                              const struct proto_sampling *sampling, int64_t now_us);
void sequence_free(struct sequence **self);

/* Makes room for all tokens and pages that the sequence can come to have. */
void sequence_start(struct sequence *seq, uint32_t slot, uint32_t pages_max);

/* Back to a sequence that waits, with the tokens that it has. */
void sequence_stop(struct sequence *seq);

/* Prompt and generated tokens. */
uint32_t sequence_known(const struct sequence *seq);

/* Positions whose log probabilities are wanted end before this one. */
uint32_t sequence_scores_end(const struct sequence *seq);

/* Tokens that can be planned now: known or about to be chosen, and not computed. None of one that
 * decodes and is paused. */
uint32_t sequence_pending(const struct sequence *seq);

/* Appends a chosen token and says whether the sequence ends with it. */
enum proto_finish sequence_append(struct sequence *seq, uint32_t id, const uint32_t *eos_ids,
                                  uint32_t eos_ids_count);

#endif

/* A worker's own view of its slots, and the check of a step against it: nothing of a STEP reaches
 * an engine before it went through here. */
#ifndef PHALANX_WORKER_SLOTS_H
#define PHALANX_WORKER_SLOTS_H

#include "common/err.h"
#include "proto/proto.h"

#include <stdbool.h>
#include <stdint.h>

#define COUNT(NAME, high, what) NAME = (high),
enum slots_limit {
#include "proto/limits.def"
};

struct slots_config {
    uint32_t num_slots, num_pages, page_size;
    uint32_t tokens_max;  /* of one step */
    uint32_t context_max; /* of one slot */
    uint32_t vocab_size;
};

struct slot_view {
    bool open;
    uint32_t known;     /* tokens */
    uint32_t generated; /* of them */
    uint32_t pages;     /* entries of the page table */
    uint64_t step;      /* that last had a row of it */
    uint64_t seed;
    int32_t logprobs;
};

struct slots {
    struct slots_config config;
    struct slot_view *views; /* (num_slots) */
    uint64_t step;           /* the last one */
};

void slots_init(struct slots *s, const struct slots_config *config);
void slots_fini(struct slots *s);

/* All slots are closed, and steps may have any number again. ERR_PROTOCOL when config is another
 * one: a pool is not made twice. */
int slots_again(struct slots *s, const struct slots_config *config, struct err *err);

/* Checks a whole step and takes it over; sampled slots count one token more afterwards. After an
 * error (one line naming step, field and limit) the view is of no use any more. */
int slots_apply(struct slots *s, const struct proto_step *step, struct err *err);

/* The score of row i of a checked step, or NULL. *next, 0 at first, counts those found: i rises. */
const struct proto_score *slots_score(const struct proto_step *step, uint32_t i, uint32_t *next);

/* Of a step's rows; with the tokens they got, equal on all ranks that did the same. */
uint64_t slots_hash_rows(const struct proto_step *step);
uint64_t slots_hash_results(uint64_t hash, const struct proto_sampled *results, uint32_t count);

#endif

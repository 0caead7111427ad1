/* How long a step may take before its ranks count as hung, learned from steps of the same shape.
 *
 * A shape is how many rows, tokens and positions a step has, each to the power of two below. One
 * whose shape was seen gets ten times what the slowest of late took, at least 2 s and at most 30 s,
 * but never less than three times: where steps take so long, the device is slow, not dead. The
 * first ones of a shape may tune and capture kernels: they get the upper bound. */
#ifndef PHALANX_SCHEDULER_DEADLINE_H
#define PHALANX_SCHEDULER_DEADLINE_H

#include "proto/proto.h"

#include <stdint.h>

#define DEADLINE_ROWS 13u      /* powers of two up to SCHEDULER_SLOTS_MAX */
#define DEADLINE_TOKENS 22u    /* ... 2^21 */
#define DEADLINE_POSITIONS 33u /* ... and of a 32 bit number */

struct deadline_shape {
    uint8_t rows, tokens, positions;
};

struct deadline {
    int64_t max_us;
    struct deadline_seen {
        uint32_t count;
        int64_t slowest_us; /* sinks by a thousandth a step: about the 99.9th percentile */
    } seen[DEADLINE_ROWS][DEADLINE_TOKENS][DEADLINE_POSITIONS];
};

/* Knows nothing, as of new ranks. max_us: upper bound of all deadlines. */
void deadline_init(struct deadline *d, int64_t max_us);

struct deadline_shape deadline_shape(const struct proto_step *m);

/* From when the ranks could begin with the step. */
int64_t deadline_us(const struct deadline *d, struct deadline_shape shape);

/* A step of that shape has taken so long. */
void deadline_learn(struct deadline *d, struct deadline_shape shape, int64_t step_us);

#endif

/* A decoder-only transformer as a sequence of kernels/ops.h's operations. */
#ifndef PHALANX_WORKER_DECODER_H
#define PHALANX_WORKER_DECODER_H

#include "services/worker/weights.h"

struct decoder {
    const struct ops *ops; /* borrowed, as all of these */
    struct device *device;
    const struct model_config *config;
    const struct weights *weights;
    struct act *residual, *normed; /* (T, H) */
    struct act *qkv;               /* (T, (Hq + 2 Hkv) D) */
    struct act *attention;         /* (T, Hq D) */
    struct act *mlp;               /* (T, I) */
};

/* Positions to be scored, and what came of them. */
struct decoder_scores {
    const struct ops_score *list;
    uint32_t count;
    const struct ops_sampled *results; /* the device's */
};

/* The activations; after ops->pool_alloc. */
int decoder_alloc(struct decoder *d, const struct shard *shard, struct err *err);

/* Between a step's begin and end: the operations of all layers, scores (NULL: none) and sample. */
int decoder_forward(struct decoder *d, struct decoder_scores *scores, struct err *err);

/* A step, up to its sampling; ops->step_end gives what came of it. */
int decoder_begin(struct decoder *d, const struct ops_row *rows, uint32_t count,
                  struct decoder_scores *scores, struct err *err);

#endif

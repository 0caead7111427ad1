/* A rank's share of a model's weights on its device. Norms are on every rank. q, k, v are one
 * matrix (q's rows, k's, v's), so are gate and up. */
#ifndef PHALANX_WORKER_WEIGHTS_H
#define PHALANX_WORKER_WEIGHTS_H

#include "services/worker/safetensors.h"
#include "services/worker/shard.h"

struct layer_weights {
    struct weight *input_norm; /* (1, H) */
    struct weight *qkv;        /* ((Hq + 2 Hkv) D, H) */
    struct weight *qkv_bias;   /* (1, (Hq + 2 Hkv) D) or NULL */
    struct weight *q_norm;     /* (1, D) or NULL */
    struct weight *k_norm;     /* (1, D) or NULL */
    struct weight *o;          /* (H, Hq D) */
    struct weight *post_norm;  /* (1, H) */
    struct weight *gate_up;    /* (2 I, H) */
    struct weight *down;       /* (H, I) */
};

struct weights {
    struct weight *embed; /* (Vr, H) */
    struct layer_weights *layers;
    struct weight *norm;    /* (1, H) */
    struct weight *lm_head; /* (Vr, H); embed when tied */
};

struct weights_config {
    const struct model_config *model;
    const struct shard *shard;
    const char *dtype; /* auto, float32, bfloat16, float16 */
    /* Where values come from: an open checkpoint, or NULL for random ones that do not depend on
     * tp_size (dummy). */
    struct safetensors *checkpoint;
    bool progress; /* a bar on stderr when that is a terminal */
};

/* Loads everything onto the device, which owns it. Every tensor is checked before any is read. */
int weights_load(const struct weights_config *config, const struct ops *ops, struct device *device,
                 struct weights *out, struct err *err);
void weights_fini(struct weights *w); /* the table only */

#endif

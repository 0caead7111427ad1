/* Which part of a model one rank holds.
 *
 * Split over tp ranks: q heads evenly; KV heads evenly, or, when they are fewer than ranks, each
 * on tp / kv_heads ranks; the intermediate size by ceil(I / tp), the last rank padded with zeros
 * (they add nothing); the vocabulary by ceil(V / tp), the last ranks short. */
#ifndef PHALANX_WORKER_SHARD_H
#define PHALANX_WORKER_SHARD_H

#include "services/worker/model_config.h"

struct shard {
    uint32_t rank, tp_size;
    uint32_t heads, head_begin;                     /* q heads */
    uint32_t kv_heads, kv_head_begin;               /* KV heads */
    uint32_t intermediate;                          /* the same on all ranks */
    uint32_t intermediate_begin, intermediate_real; /* what of it is in the checkpoint */
    uint32_t vocab_begin, vocab_count;
};

/* ERR_INVALID when the heads do not divide. */
int shard_init(struct shard *s, const struct model_config *c, uint32_t rank, uint32_t tp_size,
               struct err *err);

#endif

#include "services/worker/shard.h"

int shard_init(struct shard *s, const struct model_config *c, uint32_t rank, uint32_t tp_size,
               struct err *err)
{
    uint32_t vocab = (c->vocab_size + tp_size - 1) / tp_size;
    uint64_t begin;

    if (c->heads % tp_size)
        return err_set(err, ERR_INVALID,
                       "--tp-size %u does not divide the model's %u attention heads", tp_size,
                       c->heads);
    if (c->kv_heads % tp_size && tp_size % c->kv_heads)
        return err_set(err, ERR_INVALID,
                       "--tp-size %u neither divides the model's %u KV heads nor is a multiple",
                       tp_size, c->kv_heads);
    *s = (struct shard){.rank = rank, .tp_size = tp_size};
    s->heads = c->heads / tp_size;
    s->head_begin = rank * s->heads;
    s->kv_heads = c->kv_heads >= tp_size ? c->kv_heads / tp_size : 1;
    s->kv_head_begin = (uint32_t)((uint64_t)rank * c->kv_heads / tp_size);
    s->intermediate = (c->intermediate + tp_size - 1) / tp_size;
    begin = (uint64_t)rank * s->intermediate;
    s->intermediate_begin = (uint32_t)(begin < c->intermediate ? begin : c->intermediate);
    s->intermediate_real = c->intermediate - s->intermediate_begin;
    if (s->intermediate_real > s->intermediate)
        s->intermediate_real = s->intermediate;
    begin = (uint64_t)rank * vocab;
    s->vocab_begin = (uint32_t)(begin < c->vocab_size ? begin : c->vocab_size);
    s->vocab_count = c->vocab_size - s->vocab_begin;
    if (s->vocab_count > vocab)
        s->vocab_count = vocab;
    return 0;
}

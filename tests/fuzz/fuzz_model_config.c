/* A config.json of any bytes; what is accepted must be safe to compute with. */
#include "services/worker/model_config.h"
#include "services/worker/weights.h"

#include <assert.h>

static void use(const struct model_config *c)
{
    float inv_freq[1024];
    struct shard s;
    struct err err;

    assert(c->head_dim % 2 == 0 && c->head_dim / 2 <= 1024);
    rope_inv_freq(&c->rope, c->head_dim, inv_freq);
    for (uint32_t tp = 1; tp <= 64; tp++) {
        uint64_t vocab = 0, inter = 0;

        for (uint32_t rank = 0; rank < tp; rank++) {
            if (shard_init(&s, c, rank, tp, &err))
                break;
            assert(s.vocab_begin == vocab && s.intermediate_begin == inter);
            assert(s.kv_head_begin + s.kv_heads <= c->kv_heads);
            assert(s.intermediate_real <= s.intermediate);
            vocab += s.vocab_count;
            inter += s.intermediate_real;
            assert(rank + 1 < tp || (vocab == c->vocab_size && inter == c->intermediate));
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config c;
    struct err err = {0};

    if (model_config_parse((const char *)data, size, &c, &err))
        assert(err.msg[0]);
    else
        use(&c);
    return 0;
}

/* Qwen 3 (dense): each query and key head is normalised. */
#include "services/worker/models.h"

extern const struct model_kind model_qwen3;
const struct model_kind model_qwen3 = {
    .architecture = "Qwen3ForCausalLM",
    .qkv_bias = BIAS_CONFIG,
    .qk_norm = true,
    .window = WINDOW_LAYERS,
    .head_dim = 128,
    .sliding_window = 4096,
};

/* Qwen 2 and 2.5: q, k and v have biases. */
#include "services/worker/models.h"

extern const struct model_kind model_qwen2;
const struct model_kind model_qwen2 = {
    .architecture = "Qwen2ForCausalLM",
    .qkv_bias = BIAS_ALWAYS,
    .window = WINDOW_LAYERS,
    .sliding_window = 4096,
};

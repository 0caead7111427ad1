/* Llama 1 to 3.x and what shares its layout. */
#include "services/worker/models.h"

extern const struct model_kind model_llama;
const struct model_kind model_llama = {
    .architecture = "LlamaForCausalLM",
    .qkv_bias = BIAS_CONFIG,
    .window = WINDOW_NONE,
};

/* Mistral: Llama with a sliding window on every layer (null in later ones: none). */
#include "services/worker/models.h"

extern const struct model_kind model_mistral;
const struct model_kind model_mistral = {
    .architecture = "MistralForCausalLM",
    .qkv_bias = BIAS_NONE,
    .window = WINDOW_ALL,
    .sliding_window = 4096,
};

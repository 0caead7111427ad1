/* What differs between the decoder-only architectures we run: one file and one row each. The
 * decoder (decoder.c) and the weights' layout (weights.c) are the same for all. */
#ifndef PHALANX_WORKER_MODELS_H
#define PHALANX_WORKER_MODELS_H

#include "common/buf.h"

#include <stdbool.h>
#include <stdint.h>

enum bias_rule {
    BIAS_NONE,
    BIAS_ALWAYS,
    BIAS_CONFIG /* where attention_bias of config.json says so */
};

enum window_rule {
    WINDOW_NONE,
    WINDOW_ALL,   /* sliding_window on every layer */
    WINDOW_LAYERS /* on those that use_sliding_window, layer_types, max_window_layers name */
};

struct model_kind {
    const char *architecture; /* config.json's architectures[0] */
    enum bias_rule qkv_bias;
    bool qk_norm; /* RMSNorm of each query and key head before the rotary embedding */
    enum window_rule window;
    /* For config.json without the key, as transformers has it. */
    uint32_t head_dim;       /* 0: hidden_size / num_attention_heads */
    uint32_t sliding_window; /* 0: none */
};

/* NULL when there is none. */
const struct model_kind *models_find(const char *architecture);

/* Appends "LlamaForCausalLM, Qwen2ForCausalLM, ...". */
void models_list(struct buf *out);

#endif

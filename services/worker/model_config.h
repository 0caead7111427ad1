/* config.json and generation_config.json of a model folder, every value checked. */
#ifndef PHALANX_WORKER_MODEL_CONFIG_H
#define PHALANX_WORKER_MODEL_CONFIG_H

#include "kernels/ops.h"
#include "services/worker/models.h"
#include "services/worker/rope.h"

#define MODEL_LAYERS_MAX 1024
#define MODEL_EOS_MAX 64

struct model_config {
    const struct model_kind *kind;
    uint32_t layers, hidden, heads, kv_heads, head_dim, intermediate, vocab_size;
    uint32_t context_length; /* max_position_embeddings */
    uint32_t context_max;    /* with the rotary embedding's scaling: the most that makes sense */
    float norm_eps;
    struct rope rope;
    bool qkv_bias;    /* q, k and v have biases */
    bool o_bias;      /* config.json asks for one on o_proj too */
    bool tied;        /* the LM head is the embedding */
    enum dtype dtype; /* of the checkpoint as config.json says; float32 when it does not */
    uint32_t window[MODEL_LAYERS_MAX]; /* of each layer; 0: none */
    uint32_t eos_ids[MODEL_EOS_MAX];
    uint32_t eos_count;
    uint64_t hash; /* of config.json's bytes */
};

/* Errors name the file and the field. */
int model_config_load(const char *dir, struct model_config *out, struct err *err);

/* The same from the text of config.json alone. */
int model_config_parse(const char *text, size_t len, struct model_config *out, struct err *err);

/* "auto" gives `automatic`. */
int model_dtype(const char *name, enum dtype automatic, enum dtype *out, struct err *err);

#endif

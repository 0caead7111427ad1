/* Rotary embedding: inverse frequencies and the factor on cos and sin, computed in the precision
 * and order of transformers' modeling_rope_utils.py, so that long positions get the same angles. */
#ifndef PHALANX_WORKER_ROPE_H
#define PHALANX_WORKER_ROPE_H

#include "common/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN };

struct rope {
    enum rope_type type;
    double theta;
    double factor;               /* linear, llama3, yarn */
    double original_max;         /* positions of the training; llama3, yarn */
    double low_freq, high_freq;  /* llama3 */
    double beta_fast, beta_slow; /* yarn */
    double attention_factor;     /* yarn: on cos and sin; others: 1 */
    bool truncate;               /* yarn: whole dimensions only */
};

/* From config.json: rope_parameters (transformers 5) or rope_theta and rope_scaling (before). */
int rope_parse(const json_t *config, uint32_t max_position, struct rope *out, struct err *err);

/* inv_freq: head_dim / 2 of them. */
void rope_inv_freq(const struct rope *r, uint32_t head_dim, float *inv_freq);

#endif

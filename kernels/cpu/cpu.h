/* The CPU backend's own types. One thread a rank; activations, KV and sums are float32.
 *
 * Batch invariance by construction: every output element is summed over k in the same order, by
 * the same instructions, whatever the other rows are; attention goes through positions in order;
 * partial sums of ranks are added in rank order. */
#ifndef PHALANX_KERNELS_CPU_H
#define PHALANX_KERNELS_CPU_H

#include "kernels/comm.h"
#include "kernels/ops.h"

/* Sixteen floats; the compiler lowers it to what the machine has. */
#define LANES 16
typedef float v16 __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t v16h __attribute__((vector_size(2 * LANES), aligned(2)));
typedef uint32_t v16u __attribute__((vector_size(4 * LANES), aligned(4)));

/* The hot loops are compiled for several instruction sets, the best is taken at load. Not under
 * sanitizers, whose run time is not up yet when the choice is made. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) &&                             \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && defined(__OPTIMIZE__)
#define CPU_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CPU_CLONES
#endif

#define GATE_UP_ROWS 64u
#define CANDIDATES 64u  /* a rank sends for one row */
#define SCORE_BLOCK 16u /* positions whose logits are there at a time */

struct candidate {
    float z;   /* adjusted logit over temperature */
    float raw; /* logit as the model gave it */
    uint32_t id;
};

/* What one rank tells the others of one row. */
struct record {
    float raw_max, raw_sum;  /* of exp(raw - raw_max), for log probabilities */
    float z_max, z_sum;      /* of exp(z - z_max) */
    struct candidate winner; /* largest z + noise of the share; z holds that sum */
    uint32_t count, top_count;
    struct candidate best[CANDIDATES];      /* falling z */
    struct candidate top[OPS_LOGPROBS_MAX]; /* falling raw, in z too */
};

/* What one rank tells the others of one scored position. */
struct score_record {
    float raw_max, raw_sum; /* of exp(raw - raw_max) */
    float raw;              /* of the token that follows, where the rank holds it */
    uint32_t top_count;
    struct candidate top[OPS_LOGPROBS_MAX];
};

struct weight {
    enum weight_kind kind;
    enum dtype dtype; /* F32 or BF16 as stored (F16 is widened to F32); vectors: F32 */
    uint32_t rows, cols;
    void *data; /* vectors: (cols); others: (ceil(rows / LANES), cols, LANES) panels */
    struct weight *next;
};

struct act {
    uint32_t width;
    float *data; /* (tokens_max, width) */
    struct act *next;
};

struct slot {
    bool open;
    uint32_t *tokens; /* (context_max) */
    uint32_t count, generated;
    uint32_t *pages; /* (pages_per_slot) */
    uint32_t pages_count;
    struct ops_sampling sampling; /* end_ids and bias are owned */
};

struct device {
    struct ops_config config;
    struct ops_model model;
    float *inv_freq;
    const struct comm_kind *comm_kind;
    struct comm *comm; /* NULL for one rank */
    struct weight *weights;
    struct act *acts;
    uint64_t weight_bytes, kv_bytes;

    /* Pool. kv: per layer k then v, each (num_pages, kv_heads, page_size, head_dim). */
    float *kv;
    uint32_t num_pages, page_size, num_slots, tokens_max, context_max, pages_per_slot;
    struct slot *slots;

    /* The step. */
    const struct ops_row *rows;
    uint32_t rows_count, tokens_count;
    struct ops_row *rows_data;
    uint32_t *token_slot, *token_position, *token_id; /* (tokens_max) */
    float *scratch;               /* (tokens_max, hidden) partial sums, or anything up to that */
    float *gathered;              /* (tp_size, tokens_max, hidden) */
    float *rope;                  /* (tokens_max, head_dim): cosines, sines */
    float *scores;                /* (context_max) */
    float *gate_up;               /* (GATE_UP_ROWS, 2 * intermediate) */
    float *logits;                /* (num_slots, vocab_share) */
    float *row_logits;            /* (tp_size, vocab_share): one row of all ranks */
    float *adjusted;              /* (tp_size * vocab_share) */
    struct candidate *candidates; /* (tp_size * max(vocab_share, CANDIDATES)) */
    uint32_t *counts;             /* (vocab_size): occurrences, zero between uses */
    uint32_t vocab_share;         /* ceil(V / tp_size) */
    struct ops_sampled *results;
    uint32_t results_count;
    struct record *records, *all_records; /* (num_slots), (tp_size, num_slots) */

    /* Scored positions. */
    float *score_logits;                                    /* (SCORE_BLOCK, vocab_share) */
    struct score_record *score_records, *all_score_records; /* (SCORE_BLOCK), (tp_size, ...) */
    struct ops_sampled *scored;                             /* (OPS_SCORES_MAX) */
};

/* gemm.c */
float f16_to_f32(uint16_t h);
size_t weight_size(const struct weight *w);
void weight_pack(struct weight *w, uint32_t row, uint32_t rows, const void *src, enum dtype type);
void weight_row(const struct weight *w, uint32_t row, float *out);
/* y (m, rows) = x (m, cols) W^T; ldy floats between rows of y. */
void gemm(const float *x, uint32_t m, const struct weight *w, float *y, size_t ldy);

/* layers.c, attention.c: the operations of ops.h */
int cpu_embed(struct device *d, const struct weight *embedding, const struct weight *norm,
              struct act *residual, struct act *normed, struct err *err);
int cpu_linear(struct device *d, const struct act *x, const struct weight *w,
               const struct weight *bias, struct act *out, struct err *err);
int cpu_linear_reduce_norm(struct device *d, const struct act *x, const struct weight *w,
                           const struct weight *norm, struct act *residual, struct act *normed,
                           struct err *err);
int cpu_gate_up_silu(struct device *d, const struct act *x, const struct weight *w, struct act *out,
                     struct err *err);
int cpu_qk_norm_rope_kv(struct device *d, uint32_t layer, struct act *qkv,
                        const struct weight *q_norm, const struct weight *k_norm, struct err *err);
int cpu_attention(struct device *d, uint32_t layer, const struct act *qkv, uint32_t window,
                  struct act *out, struct err *err);
void rope_fill(struct device *d);
void rms_norm(const float *x, const float *weight, uint32_t n, float eps, float *out);

/* sample.c */
int cpu_sample(struct device *d, const struct act *normed, const struct weight *lm_head,
               struct err *err);

/* Keeps `list` the `max` first: falling z, ties by rising id. */
void candidate_insert(struct candidate *list, uint32_t *count, uint32_t max, float z, float raw,
                      uint32_t id);

/* score.c */
int cpu_score(struct device *d, const struct act *normed, const struct weight *lm_head,
              const struct ops_score *scores, uint32_t count, const struct ops_sampled **results,
              struct err *err);

/* comms.c, comm_gloo.cc */
extern const struct comm_kind comm_gloo;
const struct comm_kind *comm_find(const char *name);

#endif

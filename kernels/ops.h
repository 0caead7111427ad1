/* The contract between the engine and a device: coarse operations as a decoder-only transformer
 * sees them. A backend is one shared object (libphalanx-<name>.so) that exports phalanx_backend();
 * the CPU backend (kernels/cpu) is the readable reference, others may fuse as they like inside an
 * operation.
 *
 * Shapes: T tokens of the step, H hidden size, D head_dim, Hq and Hkv query and KV heads of this
 * rank, I the rank's share of the intermediate size, V vocabulary, Vr the rank's share of it. Row
 * major, the last dimension contiguous. The type of activations is the backend's choice (CPU: f32).
 *
 * Every rank makes the same calls in the same order; operations marked [collective] meet the other
 * ranks and leave bitwise the same result on all of them. Results of a token do not depend on what
 * else is in the step or how its prompt was cut into chunks (batch invariance) on backends that
 * say so in `batch_invariant`.
 *
 * Calls come from one thread. Operations may run asynchronously between step_begin and step_end. */
#ifndef PHALANX_KERNELS_OPS_H
#define PHALANX_KERNELS_OPS_H

#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OPS_ABI 5

enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPES };
static inline size_t dtype_size(enum dtype t)
{
    return t == DTYPE_F32 ? 4 : 2;
}

struct device; /* one rank's device: memory, streams, communicator, slots */
struct comm_meet;
struct weight; /* a matrix or vector in the backend's own layout */
struct act;    /* an activation buffer of (tokens_max, width) */

/* Geometry of this rank's share of the model. */
struct ops_model {
    uint32_t layers;
    uint32_t hidden;       /* H */
    uint32_t heads;        /* Hq */
    uint32_t kv_heads;     /* Hkv; KV heads fewer than ranks are held by several ranks */
    uint32_t head_dim;     /* D, even */
    uint32_t intermediate; /* I */
    uint32_t vocab_size;   /* V of the whole model */
    uint32_t vocab_begin;  /* first id of this rank's rows of embedding and LM head */
    uint32_t vocab_count;  /* Vr; may be 0 on the last ranks */
    float norm_eps;
    float attention_scale;      /* 1/sqrt(D) as a rule */
    const float *rope_inv_freq; /* (D/2): angle = position * inv_freq[i]; pairs are (i, i + D/2) */
    float rope_scale;           /* factor on cos and sin (yarn's attention factor); 1 as a rule */
};

/* How single tokens share the device in attention. */
enum ops_decode {
    OPS_DECODE_AUTO, /* by their sequences' lengths */
    OPS_DECODE_EACH, /* every sequence by as much of the device */
    OPS_DECODE_EVEN, /* all positions evenly */
};

struct ops_config {
    uint32_t rank, tp_size;
    uint32_t device_index;
    const struct comm_meet *comm_meet; /* how the ranks of this group meet; NULL for one rank */
    const char *comm_interface;        /* network interface; NULL or "": the backend's choice */
    double comm_timeout_s;
    uint64_t memory_max; /* bytes for weights and KV; 0: the backend's default */
    /* Share of the device's memory for weights and KV; 0: the backend's default. Ignored where the
     * machine's memory is used. */
    double memory_fraction;
    /* What a backend that has no such thing ignores: */
    bool library_all_reduce; /* sums over ranks by the library alone (NCCL) */
    bool symmetric;          /* the library's sums in memory registered with it */
    bool p2p_check;          /* really copy between every pair of devices, and compare */
    bool graphs_off;         /* launch decode steps one by one */
    uint32_t graph_rows_max; /* decode steps of more rows are launched one by one; 0: default */
    enum ops_decode decode;  /* AUTO but for tests and measurements */
};

/* How a slot chooses its tokens; the meaning of the fields is proto/messages.def's `sampling`. */
struct ops_bias {
    uint32_t id;
    float value;
};
struct ops_sampling {
    float temperature, top_p, min_p;
    int32_t top_k; /* <= 0: off */
    float presence_penalty, frequency_penalty, repetition_penalty;
    uint64_t seed;
    uint32_t min_tokens;     /* end_ids are masked before that many generated tokens */
    int32_t logprobs;        /* -1: none; k: the chosen token's and the k largest */
    const uint32_t *end_ids; /* eos and stop token ids */
    uint32_t end_ids_count;
    const struct ops_bias *bias;
    uint32_t bias_count;
};

struct ops_row {
    uint32_t slot;
    uint32_t start; /* first position computed; positions before it are in the KV pages */
    uint32_t count; /* tokens, >= 1 */
    bool sample;    /* choose the token after the last one and append it to the slot */
};

/* Positions of a row, for the log probabilities of the tokens that follow them. */
struct ops_score {
    uint32_t row; /* index into the step's rows */
    uint32_t start, count;
};

#define OPS_SCORES_MAX 2048 /* positions in one step */
#define OPS_LOGPROBS_MAX 20
struct ops_sampled {
    uint32_t slot;
    uint32_t id;
    float logprob;                      /* from the logits before bias, penalties and temperature */
    uint32_t top_count;                 /* = min(logprobs, V) when asked for, else 0 */
    uint32_t top_ids[OPS_LOGPROBS_MAX]; /* falling logprob, ties by rising id */
    float top_logprobs[OPS_LOGPROBS_MAX];
};

enum weight_kind {
    WEIGHT_MATRIX,  /* (rows, cols): y = x W^T */
    WEIGHT_GATE_UP, /* (2 I, H): gate's rows first, then up's */
    WEIGHT_EMBED,   /* (Vr, H): looked up by row, and the LM head when embeddings are tied */
    WEIGHT_VECTOR   /* (1, cols): norms and biases */
};

/* Bytes of a device: how many nobody uses, and what this rank's go to beside weights and KV. */
struct ops_memory {
    uint64_t total, unused;
    uint64_t workspace; /* buffers of a step, of products and of sums over ranks */
    uint64_t graphs;
};

/* What a device that gets ready asks of its caller. */
struct ops_warm {
    /* A step has begun: runs the model's operations and sample, as a step's rows with sample do. */
    int (*forward)(void *ctx, struct err *err);
    /* `done` of `total`, from 0 on; and a line for the user. Each may be NULL. */
    void (*progress)(void *ctx, const char *what, uint32_t done, uint32_t total);
    void (*say)(void *ctx, const char *line);
    void *ctx;
};

struct ops {
    uint32_t abi; /* OPS_ABI */
    const char *name;
    bool batch_invariant;

    /* 0 when this machine has a device the backend can use, else ERR_UNSUPPORTED. NULL: always. */
    int (*probe)(struct err *err);

    /* Opens the device and meets the other ranks. model is copied, rope_inv_freq too. [collective]
     */
    int (*device_open)(const struct ops_config *config, const struct ops_model *model,
                       struct device **out, struct err *err);
    void (*device_close)(struct device **self);

    /* A weight of the given shape and type, contents undefined until written. Owned by the device.
     * weight_write copies `rows` rows from src (host, contiguous, type src_dtype, converted when
     * the types differ) to row `row` on. weight_done after the last write. */
    int (*weight_new)(struct device *d, enum weight_kind kind, enum dtype dtype, uint32_t rows,
                      uint32_t cols, struct weight **out, struct err *err);
    int (*weight_write)(struct device *d, struct weight *w, uint32_t row, uint32_t rows,
                        const void *src, enum dtype src_dtype, struct err *err);
    int (*weight_done)(struct device *d, struct weight *w, struct err *err);

    /* Bytes of one KV page on this rank, and how many pages fit beside what is allocated. */
    uint64_t (*page_bytes)(const struct device *d, uint32_t page_size);
    uint64_t (*pages_max)(const struct device *d, uint32_t page_size);
    /* Everything of a step but the KV pool; then act_new can be called, and pages_max knows what is
     * left. NULL: pool_alloc alone does it. [collective, as warm is] */
    int (*prepare)(struct device *d, uint32_t page_size, uint32_t num_slots, uint32_t tokens_max,
                   uint32_t context_max, struct err *err);
    /* Does what would otherwise come with the first steps of each kind: chooses algorithms,
     * captures graphs. After prepare and the activations, and again after pool_alloc. NULL:
     * nothing. */
    int (*warm)(struct device *d, const struct ops_warm *warm, struct err *err);
    /* The KV pool, the slots and every buffer of a step: num_slots rows, tokens_max tokens, slots
     * of at most context_max tokens; at most what prepare was told, where it was called. Called
     * once; but for activations, nothing is allocated afterwards. */
    int (*pool_alloc)(struct device *d, uint32_t num_pages, uint32_t page_size, uint32_t num_slots,
                      uint32_t tokens_max, uint32_t context_max, struct err *err);
    int (*act_new)(struct device *d, uint32_t width, struct act **out, struct err *err);

    /* A slot's state lives on the device: token ids, page table, length, sampling. The last
     * `generated` tokens were generated. */
    int (*slot_open)(struct device *d, uint32_t slot, const uint32_t *tokens, uint32_t count,
                     uint32_t generated, const struct ops_sampling *sampling, struct err *err);
    int (*slot_pages)(struct device *d, uint32_t slot, uint32_t first, const uint32_t *pages,
                      uint32_t count, struct err *err);
    void (*slot_close)(struct device *d, uint32_t slot);

    /* A step: begin, operations in the model's order, sample, end. */
    int (*step_begin)(struct device *d, const struct ops_row *rows, uint32_t count,
                      struct err *err);

    /* residual = embedding rows of the step's tokens (T, H); normed = RMSNorm(residual) * norm.
     * [collective: rows live on the rank that holds the id] */
    int (*embed)(struct device *d, const struct weight *embedding, const struct weight *norm,
                 struct act *residual, struct act *normed, struct err *err);

    /* out (T, N) = x (T, K) W^T + bias; W (N, K); bias (1, N) or NULL. */
    int (*linear)(struct device *d, const struct act *x, const struct weight *w,
                  const struct weight *bias, struct act *out, struct err *err);

    /* qkv (T, (Hq + 2 Hkv) D): RMSNorm of each q and k head with q_norm, k_norm (1, D) unless NULL,
     * rotary embedding of q and k at the tokens' positions, k and v into the layer's KV pages. q
     * stays in qkv until sample. */
    int (*qk_norm_rope_kv)(struct device *d, uint32_t layer, struct act *qkv,
                           const struct weight *q_norm, const struct weight *k_norm,
                           struct err *err);

    /* out (T, Hq D) = causal attention of q over the slot's pages; window > 0: only the last
     * `window` positions, the token's own included. */
    int (*attention)(struct device *d, uint32_t layer, const struct act *qkv, uint32_t window,
                     struct act *out, struct err *err);

    /* residual += sum over ranks of x (T, K) W^T (N = H); normed = RMSNorm(residual) * norm.
     * [collective] */
    int (*linear_reduce_norm)(struct device *d, const struct act *x, const struct weight *w,
                              const struct weight *norm, struct act *residual, struct act *normed,
                              struct err *err);

    /* out (T, I) = silu(x Wgate^T) * (x Wup^T). */
    int (*gate_up_silu)(struct device *d, const struct act *x, const struct weight *w,
                        struct act *out, struct err *err);

    /* For each position of the scores, in order: id, the known token that follows it, with its log
     * probability and the slot's `logprobs` largest; (sum of counts) results, valid until the next
     * step_begin. Called before sample; NULL where it is not supported. [collective] */
    int (*score)(struct device *d, const struct act *normed, const struct weight *lm_head,
                 const struct ops_score *scores, uint32_t count, const struct ops_sampled **results,
                 struct err *err);

    /* For each row with sample: logits of its last token x W^T, then the choice: bias, penalties,
     * end_ids masked below min_tokens, temperature, top-k, top-p, min-p, and argmax of
     * logit/temperature + Gumbel noise keyed by (seed, position, id) among what is left
     * (temperature 0: plain argmax, ties to the smallest id). The token is appended to the slot.
     * [collective: ranks gather candidates and all choose the same] */
    int (*sample)(struct device *d, const struct act *normed, const struct weight *lm_head,
                  struct err *err);

    /* Waits for the oldest step that has begun and gives its results, in the order of the rows
     * with sample; valid until the next step_end. */
    int (*step_end)(struct device *d, const struct ops_sampled **results, uint32_t *count,
                    struct err *err);
    /* So many steps may have begun and not ended: 1, or more where rows of a step may follow tokens
     * that the one before still chooses. A step with score ends before the next begins. */
    uint32_t steps_ahead;
    /* Whether step_end would return at once, with results or an error. NULL: always. */
    bool (*step_ready)(struct device *d);
    /* Microseconds that the device spent on the step ended last. NULL: not known. */
    uint64_t (*step_us)(const struct device *d);

    /* For tests: the first `tokens` rows of an activation as float32, out and in; and the float32
     * logits (Vr) of result i of the last step (NULL where not kept). */
    int (*act_read)(struct device *d, const struct act *a, uint32_t tokens, float *out,
                    struct err *err);
    int (*act_write)(struct device *d, struct act *a, uint32_t tokens, const float *in,
                     struct err *err);
    const float *(*logits)(struct device *d, uint32_t i);

    uint64_t (*weight_bytes)(const struct device *d);
    uint64_t (*kv_bytes)(const struct device *d);
    /* NULL: the device has no memory of its own. */
    int (*memory)(const struct device *d, struct ops_memory *out, struct err *err);
};

/* What a backend's shared object exports. */
__attribute__((visibility("default"))) const struct ops *phalanx_backend(void);

#endif

/* What host code and kernels share: structures in device memory and the functions that launch
 * kernels. Launchers return at once; the error is that of the launch. `half` is bf16 or f16
 * throughout, told by `type`. */
#ifndef PHALANX_KERNELS_CUDA_LAUNCH_H
#define PHALANX_KERNELS_CUDA_LAUNCH_H

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum half_type { HALF_BF16, HALF_F16 };

#define SLOT_END_IDS 192u /* end ids a slot can hold: 64 of the model, 128 of the request */
#define SLOT_BIASES 1024u
#define CANDIDATES 64u /* a rank sends for one row */
#define TOP_MAX 20u    /* OPS_LOGPROBS_MAX */
#define SPAN_PARTS 64u /* blocks that share one row's vocabulary */
#define SPAN_PART_MAX 8192u
#define RANKS_MAX 64u
#define GEMV_ROWS 4u        /* rows of x that the matrix-vector kernel takes at most */
#define GEMV_NORM_MAX 2048u /* width of rows whose norm it makes, at most */
#define DECODE_ROWS 16u     /* query heads of one attention unit: a tensor core's rows */
#define DECODE_KEYS 16u     /* of a warp's tile; Hopper's kernel has whole ones in a page */
#define PREFILL_ROWS 64u
#define PREFILL_ROWS_HOPPER 128u
/* Units of a token: its KV heads' query heads, DECODE_ROWS of them at most. */
#define ROW_UNITS(heads, kv_heads)                                                                 \
    ((kv_heads) * (((heads) / (kv_heads) + DECODE_ROWS - 1) / DECODE_ROWS))
/* Numbers of a row of a part of decode attention: sums of v, top and sum of the weights; more, so
 * that rows begin in different banks. */
#define PART_STRIDE(head_dim) ((head_dim) + 8u)

/* A copy from the staging buffer to anywhere in device memory, in words. */
struct patch {
    uint64_t dst;
    uint32_t src, words;
};

/* How a slot samples, and how far it is; count and generated are kept by the device. */
struct slot_state {
    uint64_t seed;
    float temperature, top_p, min_p, presence, frequency, repetition;
    int32_t top_k, logprobs;
    uint32_t min_tokens, count, generated, bias_count, end_count;
    uint32_t reserved;
    uint32_t end_ids[SLOT_END_IDS];
};

struct slot_bias {
    uint32_t id;
    float value;
};

struct frame_row {
    uint32_t slot, start, count;
    uint32_t token; /* index of its first token in the step */
};

/* Rows of one attention block: attention_tile_rows (token, head of the group) pairs from `first`
 * on. */
struct frame_tile {
    uint32_t row, first;
};

/* Candidates are keys: larger comes first. The upper half orders floats, the lower breaks ties by
 * the smaller id; 0 is none. What one rank tells the others of one row: */
struct sample_record {
    float raw_max, raw_sum; /* of exp(raw - raw_max), for log probabilities */
    float z_max, z_sum;     /* of exp(z - z_max) */
    uint64_t winner;        /* of z + noise (z when greedy) over this rank's share */
    float winner_raw;
    uint32_t count, top_count, reserved;
    uint64_t best[CANDIDATES]; /* of z, falling */
    float best_raw[CANDIDATES];
    uint64_t top[TOP_MAX]; /* of raw, falling */
};

struct sample_part {
    double raw_sum, z_sum;
    float raw_max, z_max;
    uint64_t winner;
    uint64_t best[CANDIDATES];
    uint64_t top[TOP_MAX];
};

/* Mirrors struct ops_sampled, and whether the row could be decided. */
struct sample_result {
    uint32_t slot, id;
    float logprob;
    uint32_t top_count;
    uint32_t top_ids[TOP_MAX];
    float top_logprobs[TOP_MAX];
    float norm; /* log of the sum of exp(raw) */
    uint32_t undecided;
};

/* step.cu */
cudaError_t launch_patches(cudaStream_t s, const uint32_t *staging, const struct patch *patches,
                           uint32_t count);
struct prepare_args {
    const uint32_t *token_slot, *token_position; /* (T) */
    const uint32_t *slot_tokens;                 /* (slots, context_max + 1) */
    const float *inv_freq;                       /* (head_dim / 2) */
    uint32_t *token_id;                          /* (T) */
    float *rope;                                 /* (T, head_dim / 2, 2): cosine, sine */
    uint32_t slot_stride, half, tokens;
    float rope_scale;
};
cudaError_t launch_prepare(cudaStream_t s, const struct prepare_args *a);
cudaError_t launch_embed(cudaStream_t s, const void *table, const uint32_t *token_id, void *out,
                         uint32_t tokens, uint32_t hidden, uint32_t begin, uint32_t count);
/* residual = x, or += x unless fresh; normed = RMSNorm(residual) * weight. x may be NULL, for
 * nothing, where hidden is a multiple of 4 and at most 8,192. */
cudaError_t launch_add_norm(cudaStream_t s, enum half_type type, const void *x, float *residual,
                            const float *weight, void *normed, uint32_t tokens, uint32_t hidden,
                            float eps, int fresh);
/* gate_up (T, 2 n): out (T, n) = silu(gate) * up. */
cudaError_t launch_silu(cudaStream_t s, enum half_type type, const void *gate_up, void *out,
                        uint32_t tokens, uint32_t n, uint32_t out_stride);
struct kv_args {
    void *qkv; /* (T, stride) */
    const float *q_norm, *k_norm;
    const float *rope;
    void *k, *v; /* the layer's pages: (pages, kv_heads, page_size, head_dim) */
    const uint32_t *token_slot, *token_position, *slot_pages;
    uint32_t tokens, stride, heads, kv_heads, head_dim, page_size, pages_per_slot;
    float eps;
};
cudaError_t launch_qk_norm_rope_kv(cudaStream_t s, enum half_type type, const struct kv_args *a);
/* out (rows, width) of half = rows of x named by index. */
cudaError_t launch_gather_rows(cudaStream_t s, const void *x, const uint32_t *index, void *out,
                               uint32_t rows, uint32_t width);
/* out = x, n values. */
cudaError_t launch_narrow(cudaStream_t s, enum half_type type, const float *x, void *out, size_t n);

/* gemv.cu: y (m, n) = x (m, k) w^T + bias, m <= GEMV_ROWS, k % 8 == 0, 16-byte rows. */
enum gemv_out {
    GEMV_HALF,
    GEMV_FLOAT,
    GEMV_SILU,    /* w (2 n, k), gate then up */
    GEMV_RESIDUAL /* float, y += */
};
struct gemv_args {
    const void *x;                /* NULL, for GEMV_HALF and GEMV_SILU with k <= GEMV_NORM_MAX: */
    const float *residual, *norm; /* x = RMSNorm(residual (m, k)) * norm (k) */
    const void *w, *bias;         /* bias: GEMV_HALF's, or NULL */
    void *y;
    uint32_t m, n, k, y_stride;
    float eps;
};
cudaError_t launch_gemv(cudaStream_t s, enum half_type type, enum gemv_out out,
                        const struct gemv_args *a);

/* hopper.cu: whether this device is a Hopper, and runs what was built for it: without, kernels
 * do not chain, and the portable ones serve. */
int hopper_built(void);

/* Arrays as Hopper's tensor copy engine reads them, in boxes that lie in shared memory with the
 * 128-byte swizzle; outside of the array there are zeros. sizes, box: numbers, innermost first,
 * box[0] 64 at most; strides: bytes from one to the next in each dimension but the first. data and
 * strides are multiples of 16. */
#define TENSOR_DIMENSIONS 3u
int tensor_maps(void); /* whether there are any: hopper_built, and the driver makes them */
cudaError_t tensor_map_make(CUtensorMap *out, enum half_type t, const void *data,
                            uint32_t dimensions, const uint32_t *sizes, const uint64_t *strides,
                            const uint32_t *box);

/* gemm_skinny.cu, where there are tensor maps: y (m, n) = x (m, k) w^T for up to SKINNY_ROWS rows;
 * k % 64 == 0, n % 4 == 0, y_stride % 4 == 0. */
#define SKINNY_ROWS 64u
struct skinny_product {
    const void *x, *w, *bias; /* bias: GEMV_HALF alone, or NULL */
    void *y;
    uint32_t m, n, k, y_stride; /* n: of y */
    uint32_t multiprocessors;
};
cudaError_t skinny_setup(void); /* once a device */
cudaError_t launch_skinny(cudaStream_t s, enum half_type type, enum gemv_out out,
                          const struct skinny_product *p);

/* Device memory that is read only: multiples of 16 bytes. */
struct span {
    const void *data;
    size_t bytes;
};

#define AHEAD_MAX 3u /* matrices of a layer behind attention */

/* attention.cu, attention_decode.cu, decode_hopper.cu */
struct attention_args {
    const void *qkv;
    void *out;
    void *k, *v; /* the layer's pages */
    /* Not NULL, where attention_rotates and for single tokens alone: what launch_qk_norm_rope_kv
     * would do is left to the kernel, which writes k and v of the new tokens, but not q. */
    const float *rope;
    const float *q_norm, *k_norm; /* or NULL */
    float eps;
    const struct frame_row *rows;
    const uint32_t *slot_pages;
    const struct frame_tile *tiles;              /* prefill */
    const uint32_t *decode_rows;                 /* indices of rows with one token */
    const uint32_t *token_slot, *token_position; /* the general kernel's */
    float *partials;    /* (4 * multiprocessors, DECODE_ROWS, 2 * head_dim) */
    uint32_t *arrivals; /* (8 * multiprocessors); zero between launches */
    uint32_t tokens, tile_count, decode_count, multiprocessors;
    uint32_t qkv_stride, out_stride, heads, kv_heads, head_dim, page_size, pages_per_slot;
    uint32_t pages;     /* that k and v have */
    uint32_t tile_rows; /* prefill: of a tile; it chooses the kernel */
    uint32_t window;
    float scale; /* positive */
    /* Single tokens, on Hopper: all positions of all sequences are shared evenly, which is for long
     * or uneven ones; 0: every sequence is shared by as many blocks. */
    int balanced;
    /* What is read next, or no bytes: a kernel that leaves most of the GPU idle may have it on its
     * way to the L2 cache. */
    struct span ahead[AHEAD_MAX];
};
int attention_has_tiles(uint32_t head_dim); /* whether tensor-core kernels exist for it */
/* Whether Hopper's decode attention serves, which can rotate. */
int attention_rotates(uint32_t head_dim, uint32_t page_size);
cudaError_t attention_setup(void); /* once a device */
cudaError_t launch_attention_prefill(cudaStream_t s, enum half_type t,
                                     const struct attention_args *a);
cudaError_t launch_attention_decode(cudaStream_t s, enum half_type t,
                                    const struct attention_args *a);
cudaError_t launch_attention_any(cudaStream_t s, enum half_type t, const struct attention_args *a);

/* prefill_hopper.cu: what attention_setup and launch_attention_prefill do with PREFILL_ROWS_HOPPER.
 */
uint32_t attention_tile_rows(uint32_t head_dim, uint32_t page_size); /* of the faster kernel */
cudaError_t prefill_hopper_setup(void);
cudaError_t launch_prefill_hopper(cudaStream_t s, enum half_type t, const struct attention_args *a);

/* A position whose token is known. */
struct score_row {
    uint32_t slot, position;
};

/* sample.cu */
struct sample_args {
    const float *logits; /* (results, stride) */
    float *adjusted;     /* likewise: rows with bias, penalties or masked ids */
    uint32_t *counts;    /* likewise: occurrences */
    struct slot_state *slots;
    const struct slot_bias *biases; /* (slots, SLOT_BIASES) */
    uint32_t *slot_tokens;
    const uint32_t *result_slot;                 /* (results) */
    struct sample_part *parts;                   /* (results, SPAN_PARTS) */
    struct sample_record *records, *all_records; /* (results), (ranks, results) */
    struct sample_result *results;
    const struct score_row
        *known; /* (results), or NULL: the token is not chosen, it stands there */
    uint32_t slot_stride, stride, results_count, ranks, begin, count;
    uint32_t nobody; /* a slot whose tokens are not kept */
};
/* Bias, penalties and masks of the rows that have any. */
cudaError_t launch_adjust(cudaStream_t s, const struct sample_args *a);
cudaError_t launch_records(cudaStream_t s, const struct sample_args *a);
cudaError_t launch_decide(cudaStream_t s, const struct sample_args *a);
/* The rows left undecided, from whole rows of logits (begin 0, count V). */
cudaError_t launch_decide_all(cudaStream_t s, const struct sample_args *a);

/* allreduce.cu: sums and gathers over the memory of the other GPUs.
 *
 * Each rank has an inbox that the others write to. It holds INBOX_TURNS areas, used in turn by
 * successive sums, and areas and flags of gathers. A word of an area that reads EMPTY (two halves
 * of -0.0) has not been written yet: data that says so is sent as +0.0. Whoever has read a word
 * empties it. Two areas are enough: a rank that is two sums ahead has seen everybody's part of the
 * one between, sent when they were done with the first. */
#define PEERS_MAX 8u
#define INBOX_TURNS 2u
#define INBOX_AREA ((size_t)24 << 20)
#define GATHER_TURNS 2u
#define GATHER_MAX ((size_t)512 << 10) /* bytes of a rank */
#define GATHER_BLOCKS 16u
#define EMPTY 0x80008000u

/* Device memory of one rank; written by the last block of a launch. */
struct peers_state {
    uint32_t turn, arrived; /* sums begun; blocks of this one that know */
    uint32_t failed;
    uint32_t gathers, gather_arrived;
};

/* Host memory that both sides see. */
struct peers_words {
    uint32_t abort; /* by the host: stop waiting */
    uint32_t fault; /* by a kernel: 1 + the rank it waited for, in vain */
};

struct peers {
    char *inbox[PEERS_MAX]; /* of each rank, as seen from here */
    struct peers_state *state;
    volatile struct peers_words *words;
    uint64_t patience_ns;
    uint32_t rank, ranks;
};

struct reduce_args {
    struct peers peers;
    const void *x; /* (rows, 8 vectors) of half: this rank's part */
    void *out;     /* the sum; or, with a residual, RMSNorm(residual) * weight */
    float *residual;
    const float *weight;
    uint32_t rows, vectors, total; /* total: vectors that exist, at most rows times vectors */
    uint32_t multiprocessors;
    float eps;
    int fresh; /* residual = sum, not += */
    int two_shots;
};
size_t inbox_bytes(void);
/* The most rows whose sum an area holds. */
uint32_t reduce_rows_max(uint32_t ranks, uint32_t vectors, int two_shots);
cudaError_t launch_inbox_clear(cudaStream_t s, char *inbox);
cudaError_t launch_reduce(cudaStream_t s, enum half_type type, const struct reduce_args *a);
/* out (ranks, bytes): what each rank has in x. bytes % 8 == 0. */
cudaError_t launch_gather(cudaStream_t s, const struct peers *p, const void *x, void *out,
                          uint32_t bytes);
/* Writes words made of a seed; counts those that differ from them. */
cudaError_t launch_pattern(cudaStream_t s, uint32_t *to, uint32_t words, uint32_t seed);
cudaError_t launch_pattern_check(cudaStream_t s, const uint32_t *from, uint32_t words,
                                 uint32_t seed, uint32_t *wrong);

#ifdef __cplusplus
}
#endif
#endif

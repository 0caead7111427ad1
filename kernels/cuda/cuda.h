/* The CUDA backend's own types. One GPU and one stream a rank. Activations and KV are bf16 or f16,
 * whichever the model's matrices are (set by the first); the residual stream, norms' weights,
 * logits and all sums are float32.
 *
 * Slots live in device memory. Whatever the host changes (a new slot, pages, the step's rows) is
 * collected as patches in a pinned buffer and goes over in one copy at step_begin. */
#ifndef PHALANX_KERNELS_CUDA_CUDA_H
#define PHALANX_KERNELS_CUDA_CUDA_H

#include "kernels/cuda/launch.h"
#include "kernels/ops.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <nccl.h>

#define STEPS_AHEAD 4             /* begun and not ended */
#define UPLOADS (STEPS_AHEAD + 1) /* staging buffers in turn */
#define PATCHES_MAX 4096u
#define UPLOAD_WORDS (2u << 20)
#define GEMM_PLANS_MAX 512u
#define GEMM_WORKSPACE ((size_t)64 << 20)
#define GEMV_SMALL ((size_t)8 << 20)  /* elements */
#define GATE_UP_TOKENS 4096u          /* tokens whose gate and up are in memory at once */
#define AHEAD_BYTES ((size_t)8 << 20) /* of weights that attention has fetched to the L2 cache */
#define REPLAY_ROWS_MAX 256u          /* decode steps of more rows are launched one by one */
#define REPLAY_OPS_MAX 2048u
#define REPLAYS_MAX 512u
#define RESERVE_BYTES ((uint64_t)512 << 20) /* for the libraries, whatever is asked */
#define MEMORY_FRACTION 0.9

struct weight {
    enum weight_kind kind;
    uint32_t rows, cols;
    void *data;  /* (rows, cols) of the activation type */
    float *wide; /* vectors: the same as float32 */
    struct weight *next;
};

enum pending_kind {
    PENDING_NOTHING,
    PENDING_NORM, /* data is to be the norm of residual */
    PENDING_ROPE  /* data is qkv as its product left it */
};

/* What is still to be done (pending.c). Set when operations run, not when they are noted. */
struct pending {
    enum pending_kind kind;
    uint32_t rows;
    const struct act *residual;
    const struct weight *norm[2]; /* the norm's; q's and k's, or NULL */
    uint32_t layer;               /* PENDING_ROPE's */
    bool stored;                  /* k and v are in the layer's pages */
};

struct act {
    uint32_t width;
    void *data;   /* (tokens_max, width) */
    float *wide;  /* (tokens_max, width) where width is the hidden size: the residual stream */
    bool is_wide; /* which of the two was written last */
    struct pending pending;
    struct act *next;
};

struct slot {
    bool open, adjusted, cut; /* cut: top-k, top-p or min-p */
    bool open_choice;         /* candidates may not be enough */
    uint32_t top;             /* largest log probabilities asked for */
    uint32_t count, pages_count;
    uint64_t epoch; /* 1 + the upload its last patch is in */
};

struct upload {
    uint32_t *host; /* pinned: the words, then the patches */
    uint32_t *device;
    struct patch *patches; /* go behind the words */
    uint32_t words, count;
    cudaEvent_t done; /* the device has read it */
};

struct gemm_plan {
    uint32_t n, k, m_max, y_stride;
    bool wide, bias;
    const struct weight *like; /* a matrix of that shape */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algo;
};

/* An operation as asked for; zeroed before it is filled, since lists are compared as bytes. */
struct op {
    int (*run)(struct device *d, const struct op *op, struct err *err);
    const struct weight *w[3];
    struct act *a[3];
    uint64_t layer, window;
};

/* A decode step seen before. */
struct replay {
    uint32_t rows;
    bool adjusted, cut, balanced;
    struct op *ops;
    uint32_t ops_count;
    cudaGraphExec_t graph; /* NULL until it was seen twice */
    bool current;          /* the graph is that of the list */
};

/* What a rank has of the others' memory. */
struct p2p {
    struct peers peers;
    char *inbox;
    void *opened[PEERS_MAX]; /* by cudaIpc */
    struct peers_words *words;
    void *notes; /* device memory: what ranks tell each other; mine, then everybody's */
};

/* Device memory of the step's frame and of what operations keep. */
struct frame {
    struct frame_row *rows;   /* (num_slots) */
    uint32_t *token_slot;     /* (tokens_max) */
    uint32_t *token_position; /* (tokens_max) */
    struct frame_tile *tiles; /* (tiles_max) */
    uint32_t *decode_rows;    /* (num_slots) */
    uint32_t *result_slot;    /* (num_slots) */
    uint32_t *result_token;   /* (num_slots): index of the row's last token */
};

struct flight {
    cudaEvent_t begun, finished;
    struct sample_result *results; /* pinned (num_slots) */
    uint32_t count;
    int64_t begun_us;
    bool open;    /* a row may be undecided until all ranks' logits are gathered */
    bool closed;  /* everything is queued */
    bool decided; /* nothing is open any more */
};

struct device {
    struct ops_config config;
    struct ops_model model;
    bool typed; /* a matrix has told the type */
    enum half_type type;
    int multiprocessors;
    cudaStream_t stream;
    cudaEvent_t finished;
    cublasLtHandle_t blas;
    void *workspace;
    struct gemm_plan *plans;
    uint32_t plans_count;
    bool plans_noted; /* products take any algorithm: they are to be raced later */
    ncclComm_t nccl;  /* NULL for one rank */
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)
    ncclWindow_t window; /* the newest; goes with the communicator */
#endif
    struct p2p *p2p; /* NULL: sums and gathers through NCCL alone */
    struct weight *weights;
    struct act *acts;
    struct allocation *allocations;
    uint64_t weight_bytes, kv_bytes, device_bytes, graph_bytes; /* device_bytes: all of ours */
    void *load_host[2]; /* pinned, while weights are loaded */
    cudaEvent_t load_done[2];
    uint32_t load_turn;

    /* Pool. kv: per layer k then v, each (num_pages + 1, kv_heads, page_size, head_dim); the last
     * page is nobody's. After prepare there is only that one. */
    char *kv;
    bool prepared, pooled;
    bool capturing; /* steps are captured, not run */
    uint32_t num_pages, page_size, num_slots, tokens_max, context_max, pages_per_slot;
    uint32_t tile_rows, tiles_max; /* of attention over prompts */
    struct slot *slots;
    struct slot_state *slot_states;
    struct slot_bias *slot_biases;
    uint32_t *slot_tokens, *slot_pages; /* (slots, context_max + 1), (slots, pages_per_slot) */

    /* The step. */
    struct upload uploads[UPLOADS];
    uint32_t upload_turn;
    uint64_t upload_epoch;
    struct frame frame;      /* device */
    struct frame frame_host; /* what goes there */
    float *inv_freq, *rope;  /* (head_dim / 2); (tokens_max, head_dim) */
    uint32_t *token_id;
    uint32_t rows_count, tokens_count, tiles_count, decode_count, results_count;
    uint32_t results_asked; /* results_count less those of rows that fill up a replayed step */
    bool deferring;         /* operations are noted in ops */
    struct op *ops;
    uint32_t ops_count;
    struct replay *replays;
    uint32_t replays_count;
    bool any_adjusted, any_cut, any_open, sampled;
    bool balanced; /* attention_args.balanced */
    struct flight flights[STEPS_AHEAD];
    uint32_t flights_first, flights_count, ready_turns;
    uint64_t step_us; /* of the last one ended */
    void *scratch;    /* (tokens_max, hidden), and gate_up of GATE_UP_TOKENS */
    float *partials;
    uint32_t *arrivals;

    /* Sampling. */
    uint32_t vocab_share; /* ceil(V / tp_size) */
    void *last;           /* (num_slots, hidden) */
    struct sample_args sample;
    struct sample_args whole; /* of one row gathered from all ranks */
    struct sample_args score; /* of a block of positions whose tokens are known */
    uint32_t *score_slot;     /* (OPS_SCORES_MAX): which of score's made-up slots */
    struct score_row *score_rows;
    struct sample_result *score_results, *score_results_host; /* likewise; device, pinned */
    struct ops_sampled *scored;
    struct ops_sampled *results;
    float *logits_host;
};

/* device.c. Errors name rank, device and cause. */
int cuda_fail(const struct device *d, cudaError_t rc, const char *what, struct err *err);
int cuda_wait(struct device *d, struct err *err); /* for the stream, or until a rank is lost */
int cuda_wait_event(struct device *d, cudaEvent_t event, struct err *err);
bool cuda_overdue(const struct device *d, int64_t since_us); /* longer ago than ranks may take */

/* memory.c: freed with the device. */
int cuda_alloc(struct device *d, size_t bytes, void *out, const char *what, struct err *err);
int cuda_alloc_pinned(struct device *d, size_t bytes, void *out, const char *what, struct err *err);
/* Memory that sums over ranks read and write: NCCL's own where it was asked for. [collective] */
int cuda_alloc_summed(struct device *d, size_t bytes, void *out, const char *what, struct err *err);
void cuda_free_all(struct device *d);
void cuda_free(struct device *d, const void *data); /* what cuda_alloc gave; NULL: nothing */
int cuda_weight_new(struct device *d, enum weight_kind kind, enum dtype dtype, uint32_t rows,
                    uint32_t cols, struct weight **out, struct err *err);
int cuda_weight_write(struct device *d, struct weight *w, uint32_t row, uint32_t rows,
                      const void *src, enum dtype src_dtype, struct err *err);
int cuda_weight_done(struct device *d, struct weight *w, struct err *err);
int cuda_act_new(struct device *d, uint32_t width, struct act **out, struct err *err);
int cuda_act_read(struct device *d, const struct act *a, uint32_t tokens, float *out,
                  struct err *err);
int cuda_act_write(struct device *d, struct act *a, uint32_t tokens, const float *in,
                   struct err *err);

/* pool.c */
char *kv_at(const struct device *d, uint32_t layer, uint32_t which); /* 0: k's pages, 1: v's */
uint64_t cuda_page_bytes(const struct device *d, uint32_t page_size);
uint64_t cuda_pages_max(const struct device *d, uint32_t page_size);
int cuda_memory(const struct device *d, struct ops_memory *out, struct err *err);
int cuda_prepare(struct device *d, uint32_t page_size, uint32_t num_slots, uint32_t tokens_max,
                 uint32_t context_max, struct err *err);
int cuda_pool_alloc(struct device *d, uint32_t num_pages, uint32_t page_size, uint32_t num_slots,
                    uint32_t tokens_max, uint32_t context_max, struct err *err);

/* warm.c */
int cuda_warm(struct device *d, const struct ops_warm *warm, struct err *err);

/* cache.c: the file `name` in the user's cache folder, which is made; false: there is none. */
bool cache_path(const char *name, char *path, size_t size);

/* slots.c */
int cuda_slot_open(struct device *d, uint32_t slot, const uint32_t *tokens, uint32_t count,
                   uint32_t generated, const struct ops_sampling *sampling, struct err *err);
int cuda_slot_pages(struct device *d, uint32_t slot, uint32_t first, const uint32_t *pages,
                    uint32_t count, struct err *err);
void cuda_slot_close(struct device *d, uint32_t slot);
int cuda_step_begin(struct device *d, const struct ops_row *rows, uint32_t count, struct err *err);

/* Words to device memory, with the rest of an upload; sent by uploads_send. */
int upload_add(struct device *d, void *dst, const void *data, uint32_t words, struct err *err);
int uploads_send(struct device *d, struct err *err);
int slots_reserve(struct device *d, struct err *err); /* the slot of rows that nobody asked for */
/* A step of that slot alone: `rows` of `tokens` each. cut: as such a request's; balanced: as when
 * lengths ask for it. */
int slots_rehearse(struct device *d, uint32_t rows, uint32_t tokens, bool cut, bool balanced,
                   struct err *err);

/* balance.c: whether decode attention takes less time balanced, of the step's rows. */
bool balance_wanted(const struct device *d);

/* flight.c. flight_close: the last operation is queued. flight_decide: before anything of the
 * newest step is overwritten. */
int flights_open(struct device *d, struct err *err);
void flights_close(struct device *d);
int flight_begin(struct device *d, struct err *err);
int flight_close(struct device *d, struct err *err);
int flight_decide(struct device *d, struct err *err);
int cuda_step_end(struct device *d, const struct ops_sampled **results, uint32_t *count,
                  struct err *err);
bool cuda_step_ready(struct device *d);
uint64_t cuda_step_us(const struct device *d);

/* replay.c */
uint32_t replay_bucket(const struct device *d, uint32_t rows);
void replay_begin(struct device *d);
int replay_add(struct device *d, const struct op *op, struct err *err);
int replay_flush(struct device *d, struct err *err); /* runs what is noted, now */
int replay_end(struct device *d, struct err *err);   /* the list is complete */
/* The weights of the products that follow op in the list that is being run, in their order, up to
 * `budget` bytes: at most `most` spans, the last one may be a matrix's beginning. Returns how many;
 * none where op is not of a list. */
uint32_t weights_ahead(const struct device *d, const struct op *op, struct span *out, uint32_t most,
                       size_t budget);
void replay_forget(struct device *d); /* addresses have changed; graphs keep their memory */
void replay_close(struct device *d);

/* pending.c */
bool norm_pends(const struct device *d, const struct weight *w); /* behind w's product */
bool rope_pends(const struct device *d);                         /* in this step */
int act_ready(struct device *d, struct act *a, struct err *err); /* makes it, if it is pending */
int acts_ready(struct device *d, struct err *err);
/* At the end of a step or graph: makes what later steps need, forgets the rest. */
int acts_leave(struct device *d, struct err *err);
int act_overwrite(struct device *d, struct act *a, struct err *err); /* before all of it is */
/* Before residual is written to: norms of it are made, but for normed, which is written too. */
int residual_changes(struct device *d, const struct act *residual, struct act *normed,
                     struct err *err);

/* gemm.c: y (m, n) = x (m, k) w^T + bias, y of the activation type or float32 (wide). */
bool gemv_suits(const struct weight *w, uint32_t m);
/* Whether the kernel for few rows takes y (m, rows of w) there. */
bool skinny_suits(const struct weight *w, uint32_t m, uint32_t y_stride);
/* The step's rows of x, which may be pending, by the matrix-vector kernel, which suits. */
int gemv(struct device *d, enum gemv_out out, const struct act *x, const struct weight *w,
         const struct weight *bias, void *y, uint32_t y_stride, struct err *err);
int gemm_open(struct device *d, struct err *err);
void gemm_close(struct device *d);
int gemm(struct device *d, const void *x, uint32_t m, const struct weight *w,
         const struct weight *bias, void *y, uint32_t y_stride, bool wide, struct err *err);
/* out (m, w->rows / 2) = silu(gate) * up of the step's rows of x, by the kernel for few rows, which
 * suits. */
int gemm_silu(struct device *d, const struct act *x, const struct weight *w, struct act *out,
              struct err *err);
/* Forgets what was noted (plans_noted) and chooses, for each of those products, an algorithm for
 * every number of rows; from the cache where it has them, by racing them where not. */
int gemm_tune(struct device *d, const struct ops_warm *warm, struct err *err);

/* comm.c */
int comm_open(struct device *d, struct err *err);
void comm_close(struct device *d);
int comm_check(struct device *d, struct err *err); /* whether a rank is known to be lost */
/* x (tokens, hidden), summed over the ranks, to residual and normed. x may be overwritten. */
int comm_reduce_norm(struct device *d, void *x, uint32_t tokens, float *residual,
                     const float *weight, void *normed, bool fresh, struct err *err);
int comm_all_gather(struct device *d, const void *x, size_t bytes, void *out, struct err *err);
int nccl_settle(struct device *d, ncclResult_t rc, const char *what, struct err *err);
int nccl_all_reduce(struct device *d, void *x, size_t count, struct err *err);
int nccl_all_gather(struct device *d, const void *x, size_t bytes, void *out, struct err *err);

/* comm_window.c: memory that all ranks have at the same place in a window of NCCL's. */
int symmetric_alloc(struct device *d, size_t bytes, void **out, struct err *err);
void symmetric_free(void *data);

/* comm_p2p.c: over the memory of the other GPUs. */
int p2p_open(struct device *d, struct err *err); /* d->p2p stays NULL where it cannot be had */
void p2p_abort(struct device *d);                /* kernels that wait for other ranks give up */
void p2p_close(struct device *d);                /* after the stream has ended */
int p2p_check(const struct device *d, struct err *err); /* whether a kernel gave up */
/* Whether a sum goes this way, and in how many shots; then p2p_reduce does it. The caller fills
 * all of a but peers. */
bool p2p_reduces(const struct device *d, struct reduce_args *a);
int p2p_reduce(struct device *d, const struct reduce_args *a, struct err *err);
bool p2p_gathers(const struct device *d, size_t bytes);
int p2p_gather(struct device *d, const void *x, size_t bytes, void *out, struct err *err);

/* score.c */
int score_alloc(struct device *d, struct err *err); /* after the buffers of sample */
int cuda_score(struct device *d, const struct act *normed, const struct weight *lm_head,
               const struct ops_score *scores, uint32_t count, const struct ops_sampled **results,
               struct err *err);

/* layers.c, sample.c: the operations of ops.h */
int cuda_embed(struct device *d, const struct weight *embedding, const struct weight *norm,
               struct act *residual, struct act *normed, struct err *err);
int cuda_linear(struct device *d, const struct act *x, const struct weight *w,
                const struct weight *bias, struct act *out, struct err *err);
int cuda_qk_norm_rope_kv(struct device *d, uint32_t layer, struct act *qkv,
                         const struct weight *q_norm, const struct weight *k_norm, struct err *err);
int cuda_attention(struct device *d, uint32_t layer, const struct act *qkv, uint32_t window,
                   struct act *out, struct err *err);
int cuda_linear_reduce_norm(struct device *d, const struct act *x, const struct weight *w,
                            const struct weight *norm, struct act *residual, struct act *normed,
                            struct err *err);
int cuda_gate_up_silu(struct device *d, const struct act *x, const struct weight *w,
                      struct act *out, struct err *err);
int cuda_sample(struct device *d, const struct act *normed, const struct weight *lm_head,
                struct err *err);
/* Whether these are what logits are made of. */
int head_check(const struct device *d, const struct act *normed, const struct weight *lm_head,
               struct err *err);
const float *cuda_logits(struct device *d, uint32_t i);

#endif

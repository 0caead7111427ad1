/* Times decode steps of Qwen3-32B's dimensions with made-up weights over several GPUs, a process a
 * rank, through the backend's operations: graphs, sums and the gather of candidates as in service.
 * Usage: bench_decode_cuda [ranks...]; NCCL=1 leaves sums and gathers to NCCL, EAGER=1 launches one
 * by one. Floor: bytes of weights and KV a rank must read over 4.4 TB/s. */
#include "tests/kernels/cuda/peers.h"
#include "tests/kernels/cuda/ranks.h"

#include "common/clock.h"
#include "common/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define LAYERS 64u
#define HIDDEN 5120u
#define HEADS 64u
#define KV_HEADS 8u
#define HEAD_DIM 128u
#define INTERMEDIATE 25600u
#define VOCAB 151936u
#define CONTEXT 1024u
#define BATCH_MAX 32u
#define RUNS 61
#define PAGE 16u
#define PAGES_A_SLOT ((CONTEXT + RUNS + 16 + PAGE - 1) / PAGE)
#define BYTES_PER_S 4.4e12

struct layer {
    struct weight *norm, *qkv, *q_norm, *k_norm, *o, *post_norm, *gate_up, *down;
};

struct bench {
    const struct ops *ops;
    struct device *d;
    uint32_t ranks;
    struct layer layers[LAYERS];
    struct weight *embedding, *head, *norm;
    struct act *residual, *normed, *qkv, *attended, *mid;
    uint32_t *epoch, made;
};

static void check(int rc, const struct err *err)
{
    if (rc) {
        (void)fprintf(stderr, "bench_decode_cuda: %s\n", err->msg);
        _exit(1);
    }
}

static struct weight *matrix_make(struct bench *b, enum weight_kind kind, uint32_t rows,
                                  uint32_t cols)
{
    struct err err = {0};
    struct weight *w;

    check(b->ops->weight_new(b->d, kind, DTYPE_BF16, rows, cols, &w, &err), &err);
    CUDA(test_fill(b->d->stream, w->data, (uint32_t)((uint64_t)rows * cols / 2), b->epoch,
                   b->made++, b->d->config.rank));
    check(b->ops->weight_done(b->d, w, &err), &err);
    return w;
}

static struct weight *vector_make(struct bench *b, uint32_t cols)
{
    float *ones = mem_array(cols, sizeof *ones);
    struct err err = {0};
    struct weight *w;

    for (uint32_t i = 0; i < cols; i++)
        ones[i] = 1.0f;
    check(b->ops->weight_new(b->d, WEIGHT_VECTOR, DTYPE_BF16, 1, cols, &w, &err), &err);
    check(b->ops->weight_write(b->d, w, 0, 1, ones, DTYPE_F32, &err), &err);
    check(b->ops->weight_done(b->d, w, &err), &err);
    free(ones);
    return w;
}

static void model_make(struct bench *b)
{
    uint32_t heads = HEADS / b->ranks, kv_heads = KV_HEADS / b->ranks;
    uint32_t inner = INTERMEDIATE / b->ranks;

    CUDA(cudaMalloc((void **)&b->epoch, 4));
    CUDA(cudaMemset(b->epoch, 0, 4));
    CUDA(cudaDeviceSynchronize());
    b->embedding = matrix_make(b, WEIGHT_EMBED, VOCAB / b->ranks, HIDDEN);
    b->head = matrix_make(b, WEIGHT_EMBED, VOCAB / b->ranks, HIDDEN);
    b->norm = vector_make(b, HIDDEN);
    for (uint32_t i = 0; i < LAYERS; i++)
        b->layers[i] = (struct layer){
            .norm = vector_make(b, HIDDEN),
            .post_norm = vector_make(b, HIDDEN),
            .q_norm = vector_make(b, HEAD_DIM),
            .k_norm = vector_make(b, HEAD_DIM),
            .qkv = matrix_make(b, WEIGHT_MATRIX, (heads + 2 * kv_heads) * HEAD_DIM, HIDDEN),
            .o = matrix_make(b, WEIGHT_MATRIX, HIDDEN, heads * HEAD_DIM),
            .gate_up = matrix_make(b, WEIGHT_GATE_UP, 2 * inner, HIDDEN),
            .down = matrix_make(b, WEIGHT_MATRIX, HIDDEN, inner),
        };
}

static void bench_open(struct bench *b, const struct ops_config *config)
{
    float inv_freq[HEAD_DIM / 2];
    const struct ops_model model = {
        .layers = LAYERS,
        .hidden = HIDDEN,
        .heads = HEADS / b->ranks,
        .kv_heads = KV_HEADS / b->ranks,
        .head_dim = HEAD_DIM,
        .intermediate = INTERMEDIATE / b->ranks,
        .vocab_size = VOCAB,
        .vocab_begin = VOCAB / b->ranks * config->rank,
        .vocab_count = VOCAB / b->ranks,
        .norm_eps = 1e-6f,
        .attention_scale = 0.088388f,
        .rope_inv_freq = inv_freq,
        .rope_scale = 1.0f,
    };
    struct err err = {0};

    for (uint32_t i = 0; i < HEAD_DIM / 2; i++)
        inv_freq[i] = powf(1e6f, -2.0f * (float)i / HEAD_DIM);
    check(b->ops->device_open(config, &model, &b->d, &err), &err);
    model_make(b);
    check(b->ops->pool_alloc(b->d, BATCH_MAX * PAGES_A_SLOT, PAGE, BATCH_MAX, BATCH_MAX,
                             PAGES_A_SLOT * PAGE, &err),
          &err);
    check(b->ops->act_new(b->d, HIDDEN, &b->residual, &err), &err);
    check(b->ops->act_new(b->d, HIDDEN, &b->normed, &err), &err);
    check(b->ops->act_new(b->d, (model.heads + 2 * model.kv_heads) * HEAD_DIM, &b->qkv, &err),
          &err);
    check(b->ops->act_new(b->d, model.heads * HEAD_DIM, &b->attended, &err), &err);
    check(b->ops->act_new(b->d, model.intermediate, &b->mid, &err), &err);
}

static double step(struct bench *b, const struct ops_row *rows, uint32_t count)
{
    const struct ops *o = b->ops;
    const struct ops_sampled *results;
    int64_t begin = clock_mono_us();
    struct err err = {0};
    uint32_t n;

    check(o->step_begin(b->d, rows, count, &err), &err);
    check(o->embed(b->d, b->embedding, b->layers[0].norm, b->residual, b->normed, &err), &err);
    for (uint32_t i = 0; i < LAYERS; i++) {
        struct layer *l = &b->layers[i];
        struct weight *next = i + 1 < LAYERS ? l[1].norm : b->norm;

        check(o->linear(b->d, b->normed, l->qkv, NULL, b->qkv, &err), &err);
        check(o->qk_norm_rope_kv(b->d, i, b->qkv, l->q_norm, l->k_norm, &err), &err);
        check(o->attention(b->d, i, b->qkv, 0, b->attended, &err), &err);
        check(o->linear_reduce_norm(b->d, b->attended, l->o, l->post_norm, b->residual, b->normed,
                                    &err),
              &err);
        check(o->gate_up_silu(b->d, b->normed, l->gate_up, b->mid, &err), &err);
        check(o->linear_reduce_norm(b->d, b->mid, l->down, next, b->residual, b->normed, &err),
              &err);
    }
    check(o->sample(b->d, b->normed, b->head, &err), &err);
    check(o->step_end(b->d, &results, &n, &err), &err);
    return 1e-3 * (double)(clock_mono_us() - begin);
}

static int order(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

static void decode_time(struct bench *b, uint32_t batch)
{
    const struct ops_sampling greedy = {.top_p = 1.0f, .repetition_penalty = 1.0f, .logprobs = -1};
    uint32_t tokens[CONTEXT], pages[PAGES_A_SLOT];
    struct ops_row rows[BATCH_MAX];
    double times[RUNS], bytes;
    struct err err = {0};

    for (uint32_t i = 0; i < batch; i++) {
        for (uint32_t k = 0; k < CONTEXT; k++)
            tokens[k] = (k * 7919u + i) % VOCAB;
        for (uint32_t k = 0; k < PAGES_A_SLOT; k++)
            pages[k] = i * PAGES_A_SLOT + k;
        check(b->ops->slot_open(b->d, i, tokens, CONTEXT, 0, &greedy, &err), &err);
        check(b->ops->slot_pages(b->d, i, 0, pages, PAGES_A_SLOT, &err), &err);
        rows[i] = (struct ops_row){i, CONTEXT - 1, 1, true};
    }
    for (int r = -4; r < RUNS; r++) {
        double t = step(b, rows, batch);

        if (r >= 0)
            times[r] = t;
        for (uint32_t i = 0; i < batch; i++)
            rows[i].start++;
    }
    for (uint32_t i = 0; i < batch; i++)
        b->ops->slot_close(b->d, i);
    qsort(times, RUNS, sizeof *times, order);
    bytes = (double)b->ops->weight_bytes(b->d) - (double)VOCAB / b->ranks * HIDDEN * 2 +
            (double)batch * CONTEXT * LAYERS * 2 * KV_HEADS / b->ranks * HEAD_DIM * 2;
    if (b->d->config.rank == 0)
        printf("%u ranks, batch %2u, context %u: %7.3f ms (floor %6.3f) %6.0f tokens/s\n", b->ranks,
               batch, CONTEXT, times[RUNS / 2], bytes / BYTES_PER_S * 1e3,
               batch / times[RUNS / 2] * 1e3);
    (void)fflush(stdout);
}

static int rank_bench(const struct ops_config *config)
{
    struct bench b = {.ops = phalanx_backend(), .ranks = config->tp_size};

    bench_open(&b, config);
    if (config->rank == 0)
        printf("sums over ranks: %s; %s\n", b.d->p2p ? "peer memory" : "NCCL",
               config->graphs_off ? "one by one" : "graphs");
    decode_time(&b, 1);
    decode_time(&b, 8);
    decode_time(&b, BATCH_MAX);
    b.ops->device_close(&b.d);
    return 0;
}

int main(int argc, char **argv)
{
    const struct ops_config config = {.comm_timeout_s = 60,
                                      .library_all_reduce = getenv("NCCL") != NULL,
                                      .graphs_off = getenv("EAGER") != NULL};
    int failed = 0;

    for (int i = 1; i < argc; i++)
        failed += ranks_start((uint32_t)strtoul(argv[i], NULL, 10), &config, 120, rank_bench, NULL);
    return failed ? 1 : 0;
}

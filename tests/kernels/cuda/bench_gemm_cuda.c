/* Times products of few rows, in a graph, weights rotated past the L2 cache: the matrix-vector
 * kernel, the skinny one, cuBLASLt's best of its first answers. Beside them the floor (bytes of the
 * weights over 4.4 TB/s) and how far the skinny kernel's results are from cuBLASLt's, gate and up
 * with SiLU too. Usage: bench_gemm_cuda. */
#include "kernels/cuda/gemm.h"
#include "tests/kernels/cuda/peers.h"
#include "tests/kernels/cuda/ranks.h"
#include "tests/kernels/support.h"

#include "common/bf16.h"
#include "common/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define BYTES_PER_S 4.4e12
#define ROTATED ((size_t)400 << 20) /* bytes of weights in turn */
#define WEIGHTS_MAX 24u
#define CALLS 24
#define REPLAYS 15

enum way { WAY_GEMV, WAY_SKINNY, WAY_BLAS, WAY_SILU, WAYS };

struct shape {
    const char *name;
    uint32_t n, k;
};

static const struct shape shapes[] = {
    {"32B/4 qkv", 2560, 5120},  {"32B/4 o", 5120, 2048},      {"32B/4 gate_up", 12800, 5120},
    {"32B/4 down", 5120, 6400}, {"32B/4 head", 37984, 5120},  {"14B qkv", 7168, 5120},
    {"14B o", 5120, 5120},      {"14B gate_up", 34816, 5120}, {"14B down", 5120, 17408},
    {"0.6B qkv", 4096, 1024},   {"0.6B o", 1024, 2048},       {"0.6B gate_up", 6144, 1024},
    {"0.6B down", 1024, 3072},  {"0.6B head", 151936, 1024},
};
static const uint32_t rows[] = {1, 2, 4, 8, 16, 32, 64};

struct bench {
    struct device *d;
    uint32_t *epoch, n, k, count, made;
    const struct weight *weights[WEIGHTS_MAX];
    void *x, *y;
    struct gemm_plan plan;
};

static cudaError_t call(struct bench *b, enum way way, uint32_t m, uint32_t turn)
{
    struct device *d = b->d;
    const struct weight *w = b->weights[turn % b->count];
    const struct product q = {b->x, w->data, NULL, b->y, m};
    const struct gemv_args a = {
        .x = b->x, .w = w->data, .y = b->y, .m = m, .n = b->n, .k = b->k, .y_stride = b->n};
    cublasStatus_t rc = CUBLAS_STATUS_SUCCESS;

    if (way == WAY_GEMV)
        return launch_gemv(d->stream, d->type, GEMV_HALF, &a);
    if (way == WAY_SILU)
        return skinny_run(d, GEMV_SILU, b->n / 2, b->k, b->n / 2, &q);
    if (way == WAY_SKINNY)
        return skinny_run(d, GEMV_HALF, b->n, b->k, b->n, &q);
    rc = plan_run(d, &b->plan, &b->plan.algo, &q);
    return rc == CUBLAS_STATUS_SUCCESS ? cudaSuccess : cudaErrorUnknown;
}

static int order(const void *a, const void *b)
{
    const float *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

/* Microseconds of a call. */
static float way_time(struct bench *b, enum way way, uint32_t m)
{
    cudaStream_t s = b->d->stream;
    cudaEvent_t begin, end;
    cudaGraphExec_t exec;
    cudaGraph_t graph;
    float times[REPLAYS];

    CUDA(cudaEventCreate(&begin));
    CUDA(cudaEventCreate(&end));
    CUDA(call(b, way, m, 0));
    CUDA(cudaStreamSynchronize(s));
    CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    for (uint32_t i = 0; i < CALLS; i++)
        CUDA(call(b, way, m, i));
    CUDA(cudaStreamEndCapture(s, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = -2; i < REPLAYS; i++) {
        CUDA(cudaEventRecord(begin, s));
        CUDA(cudaGraphLaunch(exec, s));
        CUDA(cudaEventRecord(end, s));
        CUDA(cudaEventSynchronize(end));
        if (i >= 0)
            CUDA(cudaEventElapsedTime(&times[i], begin, end));
    }
    (void)cudaGraphExecDestroy(exec);
    (void)cudaGraphDestroy(graph);
    (void)cudaEventDestroy(begin);
    (void)cudaEventDestroy(end);
    qsort(times, REPLAYS, sizeof *times, order);
    return times[REPLAYS / 2] * 1e3f / CALLS;
}

static float *y_read(struct bench *b, enum way way, uint32_t m, size_t count)
{
    uint16_t *half = mem_array(count, 2);
    float *out = mem_array(count, sizeof *out);

    CUDA(cudaMemset(b->y, 0xff, count * 2)); /* not a number */
    CUDA(call(b, way, m, 1));
    CUDA(cudaStreamSynchronize(b->d->stream));
    CUDA(cudaMemcpy(half, b->y, count * 2, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < count; i++)
        out[i] = bf16_widen(half[i]);
    free(half);
    return out;
}

/* Of the plain product, and of SiLU's. */
static void errors_find(struct bench *b, uint32_t m, double errors[2])
{
    size_t n = b->n, half = n / 2;
    float *blas = y_read(b, WAY_BLAS, m, m * n), *own = y_read(b, WAY_SKINNY, m, m * n);
    float *silu = y_read(b, WAY_SILU, m, m * half), *expected = mem_array(m * half, sizeof *silu);

    errors[0] = relative_error(own, blas, m * n);
    for (size_t i = 0; i < m * half; i++) {
        float gate = blas[i / half * n + i % half], up = blas[i / half * n + half + i % half];

        expected[i] = gate / (1.0f + expf(-gate)) * up;
    }
    errors[1] = relative_error(silu, expected, m * half);
    free(blas);
    free(own);
    free(silu);
    free(expected);
}

static void rows_bench(struct bench *b, const char *name, uint32_t m)
{
    double errors[2] = {0}, floor_us = (double)b->n * b->k * 2 / BYTES_PER_S * 1e6;
    float us[WAYS] = {0};
    struct product q = {b->x, b->weights[0]->data, NULL, b->y, m};

    b->plan = (struct gemm_plan){
        .n = b->n, .k = b->k, .m_max = rows_bucket(m), .y_stride = b->n, .like = b->weights[0]};
    if (plan_describe(b->d, &b->plan, m) != CUBLAS_STATUS_SUCCESS ||
        plan_race(b->d, &b->plan, &q) != CUBLAS_STATUS_SUCCESS)
        _exit(1);
    if (m <= GEMV_ROWS)
        us[WAY_GEMV] = way_time(b, WAY_GEMV, m);
    us[WAY_BLAS] = way_time(b, WAY_BLAS, m);
    if (tensor_maps()) {
        us[WAY_SKINNY] = way_time(b, WAY_SKINNY, m);
        us[WAY_SILU] = way_time(b, WAY_SILU, m);
        errors_find(b, m, errors);
    }
    printf("%-14s M %2u: floor %6.2f  gemv %6.2f  cuBLASLt %6.2f  skinny %6.2f (SiLU %6.2f)  "
           "errors %.1e %.1e\n",
           name, m, floor_us, us[WAY_GEMV], us[WAY_BLAS], us[WAY_SKINNY], us[WAY_SILU], errors[0],
           errors[1]);
    (void)fflush(stdout);
    plan_free(&b->plan);
}

static void shape_bench(struct bench *b, const struct shape *s)
{
    size_t bytes = (size_t)s->n * s->k * 2;
    struct err err = {0};

    b->n = s->n;
    b->k = s->k;
    b->count = (uint32_t)(ROTATED / bytes) + 2;
    b->count = b->count < WEIGHTS_MAX ? b->count : WEIGHTS_MAX;
    for (uint32_t i = 0; i < b->count; i++) {
        struct weight *w;

        if (cuda_weight_new(b->d, WEIGHT_MATRIX, DTYPE_BF16, s->n, s->k, &w, &err))
            _exit(1);
        CUDA(test_fill(b->d->stream, w->data, (uint32_t)(bytes / 4), b->epoch, b->made++, 0));
        b->weights[i] = w;
    }
    CUDA(cudaMalloc(&b->x, (size_t)SKINNY_ROWS * s->k * 2));
    CUDA(cudaMalloc(&b->y, (size_t)SKINNY_ROWS * s->n * 4));
    CUDA(test_fill(b->d->stream, b->x, SKINNY_ROWS * s->k / 2, b->epoch, b->made++, 0));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        rows_bench(b, s->name, rows[i]);
    CUDA(cudaFree(b->x));
    CUDA(cudaFree(b->y));
    for (uint32_t i = 0; i < b->count; i++)
        cuda_free(b->d, b->weights[i]->data);
}

static int bench(struct device *d)
{
    struct bench b = {.d = d};

    CUDA(cudaMalloc((void **)&b.epoch, 4));
    CUDA(cudaMemset(b.epoch, 0, 4));
    CUDA(cudaDeviceSynchronize());
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        shape_bench(&b, &shapes[i]);
    return 0;
}

int main(void)
{
    const struct ops_config config = {.comm_timeout_s = 60};

    return ranks_run(1, &config, 300, bench) ? 1 : 0;
}

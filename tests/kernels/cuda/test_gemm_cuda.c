/* The products of few rows, each way by itself for all shapes it can take, against sums in double
 * on the host. Skips where there is no GPU. */
#include "kernels/cuda/gemm.h"
#include "tests/kernels/cuda/ranks.h"
#include "tests/kernels/support.h"

#include "common/bf16.h"
#include "common/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#define LOOKED 300u /* results of a case that are compared */

enum way { WAY_SKINNY, WAY_GEMV, WAYS };

/* A product, and the way it goes. */
struct call {
    enum way way;
    enum gemv_out out;
    uint32_t n, k, y_stride;
};

struct shape {
    uint32_t n, k;
};

/* One block and many, tiles that a cluster shares, several tiles a block, ends of every kind. */
static const struct shape shapes[] = {
    {8, 8},       {8, 64},      {40, 64},     {100, 72},   {100, 192},
    {132, 1032},  {512, 128},   {1024, 2048}, {1000, 512}, {2560, 5120},
    {4104, 1088}, {18944, 256}, {5120, 1024}, {1024, 960}, {5000, 2048},
    {5120, 4096},
};
static const uint32_t rows[] = {1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 32, 33, 50, 64};

struct operands {
    struct device *d;
    float *x, *w, *bias; /* what the halves are */
    const void *x_half, *w_half, *bias_half;
    void *y;
    uint64_t random;
};

/* In device memory, as the device's halves. */
static const void *half_of(const struct operands *o, const float *values, uint32_t n, uint32_t k)
{
    struct err err = {0};
    struct weight *w;

    o->d->typed = false;
    if (cuda_weight_new(o->d, WEIGHT_MATRIX, o->d->type == HALF_BF16 ? DTYPE_BF16 : DTYPE_F16, n, k,
                        &w, &err) ||
        cuda_weight_write(o->d, w, 0, n, values, DTYPE_F32, &err) ||
        cuda_weight_done(o->d, w, &err)) {
        (void)fprintf(stderr, "%s\n", err.msg);
        _exit(1);
    }
    return w->data;
}

static float widen(enum half_type type, uint16_t h)
{
    uint32_t exponent = h >> 10 & 31, fraction = h & 1023;
    float f;

    if (type == HALF_BF16)
        return bf16_widen(h);
    f = exponent == 31 ? fraction ? NAN : INFINITY
        : exponent     ? ldexpf((float)(fraction + 1024), (int)exponent - 25)
                       : ldexpf((float)fraction, -24);
    return h >> 15 ? -f : f;
}

static double dot(const struct operands *o, uint32_t k, uint32_t token, uint32_t row)
{
    const float *x = o->x + (size_t)token * k, *w = o->w + (size_t)row * k;
    double sum = 0.0;

    for (uint32_t i = 0; i < k; i++)
        sum += (double)x[i] * w[i];
    return sum;
}

static double expected_of(const struct operands *o, const struct call *p, const struct product *q,
                          uint32_t token, uint32_t row)
{
    double sum = dot(o, p->k, token, row);

    if (p->out == GEMV_SILU)
        return sum / (1.0 + exp(-sum)) * dot(o, p->k, token, row + p->n);
    return q->bias ? sum + o->bias[row] : sum;
}

static float result_of(const struct operands *o, const struct call *p, const void *y, size_t at)
{
    if (p->out == GEMV_FLOAT)
        return ((const float *)y)[at];
    return widen(o->d->type, ((const uint16_t *)y)[at]);
}

/* Whether all results are there, those looked at right, and nothing between the rows of y. */
static bool results_right(struct operands *o, const struct call *p, const struct product *q,
                          const void *y)
{
    double apart = 0.0, size = 0.0;

    for (uint32_t t = 0; t < q->m; t++)
        for (uint32_t r = 0; r < p->y_stride; r++)
            if (isnan(result_of(o, p, y, (size_t)t * p->y_stride + r)) != (r >= p->n))
                return false;
    for (uint32_t i = 0; i < LOOKED; i++) {
        uint32_t t = random_below(&o->random, q->m), r = random_below(&o->random, p->n);
        double e = expected_of(o, p, q, t, r);
        double a = result_of(o, p, y, (size_t)t * p->y_stride + r);

        apart += (a - e) * (a - e);
        size += e * e;
    }
    return sqrt(apart) <= (p->out == GEMV_FLOAT ? 1e-4 : 5e-3) * sqrt(size);
}

static cudaError_t launch(const struct operands *o, const struct call *p, const struct product *q)
{
    const struct gemv_args a = {.x = q->x,
                                .w = q->w,
                                .bias = q->bias,
                                .y = q->y,
                                .m = q->m,
                                .n = p->n,
                                .k = p->k,
                                .y_stride = p->y_stride};

    if (p->way == WAY_GEMV)
        return launch_gemv(o->d->stream, o->d->type, p->out, &a);
    return skinny_run(o->d, p->out, p->n, p->k, p->y_stride, q);
}

static int case_run(struct operands *o, const struct call *p, uint32_t m, bool biased)
{
    static const char *const ways[] = {"skinny", "gemv"};
    struct product q = {o->x_half, o->w_half, biased ? o->bias_half : NULL, o->y, m};
    size_t bytes = (size_t)m * p->y_stride * 4;
    void *y = mem_zalloc(bytes);
    bool right;

    CUDA(cudaMemsetAsync(o->y, 0xff, bytes, o->d->stream)); /* not a number */
    CUDA(launch(o, p, &q));
    CUDA(cudaMemcpyAsync(y, o->y, bytes, cudaMemcpyDeviceToHost, o->d->stream));
    CUDA(cudaStreamSynchronize(o->d->stream));
    right = results_right(o, p, &q, y);
    free(y);
    if (!right)
        (void)fprintf(stderr, "%s, output %d%s: %u x %u x %u is wrong\n", ways[p->way], (int)p->out,
                      biased ? " with bias" : "", m, p->n, p->k);
    return right ? 0 : 1;
}

/* Every kind of output, where that way takes the shape. */
static int rows_run(struct operands *o, const struct shape *s, enum way way, uint32_t m)
{
    const struct weight like = {.rows = s->n, .cols = s->k};
    struct call c = {.way = way, .n = s->n, .k = s->k, .y_stride = s->n + 8};
    int failed = 0;

    if (way == WAY_SKINNY ? !skinny_suits(&like, m, c.y_stride) : m > GEMV_ROWS)
        return 0;
    for (int out = GEMV_HALF; out <= GEMV_SILU; out++) {
        c.out = (enum gemv_out)out;
        failed += case_run(o, &c, m, false);
        if (c.out == GEMV_HALF)
            failed += case_run(o, &c, m, true);
    }
    return failed;
}

static int shape_run(struct operands *o, const struct shape *s)
{
    uint32_t most = rows[sizeof rows / sizeof *rows - 1];
    int failed = 0;

    o->x = random_array(&o->random, (size_t)most * s->k, 1.0f);
    o->w = random_array(&o->random, (size_t)2 * s->n * s->k, 0.125f);
    o->bias = random_array(&o->random, s->n, 4.0f);
    o->x_half = half_of(o, o->x, most, s->k);
    o->w_half = half_of(o, o->w, 2 * s->n, s->k);
    o->bias_half = half_of(o, o->bias, 1, s->n);
    CUDA(cudaMalloc(&o->y, (size_t)most * (s->n + 8) * 4));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (enum way way = WAY_SKINNY; way < WAYS; way++)
            failed += rows_run(o, s, way, rows[i]);
    cuda_free(o->d, o->x_half);
    cuda_free(o->d, o->w_half);
    cuda_free(o->d, o->bias_half);
    CUDA(cudaFree(o->y));
    free(o->x);
    free(o->w);
    free(o->bias);
    return failed;
}

static int products_run(struct device *d)
{
    struct operands o = {.d = d, .random = 11};
    int failed = 0;

    for (int type = HALF_BF16; type <= HALF_F16; type++) {
        d->type = (enum half_type)type;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            if (!slow() || shapes[i].n * shapes[i].k <= 1u << 20)
                failed += shape_run(&o, &shapes[i]);
    }
    return failed ? 1 : 0;
}

static void test_few_rows(void **state)
{
    const struct ops_config config = {.comm_timeout_s = 60};
    (void)state;

    if (!gpus_count())
        skip();
    assert_int_equal(ranks_run(1, &config, 300, products_run), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_few_rows)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

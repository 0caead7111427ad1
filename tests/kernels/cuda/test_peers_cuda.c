/* Sums and gathers over peer memory, two and four ranks as processes: exact results at all sizes,
 * thousands of replays with delays, ranks that do not come, the check of pairs. Skips without two
 * GPUs. */
#include "tests/kernels/cuda/peers.h"
#include "tests/kernels/cuda/ranks.h"
#include "tests/kernels/support.h"

#include "common/clock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define MOST_BYTES ((size_t)16 << 20)
#define REPLAYS 300u
#define SLOW 10 /* under compute-sanitizer (SANITIZE is set): smaller, and so much more patient */
#define DELAY_NS 20000u

struct memory {
    uint32_t *x, *out, *gathered, *epoch, *wrong;
    float *residual, *old, *weight;
};

#define WIDTH_MAX 32768u

static void memory_make(struct memory *m)
{
    float *ones = malloc(WIDTH_MAX * sizeof *ones);

    if (!ones)
        _exit(1);
    for (uint32_t i = 0; i < WIDTH_MAX; i++)
        ones[i] = 1.0f;
    CUDA(cudaMalloc((void **)&m->x, MOST_BYTES));
    CUDA(cudaMalloc((void **)&m->out, MOST_BYTES));
    CUDA(cudaMalloc((void **)&m->gathered, PEERS_MAX * GATHER_MAX));
    CUDA(cudaMalloc((void **)&m->epoch, 4));
    CUDA(cudaMalloc((void **)&m->wrong, 4));
    CUDA(cudaMalloc((void **)&m->residual, 2 * MOST_BYTES));
    CUDA(cudaMalloc((void **)&m->old, 2 * MOST_BYTES));
    CUDA(cudaMalloc((void **)&m->weight, WIDTH_MAX * 4));
    CUDA(cudaMemcpy(m->weight, ones, WIDTH_MAX * 4, cudaMemcpyHostToDevice));
    CUDA(cudaMemset(m->epoch, 0, 4));
    CUDA(cudaMemset(m->wrong, 0, 4));
    CUDA(cudaMemset(m->residual, 0, 2 * MOST_BYTES));
    CUDA(cudaMemset(m->old, 0, 2 * MOST_BYTES));
    CUDA(cudaMemset(m->out, 0xff, MOST_BYTES));
    CUDA(cudaDeviceSynchronize());
    free(ones);
}

static uint32_t wrong_take(struct device *d, struct memory *m, const char *what)
{
    struct err err = {0};
    uint32_t wrong = 0;

    if (cuda_wait(d, &err)) {
        (void)fprintf(stderr, "%s: %s\n", what, err.msg);
        _exit(1);
    }
    CUDA(cudaMemcpy(&wrong, m->wrong, 4, cudaMemcpyDeviceToHost));
    CUDA(cudaMemset(m->wrong, 0, 4));
    CUDA(cudaDeviceSynchronize());
    if (wrong)
        (void)fprintf(stderr, "rank %u: %s: %u wrong\n", d->config.rank, what, wrong);
    return wrong;
}

static void check(int rc, const struct err *err)
{
    if (rc) {
        (void)fprintf(stderr, "%s\n", err->msg);
        _exit(1);
    }
}

/* One sum of `bytes`, filled before and checked after, all on the stream. shots 0: as the backend
 * chooses. */
static void plain(struct device *d, struct memory *m, size_t bytes, int shots, uint32_t call)
{
    uint32_t vectors = (uint32_t)(bytes / 16);
    struct reduce_args a = {
        .x = m->x, .out = m->out, .rows = (vectors + 255) / 256, .vectors = 256, .total = vectors};
    struct err err = {0};

    CUDA(test_fill(d->stream, m->x, vectors * 4, m->epoch, call, d->config.rank));
    CUDA(test_delay(d->stream, m->epoch, call, d->config.rank, DELAY_NS));
    if (!p2p_reduces(d, &a))
        _exit(1);
    if (shots)
        a.two_shots = shots == 2;
    check(p2p_reduce(d, &a, &err), &err);
    CUDA(test_sum_check(d->stream, m->out, vectors * 4, m->epoch, call, d->config.tp_size,
                        m->wrong));
}

static void fused(struct device *d, struct memory *m, uint32_t rows, uint32_t width, int shots,
                  uint32_t call)
{
    struct reduce_args a = {.x = m->x,
                            .out = m->out,
                            .residual = m->residual,
                            .weight = m->weight,
                            .rows = rows,
                            .vectors = width / 8,
                            .total = rows * (width / 8),
                            .eps = 1e-6f};
    struct err err = {0};

    CUDA(test_fill(d->stream, m->x, rows * width / 2, m->epoch, call, d->config.rank));
    CUDA(test_delay(d->stream, m->epoch, call, d->config.rank, DELAY_NS));
    if (!p2p_reduces(d, &a))
        _exit(1);
    if (shots)
        a.two_shots = shots == 2;
    check(p2p_reduce(d, &a, &err), &err);
    CUDA(test_norm_check(d->stream, m->residual, m->old, m->out, rows, width, m->epoch, call,
                         d->config.tp_size, a.two_shots, 1e-6f, m->wrong));
}

static void gather(struct device *d, struct memory *m, uint32_t bytes, uint32_t call)
{
    struct err err = {0};

    CUDA(test_fill(d->stream, m->x, bytes / 4, m->epoch, call, d->config.rank));
    CUDA(test_delay(d->stream, m->epoch, call, d->config.rank, DELAY_NS));
    check(p2p_gather(d, m->x, bytes, m->gathered, &err), &err);
    CUDA(test_gather_check(d->stream, m->gathered, bytes / 4, m->epoch, call, d->config.tp_size,
                           m->wrong));
}

static int sizes_body(struct device *d)
{
    static const uint32_t widths[] = {8, 128, 1024, 2560, 5120, 8192, 8200, 16384};
    uint32_t wrong = 0;
    struct memory m;
    char what[64];

    if (!d->p2p)
        return 1;
    memory_make(&m);
    for (size_t bytes = 4096; bytes <= (slow() ? MOST_BYTES / 16 : MOST_BYTES); bytes *= 2)
        for (int shots = 0; shots <= 2; shots++)
            for (int odd = 0; odd < 2; odd++) {
                size_t n = bytes - (odd ? 48 : 0);

                plain(d, &m, n, shots, 1);
                CUDA(test_epoch_next(d->stream, m.epoch));
                (void)snprintf(what, sizeof what, "%zu bytes, %d shots", n, shots);
                wrong += wrong_take(d, &m, what);
            }
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
        for (uint32_t rows = 1; rows <= 300; rows = rows * 3 + 1)
            for (int shots = 0; shots <= 2; shots++) {
                fused(d, &m, rows, widths[w], shots, 2);
                CUDA(test_epoch_next(d->stream, m.epoch));
                (void)snprintf(what, sizeof what, "%u x %u, %d shots", rows, widths[w], shots);
                wrong += wrong_take(d, &m, what);
            }
    for (uint32_t bytes = 8; bytes <= GATHER_MAX; bytes = bytes * 4 + 8) {
        gather(d, &m, bytes, 3);
        CUDA(test_epoch_next(d->stream, m.epoch));
        wrong += wrong_take(d, &m, "gather");
    }
    return wrong ? 1 : 0;
}

/* Sums of many sizes and gathers in one graph; every replay has new numbers and new delays. */
static int replays_body(struct device *d)
{
    uint32_t replays = slow() ? REPLAYS / 100 : REPLAYS;
    cudaGraphExec_t exec;
    cudaGraph_t graph;
    uint32_t wrong, call = 0;
    struct memory m;

    if (!d->p2p)
        return 1;
    memory_make(&m);
    plain(d, &m, 4096, 0, 0);
    wrong = wrong_take(d, &m, "first");
    CUDA(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal));
    for (int round = 0; round < 3; round++) {
        plain(d, &m, 4096, 1, call++);
        fused(d, &m, 1, 5120, 0, call++);
        fused(d, &m, 1, 5120, 0, call++);
        plain(d, &m, 1 << 20, 2, call++);
        gather(d, &m, 968, call++);
        plain(d, &m, 16, round ? 2 : 1, call++);
        fused(d, &m, 64, 5120, 2, call++);
        plain(d, &m, 128 << 10, 1, call++);
        gather(d, &m, 968 * 64, call++);
        fused(d, &m, 7, 1024, round ? 1 : 2, call++);
        plain(d, &m, round == 2 ? 12 << 20 : 4096, 0, call++);
    }
    CUDA(test_epoch_next(d->stream, m.epoch));
    CUDA(cudaStreamEndCapture(d->stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    for (uint32_t i = 0; i < replays; i++)
        CUDA(cudaGraphLaunch(exec, d->stream));
    wrong += wrong_take(d, &m, "replays");
    if (d->config.rank == 0)
        (void)printf("%u ranks: %u sums and gathers replayed\n", d->config.tp_size, replays * call);
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    return wrong ? 1 : 0;
}

/* Rank 0 sums alone; the last rank is as good as dead. */
static int alone(struct device *d, bool told)
{
    double begin = 1e-6 * (double)clock_mono_us(), took;
    struct err err = {0};
    struct memory m;
    int rc;

    if (!d->p2p)
        return 1;
    if (d->config.rank) {
        (void)sleep(4);
        return 0;
    }
    memory_make(&m);
    plain(d, &m, 64 << 10, 0, 1);
    if (told) {
        (void)usleep(200000);
        if (cudaStreamQuery(d->stream) != cudaErrorNotReady)
            return 1;
        p2p_abort(d);
    }
    rc = cuda_wait(d, &err);
    took = 1e-6 * (double)clock_mono_us() - begin;
    (void)printf("after %.2f s: %s\n", took, err.msg);
    if (!rc || took > 3.0 || !strstr(err.msg, "rank 0, cuda:0") || !strstr(err.msg, ": rank "))
        return 1;
    if (strstr(err.msg, ": rank 0 ") || (!told && took < 0.5))
        return 1;
    /* what follows does not wait again */
    plain(d, &m, 64 << 10, 0, 1);
    CUDA(cudaStreamSynchronize(d->stream));
    return 0;
}

static int late_body(struct device *d)
{
    return alone(d, false);
}

static int told_body(struct device *d)
{
    return alone(d, true);
}

static int with_body(struct device *d)
{
    return d->p2p ? 0 : 1;
}

static int without_body(struct device *d)
{
    return d->p2p ? 1 : 0;
}

static void all_counts(rank_body *body, double timeout_s)
{
    const struct ops_config config = {.comm_timeout_s = timeout_s * (slow() ? SLOW : 1)};
    int gpus = gpus_count();

    if (gpus < 2) {
        print_message("skipped: %d GPUs\n", gpus);
        skip();
    }
    for (uint32_t ranks = 2; ranks <= (uint32_t)gpus && ranks <= PEERS_MAX; ranks++)
        if (ranks != 3 || timeout_s > 10)
            assert_int_equal(ranks_run(ranks, &config, slow() ? 120 * SLOW : 120, body), 0);
}

static void test_sizes(void **state)
{
    (void)state;
    all_counts(sizes_body, 60);
}

static void test_replays(void **state)
{
    (void)state;
    all_counts(replays_body, 60);
}

static void test_late(void **state)
{
    (void)state;
    if (slow())
        skip();
    all_counts(late_body, 1);
}

static void test_told(void **state)
{
    (void)state;
    if (slow())
        skip();
    all_counts(told_body, 8);
}

static void test_library(void **state)
{
    const struct ops_config config = {.comm_timeout_s = 60, .library_all_reduce = true};
    (void)state;

    if (gpus_count() < 2)
        skip();
    assert_int_equal(ranks_run(2, &config, 60, without_body), 0);
}

/* The outcome is kept: a second start believes the file. */
static void test_check(void **state)
{
    const struct ops_config config = {.comm_timeout_s = 60, .p2p_check = true};
    char cache[] = "/tmp/phalanx-cache-XXXXXX", command[128];
    (void)state;

    if (gpus_count() < 2)
        skip();
    assert_non_null(mkdtemp(cache));
    assert_int_equal(setenv("XDG_CACHE_HOME", cache, 1), 0);
    assert_int_equal(ranks_run(2, &config, 60, with_body), 0);
    (void)snprintf(command, sizeof command, "grep -q 1 %s/phalanx/p2p-*", cache);
    assert_int_equal(system(command), 0);
    (void)snprintf(command, sizeof command, "for f in %s/phalanx/p2p-*; do echo 0 >$f; done",
                   cache);
    assert_int_equal(system(command), 0);
    assert_int_equal(ranks_run(2, &config, 60, without_body), 0);
    (void)snprintf(command, sizeof command, "rm -r %s", cache);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes), cmocka_unit_test(test_replays), cmocka_unit_test(test_late),
        cmocka_unit_test(test_told),  cmocka_unit_test(test_library), cmocka_unit_test(test_check),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

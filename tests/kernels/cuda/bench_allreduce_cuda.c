/* Times sums over ranks inside CUDA graphs, microseconds a call: over peer memory as the backend
 * chooses and in one and two shots, and over NCCL; plain, and with residual and norm (rows of 5120)
 * as a step has them. Usage: [SYMM=1] bench_allreduce_cuda [ranks...]; SYMM: NCCL's sums in memory
 * registered with it.
 *
 * floor: one way of a flag (two for two shots; measured, half a round trip) and the bytes a rank
 * must send over 450 GB/s, for the better of one and two shots. */
#include "tests/kernels/cuda/peers.h"
#include "tests/kernels/cuda/ranks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_BYTES ((size_t)16 << 20)
#define WIDTH 5120u
#define CALLS 20
#define RUNS 25
#define PINGS 2000u
#define LINK_BYTES_PER_S 450e9

enum way { WAY_CHOSEN, WAY_ONE, WAY_TWO, WAY_NCCL };

struct bench {
    struct device *d;
    void *x, *out;
    float *residual, *weight;
};

static void check(int rc, const struct err *err)
{
    if (rc) {
        (void)fprintf(stderr, "%s\n", err->msg);
        _exit(1);
    }
}

static void sum(struct bench *b, size_t bytes, bool norm, enum way way)
{
    struct device *d = b->d;
    uint32_t vectors = (uint32_t)(bytes / 16), width = norm ? WIDTH : 2048;
    struct reduce_args a = {.x = b->x,
                            .out = b->out,
                            .residual = norm ? b->residual : NULL,
                            .weight = b->weight,
                            .vectors = width / 8,
                            .rows = (vectors + width / 8 - 1) / (width / 8),
                            .total = vectors,
                            .eps = 1e-6f};
    struct err err = {0};

    if (way == WAY_NCCL) {
        check(nccl_all_reduce(d, b->x, bytes / 2, &err), &err);
        if (norm)
            CUDA(launch_add_norm(d->stream, d->type, b->x, b->residual, b->weight, b->out, a.rows,
                                 WIDTH, 1e-6f, 0));
        return;
    }
    if (!p2p_reduces(d, &a))
        _exit(1);
    if (way != WAY_CHOSEN)
        a.two_shots = way == WAY_TWO;
    check(p2p_reduce(d, &a, &err), &err);
}

static int order(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

static void wait_all(struct bench *b)
{
    struct err err = {0};

    check(nccl_all_gather(b->d, b->out, 8, b->x, &err), &err);
    check(cuda_wait(b->d, &err), &err);
}

static double time_us(struct bench *b, size_t bytes, bool norm, enum way way)
{
    cudaStream_t s = b->d->stream;
    cudaEvent_t begin, end;
    cudaGraphExec_t exec;
    cudaGraph_t graph;
    double times[RUNS];

    sum(b, bytes, norm, way);
    wait_all(b);
    CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < CALLS; i++)
        sum(b, bytes, norm, way);
    CUDA(cudaStreamEndCapture(s, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CUDA(cudaEventCreate(&begin));
    CUDA(cudaEventCreate(&end));
    wait_all(b);
    for (int i = -3; i < RUNS; i++) {
        float ms = 0;

        CUDA(cudaEventRecord(begin, s));
        CUDA(cudaGraphLaunch(exec, s));
        CUDA(cudaEventRecord(end, s));
        CUDA(cudaEventSynchronize(end));
        CUDA(cudaEventElapsedTime(&ms, begin, end));
        if (i >= 0)
            times[i] = (double)ms * 1e3 / CALLS;
    }
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaEventDestroy(begin));
    CUDA(cudaEventDestroy(end));
    qsort(times, RUNS, sizeof *times, order);
    return times[RUNS / 2];
}

/* Half a round trip between ranks 0 and 1, through words of the inboxes. */
static double one_way_us(struct bench *b)
{
    struct device *d = b->d;
    size_t at = INBOX_TURNS * INBOX_AREA; /* where gathers put their data */
    uint32_t rank = d->config.rank;
    char *const *inbox = d->p2p->peers.inbox;
    cudaEvent_t begin, end;
    float ms = 0;

    CUDA(cudaMemset(inbox[rank] + at, 0, 4));
    wait_all(b);
    CUDA(cudaEventCreate(&begin));
    CUDA(cudaEventCreate(&end));
    CUDA(cudaEventRecord(begin, d->stream));
    if (rank < 2)
        CUDA(test_ping(d->stream, (uint32_t *)(void *)(inbox[rank] + at),
                       (uint32_t *)(void *)(inbox[!rank] + at), PINGS, rank == 0));
    CUDA(cudaEventRecord(end, d->stream));
    CUDA(cudaEventSynchronize(end));
    CUDA(cudaEventElapsedTime(&ms, begin, end));
    return (double)ms * 1e3 / PINGS / 2;
}

static double floor_us(double one_way, uint32_t ranks, size_t bytes)
{
    double sent = (double)bytes / LINK_BYTES_PER_S * 1e6, others = ranks - 1;
    double one = one_way + others * sent, two = 2 * one_way + 2 * others / ranks * sent;

    return one < two ? one : two;
}

static int bench_body(struct device *d)
{
    struct bench b = {.d = d};
    uint32_t ranks = d->config.tp_size;
    struct err err = {0};
    double one_way;

    if (!d->p2p)
        return 1;
    check(cuda_alloc_summed(d, 2 * MOST_BYTES, &b.x, "operands", &err), &err);
    CUDA(cudaMalloc(&b.out, 2 * MOST_BYTES));
    CUDA(cudaMalloc((void **)&b.residual, 4 * MOST_BYTES));
    CUDA(cudaMalloc((void **)&b.weight, WIDTH * 4));
    CUDA(cudaMemset(b.x, 0x3c, 2 * MOST_BYTES));
    CUDA(cudaMemset(b.residual, 0, 4 * MOST_BYTES));
    CUDA(cudaMemset(b.weight, 0, WIDTH * 4));
    CUDA(cudaDeviceSynchronize());
    one_way = one_way_us(&b);
    if (d->config.rank == 0)
        printf("%u ranks, one way of a flag %.2f us\n   bytes  floor    ours (one two)      NCCL\n",
               ranks, one_way);
    for (size_t bytes = 4096; bytes <= MOST_BYTES; bytes *= 2) {
        double t[4];

        for (int way = 0; way < 4; way++)
            t[way] = time_us(&b, bytes, false, (enum way)way);
        if (d->config.rank == 0)
            printf("%8zu %6.1f %7.2f (%7.2f %7.2f) %7.2f\n", bytes, floor_us(one_way, ranks, bytes),
                   t[WAY_CHOSEN], t[WAY_ONE], t[WAY_TWO], t[WAY_NCCL]);
    }
    if (d->config.rank == 0)
        printf("with residual and norm, rows of %u\n", WIDTH);
    for (uint32_t rows = 1; rows <= 1024; rows *= 2) {
        size_t bytes = (size_t)rows * WIDTH * 2;
        double t[4];

        for (int way = 0; way < 4; way++)
            t[way] = time_us(&b, bytes, true, (enum way)way);
        if (d->config.rank == 0)
            printf("%4u x %u %8zu %6.1f %7.2f (%7.2f %7.2f) %7.2f\n", rows, WIDTH, bytes,
                   floor_us(one_way, ranks, bytes), t[WAY_CHOSEN], t[WAY_ONE], t[WAY_TWO],
                   t[WAY_NCCL]);
    }
    return 0;
}

int main(int argc, char **argv)
{
    const struct ops_config config = {.comm_timeout_s = 60, .symmetric = getenv("SYMM") != NULL};
    uint32_t gpus = (uint32_t)gpus_count();
    int failed = 0;

    for (int i = 1; i < argc; i++)
        failed += ranks_run((uint32_t)strtoul(argv[i], NULL, 10), &config, 200, bench_body);
    for (uint32_t ranks = 2; argc < 2 && ranks <= gpus && ranks <= PEERS_MAX; ranks *= 2)
        failed += ranks_run(ranks, &config, 200, bench_body);
    return failed ? 1 : 0;
}

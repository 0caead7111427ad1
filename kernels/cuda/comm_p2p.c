/* Sums and gathers over the memory of the other GPUs: who reaches whose inbox, which sums go that
 * way. Ranks of one process reach each other by address, those of several by cudaIpc. Either all
 * ranks use it or none does: what each knows is gathered through NCCL. */
#include "common/mem.h"
#include "kernels/cuda/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHECK_BYTES ((size_t)1 << 20)
#define NOTE_MAX ((size_t)256)

/* Largest sum in one shot, measured on H200 (bench_allreduce_cuda) for two and up to four ranks;
 * beyond, bytes sent grow with the ranks. */
#define ONE_SHOT_MAX_2 ((size_t)2 << 20)
#define ONE_SHOT_MAX_4 ((size_t)192 << 10)
#define ONE_SHOT_MAX_8 ((size_t)128 << 10)

/* What a rank tells the others at start. */
struct hello {
    uint64_t address, process, space; /* space: of process ids */
    int32_t device;
    uint32_t wanted;

    cudaIpcMemHandle_t handle;
    cudaUUID_t uuid;
};

_Static_assert(sizeof(struct hello) <= NOTE_MAX, "a note holds a hello");

static int fail(const struct device *d, cudaError_t rc, struct err *err)
{
    return cuda_fail(d, rc, "peer memory", err);
}

/* all (ranks): every rank's note. Meets the other ranks. */
static int tell(struct device *d, const void *note, size_t bytes, void *all, struct err *err)
{
    char *mine = d->p2p->notes, *gathered = mine + NOTE_MAX;
    cudaError_t rc = cudaMemcpyAsync(mine, note, bytes, cudaMemcpyHostToDevice, d->stream);
    int failed;

    if (rc != cudaSuccess)
        return fail(d, rc, err);
    failed = nccl_all_gather(d, mine, bytes, gathered, err);
    if (failed)
        return failed;
    rc = cudaMemcpyAsync(all, gathered, d->config.tp_size * bytes, cudaMemcpyDeviceToHost,
                         d->stream);
    return rc == cudaSuccess ? cuda_wait(d, err) : fail(d, rc, err);
}

/* Whether all ranks say yes. */
static int agree(struct device *d, bool yes, bool *all, struct err *err)
{
    uint32_t mine = yes, said[PEERS_MAX];
    int rc = tell(d, &mine, sizeof mine, said, err);

    *all = !rc;
    for (uint32_t i = 0; i < d->config.tp_size && !rc; i++)
        *all = *all && said[i];
    return rc;
}

static int memory_make(struct device *d, struct err *err)
{
    struct p2p *p = d->p2p;
    cudaError_t rc;
    int failed = cuda_alloc(d, inbox_bytes(), &p->inbox, "peers' inbox", err);

    if (!failed)
        failed = cuda_alloc(d, sizeof *p->peers.state, &p->peers.state, "peers' state", err);
    if (!failed)
        failed = cuda_alloc(d, NOTE_MAX * (PEERS_MAX + 1), &p->notes, "peers' notes", err);
    if (!failed)
        failed = cuda_alloc_pinned(d, sizeof *p->words, &p->words, "peers' words", err);
    if (failed)
        return failed;
    memset(p->words, 0, sizeof *p->words);
    p->peers.words = p->words;
    p->peers.rank = d->config.rank;
    p->peers.ranks = d->config.tp_size;
    /* ahead of the host's own limit, which cannot name the rank */
    p->peers.patience_ns =
        d->config.comm_timeout_s > 0 ? (uint64_t)(0.9e9 * d->config.comm_timeout_s) : UINT64_MAX;
    rc = cudaMemsetAsync(p->peers.state, 0, sizeof *p->peers.state, d->stream);
    if (rc == cudaSuccess)
        rc = launch_inbox_clear(d->stream, p->inbox);
    if (rc == cudaSuccess)
        rc = cudaStreamSynchronize(d->stream);
    return rc == cudaSuccess ? 0 : fail(d, rc, err);
}

/* false: this rank's memory cannot be shown to others. */
static bool hello_make(const struct device *d, struct hello *h)
{
    struct cudaDeviceProp properties;
    struct stat space;

    memset(h, 0, sizeof *h);
    h->address = (uint64_t)(uintptr_t)d->p2p->inbox;
    h->process = (uint64_t)getpid();
    h->space = stat("/proc/self/ns/pid", &space) ? 0 : (uint64_t)space.st_ino;
    h->device = (int32_t)d->config.device_index;
    if (cudaGetDeviceProperties(&properties, h->device) != cudaSuccess)
        return false;
    h->uuid = properties.uuid;
    if (cudaIpcGetMemHandle(&h->handle, d->p2p->inbox) == cudaSuccess)
        return true;
    (void)cudaGetLastError();
    return false;
}

static bool peer_reach(struct device *d, const struct hello *mine, const struct hello *h,
                       uint32_t rank)
{
    struct p2p *p = d->p2p;
    int can = 0;
    cudaError_t rc;

    if (rank == d->config.rank) {
        p->peers.inbox[rank] = p->inbox;
        return true;
    }
    if (h->process == mine->process && h->space == mine->space) {
        rc = cudaDeviceCanAccessPeer(&can, mine->device, h->device);
        if (rc == cudaSuccess && can)
            rc = cudaDeviceEnablePeerAccess(h->device, 0);
        if (rc == cudaErrorPeerAccessAlreadyEnabled)
            rc = cudaSuccess;
        p->peers.inbox[rank] = (char *)(uintptr_t)h->address;
        (void)cudaGetLastError();
        return rc == cudaSuccess && can;
    }
    rc = cudaIpcOpenMemHandle(&p->opened[rank], h->handle, cudaIpcMemLazyEnablePeerAccess);
    p->peers.inbox[rank] = p->opened[rank];
    (void)cudaGetLastError();
    if (rc != cudaSuccess)
        p->opened[rank] = NULL;
    return rc == cudaSuccess;
}

/* Writes to every peer, reads back what the peers wrote, here and there. */
static int pairs_copy(struct device *d, bool *good, struct err *err)
{
    struct p2p *p = d->p2p;
    uint32_t rank = d->config.rank, ranks = d->config.tp_size, wrong = 0;
    uint32_t words = CHECK_BYTES / 4;
    uint32_t *count = p->notes;
    cudaError_t rc = cudaSuccess;
    bool met;
    int failed;

    for (uint32_t r = 0; r < ranks && rc == cudaSuccess; r++)
        rc = launch_pattern(d->stream, (uint32_t *)(void *)(p->peers.inbox[r] + rank * CHECK_BYTES),
                            words, rank * PEERS_MAX + r);
    failed = rc == cudaSuccess ? agree(d, true, &met, err) : fail(d, rc, err);
    if (failed)
        return failed;
    rc = cudaMemsetAsync(count, 0, 4, d->stream);
    for (uint32_t r = 0; r < ranks && rc == cudaSuccess; r++) {
        const char *here = p->inbox + r * CHECK_BYTES;
        const char *there = p->peers.inbox[r] + rank * CHECK_BYTES;

        rc = launch_pattern_check(d->stream, (const uint32_t *)(const void *)here, words,
                                  r * PEERS_MAX + rank, count);
        if (rc == cudaSuccess)
            rc = launch_pattern_check(d->stream, (const uint32_t *)(const void *)there, words,
                                      rank * PEERS_MAX + r, count);
    }
    if (rc == cudaSuccess)
        rc = cudaMemcpyAsync(&wrong, count, 4, cudaMemcpyDeviceToHost, d->stream);
    failed = rc == cudaSuccess ? cuda_wait(d, err) : fail(d, rc, err);
    if (!failed)
        failed = agree(d, !wrong, good, err);
    if (failed)
        return failed;
    rc = launch_inbox_clear(d->stream, p->inbox);
    return rc == cudaSuccess ? agree(d, true, &met, err) : fail(d, rc, err);
}

/* Where the outcome for these GPUs and this driver is kept. */
static bool outcome_path(const struct hello *all, uint32_t ranks, char *path, size_t size)
{
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    char name[64];
    int driver = 0;

    if (cudaDriverGetVersion(&driver) != cudaSuccess)
        return false;
    for (uint32_t r = 0; r < ranks; r++)
        for (size_t i = 0; i < sizeof all[r].uuid.bytes; i++)
            hash = (hash ^ (uint8_t)all[r].uuid.bytes[i]) * 1099511628211u;
    (void)snprintf(name, sizeof name, "p2p-%016llx-%d", (unsigned long long)hash, driver);
    return cache_path(name, path, size);
}

/* 1 + the outcome kept, or 0. */
static uint32_t cache_read(const char *path)
{
    FILE *f = fopen(path, "rb");
    int c = f ? fgetc(f) : EOF;

    if (f)
        (void)fclose(f);
    return c == '1' ? 2u : c == '0' ? 1u : 0u;
}

static void cache_write(const char *path, bool good)
{
    FILE *f = fopen(path, "wb");

    if (!f)
        return;
    (void)fputs(good ? "1\n" : "0\n", f);
    (void)fclose(f);
}

/* Rank 0 looks into the cache for all. */
static int pairs_check(struct device *d, const struct hello *all, bool *good, struct err *err)
{
    uint32_t known = 0, said[PEERS_MAX];
    char path[4200];
    bool cached = d->config.rank == 0 && outcome_path(all, d->config.tp_size, path, sizeof path);
    int rc;

    if (cached)
        known = cache_read(path);
    rc = tell(d, &known, sizeof known, said, err);
    if (rc)
        return rc;
    *good = said[0] == 2;
    if (said[0])
        return 0;
    rc = pairs_copy(d, good, err);
    if (!rc && cached)
        cache_write(path, *good);
    return rc;
}

int p2p_open(struct device *d, struct err *err)
{
    struct hello mine, all[PEERS_MAX];
    bool good = true, met;
    int rc;

    if (d->config.tp_size > PEERS_MAX || d->config.library_all_reduce)
        return 0;
    d->p2p = mem_zalloc(sizeof *d->p2p);
    rc = memory_make(d, err);
    if (rc)
        return rc;
    met = hello_make(d, &mine);
    mine.wanted = met;
    rc = tell(d, &mine, sizeof mine, all, err);
    for (uint32_t r = 0; r < d->config.tp_size && !rc; r++)
        good = good && all[r].wanted && peer_reach(d, &mine, &all[r], r);
    if (!rc)
        rc = agree(d, good, &good, err);
    if (!rc && good && d->config.p2p_check)
        rc = pairs_check(d, all, &good, err);
    if (!rc && !good)
        p2p_close(d);
    return rc;
}

void p2p_abort(struct device *d)
{
    if (d->p2p && d->p2p->words)
        __atomic_store_n(&d->p2p->words->abort, 1u, __ATOMIC_RELEASE);
}

void p2p_close(struct device *d)
{
    if (!d->p2p)
        return;
    for (uint32_t r = 0; r < PEERS_MAX; r++)
        if (d->p2p->opened[r])
            (void)cudaIpcCloseMemHandle(d->p2p->opened[r]);
    free(d->p2p);
    d->p2p = NULL;
}

int p2p_check(const struct device *d, struct err *err)
{
    uint32_t fault = 0;

    if (d->p2p)
        fault = __atomic_load_n(&d->p2p->words->fault, __ATOMIC_ACQUIRE);
    if (!fault)
        return 0;
    return err_set(err, ERR_PEER, "rank %u, cuda:%u: sum over ranks: rank %u %s", d->config.rank,
                   d->config.device_index, fault - 1,
                   d->p2p->words->abort ? "was waited for until this rank was told to stop"
                                        : "did not come in time");
}

bool p2p_reduces(const struct device *d, struct reduce_args *a)
{
    size_t bytes = (size_t)a->total * 16;
    uint32_t ranks = d->config.tp_size;

    if (!d->p2p || a->vectors > 4096)
        return false;
    a->two_shots = bytes > (ranks == 2   ? ONE_SHOT_MAX_2
                            : ranks <= 4 ? ONE_SHOT_MAX_4
                                         : ONE_SHOT_MAX_8);
    return true;
}

/* In equal pieces that an area holds. */
int p2p_reduce(struct device *d, const struct reduce_args *a, struct err *err)
{
    uint32_t most = reduce_rows_max(d->config.tp_size, a->vectors, a->two_shots);
    uint32_t pieces = (a->rows + most - 1) / most, each = (a->rows + pieces - 1) / pieces;
    struct reduce_args part = *a;

    part.peers = d->p2p->peers;
    part.multiprocessors = (uint32_t)d->multiprocessors;
    for (uint32_t at = 0; at < a->rows; at += part.rows) {
        size_t skip = (size_t)at * a->vectors;
        cudaError_t rc;

        part.rows = a->rows - at < each ? a->rows - at : each;
        part.x = (const char *)a->x + skip * 16;
        part.out = (char *)a->out + skip * 16;
        part.residual = a->residual ? a->residual + skip * 8 : NULL;
        part.total = a->total - (uint32_t)skip;
        if (part.total > part.rows * a->vectors)
            part.total = part.rows * a->vectors;
        rc = launch_reduce(d->stream, d->type, &part);
        if (rc != cudaSuccess)
            return cuda_fail(d, rc, "all-reduce", err);
    }
    return 0;
}

bool p2p_gathers(const struct device *d, size_t bytes)
{
    return d->p2p && bytes % 8 == 0 && bytes <= GATHER_MAX;
}

int p2p_gather(struct device *d, const void *x, size_t bytes, void *out, struct err *err)
{
    cudaError_t rc = launch_gather(d->stream, &d->p2p->peers, x, out, (uint32_t)bytes);

    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "all-gather", err);
}

/* Collectives: over the memory of the other GPUs where that can be had and is ahead (comm_p2p.c),
 * over NCCL otherwise. NCCL's communicator does not block the host: every call is followed by a
 * look at its state, with the time limit of the group. */
#include "common/clock.h"
#include "kernels/cuda/cuda.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int nccl_fail(const struct device *d, ncclResult_t rc, const char *what, struct err *err)
{
    return err_set(err, ERR_PEER, "rank %u, cuda:%u: NCCL: %s: %s", d->config.rank,
                   d->config.device_index, what, ncclGetErrorString(rc));
}

static double now_s(void)
{
    return 1e-6 * (double)clock_mono_us();
}

static void nap(long us)
{
    struct timespec t = {0, us * 1000};

    (void)nanosleep(&t, NULL);
}

/* A call's result once it is known. */
int nccl_settle(struct device *d, ncclResult_t rc, const char *what, struct err *err)
{
    double begin = now_s();

    while (rc == ncclInProgress) {
        ncclResult_t asked = ncclCommGetAsyncError(d->nccl, &rc);

        if (asked != ncclSuccess)
            rc = asked;
        if (rc != ncclInProgress)
            break;
        if (d->config.comm_timeout_s > 0 && now_s() - begin > d->config.comm_timeout_s)
            return err_set(err, ERR_TIMEOUT,
                           "rank %u, cuda:%u: NCCL: %s: not all of %u ranks came within %g s",
                           d->config.rank, d->config.device_index, what, d->config.tp_size,
                           d->config.comm_timeout_s);
        nap(50);
    }
    return rc == ncclSuccess ? 0 : nccl_fail(d, rc, what, err);
}

/* Rank 0 makes the id and leaves it in the store; the file appears whole. */
static int id_write(const struct device *d, const char *path, const ncclUniqueId *id,
                    struct err *err)
{
    char temporary[4096 + 8];
    FILE *f;
    int rc = 0;

    (void)snprintf(temporary, sizeof temporary, "%s.tmp", path);
    f = fopen(temporary, "wb");
    if (!f)
        return err_errno(err, ERR_IO, "rank %u: %s", d->config.rank, temporary);
    if (fwrite(id, sizeof *id, 1, f) != 1)
        rc = err_errno(err, ERR_IO, "rank %u: %s", d->config.rank, temporary);
    if (fclose(f) && !rc)
        rc = err_errno(err, ERR_IO, "rank %u: %s", d->config.rank, temporary);
    if (!rc && rename(temporary, path))
        rc = err_errno(err, ERR_IO, "rank %u: %s", d->config.rank, path);
    return rc;
}

static int id_read(const struct device *d, const char *path, ncclUniqueId *id, struct err *err)
{
    double begin = now_s();
    FILE *f;
    size_t n;

    while (!(f = fopen(path, "rb"))) {
        if (errno != ENOENT)
            return err_errno(err, ERR_IO, "rank %u: %s", d->config.rank, path);
        if (now_s() - begin > d->config.comm_timeout_s)
            return err_set(err, ERR_TIMEOUT, "rank %u: rank 0 left no %s within %g s",
                           d->config.rank, path, d->config.comm_timeout_s);
        nap(5000);
    }
    n = fread(id, sizeof *id, 1, f);
    (void)fclose(f);
    return n == 1 ? 0 : err_set(err, ERR_IO, "rank %u: %s is cut short", d->config.rank, path);
}

int comm_open(struct device *d, struct err *err)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId id;
    char path[4096];
    int rc, n = snprintf(path, sizeof path, "%s/nccl-id", d->config.comm_store);

    if (n < 0 || (size_t)n >= sizeof path)
        return err_set(err, ERR_LIMIT, "rank %u: path of the store is too long", d->config.rank);
    if (d->config.rank == 0) {
        ncclResult_t made = ncclGetUniqueId(&id);

        if (made != ncclSuccess)
            return nccl_fail(d, made, "id", err);
        rc = id_write(d, path, &id, err);
    } else {
        rc = id_read(d, path, &id, err);
    }
    if (rc)
        return rc;
    /* NCCL knows no other way; a choice that the user made for NCCL alone goes first. */
    if (d->config.comm_interface && *d->config.comm_interface)
        (void)setenv("NCCL_SOCKET_IFNAME", d->config.comm_interface, 0);
    config.blocking = 0;
    rc = nccl_settle(
        d,
        ncclCommInitRankConfig(&d->nccl, (int)d->config.tp_size, id, (int)d->config.rank, &config),
        "meeting", err);
    return rc ? rc : p2p_open(d, err);
}

/* Aborts: destroying waits for the others, who may be gone. */
void comm_close(struct device *d)
{
    p2p_abort(d);
    if (d->nccl)
        (void)ncclCommAbort(d->nccl);
    d->nccl = NULL;
}

int comm_check(struct device *d, struct err *err)
{
    ncclResult_t state = ncclSuccess, rc;
    int failed = p2p_check(d, err);

    if (failed)
        return failed;
    rc = ncclCommGetAsyncError(d->nccl, &state);
    if (rc == ncclSuccess)
        rc = state;
    return rc == ncclSuccess || rc == ncclInProgress ? 0 : nccl_fail(d, rc, "a rank is lost", err);
}

int nccl_all_reduce(struct device *d, void *x, size_t count, struct err *err)
{
    ncclDataType_t type = d->type == HALF_BF16 ? ncclBfloat16 : ncclFloat16;

    return nccl_settle(d, ncclAllReduce(x, x, count, type, ncclSum, d->nccl, d->stream),
                       "all-reduce", err);
}

int nccl_all_gather(struct device *d, const void *x, size_t bytes, void *out, struct err *err)
{
    return nccl_settle(d, ncclAllGather(x, out, bytes, ncclInt8, d->nccl, d->stream), "all-gather",
                       err);
}

int comm_all_gather(struct device *d, const void *x, size_t bytes, void *out, struct err *err)
{
    return p2p_gathers(d, bytes) ? p2p_gather(d, x, bytes, out, err)
                                 : nccl_all_gather(d, x, bytes, out, err);
}

int comm_reduce_norm(struct device *d, void *x, uint32_t tokens, float *residual,
                     const float *weight, void *normed, bool fresh, struct err *err)
{
    uint32_t hidden = d->model.hidden;
    struct reduce_args a = {
        .x = x,
        .out = normed,
        .residual = residual,
        .weight = weight,
        .rows = tokens,
        .vectors = hidden / 8,
        .total = tokens * (hidden / 8),
        .eps = d->model.norm_eps,
        .fresh = fresh,
    };
    cudaError_t launched;
    int rc = 0;

    if (hidden % 8 == 0 && p2p_reduces(d, &a))
        return p2p_reduce(d, &a, err);
    if (d->nccl)
        rc = nccl_all_reduce(d, x, (size_t)tokens * hidden, err);
    if (rc)
        return rc;
    launched = launch_add_norm(d->stream, d->type, x, residual, weight, normed, tokens, hidden,
                               d->model.norm_eps, fresh);
    return launched == cudaSuccess ? 0 : cuda_fail(d, launched, "norm", err);
}

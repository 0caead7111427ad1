/* Collectives: over the memory of the other GPUs where that can be had and is ahead (comm_p2p.c),
 * over NCCL otherwise. NCCL's communicator does not block the host: every call is followed by a
 * look at its state, with the time limit of the group. */
#include "kernels/comm.h"
#include "common/clock.h"
#include "common/mem.h"
#include "kernels/cuda/cuda.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

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

/* Rank 0's is everybody's. */
static int id_share(const struct device *d, ncclUniqueId *id, struct err *err)
{
    struct comm_blob *blobs = mem_array(d->config.tp_size, sizeof *blobs);
    const struct comm_meet *meet = d->config.comm_meet;
    ncclResult_t made = d->config.rank == 0 ? ncclGetUniqueId(id) : ncclSuccess;
    size_t len = d->config.rank == 0 ? sizeof *id : 0;
    int rc = made == ncclSuccess ? meet->gather(meet->ctx, id, len, blobs, err)
                                 : nccl_fail(d, made, "id", err);

    if (!rc && blobs[0].len != sizeof *id)
        rc = err_set(err, ERR_PEER, "rank 0 sent an id of %zu bytes, not %zu", blobs[0].len,
                     sizeof *id);
    if (!rc)
        memcpy(id, blobs[0].data, sizeof *id);
    free(blobs);
    return rc;
}

int comm_open(struct device *d, struct err *err)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId id = {0};
    int rc;

    /* NCCL knows no other way; a choice that the user made for NCCL alone goes first. Rank 0's id
     * has its address in it. */
    if (d->config.comm_interface && *d->config.comm_interface)
        (void)setenv("NCCL_SOCKET_IFNAME", d->config.comm_interface, 0);
    rc = id_share(d, &id, err);
    if (rc)
        return rc;
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

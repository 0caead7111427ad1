/* --enable-symm-mem: buffers that NCCL sums are registered as windows, so that its kernels read and
 * write the other ranks' memory directly rather than through buffers of their own. */
#include "kernels/cuda/cuda.h"

#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)

int symmetric_alloc(struct device *d, size_t bytes, void **out, struct err *err)
{
    ncclWindow_t window; /* goes with the communicator */
    int version = 0, failed;
    ncclResult_t rc = ncclGetVersion(&version);

    if (rc == ncclSuccess && version < NCCL_VERSION(2, 27, 0))
        return err_set(err, ERR_UNSUPPORTED, "--enable-symm-mem needs NCCL 2.27, this is %d",
                       version);
    if (rc == ncclSuccess)
        rc = ncclMemAlloc(out, bytes);
    if (rc != ncclSuccess)
        return err_set(
            err, ERR_NOMEM, "rank %u, cuda:%u: NCCL: %.3f GB of memory for --enable-symm-mem: %s",
            d->config.rank, d->config.device_index, (double)bytes / 1e9, ncclGetErrorString(rc));
    failed = nccl_settle(
        d, ncclCommWindowRegister(d->nccl, *out, bytes, &window, NCCL_WIN_COLL_SYMMETRIC),
        "registering memory (--enable-symm-mem)", err);
    if (failed)
        (void)ncclMemFree(*out);
    return failed;
}

void symmetric_free(void *data)
{
    (void)ncclMemFree(data);
}

#else

int symmetric_alloc(struct device *d, size_t bytes, void **out, struct err *err)
{
    (void)d;
    (void)bytes;
    (void)out;
    return err_set(err, ERR_UNSUPPORTED, "--enable-symm-mem: built with an NCCL before 2.27");
}

void symmetric_free(void *data)
{
    (void)data;
}

#endif

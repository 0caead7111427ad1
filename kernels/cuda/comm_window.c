/* --enable-symm-mem: buffers that NCCL sums are registered as windows, so that its kernels read and
 * write the other ranks' memory directly rather than through buffers of their own. */
#include "kernels/cuda/cuda.h"

#include <time.h>

#define WINDOW_NAPS 50000 /* of 0.1 ms */

#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)

/* The call is done when the window is there: a communicator that does not block says that it is at
 * rest before the work has begun. */
static int window_wait(struct device *d, struct err *err)
{
    const struct timespec nap = {0, 100000};

    for (int naps = 0; !__atomic_load_n(&d->window, __ATOMIC_ACQUIRE); naps++) {
        int rc = nccl_settle(d, ncclInProgress, "registering memory", err);

        if (rc)
            return rc;
        if (naps == WINDOW_NAPS)
            return err_set(err, ERR_UNSUPPORTED,
                           "rank %u, cuda:%u: NCCL does not register memory here; leave out "
                           "--enable-symm-mem",
                           d->config.rank, d->config.device_index);
        (void)nanosleep(&nap, NULL);
    }
    return nccl_settle(d, ncclInProgress, "registering memory", err);
}

static int window_register(struct device *d, void *data, size_t bytes, struct err *err)
{
    int rc;

    d->window = NULL; /* NCCL may write it after an error here */
    rc = nccl_settle(
        d, ncclCommWindowRegister(d->nccl, data, bytes, &d->window, NCCL_WIN_COLL_SYMMETRIC),
        "registering memory", err);
    return rc ? rc : window_wait(d, err);
}

int symmetric_alloc(struct device *d, size_t bytes, void **out, struct err *err)
{
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
    failed = window_register(d, *out, bytes, err);
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

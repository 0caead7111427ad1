/* Algorithms of products that were chosen on this kind of GPU, in a file of the user's cache
 * folder. A file is replaced as a whole; one that is not whole, or not for this GPU, driver and
 * cuBLASLt, is not used. Without a folder nothing is kept. */
#ifndef PHALANX_KERNELS_CUDA_TUNED_H
#define PHALANX_KERNELS_CUDA_TUNED_H

#include "kernels/cuda/cuda.h"

#define TUNED_MAX 4096u /* the oldest go */

struct tuned_entry {
    uint32_t type, n, k, m_max, y_stride, wide, bias, reserved;
    cublasLtMatmulAlgo_t algo;
};

struct tuned {
    struct tuned_entry *entries; /* (TUNED_MAX) */
    uint32_t count;
    char place[384]; /* GPU, driver, cuBLASLt, workspace */
    char path[4200]; /* empty: none */
    int lock;        /* -1: not locked */
};

/* Reads, and holds the lock until tuned_close: waits for who has it, for a while. */
void tuned_open(struct tuned *t, const struct device *d, const struct ops_warm *warm);
void tuned_close(struct tuned *t);
const struct tuned_entry *tuned_find(const struct tuned *t, enum half_type type,
                                     const struct gemm_plan *p);
void tuned_put(struct tuned *t, enum half_type type, const struct gemm_plan *p);
void tuned_save(const struct tuned *t, const struct ops_warm *warm);

#endif

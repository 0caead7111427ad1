/* What choosing an algorithm (tune.c) and running it (gemm.c) share. */
#ifndef PHALANX_KERNELS_CUDA_GEMM_H
#define PHALANX_KERNELS_CUDA_GEMM_H

#include "kernels/cuda/cuda.h"

struct product {
    const void *x, *w, *bias;
    void *y;
    uint32_t m;
};

int blas_fail(const struct device *d, cublasStatus_t rc, const char *what, uint32_t m, uint32_t n,
              uint32_t k, struct err *err);
/* Rows that share an algorithm: up to the returned number. One row has algorithms of its own. */
uint32_t rows_bucket(uint32_t m);
cublasStatus_t plan_describe(const struct device *d, struct gemm_plan *p, uint32_t m);
void plan_free(struct gemm_plan *p);
cublasStatus_t plan_run(const struct device *d, const struct gemm_plan *p,
                        const cublasLtMatmulAlgo_t *algo, const struct product *q);
cudaError_t skinny_run(const struct device *d, enum gemv_out out, uint32_t n, uint32_t k,
                       uint32_t y_stride, const struct product *q);
/* Choose p->algo: the heuristic's first answer; the fastest of its answers, measured on q. */
cublasStatus_t plan_guess(const struct device *d, struct gemm_plan *p);
cublasStatus_t plan_race(const struct device *d, struct gemm_plan *p, const struct product *q);

#endif

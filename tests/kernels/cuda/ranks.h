/* Ranks as processes, one GPU each. The process that starts them never touches a GPU itself. */
#ifndef PHALANX_TESTS_KERNELS_CUDA_RANKS_H
#define PHALANX_TESTS_KERNELS_CUDA_RANKS_H

#include "kernels/cuda/cuda.h"

#define CUDA(call)                                                                                 \
    do {                                                                                           \
        cudaError_t cuda_rc = (call);                                                              \
        if (cuda_rc != cudaSuccess) {                                                              \
            (void)fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(cuda_rc));                 \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

/* A rank's process ends with what the body returns. */
typedef int rank_body(struct device *d);

typedef int rank_start(const struct ops_config *config);

int gpus_count(void);
/* Number of ranks that did not end with 0; a rank that hangs is one after `limit_s`. */
int ranks_run(uint32_t ranks, const struct ops_config *config, unsigned limit_s, rank_body *body);
/* The same; with `start`, which opens its own device, instead of a body. */
int ranks_start(uint32_t ranks, const struct ops_config *config, unsigned limit_s,
                rank_start *start, rank_body *body);

#endif

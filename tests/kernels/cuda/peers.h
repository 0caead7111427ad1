/* Ranks as processes of a test, one GPU each, and kernels that make and check what ranks sum. */
#ifndef PHALANX_TESTS_KERNELS_CUDA_PEERS_H
#define PHALANX_TESTS_KERNELS_CUDA_PEERS_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Seeds come from *epoch and `call`, so that a replayed graph never sees the same numbers twice.
 * Words are finite halves of bf16 around 1; one in four is EMPTY. */
cudaError_t test_fill(cudaStream_t s, uint32_t *x, uint32_t words, const uint32_t *epoch,
                      uint32_t call, uint32_t rank);
/* Counts the words of `out` that are not the sum over ranks, added in their order. */
cudaError_t test_sum_check(cudaStream_t s, const uint32_t *out, uint32_t words,
                           const uint32_t *epoch, uint32_t call, uint32_t ranks, uint32_t *wrong);
/* The same of a residual that was `old` (NULL: fresh), which is left holding the sum; rounded: the
 * sum was, to bf16. And of the norm, with weights of 1, within bf16's rounding. */
cudaError_t test_norm_check(cudaStream_t s, const float *residual, float *old, const uint32_t *out,
                            uint32_t rows, uint32_t width, const uint32_t *epoch, uint32_t call,
                            uint32_t ranks, int rounded, float eps, uint32_t *wrong);
/* Words of a gather of test_fill's. */
cudaError_t test_gather_check(cudaStream_t s, const uint32_t *out, uint32_t words,
                              const uint32_t *epoch, uint32_t call, uint32_t ranks,
                              uint32_t *wrong);
/* Keeps the stream busy for up to `most_ns`, a while that differs by rank, epoch and call. */
cudaError_t test_delay(cudaStream_t s, const uint32_t *epoch, uint32_t call, uint32_t rank,
                       uint32_t most_ns);
cudaError_t test_epoch_next(cudaStream_t s, uint32_t *epoch);
/* `turns` round trips of a flag; `first` begins. Words start at 0 and end at `turns`. */
cudaError_t test_ping(cudaStream_t s, uint32_t *mine, uint32_t *theirs, uint32_t turns, int first);

#ifdef __cplusplus
}
#endif
#endif

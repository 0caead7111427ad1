/* Descriptions of arrays for Hopper's tensor copy engine: dense, of the device's half type, read in
 * boxes that lie in shared memory with the 128-byte swizzle; outside of the array there are zeros.
 */
#ifndef PHALANX_KERNELS_CUDA_TENSOR_MAP_H
#define PHALANX_KERNELS_CUDA_TENSOR_MAP_H

#include "kernels/cuda/cuda.h"

#define TENSOR_DIMENSIONS 5u

struct tensor_map {
    CUtensorMap map;
};

/* Sets d->tensor_encode; NULL: this is no Hopper. */
int tensor_map_open(struct device *d, struct err *err);
/* sizes, box: innermost first, numbers; box[0] 64 at most, data and rows aligned to 16 bytes. */
cudaError_t tensor_map_make(const struct device *d, struct tensor_map *out, const void *data,
                            uint32_t dimensions, const uint64_t *sizes, const uint32_t *box);

#endif

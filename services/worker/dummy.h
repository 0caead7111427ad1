/* Made-up weights: each element is a fixed function of the tensor's name and the element's place,
 * so that any split of a tensor over ranks gives the same model. */
#ifndef PHALANX_WORKER_DUMMY_H
#define PHALANX_WORKER_DUMMY_H

#include "kernels/ops.h"

#include <stdint.h>

/* Rows row .. row + rows - 1, columns col .. col + cols - 1 of the tensor (any rows, width),
 * uniform with standard deviation `scale` around `mean`; float32, or bfloat16 rounded from that to
 * the nearest, ties to even. */
void dummy_fill(const char *name, uint64_t width, uint64_t row, uint64_t rows, uint64_t col,
                uint64_t cols, float mean, float scale, enum dtype dtype, void *dst);

#endif

/* Made-up weights: each element is a fixed function of the tensor's name and the element's place,
 * so that any split of a tensor over ranks gives the same model. */
#ifndef PHALANX_WORKER_DUMMY_H
#define PHALANX_WORKER_DUMMY_H

#include <stdint.h>

/* Rows row .. row + rows - 1, columns col .. col + cols - 1 of the tensor (any rows, width),
 * float32, uniform with standard deviation `scale` around `mean`. */
void dummy_fill(const char *name, uint64_t width, uint64_t row, uint64_t rows, uint64_t col,
                uint64_t cols, float mean, float scale, float *dst);

#endif

/* What the kernel tests share: backends side by side, random numbers that every type holds exactly,
 * errors of whole tensors. */
#ifndef PHALANX_TESTS_KERNELS_SUPPORT_H
#define PHALANX_TESTS_KERNELS_SUPPORT_H

#include "kernels/ops.h"

/* From the lib folder of the build this program belongs to. NULL and a line on stderr on failure.
 */
const struct ops *backend_open(const char *name);

/* A multiple of 1/128 in (-1, 1): exact in bf16, f16 and f32. */
float random_exact(uint64_t *state);
uint32_t random_below(uint64_t *state, uint32_t n);
/* An array of them (caller frees). */
float *random_array(uint64_t *state, size_t n, float scale);

/* ||a - b|| / ||b||; infinite when a value is not a number. */
double relative_error(const float *a, const float *b, size_t n);

double now_s(void);

/* Under compute-sanitizer: what is smaller does. */
bool slow(void);

#endif

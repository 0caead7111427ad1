/* bfloat16: the upper half of a float32. */
#ifndef PHALANX_COMMON_BF16_H
#define PHALANX_COMMON_BF16_H

#include <stdint.h>
#include <string.h>

static inline float bf16_widen(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;

    memcpy(&f, &bits, sizeof f);
    return f;
}

/* To the nearest, ties to even; NaN stays NaN. Without a branch, so that loops of it vectorize. */
static inline uint16_t bf16_narrow(float f)
{
    uint32_t bits, rounded;

    memcpy(&bits, &f, sizeof bits);
    rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : rounded);
}

#endif

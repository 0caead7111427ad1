#include "services/worker/dummy.h"

#include <string.h>

#include <xxhash.h>

/* The finaliser of splitmix64: https://prng.di.unimi.it/splitmix64.c */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

void dummy_fill(const char *name, uint64_t width, uint64_t row, uint64_t rows, uint64_t col,
                uint64_t cols, float mean, float scale, float *dst)
{
    uint64_t key = XXH64(name, strlen(name), 0);
    float range = scale * 1.7320508f * 2; /* a uniform distribution's width for that deviation */

    for (uint64_t r = row; r < row + rows; r++) {
        for (uint64_t c = col; c < col + cols; c++) {
            float unit = (float)(mix(key ^ (r * width + c)) >> 40) * 0x1p-24f;

            *dst++ = mean + range * (unit - 0.5f);
        }
    }
}

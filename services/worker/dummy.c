#include "services/worker/dummy.h"

#include "common/bf16.h"
#include "common/mem.h"

#include <stdlib.h>
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

#define TABLE 65536u /* values that rows are cut from */

/* A row is a stretch of the table, which is a ring, from a place of its own on: as fast as copying,
 * and the same however rows and columns are cut. */
void dummy_fill(const char *name, uint64_t width, uint64_t row, uint64_t rows, uint64_t col,
                uint64_t cols, float mean, float scale, enum dtype dtype, void *dst)
{
    uint64_t key = XXH64(name, strlen(name), 0);
    float range = scale * 1.7320508f * 2; /* a uniform distribution's width for that deviation */
    size_t size = dtype_size(dtype);
    char *table = mem_array(TABLE, size), *to = dst;

    for (uint64_t i = 0; i < TABLE; i++) {
        float value = mean + range * ((float)(mix(key ^ i) >> 40) * 0x1p-24f - 0.5f);
        uint16_t half = bf16_narrow(value);

        memcpy(table + i * size, dtype == DTYPE_F32 ? (void *)&value : (void *)&half, size);
    }
    for (uint64_t r = row; r < row + rows; r++) {
        uint64_t at = mix(key + r * width) + col;

        for (uint64_t left = cols; left;) {
            uint64_t begin = at % TABLE;
            uint64_t count = left < TABLE - begin ? left : TABLE - begin;

            memcpy(to, table + begin * size, count * size);
            to += count * size;
            at += count;
            left -= count;
        }
    }
    free(table);
}

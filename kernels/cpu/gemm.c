/* Matrix products with packed weights.
 *
 * A weight (N, K) is stored as panels of LANES output columns: (N / LANES, K, LANES), so that one
 * step over k is one vector load and LANES results advance together. Each result is a plain sum
 * over k = 0, 1, ..., K-1: the blocking over rows and panels changes speed, never bits. */
#include "common/bf16.h"
#include "common/mem.h"
#include "kernels/cpu/cpu.h"

#include <string.h>

float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = h >> 10 & 0x1fu;
    uint32_t mantissa = h & 0x3ffu;
    uint32_t bits;
    float f;

    if (exponent == 0) { /* zero or subnormal: mantissa * 2^-24 */
        f = (float)mantissa * (1.0f / 16777216.0f);
        return sign ? -f : f;
    }
    if (exponent == 31)
        bits = sign | 0x7f800000u | mantissa << 13;
    else
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static float value_read(const void *src, enum dtype type, size_t i)
{
    uint16_t h;
    float f;

    if (type == DTYPE_F32) {
        memcpy(&f, (const char *)src + 4 * i, 4);
        return f;
    }
    memcpy(&h, (const char *)src + 2 * i, 2);
    return type == DTYPE_BF16 ? bf16_widen(h) : f16_to_f32(h);
}

size_t weight_size(const struct weight *w)
{
    size_t rows = w->kind == WEIGHT_VECTOR ? 1 : (w->rows + LANES - 1u) / LANES * LANES;

    return rows * w->cols * dtype_size(w->dtype);
}

static size_t panel_index(const struct weight *w, uint32_t row, uint32_t k)
{
    if (w->kind == WEIGHT_VECTOR)
        return k;
    return ((size_t)(row / LANES) * w->cols + k) * LANES + row % LANES;
}

void weight_pack(struct weight *w, uint32_t row, uint32_t rows, const void *src, enum dtype type)
{
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t k = 0; k < w->cols; k++) {
            float v = value_read(src, type, (size_t)r * w->cols + k);
            size_t at = panel_index(w, row + r, k);

            if (w->dtype == DTYPE_F32)
                ((float *)w->data)[at] = v;
            else
                ((uint16_t *)w->data)[at] = bf16_narrow(v);
        }
}

void weight_row(const struct weight *w, uint32_t row, float *out)
{
    for (uint32_t k = 0; k < w->cols; k++)
        out[k] = value_read(w->data, w->dtype, panel_index(w, row, k));
}

/* Sixteen weights from memory as v16 (macros: a function would return a vector by value, whose ABI
 * depends on the instruction set). */
#define LOAD_F32(p) (*(const v16 *)(p))
#define LOAD_BF16(p) ((v16)(__builtin_convertvector(*(const v16h *)(p), v16u) << 16))

/* One block: `m` (1..4) rows of x times one or two neighbouring panels. */
#define BLOCK(name, type, load, M, P)                                                              \
    static inline __attribute__((always_inline)) void name(                                        \
        const float *x, size_t ldx, const type *w, uint32_t cols, float *y, size_t ldy)            \
    {                                                                                              \
        v16 sum[M][P] = {0};                                                                       \
                                                                                                   \
        for (uint32_t k = 0; k < cols; k++)                                                        \
            for (int p = 0; p < P; p++) {                                                          \
                v16 wk = load(w + ((size_t)p * cols + k) * LANES);                                 \
                                                                                                   \
                for (int i = 0; i < M; i++)                                                        \
                    sum[i][p] += x[(size_t)i * ldx + k] * wk;                                      \
            }                                                                                      \
        for (int i = 0; i < M; i++)                                                                \
            for (int p = 0; p < P; p++)                                                            \
                *(v16 *)(y + (size_t)i * ldy + p * LANES) = sum[i][p];                             \
    }

BLOCK(block_f32_4x2, float, LOAD_F32, 4, 2)
BLOCK(block_f32_1x4, float, LOAD_F32, 1, 4)
BLOCK(block_f32_1x1, float, LOAD_F32, 1, 1)
BLOCK(block_bf16_4x2, uint16_t, LOAD_BF16, 4, 2)
BLOCK(block_bf16_1x4, uint16_t, LOAD_BF16, 1, 4)
BLOCK(block_bf16_1x1, uint16_t, LOAD_BF16, 1, 1)

/* All whole panels of w; the last, partial one goes through a buffer. */
#define GEMM(name, type, prefix)                                                                   \
    CPU_CLONES static void name(const float *x, uint32_t m, const struct weight *w, float *y,      \
                                size_t ldy)                                                        \
    {                                                                                              \
        const type *data = w->data;                                                                \
        uint32_t panels = w->rows / LANES, rest = w->rows % LANES, p = 0;                          \
        size_t panel = (size_t)w->cols * LANES;                                                    \
                                                                                                   \
        for (; p + 2 <= panels && m >= 4; p += 2) {                                                \
            uint32_t i = 0;                                                                        \
                                                                                                   \
            for (; i + 4 <= m; i += 4)                                                             \
                prefix##_4x2(x + (size_t)i * w->cols, w->cols, data + p * panel, w->cols,          \
                             y + i * ldy + (size_t)p * LANES, ldy);                                \
            for (; i < m; i++)                                                                     \
                for (uint32_t q = p; q < p + 2; q++)                                               \
                    prefix##_1x1(x + (size_t)i * w->cols, w->cols, data + q * panel, w->cols,      \
                                 y + i * ldy + (size_t)q * LANES, ldy);                            \
        }                                                                                          \
        for (; p + 4 <= panels; p += 4)                                                            \
            for (uint32_t i = 0; i < m; i++)                                                       \
                prefix##_1x4(x + (size_t)i * w->cols, w->cols, data + p * panel, w->cols,          \
                             y + i * ldy + (size_t)p * LANES, ldy);                                \
        for (; p < panels; p++)                                                                    \
            for (uint32_t i = 0; i < m; i++)                                                       \
                prefix##_1x1(x + (size_t)i * w->cols, w->cols, data + p * panel, w->cols,          \
                             y + i * ldy + (size_t)p * LANES, ldy);                                \
        for (uint32_t i = 0; rest && i < m; i++) {                                                 \
            float last[LANES];                                                                     \
                                                                                                   \
            prefix##_1x1(x + (size_t)i * w->cols, w->cols, data + panels * panel, w->cols, last,   \
                         LANES);                                                                   \
            memcpy(y + i * ldy + (size_t)panels * LANES, last, rest * sizeof *last);               \
        }                                                                                          \
    }

GEMM(gemm_f32, float, block_f32)
GEMM(gemm_bf16, uint16_t, block_bf16)

void gemm(const float *x, uint32_t m, const struct weight *w, float *y, size_t ldy)
{
    if (w->dtype == DTYPE_F32)
        gemm_f32(x, m, w, y, ldy);
    else
        gemm_bf16(x, m, w, y, ldy);
}

/* Attention over KV pages with tensor cores (mma.sync), after FlashAttention-2 (Dao, 2023): softmax
 * is kept online, scores never leave registers. The query heads of one KV head share its keys, so
 * the rows of a block are (token, head of the group) pairs. What the kernels share. */
#ifndef PHALANX_KERNELS_CUDA_ATTENTION_CUH
#define PHALANX_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/half.cuh"

#include <math_constants.h>

#define THREADS 128
#define WARPS 4
#define TILE 64 /* keys of a block's turn */
#define LOG2E 1.4426950408889634f

/* 16 bytes from global to shared memory; zeros when not valid. */
static __device__ __forceinline__ void copy16(uint32_t dst, const void *src, bool valid)
{
    int bytes = valid ? 16 : 0;

    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes));
}

static __device__ __forceinline__ void copies_commit(void)
{
    asm volatile("cp.async.commit_group;" ::);
}

template <int N> static __device__ __forceinline__ void copies_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

static __device__ __forceinline__ void load_matrices(uint32_t r[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

static __device__ __forceinline__ void load_matrices_t(uint32_t r[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* Byte offset of 16-byte chunk `chunk` of a key's row: chunks are permuted so that eight rows of
 * one column lie in different banks. */
template <int D> static __device__ __forceinline__ uint32_t swizzle(uint32_t key, uint32_t chunk)
{
    return key * (D * 2) + ((chunk ^ (key & 7u)) << 4);
}

/* Where a sequence's keys are. */
struct keys {
    const uint16_t *k, *v;
    const uint32_t *pages;
    uint32_t page_size, kv_heads, head;
};

template <int D>
static __device__ __forceinline__ size_t key_offset(const struct keys &s, uint32_t position)
{
    uint32_t page = position / s.page_size, offset = position - page * s.page_size;

    return (((size_t)s.pages[page] * s.kv_heads + s.head) * s.page_size + offset) * D;
}

/* `count` keys from `first` on to shared memory by `threads` threads; zeros from `end` on, since
 * what nobody has written may be NaN. */
template <int D>
static __device__ __forceinline__ void tile_load(const struct keys &s, uint32_t k_shared,
                                                 uint32_t v_shared, uint32_t first, uint32_t count,
                                                 uint32_t end, uint32_t thread, uint32_t threads)
{
    for (uint32_t i = thread; i < count * (D / 8); i += threads) {
        uint32_t key = i / (D / 8), chunk = i % (D / 8), position = first + key;
        bool valid = position < end;
        size_t at = valid ? key_offset<D>(s, position) + chunk * 8 : 0;
        uint32_t dst = swizzle<D>(key, chunk);

        copy16(k_shared + dst, s.k + at, valid);
        copy16(v_shared + dst, s.v + at, valid);
    }
}

/* A warp's 16 rows. A lane holds parts of rows lane / 4 and lane / 4 + 8. */
template <int D> struct rows16 {
    uint32_t q[D / 16][4];
    float o[D / 8][4];
    float top[2], sum[2];       /* sum: this lane's part */
    uint32_t first[2], last[2]; /* positions each row sees, both included */
};

template <int D> static __device__ __forceinline__ void rows_reset(struct rows16<D> &r)
{
#pragma unroll
    for (int n = 0; n < D / 8; n++)
        r.o[n][0] = r.o[n][1] = r.o[n][2] = r.o[n][3] = 0.0f;
    r.top[0] = r.top[1] = -CUDART_INF_F;
    r.sum[0] = r.sum[1] = 0.0f;
}

/* N keys from position `base` on, in shared memory: a key's chunk is where AT says. HALVES: 1 where
 * nobody asked for rows 8 to 15. */
template <class T, int D, int N, int HALVES = 2, uint32_t (*AT)(uint32_t, uint32_t) = swizzle<D>>
static __device__ __forceinline__ void rows_attend(struct rows16<D> &r, uint32_t k_shared,
                                                   uint32_t v_shared, uint32_t base,
                                                   float scale_log2)
{
    uint32_t lane = threadIdx.x % 32;
    float s[N / 8][4];

#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
#pragma unroll
        for (int kk = 0; kk < D / 16; kk += 2) {
            uint32_t b[4];

            load_matrices(b, k_shared + AT(j * 8 + lane % 8, kk * 2 + lane / 8));
            half_ops<T>::mma(s[j], r.q[kk], b[0], b[1]);
            half_ops<T>::mma(s[j], r.q[kk + 1], b[2], b[3]);
        }
    }
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        float top = r.top[h], part = 0.0f, alpha, shift;

#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                uint32_t position = base + j * 8 + lane % 4 * 2 + c;
                float *x = &s[j][h * 2 + c];

                *x = position >= r.first[h] && position <= r.last[h] ? *x * scale_log2
                                                                     : -CUDART_INF_F;
                top = fmaxf(top, *x);
            }
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        shift = top == -CUDART_INF_F ? 0.0f : top;
        alpha = exp2f(r.top[h] - shift);
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                s[j][h * 2 + c] = exp2f(s[j][h * 2 + c] - shift);
                part += s[j][h * 2 + c];
            }
        r.sum[h] = r.sum[h] * alpha + part;
        r.top[h] = top;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            r.o[n][h * 2] *= alpha;
            r.o[n][h * 2 + 1] *= alpha;
        }
    }
#pragma unroll
    for (int kk = 0; kk < N / 16; kk++) {
        uint32_t p[4] = {half_ops<T>::narrow2(s[2 * kk][0], s[2 * kk][1]),
                         half_ops<T>::narrow2(s[2 * kk][2], s[2 * kk][3]),
                         half_ops<T>::narrow2(s[2 * kk + 1][0], s[2 * kk + 1][1]),
                         half_ops<T>::narrow2(s[2 * kk + 1][2], s[2 * kk + 1][3])};

#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t b[4], key = kk * 16 + lane % 8 + (lane / 8 & 1) * 8;

            load_matrices_t(b, v_shared + AT(key, n + lane / 16));
            half_ops<T>::mma(r.o[n], p, b[0], b[1]);
            half_ops<T>::mma(r.o[n + 1], p, b[2], b[3]);
        }
    }
}

/* Adds the lanes' parts of the sums. */
template <int D> static __device__ __forceinline__ void rows_finish(struct rows16<D> &r)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        r.sum[h] += __shfl_xor_sync(0xffffffffu, r.sum[h], 1);
        r.sum[h] += __shfl_xor_sync(0xffffffffu, r.sum[h], 2);
    }
}

/* Row h (0, 1) of this lane from one head of qkv; NULL: a row that nobody asked for. */
template <int D>
static __device__ __forceinline__ void rows_query(struct rows16<D> &r, int h, const uint16_t *q)
{
    uint32_t lane = threadIdx.x % 32;

#pragma unroll
    for (int kk = 0; kk < D / 16; kk++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            uint32_t at = kk * 16 + lane % 4 * 2 + c * 8;

            r.q[kk][h + c * 2] = q ? *reinterpret_cast<const uint32_t *>(q + at) : 0u;
        }
}

cudaError_t attention_decode_setup(void); /* once a device */

#endif

/* Products with few rows of x, bound by the reading of w: one or more warps an output column,
 * 16-byte loads, several in flight a lane, the first of them before the kernel that makes x is
 * done. The order of a sum depends on the shape of w alone, not on the number of rows. */
#include "kernels/cuda/half.cuh"

#define UNROLL 4
#define WARPS 4 /* of a block */

template <class T> static __device__ void dot8(float *sum, uint4 w, uint4 x)
{
    typedef half_ops<T> ops;
    const uint32_t *wp = &w.x, *xp = &x.x;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 a = ops::widen2(wp[i]), b = ops::widen2(xp[i]);

        *sum = fmaf(a.x, b.x, *sum);
        *sum = fmaf(a.y, b.y, *sum);
    }
}

/* UNROLL loads of a row of w, zeros past its end. */
static __device__ __forceinline__ void w_load(const uint4 *w, uint32_t c, uint32_t stride,
                                              uint32_t turns, uint4 out[UNROLL])
{
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
        out[u] = c + stride * u < turns ? __ldcs(w + c + stride * u) : make_uint4(0, 0, 0, 0);
}

template <class T, int M>
static __device__ __forceinline__ void w_dot(const T *x, uint32_t k, uint32_t c, uint32_t stride,
                                             uint32_t turns, const uint4 w[UNROLL], float sum[M])
{
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
        if (c + stride * u < turns)
#pragma unroll
            for (int i = 0; i < M; i++)
                dot8<T>(&sum[i], w[u],
                        reinterpret_cast<const uint4 *>(x + (size_t)i * k)[c + stride * u]);
}

/* SPLIT warps share a column; a lane of them takes every (32 SPLIT)th piece of 8 numbers. */
template <class T, int M, int OUT, int SPLIT>
__global__ void __launch_bounds__(32 * WARPS)
    gemv_kernel(const T *x, const T *w, const T *bias, void *y, uint32_t n, uint32_t k,
                uint32_t y_stride)
{
    typedef half_ops<T> ops;
    __shared__ float parts[WARPS][2 * M];
    const int rows = OUT == GEMV_SILU ? 2 : 1;
    const uint32_t stride = 32 * SPLIT;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t row = blockIdx.x * (WARPS / SPLIT) + warp / SPLIT, turns = k / 8;
    uint32_t begin = warp % SPLIT * 32 + lane, real = row < n ? row : n - 1;
    const uint4 *wr[2] = {reinterpret_cast<const uint4 *>(w + (size_t)real * k),
                          reinterpret_cast<const uint4 *>(w + (size_t)(n + real) * k)};
    uint4 ahead[2][UNROLL];
    float sum[2][M];

    next_start();
#pragma unroll
    for (int r = 0; r < rows; r++)
        w_load(wr[r], begin, stride, turns, ahead[r]);
    previous_wait();
#pragma unroll
    for (int r = 0; r < rows; r++) {
#pragma unroll
        for (int i = 0; i < M; i++)
            sum[r][i] = 0.0f;
        for (uint32_t c = begin; c < turns; c += stride * UNROLL) {
            uint4 now[UNROLL];

#pragma unroll
            for (int u = 0; u < UNROLL; u++)
                now[u] = ahead[r][u];
            w_load(wr[r], c + stride * UNROLL, stride, turns, ahead[r]);
            w_dot<T, M>(x, k, c, stride, turns, now, sum[r]);
        }
#pragma unroll
        for (int i = 0; i < M; i++) {
            sum[r][i] = warp_sum(sum[r][i]);
            if (SPLIT > 1 && lane == 0)
                parts[warp][r * M + i] = sum[r][i];
        }
    }
    if (SPLIT > 1) {
        __syncthreads();
#pragma unroll
        for (int r = 0; r < rows; r++)
#pragma unroll
            for (int i = 0; i < M; i++) {
                sum[r][i] = 0.0f;
                for (int p = 0; p < SPLIT; p++)
                    sum[r][i] += parts[warp / SPLIT * SPLIT + p][r * M + i];
            }
    }
    if (lane || warp % SPLIT || row >= n)
        return;
#pragma unroll
    for (int i = 0; i < M; i++) {
        size_t at = (size_t)i * y_stride + row;
        float a = sum[0][i];

        if (OUT == GEMV_FLOAT)
            static_cast<float *>(y)[at] = a;
        else if (OUT == GEMV_SILU)
            static_cast<T *>(y)[at] = ops::narrow(a / (1.0f + expf(-a)) * sum[rows - 1][i]);
        else
            static_cast<T *>(y)[at] = ops::narrow(a + (bias ? ops::widen(bias[row]) : 0.0f));
    }
}

struct gemv_args {
    cudaStream_t stream;
    const void *x, *w, *bias;
    void *y;
    uint32_t m, n, k, y_stride;
};

template <class T, int M, int OUT, int SPLIT> static cudaError_t gemv(const struct gemv_args *a)
{
    uint32_t columns = WARPS / SPLIT;

    return launch_chained(gemv_kernel<T, M, OUT, SPLIT>, dim3((a->n + columns - 1) / columns),
                          32 * WARPS, 0, a->stream, static_cast<const T *>(a->x),
                          static_cast<const T *>(a->w), static_cast<const T *>(a->bias), a->y, a->n,
                          a->k, a->y_stride);
}

template <class T, int OUT, int SPLIT> static cudaError_t gemv_rows(const struct gemv_args *a)
{
    switch (a->m) {
    case 1:
        return gemv<T, 1, OUT, SPLIT>(a);
    case 2:
        return gemv<T, 2, OUT, SPLIT>(a);
    case 3:
        return gemv<T, 3, OUT, SPLIT>(a);
    default:
        return gemv<T, 4, OUT, SPLIT>(a);
    }
}

/* Few columns alone would leave most of the GPU's loads unissued: warps share them, as many as make
 * one wave of blocks. */
template <class T> static cudaError_t gemv_out(enum gemv_out out, const struct gemv_args *a)
{
    if (out == GEMV_FLOAT)
        return gemv_rows<T, GEMV_FLOAT, 1>(a);
    if (out == GEMV_SILU)
        return gemv_rows<T, GEMV_SILU, 1>(a);
    if (a->n <= 1536 && a->k >= 1024)
        return gemv_rows<T, GEMV_HALF, 4>(a);
    return a->n <= 3072 && a->k >= 1024 ? gemv_rows<T, GEMV_HALF, 2>(a)
                                        : gemv_rows<T, GEMV_HALF, 1>(a);
}

cudaError_t launch_gemv(cudaStream_t s, enum half_type type, enum gemv_out out, const void *x,
                        const void *w, const void *bias, void *y, uint32_t m, uint32_t n,
                        uint32_t k, uint32_t y_stride)
{
    const struct gemv_args a = {s, x, w, bias, y, m, n, k, y_stride};

    return type == HALF_BF16 ? gemv_out<__nv_bfloat16>(out, &a) : gemv_out<__half>(out, &a);
}

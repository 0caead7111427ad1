/* Products with few rows of x, bound by the reading of w: one warp an output column, 16-byte loads,
 * several in flight a lane. Sums go in an order that the number of rows does not change. */
#include "kernels/cuda/half.cuh"

#define UNROLL 4

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

/* sum[i] = lane's share of x[i] . w */
template <class T, int M>
static __device__ void row_dot(const T *x, const T *w, uint32_t k, uint32_t lane, float sum[M])
{
    uint32_t turns = k / 8, c = lane;

#pragma unroll
    for (int i = 0; i < M; i++)
        sum[i] = 0.0f;
    for (; c + 32 * (UNROLL - 1) < turns; c += 32 * UNROLL) {
        uint4 wv[UNROLL];

#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            wv[u] = __ldcs(reinterpret_cast<const uint4 *>(w) + c + 32 * u);
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
#pragma unroll
            for (int i = 0; i < M; i++)
                dot8<T>(&sum[i], wv[u],
                        reinterpret_cast<const uint4 *>(x + (size_t)i * k)[c + 32 * u]);
    }
    for (; c < turns; c += 32) {
        uint4 wv = reinterpret_cast<const uint4 *>(w)[c];

#pragma unroll
        for (int i = 0; i < M; i++)
            dot8<T>(&sum[i], wv, reinterpret_cast<const uint4 *>(x + (size_t)i * k)[c]);
    }
#pragma unroll
    for (int i = 0; i < M; i++)
        sum[i] = warp_sum(sum[i]);
}

template <class T, int M, int OUT>
__global__ void __launch_bounds__(128)
    gemv_kernel(const T *x, const T *w, const T *bias, void *y, uint32_t n, uint32_t k,
                uint32_t y_stride)
{
    typedef half_ops<T> ops;
    uint32_t row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    float sum[M], up[M];

    if (row >= n)
        return;
    row_dot<T, M>(x, w + (size_t)row * k, k, lane, sum);
    if (OUT == GEMV_SILU)
        row_dot<T, M>(x, w + (size_t)(n + row) * k, k, lane, up);
    if (lane)
        return;
#pragma unroll
    for (int i = 0; i < M; i++) {
        size_t at = (size_t)i * y_stride + row;

        if (OUT == GEMV_FLOAT)
            static_cast<float *>(y)[at] = sum[i];
        else if (OUT == GEMV_SILU)
            static_cast<T *>(y)[at] = ops::narrow(sum[i] / (1.0f + expf(-sum[i])) * up[i]);
        else
            static_cast<T *>(y)[at] = ops::narrow(sum[i] + (bias ? ops::widen(bias[row]) : 0.0f));
    }
}

template <class T, int OUT>
static void gemv(cudaStream_t s, const void *x, const void *w, const void *bias, void *y,
                 uint32_t m, uint32_t n, uint32_t k, uint32_t y_stride)
{
    const T *xt = static_cast<const T *>(x), *wt = static_cast<const T *>(w);
    const T *bt = static_cast<const T *>(bias);
    uint32_t blocks = (n + 3) / 4;

    switch (m) {
    case 1:
        gemv_kernel<T, 1, OUT><<<blocks, 128, 0, s>>>(xt, wt, bt, y, n, k, y_stride);
        break;
    case 2:
        gemv_kernel<T, 2, OUT><<<blocks, 128, 0, s>>>(xt, wt, bt, y, n, k, y_stride);
        break;
    case 3:
        gemv_kernel<T, 3, OUT><<<blocks, 128, 0, s>>>(xt, wt, bt, y, n, k, y_stride);
        break;
    default:
        gemv_kernel<T, 4, OUT><<<blocks, 128, 0, s>>>(xt, wt, bt, y, n, k, y_stride);
        break;
    }
}

template <class T>
static void gemv_out(cudaStream_t s, enum gemv_out out, const void *x, const void *w,
                     const void *bias, void *y, uint32_t m, uint32_t n, uint32_t k,
                     uint32_t y_stride)
{
    if (out == GEMV_HALF)
        gemv<T, GEMV_HALF>(s, x, w, bias, y, m, n, k, y_stride);
    else if (out == GEMV_FLOAT)
        gemv<T, GEMV_FLOAT>(s, x, w, bias, y, m, n, k, y_stride);
    else
        gemv<T, GEMV_SILU>(s, x, w, bias, y, m, n, k, y_stride);
}

cudaError_t launch_gemv(cudaStream_t s, enum half_type type, enum gemv_out out, const void *x,
                        const void *w, const void *bias, void *y, uint32_t m, uint32_t n,
                        uint32_t k, uint32_t y_stride)
{
    if (type == HALF_BF16)
        gemv_out<__nv_bfloat16>(s, out, x, w, bias, y, m, n, k, y_stride);
    else
        gemv_out<__half>(s, out, x, w, bias, y, m, n, k, y_stride);
    return cudaGetLastError();
}

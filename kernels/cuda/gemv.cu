/* Products with few rows of x, bound by the reading of w. A warp has two rows of it, for which x is
 * read and widened once, or shares them with others; a lane has 16-byte loads of both in flight,
 * the first of them before the kernel that makes x is done. The order of a sum depends on the shape
 * of w alone, not on the number of rows of x.
 *
 * With a small hidden size the chain of kernels takes longer than the reading. The sum over the
 * residual stream is then made in the product that adds to it, and the norm by the products that
 * read it: each block makes all of x for itself, and is large, so that w outweighs what is read for
 * the norm. */
#include "kernels/cuda/norm.cuh"

#define UNROLL 4
#define WARPS 4 /* of a block that finds x in memory */
/* A thread's of a row whose norm is made: four numbers each. */
#define NORM_PIECES (GEMV_NORM_MAX / 4u / NORM_THREADS)

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

/* Sums of both rows of w (turns pieces of 8 numbers) with those of x. All of x that a turn needs is
 * asked for at once; a load of w takes the place of the one just used. */
template <class T, int M>
static __device__ __forceinline__ void pair_dot(const uint4 *x, const uint4 *const w[2],
                                                uint32_t begin, uint32_t stride, uint32_t turns,
                                                uint4 ahead[2][UNROLL], float sum[2 * M])
{
    for (uint32_t c = begin; c < turns; c += stride * UNROLL)
#pragma unroll
        for (int i = 0; i < M; i++) {
            uint4 piece[UNROLL];

#pragma unroll
            for (int u = 0; u < UNROLL; u++)
                if (c + stride * u < turns)
                    piece[u] = x[i * turns + c + stride * u];
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                uint32_t next = c + stride * (UNROLL + u);

                if (c + stride * u < turns) {
                    dot8<T>(&sum[i], ahead[0][u], piece[u]);
                    dot8<T>(&sum[M + i], ahead[1][u], piece[u]);
                }
                if (i == M - 1 && next < turns) {
                    ahead[0][u] = __ldcs(w[0] + next);
                    ahead[1][u] = __ldcs(w[1] + next);
                }
            }
        }
}

/* The rows of x, (M, k) of shared memory, from the residual stream. */
template <class T, int M>
static __device__ __forceinline__ void rows_norm(const struct gemv_args &a,
                                                 const float4 weight[NORM_PIECES], uint2 *x)
{
    __shared__ float parts[M][NORM_WARPS];
    const float4 *residual = reinterpret_cast<const float4 *>(a.residual);
    uint32_t pieces = a.k / 4;
    float4 v[M][NORM_PIECES];

#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (uint32_t p = 0; p < NORM_PIECES; p++) {
            uint32_t at = p * NORM_THREADS + threadIdx.x;

            v[i][p] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (at < pieces)
                v[i][p] = residual[i * pieces + at];
        }
#pragma unroll
    for (int i = 0; i < M; i++) {
        float sum = 0.0f;

#pragma unroll
        for (uint32_t p = 0; p < NORM_PIECES; p++)
            sum += norm_squares(v[i][p]);
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0)
            parts[i][threadIdx.x / 32] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < M; i++) {
        float scale = norm_scale(parts[i], a.k, a.eps);

#pragma unroll
        for (uint32_t p = 0; p < NORM_PIECES; p++) {
            uint32_t at = p * NORM_THREADS + threadIdx.x;

            if (at < pieces)
                x[i * pieces + at] = norm_narrow<T>(v[i][p], scale, weight[p]);
        }
    }
    __syncthreads();
}

/* x[lane], of N in registers. */
template <int N> static __device__ __forceinline__ float lane_pick(const float *x, uint32_t lane)
{
    float mine = x[0];

#pragma unroll
    for (int i = 1; i < N; i++)
        mine = lane == i ? x[i] : mine;
    return mine;
}

/* Blocks of a multiprocessor that registers leave room for: for loads in flight, the next kernel's
 * too. */
static constexpr int blocks_fit(int m, bool norm)
{
    return norm ? m == 1 ? 4 : m == 2 ? 3 : 2 : m == 1 ? 8 : m == 2 ? 6 : 5;
}

/* SPLIT warps share two rows of w; a lane of them takes every (32 SPLIT)th piece of 8 numbers, and
 * lane r M + i of the first writes what row i of x has with row r of w. NORM: x is made here. What
 * is known before the wait, or needed last, is read early. */
template <class T, int M, int OUT, int SPLIT, bool NORM>
__global__ void __launch_bounds__(NORM ? NORM_THREADS : 32 * WARPS, blocks_fit(M, NORM))
    gemv_kernel(const struct gemv_args a)
{
    typedef half_ops<T> ops;
    extern __shared__ uint4 made[];
    __shared__ float parts[NORM ? NORM_WARPS : WARPS][2 * M];
    const int warps = NORM ? NORM_WARPS : WARPS, silu = OUT == GEMV_SILU;
    const int outs = silu ? 1 : 2; /* columns of y */
    const uint32_t stride = 32 * SPLIT;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, turns = a.k / 8;
    uint32_t first = (blockIdx.x * (warps / SPLIT) + warp / SPLIT) * outs;
    uint32_t begin = warp % SPLIT * 32 + lane, column = first + lane / M;
    uint32_t at = lane % M * a.y_stride + column;
    bool owner = warp % SPLIT == 0 && lane < outs * M && column < a.n;
    const uint4 *w[2];
    uint4 ahead[2][UNROLL];
    float4 weight[NORM_PIECES];
    float sum[2 * M] = {}, y = 0.0f, up = 0.0f;

    static_assert(SPLIT == 1 || !silu, "gate and up meet in a warp");
    next_start();
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        uint32_t row = first + (silu ? 0 : r), real = row < a.n ? row : a.n - 1;

        w[r] = static_cast<const uint4 *>(a.w) + (size_t)(silu ? real + r * a.n : real) * turns;
#pragma unroll
        for (uint32_t u = 0; u < UNROLL; u++)
            if (begin + stride * u < turns)
                ahead[r][u] = __ldcs(w[r] + begin + stride * u);
    }
#pragma unroll
    for (uint32_t p = 0; NORM && p < NORM_PIECES; p++)
        if (p * NORM_THREADS + threadIdx.x < a.k / 4)
            weight[p] = reinterpret_cast<const float4 *>(a.norm)[p * NORM_THREADS + threadIdx.x];
    if (OUT == GEMV_HALF && a.bias && owner)
        y = ops::widen(static_cast<const T *>(a.bias)[column]);
    previous_wait();
    if (OUT == GEMV_RESIDUAL && owner)
        y = __ldcg(static_cast<const float *>(a.y) + at);
    if (NORM)
        rows_norm<T, M>(a, weight, reinterpret_cast<uint2 *>(made));
    pair_dot<T, M>(NORM ? made : static_cast<const uint4 *>(a.x), w, begin, stride, turns, ahead,
                   sum);
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
        sum[i] = warp_sum(sum[i]);
        if (SPLIT > 1 && lane == 0)
            parts[warp][i] = sum[i];
    }
    if (SPLIT > 1)
        __syncthreads();
    if (!owner)
        return;
    if (SPLIT == 1)
        y += lane_pick<outs * M>(sum, lane);
    if (silu)
        up = lane_pick<M>(sum + M, lane);
#pragma unroll
    for (int p = 0; SPLIT > 1 && p < SPLIT; p++)
        y += parts[warp + p][lane];
    if (OUT == GEMV_FLOAT || OUT == GEMV_RESIDUAL)
        static_cast<float *>(a.y)[at] = y;
    else
        static_cast<T *>(a.y)[at] = ops::narrow(silu ? y / (1.0f + expf(-y)) * up : y);
}

template <class T, int M, int OUT, int SPLIT, bool NORM>
static cudaError_t gemv(cudaStream_t s, const struct gemv_args *a)
{
    const uint32_t warps = NORM ? NORM_WARPS : WARPS;
    const uint32_t columns = warps / SPLIT * (OUT == GEMV_SILU ? 1 : 2);

    return launch_chained(gemv_kernel<T, M, OUT, SPLIT, NORM>, dim3((a->n + columns - 1) / columns),
                          32 * warps, NORM ? (size_t)M * a->k * sizeof(T) : 0, s, *a);
}

template <class T, int OUT, int SPLIT, bool NORM = false>
static cudaError_t gemv_rows(cudaStream_t s, const struct gemv_args *a)
{
    switch (a->m) {
    case 1:
        return gemv<T, 1, OUT, SPLIT, NORM>(s, a);
    case 2:
        return gemv<T, 2, OUT, SPLIT, NORM>(s, a);
    case 3:
        return gemv<T, 3, OUT, SPLIT, NORM>(s, a);
    default:
        return gemv<T, 4, OUT, SPLIT, NORM>(s, a);
    }
}

/* Few columns alone would leave most of the GPU's loads unissued: warps share them, as many as make
 * one wave of blocks. */
template <class T, int OUT> static cudaError_t gemv_split(cudaStream_t s, const struct gemv_args *a)
{
    if (a->n <= 3072 && a->k >= 1024)
        return gemv_rows<T, OUT, 4>(s, a);
    return a->n <= 6144 && a->k >= 2048 ? gemv_rows<T, OUT, 2>(s, a) : gemv_rows<T, OUT, 1>(s, a);
}

template <class T>
static cudaError_t gemv_out(cudaStream_t s, enum gemv_out out, const struct gemv_args *a)
{
    switch (out) {
    case GEMV_FLOAT:
        return gemv_rows<T, GEMV_FLOAT, 1>(s, a);
    case GEMV_SILU:
        return a->x ? gemv_rows<T, GEMV_SILU, 1>(s, a) : gemv_rows<T, GEMV_SILU, 1, true>(s, a);
    case GEMV_RESIDUAL:
        return gemv_split<T, GEMV_RESIDUAL>(s, a);
    default:
        if (a->x)
            return gemv_split<T, GEMV_HALF>(s, a);
        return a->n <= 3072 ? gemv_rows<T, GEMV_HALF, 2, true>(s, a)
                            : gemv_rows<T, GEMV_HALF, 1, true>(s, a);
    }
}

cudaError_t launch_gemv(cudaStream_t s, enum half_type type, enum gemv_out out,
                        const struct gemv_args *a)
{
    if (!a->x && (a->k > GEMV_NORM_MAX || out == GEMV_FLOAT || out == GEMV_RESIDUAL))
        return cudaErrorInvalidValue;
    return type == HALF_BF16 ? gemv_out<__nv_bfloat16>(s, out, a) : gemv_out<__half>(s, out, a);
}

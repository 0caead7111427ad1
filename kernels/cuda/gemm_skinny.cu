/* Products with few rows of x on Hopper, bound by the reading of w: the rows of w are the 64 rows
 * of a warpgroup's products, those of x their 8 to 64 columns. One warp keeps a ring of tiles
 * filled by the tensor copy engine; w's part of the first of them is on its way before the kernel
 * that makes x is done. Blocks that share the columns of x are a cluster: each adds up its share of
 * the results from all of them, in order. So the order of a sum depends on the shape of w alone. */
#include "kernels/cuda/hopper.cuh"

#define CONSUMERS 128
#define THREADS (CONSUMERS + 32)
#define TILE_K 64u                           /* numbers: a swizzled row */
#define HALF_ROWS 64u                        /* rows of w in one product; a block has two */
#define HALF_BYTES (HALF_ROWS * SWIZZLE_ROW) /* of one, in a stage */
#define PART_STRIDE (2 * HALF_ROWS + 4)      /* floats of a row of x; apart in banks */
#define CLUSTER_MAX 8u
#define BLOCKS_EACH 2u /* of a multiprocessor: one computes, one of the next kernel waits loaded   \
                        */
#define DEPTH_MIN 4u   /* tiles of k a block should have */

/* The most tiles that let two blocks share a multiprocessor. */
template <int N> struct ring {
    static const uint32_t stages = N <= 16 ? 6 : N <= 32 ? 5 : 4;
    static const uint32_t x_bytes = N * SWIZZLE_ROW;
    static const uint32_t bytes = 2 * HALF_BYTES + x_bytes; /* of a stage */
    static const uint32_t shared = stages * bytes + SWIZZLE_SPAN;
};

struct skinny_args {
    const void *bias;
    void *y;
    uint32_t m, n, k_tiles, y_stride;
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define HOPPER_CODE
#endif

#ifdef HOPPER_CODE
struct block {
    uint32_t base;         /* of the ring */
    uint32_t full, empty;  /* the first of the barriers */
    uint32_t first, count; /* tiles of k */
    uint32_t row[2];       /* of w, for each half */
};

template <int N>
static __device__ __forceinline__ void w_copy(const struct block &b, const CUtensorMap *w,
                                              uint32_t i, uint64_t policy)
{
    uint32_t stage = i % ring<N>::stages, at = b.base + stage * ring<N>::bytes;
    uint32_t full = b.full + 8 * stage, k = (b.first + i) * TILE_K;

    barrier_expect(full, ring<N>::bytes);
    tile_copy(at, w, k, b.row[0], full, policy);
    tile_copy(at + HALF_BYTES, w, k, b.row[1], full, policy);
}

template <int N>
static __device__ __forceinline__ void x_copy(const struct block &b, const CUtensorMap *x,
                                              uint32_t i, uint64_t policy)
{
    uint32_t stage = i % ring<N>::stages, at = b.base + stage * ring<N>::bytes;

    tile_copy(at + 2 * HALF_BYTES, x, (b.first + i) * TILE_K, 0, b.full + 8 * stage, policy);
}

/* One thread. */
template <int N>
static __device__ __forceinline__ void ring_fill(const struct block &b, const CUtensorMap *w,
                                                 const CUtensorMap *x)
{
    const uint32_t stages = ring<N>::stages;
    uint32_t ahead = b.count < stages ? b.count : stages;
    uint64_t once = policy_evict_first(), again = policy_evict_last();

    for (uint32_t i = 0; i < ahead; i++)
        w_copy<N>(b, w, i, once);
    previous_wait();
    for (uint32_t i = 0; i < ahead; i++)
        x_copy<N>(b, x, i, again);
    for (uint32_t i = ahead; i < b.count; i++) {
        barrier_wait(b.empty + 8 * (i % stages), (i / stages - 1) & 1);
        w_copy<N>(b, w, i, once);
        x_copy<N>(b, x, i, again);
    }
}

/* A warpgroup: c (2, 64 rows of w, N rows of x). */
template <class T, int N>
static __device__ __forceinline__ void ring_multiply(const struct block &b, float (&c0)[N / 2],
                                                     float (&c1)[N / 2])
{
    const uint32_t stages = ring<N>::stages;

#pragma unroll
    for (int i = 0; i < N / 2; i++)
        c0[i] = c1[i] = 0.0f;
    for (uint32_t i = 0; i < b.count; i++) {
        uint32_t stage = i % stages, at = b.base + stage * ring<N>::bytes;
        uint64_t w0 = operand_of(at), w1 = operand_of(at + HALF_BYTES);
        uint64_t x = operand_of(at + 2 * HALF_BYTES);

        barrier_wait(b.full + 8 * stage, (i / stages) & 1);
        products_begin();
#pragma unroll
        for (uint32_t k = 0; k < TILE_K / 16; k++) {
            wgmma<T>::mma(c0, w0 + 2 * k, x + 2 * k);
            wgmma<T>::mma(c1, w1 + 2 * k, x + 2 * k);
        }
        products_commit();
        products_wait<1>();
        if (i && threadIdx.x % 32 == 0)
            barrier_arrive(b.empty + 8 * ((i - 1) % stages));
    }
    products_wait<0>();
}

/* To shared memory, (N, PART_STRIDE): a row of x after the other. */
template <int N>
static __device__ __forceinline__ void part_store(const float (&c)[N / 2], float *part)
{
    uint32_t row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;

#pragma unroll
    for (uint32_t i = 0; i < N / 2; i++)
        part[(i / 4 * 8 + column + i % 2) * PART_STRIDE + row + i / 2 % 2 * 8] = c[i];
}

/* Four results, the parts' sum in the order of the blocks. */
static __device__ __forceinline__ float4 parts_sum(uint32_t at, uint32_t parts)
{
    float4 part[CLUSTER_MAX], sum;

    if (parts == 1)
        return cluster_read(at, cluster_rank());
#pragma unroll
    for (uint32_t p = 0; p < CLUSTER_MAX; p++)
        if (p < parts)
            part[p] = cluster_read(at, p);
    sum = part[0];
#pragma unroll
    for (uint32_t p = 1; p < CLUSTER_MAX; p++)
        if (p < parts)
            sum = make_float4(sum.x + part[p].x, sum.y + part[p].y, sum.z + part[p].z,
                              sum.w + part[p].w);
    return sum;
}

static __device__ __forceinline__ float silu_times(float gate, float up)
{
    return gate / (1.0f + expf(-gate)) * up;
}

template <class T>
static __device__ __forceinline__ float4 bias_add(float4 v, const void *bias, uint32_t row)
{
    typedef half_ops<T> ops;
    uint2 packed = bias ? *reinterpret_cast<const uint2 *>(static_cast<const T *>(bias) + row)
                        : make_uint2(0, 0);
    float2 a = ops::widen2(packed.x), b = ops::widen2(packed.y);

    return make_float4(v.x + a.x, v.y + a.y, v.z + b.x, v.w + b.y);
}

/* This block's share of the results to y. */
template <class T, int OUT>
static __device__ __forceinline__ void results_store(const struct skinny_args &a, uint32_t part,
                                                     uint32_t tile, uint32_t parts)
{
    typedef half_ops<T> ops;
    const uint32_t rows = OUT == GEMV_SILU ? HALF_ROWS : 2 * HALF_ROWS, fours = rows / 4;
    uint32_t all = a.m * fours, rank = parts == 1 ? 0 : cluster_rank();
    uint32_t end = all * (rank + 1) / parts;

    for (uint32_t i = all * rank / parts + threadIdx.x; i < end; i += CONSUMERS) {
        uint32_t token = i / fours, r = i % fours * 4, row = tile * rows + r;
        uint32_t at = part + (token * PART_STRIDE + r) * 4;
        size_t to = (size_t)token * a.y_stride + row;
        float4 v;

        if (row >= a.n)
            continue;
        v = parts_sum(at, parts);
        if (OUT == GEMV_FLOAT) {
            *reinterpret_cast<float4 *>(static_cast<float *>(a.y) + to) = v;
            continue;
        }
        if (OUT == GEMV_SILU) {
            float4 up = parts_sum(at + HALF_ROWS * 4, parts);

            v = make_float4(silu_times(v.x, up.x), silu_times(v.y, up.y), silu_times(v.z, up.z),
                            silu_times(v.w, up.w));
        } else {
            v = bias_add<T>(v, a.bias, row);
        }
        *reinterpret_cast<uint2 *>(static_cast<T *>(a.y) + to) =
            make_uint2(ops::narrow2(v.x, v.y), ops::narrow2(v.z, v.w));
    }
}
#endif

/* Grid: a cluster for each tile of w's rows, or of gate's and up's. */
template <class T, int N, int OUT>
__global__ void __launch_bounds__(THREADS)
    skinny_kernel(const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap x,
                  const __grid_constant__ struct skinny_args a)
{
#ifdef HOPPER_CODE
    extern __shared__ uint8_t shared[];
    __shared__ uint64_t barriers[2][ring<N>::stages];
    uint32_t parts = cluster_size(), tile = blockIdx.x / parts, rank = blockIdx.x % parts;
    uint32_t base = (uint32_t)__cvta_generic_to_shared(shared);
    uint32_t aligned = (base + SWIZZLE_SPAN - 1) / SWIZZLE_SPAN * SWIZZLE_SPAN;
    struct block b = {};

    next_start();
    b.base = aligned;
    b.full = (uint32_t)__cvta_generic_to_shared(barriers[0]);
    b.empty = (uint32_t)__cvta_generic_to_shared(barriers[1]);
    b.first = a.k_tiles * rank / parts;
    b.count = a.k_tiles * (rank + 1) / parts - b.first;
    b.row[0] = OUT == GEMV_SILU ? tile * HALF_ROWS : tile * 2 * HALF_ROWS;
    b.row[1] = b.row[0] + (OUT == GEMV_SILU ? a.n : HALF_ROWS);
    if (threadIdx.x == CONSUMERS) {
        for (uint32_t i = 0; i < ring<N>::stages; i++) {
            barrier_init(b.full + 8 * i, 1);
            barrier_init(b.empty + 8 * i, CONSUMERS / 32);
        }
        barriers_publish();
    }
    __syncthreads();
    if (threadIdx.x == CONSUMERS)
        ring_fill<N>(b, &w, &x);
    if (threadIdx.x < CONSUMERS) {
        float *part = reinterpret_cast<float *>(shared + (aligned - base));
        float c0[N / 2], c1[N / 2];

        ring_multiply<T, N>(b, c0, c1);
        asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory"); /* the ring is read */
        part_store<N>(c0, part);
        part_store<N>(c1, part + HALF_ROWS);
    }
    __syncwarp();
    if (parts > 1)
        cluster_sync();
    else
        __syncthreads();
    if (threadIdx.x < CONSUMERS)
        results_store<T, OUT>(a, aligned, tile, parts);
    __syncwarp();
    if (parts > 1)
        cluster_sync(); /* others read this block's part until here */
#endif
}

/* Blocks that share a tile's k: until two a multiprocessor are there. */
static uint32_t parts_of(uint32_t tiles, uint32_t k_tiles, uint32_t multiprocessors)
{
    uint32_t parts = 1;

    while (parts < CLUSTER_MAX && tiles * parts * 2 <= multiprocessors * BLOCKS_EACH &&
           k_tiles / (parts * 2) >= DEPTH_MIN)
        parts *= 2;
    return parts;
}

template <class T, int N, int OUT>
static cudaError_t skinny(cudaStream_t s, const CUtensorMap *w, const CUtensorMap *x,
                          const struct skinny_args *a, uint32_t multiprocessors)
{
    uint32_t rows = OUT == GEMV_SILU ? HALF_ROWS : 2 * HALF_ROWS, tiles = (a->n + rows - 1) / rows;
    uint32_t parts = parts_of(tiles, a->k_tiles, multiprocessors);
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};

    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = parts;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.gridDim = dim3(tiles * parts);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = ring<N>::shared;
    config.stream = s;
    config.attrs = attributes;
    config.numAttrs = 2;
    return cudaLaunchKernelEx(&config, skinny_kernel<T, N, OUT>, *w, *x, *a);
}

template <class T, int OUT>
static cudaError_t skinny_rows(cudaStream_t s, const CUtensorMap *w, const CUtensorMap *x,
                               const struct skinny_args *a, uint32_t multiprocessors)
{
    return a->m <= 8    ? skinny<T, 8, OUT>(s, w, x, a, multiprocessors)
           : a->m <= 16 ? skinny<T, 16, OUT>(s, w, x, a, multiprocessors)
           : a->m <= 32 ? skinny<T, 32, OUT>(s, w, x, a, multiprocessors)
                        : skinny<T, 64, OUT>(s, w, x, a, multiprocessors);
}

template <class T>
static cudaError_t skinny_out(cudaStream_t s, enum gemv_out out, const CUtensorMap *w,
                              const CUtensorMap *x, const struct skinny_args *a,
                              uint32_t multiprocessors)
{
    return out == GEMV_FLOAT  ? skinny_rows<T, GEMV_FLOAT>(s, w, x, a, multiprocessors)
           : out == GEMV_SILU ? skinny_rows<T, GEMV_SILU>(s, w, x, a, multiprocessors)
                              : skinny_rows<T, GEMV_HALF>(s, w, x, a, multiprocessors);
}

uint32_t skinny_x_rows(uint32_t m)
{
    return m <= 8 ? 8 : m <= 16 ? 16 : m <= 32 ? 32 : 64;
}

cudaError_t launch_skinny(cudaStream_t s, enum half_type type, enum gemv_out out,
                          const CUtensorMap *w, const CUtensorMap *x, const void *bias, void *y,
                          uint32_t m, uint32_t n, uint32_t k, uint32_t y_stride,
                          uint32_t multiprocessors)
{
    const struct skinny_args a = {bias, y, m, n, (k + TILE_K - 1) / TILE_K, y_stride};

    return type == HALF_BF16 ? skinny_out<__nv_bfloat16>(s, out, w, x, &a, multiprocessors)
                             : skinny_out<__half>(s, out, w, x, &a, multiprocessors);
}

template <class T, int N, int OUT> static cudaError_t shared_allow(void)
{
    return cudaFuncSetAttribute(skinny_kernel<T, N, OUT>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize, ring<N>::shared);
}

template <class T, int OUT> static cudaError_t setup_rows(void)
{
    cudaError_t rc = shared_allow<T, 8, OUT>();

    if (rc == cudaSuccess)
        rc = shared_allow<T, 16, OUT>();
    if (rc == cudaSuccess)
        rc = shared_allow<T, 32, OUT>();
    return rc == cudaSuccess ? shared_allow<T, 64, OUT>() : rc;
}

template <class T> static cudaError_t setup_out(void)
{
    cudaError_t rc = setup_rows<T, GEMV_HALF>();

    if (rc == cudaSuccess)
        rc = setup_rows<T, GEMV_FLOAT>();
    return rc == cudaSuccess ? setup_rows<T, GEMV_SILU>() : rc;
}

cudaError_t skinny_setup(void)
{
    cudaError_t rc = setup_out<__nv_bfloat16>();

    return rc == cudaSuccess ? setup_out<__half>() : rc;
}

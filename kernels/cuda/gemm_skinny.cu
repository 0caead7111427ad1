/* Products with few rows of x on Hopper, bound by the reading of w: rows of w are the 64 rows of a
 * warpgroup's products, those of x their 8 to 64 columns. One warp keeps a ring of tiles filled by
 * the tensor copy engine; w's part of the first of them is on its way before the kernel that makes
 * x is done.
 *
 * Memory is shared evenly among the multiprocessors that ask, so a block a multiprocessor reads,
 * and all of them the same number of bytes: a tile has as many rows as that takes, and blocks take
 * as many tiles. Where that would be few rows, blocks of a cluster share a tile's k; each adds up
 * its share of the results from all of them, in order. So the order of a sum depends on the shapes
 * alone. */
#include "kernels/cuda/hopper.cuh"
#include <stdlib.h>

#define CONSUMERS 128
#define THREADS (CONSUMERS + 32)
#ifndef DEPTH
#define DEPTH 1u /* swizzled rows of k in a stage */
#endif
#define HALF_MAX 64u                  /* rows of w in one product; a block has two of them */
#define ROW_STRIDE (2 * HALF_MAX + 4) /* floats of a row of x; apart in banks */
#define PARTS_MAX 4u
#define STAGES_MAX 16u
/* Two blocks find room on a multiprocessor: one computes, one of the next kernel waits loaded. */
#define SHARED_MAX (112u << 10)

struct skinny_args {
    const void *bias;
    void *y;
    uint32_t m, n, k_tiles, y_stride; /* k_tiles: of DEPTH swizzled rows */
    uint32_t half, tiles, stages;     /* half: rows of w in one product, at most HALF_MAX */
    uint32_t apart;                   /* part: bytes behind the ring's begin */
    uint32_t lead, pre;
};

static __host__ __device__ constexpr uint32_t part_bytes(uint32_t n)
{
    return n * ROW_STRIDE * 4;
}

static __host__ __device__ __forceinline__ uint32_t stage_bytes(uint32_t n, uint32_t half)
{
    return (n + 2 * half) * PANEL_ROW * DEPTH;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* What a block does: k tiles first to first + count of tiles tile, tile + step, ... A stage has x's
 * rows, then the halves of w's; a product reads HALF_MAX rows also where a half has fewer, and
 * nobody looks at what comes of that. */
struct block {
    uint32_t ring, part;  /* in shared memory */
    uint32_t full, empty; /* the first of the barriers */
    uint32_t first, count, tile, step;
    uint32_t rows, apart; /* of w: from a tile to the next, from one half to the other */
};

template <int N>
static __device__ __forceinline__ void w_copy(const struct block &b, const struct skinny_args &a,
                                              const CUtensorMap *w, uint32_t i, uint64_t policy)
{
    uint32_t stage = i % a.stages, at = b.ring + stage * stage_bytes(N, a.half);
    uint32_t full = b.full + 8 * stage, k = (b.first + i % b.count) * PANEL * DEPTH;
    uint32_t tile = b.tile + i / b.count * b.step, box = a.half * PANEL_ROW;
    uint32_t row = tile * b.rows;

    at += N * PANEL_ROW * DEPTH;
    barrier_expect(full, stage_bytes(N, a.half));
#pragma unroll
    for (uint32_t h = 0; h < 2; h++)
#pragma unroll
        for (uint32_t d = 0; d < DEPTH; d++)
            box_load(w, at + (h * DEPTH + d) * box, full, k + d * PANEL, row + h * b.apart, policy);
}

template <int N>
static __device__ __forceinline__ void x_copy(const struct block &b, const struct skinny_args &a,
                                              const CUtensorMap *x, uint32_t i, uint64_t policy)
{
    uint32_t stage = i % a.stages, at = b.ring + stage * stage_bytes(N, a.half);
    uint32_t k = (b.first + i % b.count) * PANEL * DEPTH;

#pragma unroll
    for (uint32_t d = 0; d < DEPTH; d++)
        box_load(x, at + d * N * PANEL_ROW, b.full + 8 * stage, k + d * PANEL, 0, policy);
}

static __device__ __forceinline__ uint32_t turns_of(const struct block &b,
                                                    const struct skinny_args &a)
{
    return (a.tiles - b.tile + b.step - 1) / b.step * b.count;
}

template <int N>
static __device__ __forceinline__ void w_prefetch(const struct block &b,
                                                  const struct skinny_args &a, const CUtensorMap *w,
                                                  uint32_t i, uint64_t policy)
{
    uint32_t k = (b.first + i % b.count) * PANEL, tile = b.tile + i / b.count * b.step;

    box_prefetch(w, k, tile * b.rows, policy);
    box_prefetch(w, k, tile * b.rows + b.apart, policy);
}

/* One thread. The next kernel's blocks come when the last tiles are asked for: what they ask for
 * then keeps memory busy while this kernel ends. */
template <int N>
static __device__ __forceinline__ void ring_fill(const struct block &b, const struct skinny_args &a,
                                                 const CUtensorMap *w, const CUtensorMap *x)
{
    uint32_t turns = turns_of(b, a), ahead = turns < a.stages ? turns : a.stages;
    uint32_t close = turns > a.lead ? turns - a.lead : 0;
    uint32_t far = ahead + a.pre < turns ? ahead + a.pre : turns;
    uint64_t once = policy_evict_first(), again = policy_evict_last();

    if (close <= ahead)
        next_start();
    for (uint32_t i = 0; i < ahead; i++)
        w_copy<N>(b, a, w, i, once);
    for (uint32_t i = ahead; i < far; i++)
        w_prefetch<N>(b, a, w, i, once);
    previous_wait();
    for (uint32_t i = 0; i < ahead; i++)
        x_copy<N>(b, a, x, i, again);
    for (uint32_t i = ahead; i < turns; i++) {
        if (i == close)
            next_start();
        barrier_wait(b.empty + 8 * (i % a.stages), (i / a.stages - 1) & 1);
        w_copy<N>(b, a, w, i, once);
        x_copy<N>(b, a, x, i, again);
    }
}

/* A warpgroup, turns `turn` and on, of one tile: c (2, HALF_MAX rows of w, N rows of x). */
template <class T, int N>
static __device__ __forceinline__ void tile_multiply(const struct block &b,
                                                     const struct skinny_args &a, uint32_t turn,
                                                     float (&c0)[N / 2], float (&c1)[N / 2])
{
    uint32_t before = 0;

    for (uint32_t i = turn; i < turn + b.count; i++) {
        uint32_t stage = i % a.stages, at = b.ring + stage * stage_bytes(N, a.half);
        uint32_t box = a.half * PANEL_ROW;

        barrier_wait(b.full + 8 * stage, (i / a.stages) & 1);
        products_fence();
#pragma unroll
        for (uint32_t d = 0; d < DEPTH; d++) {
            uint32_t w_at = at + (N * DEPTH + d * a.half) * PANEL_ROW;
            uint64_t x = descriptor(at + d * N * PANEL_ROW, 16), w0 = descriptor(w_at, 16);
            uint64_t w1 = descriptor(w_at + DEPTH * box, 16);

#pragma unroll
            for (uint32_t k = 0; k < PANEL / 16; k++) {
                products_few<T>::few(c0, w0 + 2 * k, x + 2 * k, i != turn || d || k);
                products_few<T>::few(c1, w1 + 2 * k, x + 2 * k, i != turn || d || k);
            }
        }
        products_commit();
        products_wait<1>();
        if (before && threadIdx.x % 32 == 0)
            barrier_arrive(before);
        before = b.empty + 8 * stage;
    }
    products_wait<0>();
    if (threadIdx.x % 32 == 0)
        barrier_arrive(before);
}

/* To shared memory, (N, ROW_STRIDE): a row of x after the other, its halves at 0 and HALF_MAX. */
template <int N>
static __device__ __forceinline__ void part_store(const float (&c)[N / 2], float *part)
{
    uint32_t row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;

#pragma unroll
    for (uint32_t i = 0; i < N / 2; i++)
        part[(i / 4 * 8 + column + i % 2) * ROW_STRIDE + row + i / 2 % 2 * 8] = c[i];
}

/* Four results, the parts' sum in the order of the blocks. */
static __device__ __forceinline__ float4 parts_sum(uint32_t at, uint32_t parts)
{
    float4 part[PARTS_MAX], sum;

    if (parts == 1)
        return cluster_read(at, cluster_rank());
#pragma unroll
    for (uint32_t p = 0; p < PARTS_MAX; p++)
        if (p < parts)
            part[p] = cluster_read(at, p);
    sum = part[0];
#pragma unroll
    for (uint32_t p = 1; p < PARTS_MAX; p++)
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

/* This block's share of a tile's results to y. */
template <class T, int OUT>
static __device__ __forceinline__ void results_store(const struct skinny_args &a, uint32_t part,
                                                     uint32_t tile, uint32_t parts)
{
    typedef half_ops<T> ops;
    const uint32_t halves = OUT == GEMV_SILU ? 1 : 2;
    uint32_t fours = halves * a.half / 4, all = a.m * fours;
    uint32_t rank = parts == 1 ? 0 : cluster_rank(), end = all * (rank + 1) / parts;

    for (uint32_t i = all * rank / parts + threadIdx.x; i < end; i += CONSUMERS) {
        uint32_t token = i / fours, r = i % fours * 4, row = tile * halves * a.half + r;
        uint32_t in_part = r < a.half ? r : r - a.half + HALF_MAX;
        uint32_t at = part + (token * ROW_STRIDE + in_part) * 4;
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
            float4 up = parts_sum(at + HALF_MAX * 4, parts);

            v = make_float4(silu_times(v.x, up.x), silu_times(v.y, up.y), silu_times(v.z, up.z),
                            silu_times(v.w, up.w));
        } else {
            v = bias_add<T>(v, a.bias, row);
        }
        *reinterpret_cast<uint2 *>(static_cast<T *>(a.y) + to) =
            make_uint2(ops::narrow2(v.x, v.y), ops::narrow2(v.z, v.w));
    }
}

static __device__ __forceinline__ void consumers_sync(void)
{
    asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory");
}

/* All tiles of a block that has its k alone; `part` is read before it is written again. */
template <class T, int N, int OUT>
static __device__ __forceinline__ void tiles_multiply(const struct block &b,
                                                      const struct skinny_args &a, float *part)
{
    uint32_t turn = 0;

    for (uint32_t tile = b.tile; tile < a.tiles; tile += b.step, turn += b.count) {
        float c0[N / 2], c1[N / 2];

        tile_multiply<T, N>(b, a, turn, c0, c1);
        consumers_sync();
        part_store<N>(c0, part);
        part_store<N>(c1, part + HALF_MAX);
        consumers_sync();
        results_store<T, OUT>(a, b.part, tile, 1);
    }
}

/* The one tile of a cluster. All threads of its blocks come here; they leave together, since others
 * read a block's part. */
template <class T, int N, int OUT>
static __device__ __forceinline__ void
tile_share(const struct block &b, const struct skinny_args &a, float *part, uint32_t parts)
{
    if (threadIdx.x < CONSUMERS) {
        float c0[N / 2], c1[N / 2];

        tile_multiply<T, N>(b, a, 0, c0, c1);
        consumers_sync();
        part_store<N>(c0, part);
        part_store<N>(c1, part + HALF_MAX);
    }
    __syncwarp();
    cluster_sync();
    if (threadIdx.x < CONSUMERS)
        results_store<T, OUT>(a, b.part, b.tile, parts);
    __syncwarp();
    cluster_sync();
}
#endif

/* Grid: blocks of a cluster share a tile's k; clusters take tiles in turn, one where they have more
 * than one block. */
template <class T, int N, int OUT>
__global__ void __launch_bounds__(THREADS)
    skinny_kernel(const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap x,
                  const __grid_constant__ struct skinny_args a)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ uint8_t shared[];
    __shared__ uint64_t barriers[2][STAGES_MAX];
    uint32_t parts = cluster_size(), rank = blockIdx.x % parts;
    uint32_t base = (uint32_t)__cvta_generic_to_shared(shared);
    struct block b = {};

    b.ring = (base + PANEL_ALIGNMENT - 1) / PANEL_ALIGNMENT * PANEL_ALIGNMENT;
    b.part = b.ring + a.apart;
    b.full = (uint32_t)__cvta_generic_to_shared(barriers[0]);
    b.empty = (uint32_t)__cvta_generic_to_shared(barriers[1]);
    b.first = a.k_tiles * rank / parts;
    b.count = a.k_tiles * (rank + 1) / parts - b.first;
    b.tile = blockIdx.x / parts;
    b.step = gridDim.x / parts;
    b.rows = OUT == GEMV_SILU ? a.half : 2 * a.half;
    b.apart = OUT == GEMV_SILU ? a.n : a.half;
    if (threadIdx.x == CONSUMERS) {
        for (uint32_t i = 0; i < a.stages; i++) {
            barrier_init(b.full + 8 * i, 1);
            barrier_init(b.empty + 8 * i, CONSUMERS / 32);
        }
        barriers_publish();
    }
    __syncthreads();
    if (threadIdx.x == CONSUMERS)
        ring_fill<N>(b, a, &w, &x);

    float *part = reinterpret_cast<float *>(shared + (b.part - base));

    if (parts > 1)
        tile_share<T, N, OUT>(b, a, part, parts);
    else if (threadIdx.x < CONSUMERS)
        tiles_multiply<T, N, OUT>(b, a, part);
#endif
}

struct cut {
    uint32_t parts, half, tiles, clusters;
};

static uint32_t ceil_to(uint32_t x, uint32_t step)
{
    return (x + step - 1) / step * step;
}

/* How n rows are cut for that many blocks of a cluster; false: not at all. */
static bool rows_cut(uint32_t parts, uint32_t n, uint32_t halves, uint32_t multiprocessors,
                     struct cut *c)
{
    uint32_t most = multiprocessors / parts, each = 1, half;

    do
        half = ceil_to((n + most * each * halves - 1) / (most * each * halves), 8);
    while (half > HALF_MAX && parts == 1 && ++each);
    c->parts = parts;
    c->half = half;
    c->tiles = (n + half * halves - 1) / (half * halves);
    c->clusters = c->tiles < most ? c->tiles : most;
    return half <= HALF_MAX;
}

/* The cut in which a block reads least. What it reads of x comes from the L2 cache, some three
 * times as fast; adding up the parts takes as long as 24 KB. */
static struct cut cut_choose(uint32_t n, uint32_t k, uint32_t x_rows, uint32_t halves,
                             uint32_t multiprocessors)
{
    struct cut best = {}, c;
    uint64_t least = UINT64_MAX;

    for (uint32_t parts = 1; parts <= PARTS_MAX; parts *= 2) {
        uint64_t bytes;

        if (!rows_cut(parts, n, halves, multiprocessors, &c) ||
            (parts > 1 && k / parts < PANEL * 4))
            continue;
        bytes = (uint64_t)((c.tiles + c.clusters - 1) / c.clusters) * (2 * c.half + x_rows / 3) *
                    (k / parts) * 2 +
                (parts > 1 ? 24u << 10 : 0);
        if (bytes < least) {
            least = bytes;
            best = c;
        }
    }
    return best;
}

struct skinny_call {
    cudaStream_t stream;
    CUtensorMap w, x;
    struct skinny_args a;
    uint32_t parts, clusters;
};

template <class T, int N, int OUT> static cudaError_t skinny(struct skinny_call *c)
{
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};
    uint32_t stage = stage_bytes(N, c->a.half), behind = (HALF_MAX - c->a.half) * PANEL_ROW;
    bool again = c->a.tiles > c->clusters; /* the ring is filled again when a tile is done */

    if (again && behind < part_bytes(N))
        behind = part_bytes(N);
    c->a.stages = (SHARED_MAX - PANEL_ALIGNMENT - behind) / stage;
    c->a.stages = c->a.stages < STAGES_MAX ? c->a.stages : STAGES_MAX;
    c->a.apart = again ? c->a.stages * stage : 0;
    c->a.lead = getenv("SK_LEAD") ? atoi(getenv("SK_LEAD")) : c->a.stages;
    c->a.pre = getenv("SK_PRE") ? atoi(getenv("SK_PRE")) * 1024 / (2 * c->a.half * PANEL_ROW) : 0;
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = c->parts;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.gridDim = dim3(c->clusters * c->parts);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = PANEL_ALIGNMENT + c->a.stages * stage + behind;
    config.stream = c->stream;
    config.attrs = attributes;
    config.numAttrs = 2;
    return cudaLaunchKernelEx(&config, skinny_kernel<T, N, OUT>, c->w, c->x, c->a);
}

/* Columns of the products. */
static uint32_t columns_of(uint32_t m)
{
    return m <= 8 ? 8 : m <= 16 ? 16 : m <= 32 ? 32 : 64;
}

template <class T, int OUT> static cudaError_t skinny_rows(struct skinny_call *c)
{
    switch (columns_of(c->a.m)) {
    case 8:
        return skinny<T, 8, OUT>(c);
    case 16:
        return skinny<T, 16, OUT>(c);
    case 32:
        return skinny<T, 32, OUT>(c);
    default:
        return skinny<T, 64, OUT>(c);
    }
}

template <class T> static cudaError_t skinny_out(enum gemv_out out, struct skinny_call *c)
{
    return out == GEMV_FLOAT  ? skinny_rows<T, GEMV_FLOAT>(c)
           : out == GEMV_SILU ? skinny_rows<T, GEMV_SILU>(c)
                              : skinny_rows<T, GEMV_HALF>(c);
}

cudaError_t launch_skinny(cudaStream_t s, enum half_type type, enum gemv_out out,
                          const struct skinny_product *p)
{
    const uint32_t halves = out == GEMV_SILU ? 1 : 2;
    const struct cut cut = cut_choose(p->n, p->k, columns_of(p->m), halves, p->multiprocessors);
    const uint32_t w_sizes[] = {p->k, out == GEMV_SILU ? 2 * p->n : p->n}, x_sizes[] = {p->k, p->m};
    const uint32_t w_box[] = {PANEL, cut.half}, x_box[] = {PANEL, columns_of(p->m)};
    struct skinny_call c = {};
    cudaError_t rc = tensor_map_make(&c.w, type, p->w, 2, w_sizes, w_box);

    if (rc == cudaSuccess)
        rc = tensor_map_make(&c.x, type, p->x, 2, x_sizes, x_box);
    if (rc != cudaSuccess)
        return rc;
    c.stream = s;
    c.parts = cut.parts;
    c.clusters = cut.clusters;
    c.a.bias = p->bias;
    c.a.y = p->y;
    c.a.m = p->m;
    c.a.n = p->n;
    c.a.k_tiles = (p->k + PANEL * DEPTH - 1) / (PANEL * DEPTH);
    c.a.y_stride = p->y_stride;
    c.a.half = cut.half;
    c.a.tiles = cut.tiles;
    return type == HALF_BF16 ? skinny_out<__nv_bfloat16>(out, &c) : skinny_out<__half>(out, &c);
}

template <class T, int N, int OUT> static cudaError_t shared_allow(void)
{
    return cudaFuncSetAttribute(skinny_kernel<T, N, OUT>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_MAX);
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

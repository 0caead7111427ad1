/* Attention of single tokens on any GPU: blocks share the positions of a sequence, each warp sees
 * every fourth tile of a block's, and the last block to finish adds the parts in order. */
#include "kernels/cuda/attention_decode.cuh"

#define SPLITS_MAX 64u /* blocks that share a sequence */

/* What each of `parts` parts counts for in each row, to shared memory: weights[part][row], whose
 * sum over parts times the parts' sums is 1. A warp a row; all it reads is on its way at once. */
template <int D, int ROWS>
static __device__ __forceinline__ void parts_weigh(const float *parts_at, uint32_t parts,
                                                   uint32_t rows, float *weights)
{
    const int turns = ROWS / WARPS, each = SPLITS_MAX / 32;
    const size_t stride = DECODE_ROWS * PART_STRIDE(D);
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float2 seen[turns][each];

#pragma unroll
    for (int t = 0; t < turns; t++)
#pragma unroll
        for (int i = 0; i < each; i++) {
            uint32_t part = lane + 32 * i, m = warp + WARPS * t;

            seen[t][i] = make_float2(-CUDART_INF_F, 0.0f);
            if (part < parts && m < rows)
                seen[t][i] = __ldcg(reinterpret_cast<const float2 *>(parts_at + part * stride +
                                                                     m * PART_STRIDE(D) + D));
        }
#pragma unroll
    for (int t = 0; t < turns; t++) {
        uint32_t m = warp + WARPS * t;
        float all = -CUDART_INF_F, total = 0.0f;

        if (m >= rows)
            break;
#pragma unroll
        for (int i = 0; i < each; i++)
            all = fmaxf(all, seen[t][i].x);
        for (int i = 16; i; i >>= 1)
            all = fmaxf(all, __shfl_xor_sync(0xffffffffu, all, i));
#pragma unroll
        for (int i = 0; i < each; i++) {
            seen[t][i].x = exp2f(seen[t][i].x - all);
            total += seen[t][i].x * seen[t][i].y;
        }
        total = warp_sum(total);
#pragma unroll
        for (int i = 0; i < each; i++)
            if (lane + 32 * i < parts)
                weights[(lane + 32 * i) * DECODE_ROWS + m] = seen[t][i].x / total;
    }
}

#define PARTS_AHEAD 16

/* The first parts of the i'th two numbers. */
template <int D>
static __device__ __forceinline__ void pair_load(const float *parts_at, uint32_t parts, uint32_t i,
                                                 uint32_t rows, float2 out[PARTS_AHEAD])
{
    const float *at = parts_at + i / (D / 2) * PART_STRIDE(D) + i % (D / 2) * 2;

#pragma unroll
    for (uint32_t p = 0; p < PARTS_AHEAD; p++)
        if (p < parts && i < rows * (D / 2))
            out[p] =
                __ldcg(reinterpret_cast<const float2 *>(at + p * DECODE_ROWS * PART_STRIDE(D)));
}

/* out (rows, D): the parts' weighted sum, in order. What most launches have of them is on its way
 * while the weights are made. */
template <class T, int D, int ROWS>
static __device__ __forceinline__ void parts_add(const float *parts_at, uint32_t parts,
                                                 uint32_t rows, float *weights, T *out)
{
    const size_t stride = DECODE_ROWS * PART_STRIDE(D);
    const uint32_t pairs = ROWS <= WARPS ? 1 : 2; /* of numbers, on their way */
    float2 ahead[pairs][PARTS_AHEAD];

#pragma unroll
    for (uint32_t k = 0; k < pairs; k++)
        pair_load<D>(parts_at, parts, threadIdx.x + k * THREADS, rows, ahead[k]);
    parts_weigh<D, ROWS>(parts_at, parts, rows, weights);
    __syncthreads();
    for (uint32_t base = threadIdx.x; base < rows * (D / 2); base += pairs * THREADS) {
        if (base != threadIdx.x)
#pragma unroll
            for (uint32_t k = 0; k < pairs; k++)
                pair_load<D>(parts_at, parts, base + k * THREADS, rows, ahead[k]);
#pragma unroll
        for (uint32_t k = 0; k < pairs; k++) {
            uint32_t i = base + k * THREADS, m = i / (D / 2), d = i % (D / 2) * 2;
            const float *at = parts_at + m * PART_STRIDE(D) + d;
            float2 sum = make_float2(0.0f, 0.0f);

            if (m >= rows)
                break;
#pragma unroll
            for (uint32_t p = 0; p < PARTS_AHEAD; p++)
                if (p < parts) {
                    float weight = weights[p * DECODE_ROWS + m];

                    sum = make_float2(fmaf(weight, ahead[k][p].x, sum.x),
                                      fmaf(weight, ahead[k][p].y, sum.y));
                }
#pragma unroll 8
            for (uint32_t p = PARTS_AHEAD; p < parts; p++) {
                float weight = weights[p * DECODE_ROWS + m];
                float2 v = __ldcg(reinterpret_cast<const float2 *>(at + p * stride));

                sum = make_float2(fmaf(weight, v.x, sum.x), fmaf(weight, v.y, sum.y));
            }
            *reinterpret_cast<uint32_t *>(out + m * D + d) = half_ops<T>::narrow2(sum.x, sum.y);
        }
    }
}

/* Grid: (blocks of a unit, units of a row, rows). A block takes a span of the positions. A unit has
 * at most ROWS heads: few take fewer registers. */
template <class T, int D, int ROWS>
__global__ void __launch_bounds__(THREADS) split_kernel(struct attention_args a)
{
    extern __shared__ uint4 shared[];
    __shared__ uint32_t arrived;
    const uint32_t warp_bytes = TILE / WARPS * D * 2; /* of k or v, one turn, one warp */
    const uint32_t part_floats = DECODE_ROWS * PART_STRIDE(D);
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t base = shared_address(shared) + warp * 4 * warp_bytes, turn = 0;
    uint32_t begin, end, span, splits;
    float *parts_at = reinterpret_cast<float *>(shared);
    struct rows16<D> r;

    next_start();
    previous_wait();

    struct unit u = unit_of(a, row_at(a, blockIdx.z), blockIdx.y);
    uint32_t index = blockIdx.z * gridDim.y + blockIdx.y;
    float *partials = a.partials + (size_t)index * gridDim.x * part_floats;
    T *out = unit_out<T, D>(a, u);

    begin = u.first / TILE * TILE;
    end = u.row.start + 1;
    span = ((end - begin + gridDim.x - 1) / gridDim.x + TILE - 1) / TILE * TILE;
    splits = (end - begin + span - 1) / span;
    if (blockIdx.x >= splits)
        return;
    begin += blockIdx.x * span;
    end = begin + span < end ? begin + span : end;
    begin += warp * (TILE / WARPS);
    tile_load<D>(u.keys, base, base + warp_bytes, begin, TILE / WARPS, end, lane, 32);
    copies_commit();
    rows_reset(r);
    unit_query(r, a, u, end);
    for (uint32_t p = begin; p < end; p += TILE, turn ^= 1) {
        uint32_t here = base + turn * 2 * warp_bytes;

        if (p + TILE < end) {
            uint32_t next = base + (turn ^ 1) * 2 * warp_bytes;

            tile_load<D>(u.keys, next, next + warp_bytes, p + TILE, TILE / WARPS, end, lane, 32);
        }
        copies_commit();
        copies_wait<1>();
        __syncwarp();
        rows_attend<T, D, TILE / WARPS>(r, here, here + warp_bytes, p, a.scale * LOG2E);
        __syncwarp();
    }
    copies_wait<0>();
    rows_finish(r);
    __syncthreads();
    rows_store(r, parts_at + warp * part_floats, u.heads);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < u.heads * (D / 2); i += THREADS) {
        uint32_t m = i / (D / 2), d = i % (D / 2) * 2;
        float *part = partials + blockIdx.x * part_floats + m * PART_STRIDE(D), top, sum;
        float2 value = warps_merge<D>(parts_at + m * PART_STRIDE(D), part_floats, d, &top, &sum);

        if (splits == 1) {
            *reinterpret_cast<uint32_t *>(out + m * D + d) =
                half_ops<T>::narrow2(value.x / sum, value.y / sum);
            continue;
        }
        *reinterpret_cast<float2 *>(part + d) = value;
        if (d == 0)
            *reinterpret_cast<float2 *>(part + D) = make_float2(top, sum);
    }
    if (splits == 1)
        return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        arrived = atomicAdd(&a.arrivals[index], 1u);
    __syncthreads();
    if (arrived != splits - 1)
        return;
    __threadfence();
    parts_add<T, D, ROWS>(partials, splits, u.heads, parts_at, out);
    if (threadIdx.x == 0)
        a.arrivals[index] = 0;
}

/* Two turns of k and v; the warps' parts go over them at the end. */
template <int D> static size_t split_bytes(void)
{
    size_t tiles = 2 * 2 * TILE * D * 2, parts = WARPS * DECODE_ROWS * PART_STRIDE(D) * 4;

    return tiles > parts ? tiles : parts;
}

/* Blocks fill the GPU a few times over with the units there are. */
template <class T, int D>
static cudaError_t launch_split(cudaStream_t s, const struct attention_args *a, uint32_t units)
{
    uint32_t group = a->heads / a->kv_heads, splits = 2 * a->multiprocessors / units;
    dim3 grid(splits < 1            ? 1
              : splits > SPLITS_MAX ? SPLITS_MAX
                                    : splits,
              units / a->decode_count, a->decode_count);

    return launch_chained(group <= WARPS ? split_kernel<T, D, WARPS>
                                         : split_kernel<T, D, DECODE_ROWS>,
                          grid, THREADS, split_bytes<D>(), s, *a);
}

template <class T, int D> struct prepare {
    static cudaError_t kernels(void)
    {
        const cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
        int bytes = (int)split_bytes<D>();
        cudaError_t rc = cudaFuncSetAttribute(split_kernel<T, D, WARPS>, most, bytes);

        return rc == cudaSuccess
                   ? cudaFuncSetAttribute(split_kernel<T, D, DECODE_ROWS>, most, bytes)
                   : rc;
    }
};

cudaError_t attention_decode_setup(void)
{
    cudaError_t rc = heads_prepare<prepare>();

    if (rc != cudaSuccess || !hopper_built())
        return rc;
    rc = decode_hopper_setup();
    return rc == cudaSuccess ? decode_balanced_setup() : rc;
}

template <class T>
static cudaError_t launch_split_of(cudaStream_t s, const struct attention_args *a, uint32_t units)
{
    return a->head_dim == 64 ? launch_split<T, 64>(s, a, units) : launch_split<T, 128>(s, a, units);
}

cudaError_t launch_attention_decode(cudaStream_t s, enum half_type t,
                                    const struct attention_args *a)
{
    uint32_t units = a->decode_count * ROW_UNITS(a->heads, a->kv_heads);

    if (attention_rotates(a->head_dim, a->page_size))
        return a->balanced ? launch_decode_balanced(s, t, a) : launch_decode_hopper(s, t, a, units);
    return t == HALF_BF16 ? launch_split_of<__nv_bfloat16>(s, a, units)
                          : launch_split_of<__half>(s, a, units);
}

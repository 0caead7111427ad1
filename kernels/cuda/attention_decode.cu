/* Attention of single tokens: a block takes the DECODE_ROWS heads of one token; each warp sees
 * every fourth tile of 16 keys, blocks share the positions of a sequence, and the last block to
 * finish adds the parts in order. */
#include "kernels/cuda/attention.cuh"

/* A block's result for DECODE_ROWS rows, in shared or global memory: sums of v, then top and sum of
 * the weights, a row after the other. */
#define PART_STRIDE(D) ((D) + 2)

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

template <int D>
static __device__ __forceinline__ void rows_store(const struct rows16<D> &r, float *part)
{
    uint32_t lane = threadIdx.x % 32;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        float *row = part + (lane / 4 + h * 8) * PART_STRIDE(D);

#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            row[n * 8 + lane % 4 * 2] = r.o[n][h * 2];
            row[n * 8 + lane % 4 * 2 + 1] = r.o[n][h * 2 + 1];
        }
        if (lane % 4 == 0) {
            row[D] = r.top[h];
            row[D + 1] = r.sum[h];
        }
    }
}

/* Two numbers of a row from the warps' parts in shared memory; its top and sum. */
template <int D>
static __device__ __forceinline__ float2 warps_merge(const float *row, uint32_t d, float *top,
                                                     float *sum)
{
    const size_t stride = DECODE_ROWS * PART_STRIDE(D);
    float2 own[WARPS], value = make_float2(0.0f, 0.0f);
    float shift;

    *top = -CUDART_INF_F;
    *sum = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) {
        own[i] = *reinterpret_cast<const float2 *>(row + i * stride + D);
        *top = fmaxf(*top, own[i].x);
    }
    shift = *top == -CUDART_INF_F ? 0.0f : *top;
#pragma unroll
    for (int i = 0; i < WARPS; i++) {
        float2 v = *reinterpret_cast<const float2 *>(row + i * stride + d);
        float weight = exp2f(own[i].x - shift);

        *sum += weight * own[i].y;
        value = make_float2(fmaf(weight, v.x, value.x), fmaf(weight, v.y, value.y));
    }
    return value;
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

/* Grid: (splits, KV heads * tiles of 16 heads, rows). A tile has at most ROWS heads: few take fewer
 * registers, which the next kernel's blocks then start in. */
template <class T, int D, int ROWS>
__global__ void __launch_bounds__(THREADS) decode_kernel(struct attention_args a)
{
    extern __shared__ uint4 shared[];
    __shared__ uint32_t arrived;

    next_start();

    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = a.heads / a.kv_heads;
    uint32_t tiles = (group + DECODE_ROWS - 1) / DECODE_ROWS;
    uint32_t kv_head = blockIdx.y / tiles, head0 = blockIdx.y % tiles * DECODE_ROWS;
    struct frame_row row = a.rows[a.decode_rows[blockIdx.z]];
    struct keys s = {static_cast<const uint16_t *>(a.k),
                     static_cast<const uint16_t *>(a.v),
                     a.slot_pages + (size_t)row.slot * a.pages_per_slot,
                     a.page_size,
                     a.kv_heads,
                     kv_head};
    uint32_t position = row.start, first = 0, begin, end = position + 1, span, splits, mine_end;
    const uint32_t warp_bytes = TILE / WARPS * D * 2; /* of k or v, one turn, one warp */
    const size_t part_floats = DECODE_ROWS * PART_STRIDE(D);
    uint32_t base = shared_address(shared) + warp * 4 * warp_bytes, turn = 0;
    size_t unit = (size_t)blockIdx.z * gridDim.y + blockIdx.y;
    float *partials = a.partials + unit * gridDim.x * part_floats;
    struct rows16<D> r;
    bool early;

    if (a.window && position + 1 > a.window)
        first = position + 1 - a.window;
    begin = first / TILE * TILE;
    span = ((end - begin + gridDim.x - 1) / gridDim.x + TILE - 1) / TILE * TILE;
    splits = (end - begin + span - 1) / span;
    if (blockIdx.x >= splits) {
        previous_wait();
        return;
    }
    begin += blockIdx.x * span;
    mine_end = begin + span < end ? begin + span : end;

    begin += warp * (TILE / WARPS);
    /* Keys of earlier positions are there since earlier steps, and the frame since the step's
     * upload: only the queries and the newest key have to be waited for. */
    early = begin + TILE / WARPS <= position;
    if (early)
        tile_load<D>(s, base, base + warp_bytes, begin, TILE / WARPS, mine_end, lane, 32);
    rows_reset(r);
    previous_wait();
    if (!early)
        tile_load<D>(s, base, base + warp_bytes, begin, TILE / WARPS, mine_end, lane, 32);
    copies_commit();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t m = head0 + lane / 4 + h * 8;

        rows_query(r, h,
                   m < group ? static_cast<const uint16_t *>(a.qkv) +
                                   (size_t)row.token * a.qkv_stride + (kv_head * group + m) * D
                             : NULL);
        r.first[h] = first;
        r.last[h] = mine_end - 1;
    }
    for (uint32_t p = begin; p < mine_end; p += TILE, turn ^= 1) {
        uint32_t here = base + turn * 2 * warp_bytes;

        if (p + TILE < mine_end) {
            uint32_t next = base + (turn ^ 1) * 2 * warp_bytes;

            tile_load<D>(s, next, next + warp_bytes, p + TILE, TILE / WARPS, mine_end, lane, 32);
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
    rows_store(r, reinterpret_cast<float *>(shared) + warp * part_floats);
    __syncthreads();

    uint16_t *out = static_cast<uint16_t *>(a.out) + (size_t)row.token * a.out_stride;

    for (uint32_t i = threadIdx.x; i < DECODE_ROWS * (D / 2); i += THREADS) {
        uint32_t m = i / (D / 2), d = i % (D / 2) * 2;
        float *part = partials + blockIdx.x * part_floats + m * PART_STRIDE(D), top, sum;
        float2 value;

        if (head0 + m >= group)
            break;
        value = warps_merge<D>(reinterpret_cast<const float *>(shared) + m * PART_STRIDE(D), d,
                               &top, &sum);
        if (splits == 1) {
            *reinterpret_cast<uint32_t *>(out + (kv_head * group + head0 + m) * D + d) =
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
        arrived = atomicAdd(&a.arrivals[unit], 1u);
    __syncthreads();
    if (arrived != splits - 1)
        return;
    __threadfence();

    parts_add<T, D, ROWS>(partials, splits,
                          group - head0 < DECODE_ROWS ? group - head0 : DECODE_ROWS,
                          reinterpret_cast<float *>(shared),
                          reinterpret_cast<T *>(out) + (kv_head * group + head0) * D);
    if (threadIdx.x == 0)
        a.arrivals[unit] = 0;
}

/* Two turns of k and v; the warps' parts go over them at the end. */
template <int D> static size_t shared_bytes(void)
{
    size_t tiles = 2 * 2 * TILE * D * 2, parts = WARPS * DECODE_ROWS * PART_STRIDE(D) * 4;

    return tiles > parts ? tiles : parts;
}

template <class T, int D> static cudaError_t kernels_setup(void)
{
    const cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    cudaError_t rc = cudaFuncSetAttribute(decode_kernel<T, D, WARPS>, most, (int)shared_bytes<D>());

    if (rc == cudaSuccess)
        rc = cudaFuncSetAttribute(decode_kernel<T, D, DECODE_ROWS>, most, (int)shared_bytes<D>());
    return rc;
}

cudaError_t attention_decode_setup(void)
{
    cudaError_t rc = kernels_setup<__nv_bfloat16, 64>();

    if (rc == cudaSuccess)
        rc = kernels_setup<__nv_bfloat16, 128>();
    if (rc == cudaSuccess)
        rc = kernels_setup<__half, 64>();
    return rc == cudaSuccess ? kernels_setup<__half, 128>() : rc;
}

template <class T, int D> static cudaError_t decode(cudaStream_t s, const struct attention_args *a)
{
    uint32_t group = a->heads / a->kv_heads, tiles = (group + DECODE_ROWS - 1) / DECODE_ROWS;
    dim3 grid(a->splits, a->kv_heads * tiles, a->decode_count);

    return launch_chained(group <= WARPS ? decode_kernel<T, D, WARPS>
                                         : decode_kernel<T, D, DECODE_ROWS>,
                          grid, THREADS, shared_bytes<D>(), s, *a);
}

template <class T> static cudaError_t decode_of(cudaStream_t s, const struct attention_args *a)
{
    return a->head_dim == 64 ? decode<T, 64>(s, a) : decode<T, 128>(s, a);
}

cudaError_t launch_attention_decode(cudaStream_t s, enum half_type t,
                                    const struct attention_args *a)
{
    return t == HALF_BF16 ? decode_of<__nv_bfloat16>(s, a) : decode_of<__half>(s, a);
}

/* Attention of single tokens. A unit is the heads of a token that share a KV head, DECODE_ROWS of
 * them at most. Its positions are shared by blocks and warps, each with tiles of 16 keys; parts of
 * the sums are added in one order. What the kernels share. */
#ifndef PHALANX_KERNELS_CUDA_ATTENTION_DECODE_CUH
#define PHALANX_KERNELS_CUDA_ATTENTION_DECODE_CUH

#include "kernels/cuda/attention.cuh"

/* A token's heads of one KV head. */
struct unit {
    struct frame_row row; /* of one token */
    struct keys keys;
    uint32_t heads, head0; /* how many there are, and the first */
    uint32_t first;        /* position they see */
};

/* The index'th row of single tokens. */
static __device__ __forceinline__ struct frame_row row_at(const struct attention_args &a,
                                                          uint32_t index)
{
    uint4 x = reinterpret_cast<const uint4 *>(a.rows)[a.decode_rows[index]];

    static_assert(sizeof(struct frame_row) == sizeof(uint4), "a row is read at once");
    return {x.x, x.y, x.z, x.w};
}

/* The y'th unit of a row: y goes over KV heads and their tiles of DECODE_ROWS heads. */
static __device__ __forceinline__ struct unit unit_of(const struct attention_args &a,
                                                      const struct frame_row &row, uint32_t y)
{
    uint32_t group = a.heads / a.kv_heads, tiles = (group + DECODE_ROWS - 1) / DECODE_ROWS;
    uint32_t kv_head = y / tiles, begin = y % tiles * DECODE_ROWS;
    struct unit u;

    u.row = row;
    u.keys = {static_cast<const uint16_t *>(a.k),
              static_cast<const uint16_t *>(a.v),
              a.slot_pages + (size_t)u.row.slot * a.pages_per_slot,
              a.page_size,
              a.kv_heads,
              kv_head};
    u.heads = group - begin < DECODE_ROWS ? group - begin : DECODE_ROWS;
    u.head0 = kv_head * group + begin;
    u.first = a.window && u.row.start + 1 > a.window ? u.row.start + 1 - a.window : 0;
    return u;
}

/* The queries; they see positions before `end`. */
template <int D>
static __device__ __forceinline__ void
unit_query(struct rows16<D> &r, const struct attention_args &a, const struct unit &u, uint32_t end)
{
    const uint16_t *q =
        static_cast<const uint16_t *>(a.qkv) + (size_t)u.row.token * a.qkv_stride + u.head0 * D;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t m = threadIdx.x % 32 / 4 + h * 8;

        rows_query(r, h, m < u.heads ? q + m * D : NULL);
        r.first[h] = u.first;
        r.last[h] = end - 1;
    }
}

template <class T, int D>
static __device__ __forceinline__ T *unit_out(const struct attention_args &a, const struct unit &u)
{
    return static_cast<T *>(a.out) + (size_t)u.row.token * a.out_stride + u.head0 * D;
}

/* A warp's or block's result for up to DECODE_ROWS rows: sums of v, then top and sum of the
 * weights, a row after the other, PART_STRIDE numbers each. */
template <int D>
static __device__ __forceinline__ void rows_store(const struct rows16<D> &r, float *part,
                                                  uint32_t rows)
{
    uint32_t lane = threadIdx.x % 32;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t m = lane / 4 + h * 8;
        float *row = part + m * PART_STRIDE(D);

        if (m >= rows)
            continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *reinterpret_cast<float2 *>(row + n * 8 + lane % 4 * 2) =
                make_float2(r.o[n][h * 2], r.o[n][h * 2 + 1]);
        if (lane % 4 == 0)
            *reinterpret_cast<float2 *>(row + D) = make_float2(r.top[h], r.sum[h]);
    }
}

/* Two numbers of N parts together, in order, and their top and sum; own: those of each. */
template <int N>
static __device__ __forceinline__ float2 parts_merge(const float2 (&own)[N],
                                                     const float2 (&value)[N], float *top,
                                                     float *sum)
{
    float2 all = make_float2(0.0f, 0.0f);
    float shift;

    *top = -CUDART_INF_F;
    *sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++)
        *top = fmaxf(*top, own[i].x);
    shift = *top == -CUDART_INF_F ? 0.0f : *top;
#pragma unroll
    for (int i = 0; i < N; i++) {
        float weight = exp2f(own[i].x - shift);

        *sum += weight * own[i].y;
        all = make_float2(fmaf(weight, value[i].x, all.x), fmaf(weight, value[i].y, all.y));
    }
    return all;
}

/* Two numbers of a row from the warps' parts, `stride` apart in shared memory. */
template <int D>
static __device__ __forceinline__ float2 warps_merge(const float *row, uint32_t stride, uint32_t d,
                                                     float *top, float *sum)
{
    float2 own[WARPS], value[WARPS];

#pragma unroll
    for (int i = 0; i < WARPS; i++) {
        own[i] = *reinterpret_cast<const float2 *>(row + i * stride + D);
        value[i] = *reinterpret_cast<const float2 *>(row + i * stride + d);
    }
    return parts_merge(own, value, top, sum);
}

/* decode_hopper.cu */
cudaError_t decode_hopper_setup(void);
cudaError_t launch_decode_hopper(cudaStream_t s, enum half_type t, const struct attention_args *a,
                                 uint32_t units);

/* decode_balanced.cu */
cudaError_t decode_balanced_setup(void);
cudaError_t launch_decode_balanced(cudaStream_t s, enum half_type t,
                                   const struct attention_args *a);

#endif

/* RMSNorm and rotation of a head: what their own kernel (step.cu) and decode attention
 * (decode_hopper.cu) share, so that both leave the same bits. A head's pairs are (i, i + D / 2).
 * Squares are added in one order, whoever holds them: a pair's, then over the bits of i: above 4,
 * 4, 3, 0, 1, 2. */
#ifndef PHALANX_KERNELS_CUDA_ROPE_CUH
#define PHALANX_KERNELS_CUDA_ROPE_CUH

#include "kernels/cuda/half.cuh"

/* What the numbers (x, y) of a pair are multiplied by: x and y for the first, y and x for the
 * second. angle: cosine, sine; weight: the norm's. */
static __device__ __forceinline__ float4 pair_turn(float2 angle, float2 weight)
{
    return make_float4(angle.x * weight.x, angle.y * weight.y, angle.x * weight.y,
                       angle.y * weight.x);
}

static __device__ __forceinline__ float2 pair_rotate(float2 v, float4 turn, float scale)
{
    return make_float2(fmaf(v.x, turn.x, -(v.y * turn.y)) * scale,
                       fmaf(v.y, turn.z, v.x * turn.w) * scale);
}

static __device__ __forceinline__ float pair_squares(float2 v)
{
    return fmaf(v.y, v.y, v.x * v.x);
}

/* Of a warp whose lanes hold pairs i = lane + 32 k, each the sum of its own. */
static __device__ __forceinline__ float head_sum(float sum)
{
    sum += __shfl_xor_sync(0xffffffffu, sum, 16);
    sum += __shfl_xor_sync(0xffffffffu, sum, 8);
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    return sum + __shfl_xor_sync(0xffffffffu, sum, 4);
}

static __device__ __forceinline__ float head_scale(float sum, uint32_t head_dim, float eps)
{
    return rsqrtf(sum / (float)head_dim + eps);
}

#endif

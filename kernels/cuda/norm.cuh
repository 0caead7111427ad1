/* RMSNorm of rows of the residual stream: what its own kernel (step.cu) and the products that make
 * it for themselves (gemv.cu) share, so that both leave the same bits. */
#ifndef PHALANX_KERNELS_CUDA_NORM_CUH
#define PHALANX_KERNELS_CUDA_NORM_CUH

#include "kernels/cuda/half.cuh"

#define NORM_THREADS 256
#define NORM_WARPS (NORM_THREADS / 32)

static __device__ __forceinline__ float norm_squares(float4 v)
{
    return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, v.x * v.x)));
}

/* From the sums of squares of a row, one a warp. */
static __device__ __forceinline__ float norm_scale(const float parts[NORM_WARPS], uint32_t width,
                                                   float eps)
{
    float sum = 0.0f;

#pragma unroll
    for (int i = 0; i < NORM_WARPS; i++)
        sum += parts[i];
    return rsqrtf(fmaf(sum, __fdividef(1.0f, (float)width), eps));
}

template <class T>
static __device__ __forceinline__ uint2 norm_narrow(float4 v, float scale, float4 weight)
{
    typedef half_ops<T> ops;

    return make_uint2(ops::narrow2(v.x * scale * weight.x, v.y * scale * weight.y),
                      ops::narrow2(v.z * scale * weight.z, v.w * scale * weight.w));
}

#endif

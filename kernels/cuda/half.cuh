/* bf16 and f16 behind one face. */
#ifndef PHALANX_KERNELS_CUDA_HALF_CUH
#define PHALANX_KERNELS_CUDA_HALF_CUH

#include "kernels/cuda/launch.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <class T> struct half_ops;

template <> struct half_ops<__nv_bfloat16> {
    static __device__ float widen(__nv_bfloat16 x)
    {
        return __bfloat162float(x);
    }
    static __device__ __nv_bfloat16 narrow(float x)
    {
        return __float2bfloat16_rn(x);
    }
    static __device__ float2 widen2(uint32_t x)
    {
        return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
    }
    static __device__ uint32_t narrow2(float a, float b)
    {
        __nv_bfloat162 h = __floats2bfloat162_rn(a, b);

        return *reinterpret_cast<uint32_t *>(&h);
    }
    /* c (16 x 8) += a (16 x 16) b (16 x 8) */
    static __device__ void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
    {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

template <> struct half_ops<__half> {
    static __device__ float widen(__half x)
    {
        return __half2float(x);
    }
    static __device__ __half narrow(float x)
    {
        return __float2half_rn(x);
    }
    static __device__ float2 widen2(uint32_t x)
    {
        return __half22float2(*reinterpret_cast<__half2 *>(&x));
    }
    static __device__ uint32_t narrow2(float a, float b)
    {
        __half2 h = __floats2half2_rn(a, b);

        return *reinterpret_cast<uint32_t *>(&h);
    }
    static __device__ void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
    {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

/* Kernels of a step follow each other closely: on Hopper each may start while the one before it
 * drains (programmatic dependent launch). Before previous_wait() a kernel may only touch what no
 * kernel of a step writes. Of a kernel launched by launch_chained or launch_clustered at least one
 * block calls it, so that the kernel's end means the end of all before it; blocks that touch
 * nothing may leave without. */
static __device__ __forceinline__ void previous_wait(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

static __device__ __forceinline__ void next_start(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Blocks in clusters of `cluster` along x; more than one on Hopper alone. Code that is not for
 * Hopper does not wait, and is not chained. */
template <class... P, class... A>
static cudaError_t launch_clustered(void (*kernel)(P...), dim3 grid, uint32_t cluster,
                                    uint32_t threads, size_t shared, cudaStream_t s, A... args)
{
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};

    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = cluster;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = s;
    config.attrs = attributes;
    config.numAttrs = !hopper_built() ? 0 : cluster > 1 ? 2 : 1;
    return cudaLaunchKernelEx(&config, kernel, P(args)...);
}

template <class... P, class... A>
static cudaError_t launch_chained(void (*kernel)(P...), dim3 grid, uint32_t threads, size_t shared,
                                  cudaStream_t s, A... args)
{
    return launch_clustered(kernel, grid, 1, threads, shared, s, args...);
}

static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ float warp_sum(float x)
{
    for (int i = 16; i; i >>= 1)
        x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
}

/* Prepare<T, D>::kernels() for both halves and the head sizes that have tensor-core kernels. */
template <template <class, int> class Prepare> static cudaError_t heads_prepare(void)
{
    cudaError_t rc = Prepare<__nv_bfloat16, 64>::kernels();

    if (rc == cudaSuccess)
        rc = Prepare<__nv_bfloat16, 128>::kernels();
    if (rc == cudaSuccess)
        rc = Prepare<__half, 64>::kernels();
    return rc == cudaSuccess ? Prepare<__half, 128>::kernels() : rc;
}

#endif

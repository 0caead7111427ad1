/* Hopper's own instructions: barriers in shared memory that count bytes, TMA, products by whole
 * warpgroups. For code that is built for sm_90a. */
#ifndef PHALANX_KERNELS_CUDA_HOPPER_CUH
#define PHALANX_KERNELS_CUDA_HOPPER_CUH

#include "kernels/cuda/half.cuh"

#include <cuda.h>

/* A matrix in shared memory is panels of 64 columns, one after the other: rows of 128 bytes whose
 * 16-byte chunks are permuted by the row's lowest three bits (the 128-byte swizzle). */
#define PANEL 64u
#define PANEL_ROW 128u        /* bytes */
#define PANEL_ALIGNMENT 1024u /* eight rows, after which the permutation repeats */

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

static __device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}

static __device__ __forceinline__ void barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrives, and has the phase wait for that many bytes too. */
static __device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

static __device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t phase)
{
    uint32_t done;

    do
        asm volatile("{\n"
                     ".reg .pred done;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, done;\n"
                     "}"
                     : "=r"(done)
                     : "r"(barrier), "r"(phase)
                     : "memory");
    while (!done);
}

/* What was stored to shared memory can be read by wgmma. */
static __device__ __forceinline__ void stores_publish(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* A box of the tensor to shared memory; coordinates: column, row in the page, page and head. */
static __device__ __forceinline__ void box_load(const CUtensorMap *map, uint32_t to,
                                                uint32_t barrier, uint32_t column, uint32_t row,
                                                uint32_t unit)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(column), "r"(row), "r"(unit)
                 : "memory");
}

static __device__ __forceinline__ float exp2_fast(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Of a matrix with the 128-byte swizzle. Eight rows are 1,024 bytes; `panels`: bytes from a panel
 * to the next where rows are along k, else of no meaning. */
static __device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t panels)
{
    return (uint64_t)(address >> 4) | (uint64_t)(panels >> 4) << 16 |
           (uint64_t)(8 * PANEL_ROW >> 4) << 32 | (uint64_t)1 << 62;
}

#define OUT4(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define OUT16(c, i) OUT4(c, i), OUT4(c, i + 4), OUT4(c, i + 8), OUT4(c, i + 12)
#define OUT32(c) OUT16(c, 0), OUT16(c, 16)
#define OUT64(c) OUT32(c), OUT16(c, 32), OUT16(c, 48)
#define NAMES32                                                                                    \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "   \
    "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES64                                                                                    \
    NAMES32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "   \
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

/* scores: c (64 x 128) (+)= a b^T, both in shared memory, rows along m and n. values: c += a b, a
 * (64 x 16) in registers, b in shared memory, rows along k. A lane's c[4 j + 2 h + i] is row
 * lane / 4 + 8 h of its warp's 16, column 8 j + lane % 4 * 2 + i; a is as mma.sync has it. */
template <class T> struct products;

#define PRODUCTS(T, type)                                                                          \
    template <> struct products<T> {                                                               \
        static __device__ __forceinline__ void scores(float (&c)[64], uint64_t a, uint64_t b,      \
                                                      int adds)                                    \
        {                                                                                          \
            asm volatile("{\n"                                                                     \
                         ".reg .pred adds;\n"                                                      \
                         "setp.ne.s32 adds, %66, 0;\n"                                             \
                         "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" NAMES64 \
                         "}, %64, %65, adds, 1, 1, 0, 0;\n"                                        \
                         "}"                                                                       \
                         : OUT64(c)                                                                \
                         : "l"(a), "l"(b), "r"(adds));                                             \
        }                                                                                          \
        static __device__ __forceinline__ void values(float (&c)[64], const uint32_t *a,           \
                                                      uint64_t b)                                  \
        {                                                                                          \
            asm volatile("{\n"                                                                     \
                         ".reg .pred adds;\n"                                                      \
                         "setp.ne.s32 adds, %69, 0;\n"                                             \
                         "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" NAMES64 \
                         "}, {%64, %65, %66, %67}, %68, adds, 1, 1, 1;\n"                          \
                         "}"                                                                       \
                         : OUT64(c)                                                                \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));            \
        }                                                                                          \
        static __device__ __forceinline__ void values(float (&c)[32], const uint32_t *a,           \
                                                      uint64_t b)                                  \
        {                                                                                          \
            asm volatile("{\n"                                                                     \
                         ".reg .pred adds;\n"                                                      \
                         "setp.ne.s32 adds, %37, 0;\n"                                             \
                         "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" NAMES32  \
                         "}, {%32, %33, %34, %35}, %36, adds, 1, 1, 1;\n"                          \
                         "}"                                                                       \
                         : OUT32(c)                                                                \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));            \
        }                                                                                          \
    }

PRODUCTS(__nv_bfloat16, "bf16");
PRODUCTS(__half, "f16");

/* Products run on while the code goes on. Registers they use are held where they are: the compiler
 * must neither move an access over the fence or the wait, nor reuse what is still being read. */
template <int N> static __device__ __forceinline__ void hold(float (&x)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(x[i])::"memory");
}

template <int N> static __device__ __forceinline__ void hold(uint32_t (&x)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(x[i])::"memory");
}

static __device__ __forceinline__ void products_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void products_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int N> static __device__ __forceinline__ void products_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

#endif
#endif

/* What only Hopper has (sm_90a): barriers in shared memory that count bytes, tiles copied by the
 * tensor copy engine, products of a warpgroup, clusters. Terms and layouts are those of the PTX ISA
 * 9.0, sections on mbarrier, cp.async.bulk.tensor, wgmma and barrier.cluster. */
#ifndef PHALANX_KERNELS_CUDA_HOPPER_CUH
#define PHALANX_KERNELS_CUDA_HOPPER_CUH

#include "kernels/cuda/half.cuh"

#define SWIZZLE_ROW 128u   /* bytes of a row that the 128-byte swizzle permutes within 8 rows */
#define SWIZZLE_SPAN 1024u /* a tile's alignment: 8 such rows */

static __device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

/* Behind the last barrier_init, before others see the barriers. */
static __device__ __forceinline__ void barriers_publish(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

static __device__ __forceinline__ void barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrives, and makes the phase wait for so many bytes more. */
static __device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

/* Until the phase of that parity (0: the first) has completed. */
static __device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

/* Data that is read once should not drive out of the L2 cache what is read again. */
static __device__ __forceinline__ uint64_t policy_evict_first(void)
{
    uint64_t policy;

    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

static __device__ __forceinline__ uint64_t policy_evict_last(void)
{
    uint64_t policy;

    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* A tile at (column, row) of a matrix to shared memory; `barrier` gets its bytes. */
static __device__ __forceinline__ void tile_copy(uint32_t dst, const CUtensorMap *map,
                                                 uint32_t column, uint32_t row, uint32_t barrier,
                                                 uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(dst),
                 "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
                 : "memory");
}

/* Of an operand in shared memory whose rows of 64 numbers follow each other, 128-byte swizzle: the
 * next 16 numbers of k are 32 bytes on, that is 2 in the descriptor. */
static __device__ __forceinline__ uint64_t operand_of(uint32_t address)
{
    const uint64_t stride = SWIZZLE_SPAN >> 4, leading = 1, swizzle_128b = 1;

    return (uint64_t)((address & 0x3ffffu) >> 4) | leading << 16 | stride << 32 |
           swizzle_128b << 62;
}

static __device__ __forceinline__ void products_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void products_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most N groups are under way. */
template <int N> static __device__ __forceinline__ void products_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

#define FOUR(c, i) "+f"(c[i]), "+f"(c[(i) + 1]), "+f"(c[(i) + 2]), "+f"(c[(i) + 3])
#define EIGHT(c, i) FOUR(c, i), FOUR(c, (i) + 4)
#define SIXTEEN(c, i) EIGHT(c, i), EIGHT(c, (i) + 8)
#define DST4 "%0,%1,%2,%3"
#define DST8 DST4 ",%4,%5,%6,%7"
#define DST16 DST8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define DST32 DST16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA(N, TYPE, DST, A, B, ADD)                                                             \
    "{\n.reg .pred add;\nsetp.ne.b32 add, " ADD ", 0;\n"                                           \
    "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" DST "}, " A ", " B         \
    ", add, 1, 1, 0, 0;\n}"

/* c (64, N) = a (64, 16) b (N, 16)^T, or += where `add`, by a warpgroup; thread t has rows t / 32 *
 * 16 + t % 32 / 4 and the eighth after it, of every 8 columns t % 4 * 2 and the next: c[column / 8
 * * 4 + row half * 2 + column % 2]. */
#define WGMMA_OF(T, TYPE)                                                                          \
    template <> struct wgmma<T> {                                                                  \
        static __device__ __forceinline__ void mma(float (&c)[4], uint64_t a, uint64_t b,          \
                                                   uint32_t add)                                   \
        {                                                                                          \
            asm volatile(WGMMA("8", TYPE, DST4, "%4", "%5", "%6")                                  \
                         : FOUR(c, 0)                                                              \
                         : "l"(a), "l"(b), "r"(add));                                              \
        }                                                                                          \
        static __device__ __forceinline__ void mma(float (&c)[8], uint64_t a, uint64_t b,          \
                                                   uint32_t add)                                   \
        {                                                                                          \
            asm volatile(WGMMA("16", TYPE, DST8, "%8", "%9", "%10")                                \
                         : EIGHT(c, 0)                                                             \
                         : "l"(a), "l"(b), "r"(add));                                              \
        }                                                                                          \
        static __device__ __forceinline__ void mma(float (&c)[16], uint64_t a, uint64_t b,         \
                                                   uint32_t add)                                   \
        {                                                                                          \
            asm volatile(WGMMA("32", TYPE, DST16, "%16", "%17", "%18")                             \
                         : SIXTEEN(c, 0)                                                           \
                         : "l"(a), "l"(b), "r"(add));                                              \
        }                                                                                          \
        static __device__ __forceinline__ void mma(float (&c)[32], uint64_t a, uint64_t b,         \
                                                   uint32_t add)                                   \
        {                                                                                          \
            asm volatile(WGMMA("64", TYPE, DST32, "%32", "%33", "%34")                             \
                         : SIXTEEN(c, 0), SIXTEEN(c, 16)                                           \
                         : "l"(a), "l"(b), "r"(add));                                              \
        }                                                                                          \
    }
template <class T> struct wgmma;
WGMMA_OF(__nv_bfloat16, "bf16");
WGMMA_OF(__half, "f16");

static __device__ __forceinline__ uint32_t cluster_size(void)
{
    uint32_t n;

    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
    return n;
}

static __device__ __forceinline__ uint32_t cluster_rank(void)
{
    uint32_t n;

    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(n));
    return n;
}

/* Every thread of the cluster; what they wrote to shared memory is seen behind it. */
static __device__ __forceinline__ void cluster_sync(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* Four numbers at `address` of the cluster's block `rank`. */
static __device__ __forceinline__ float4 cluster_read(uint32_t address, uint32_t rank)
{
    uint32_t there;
    float4 v;

    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(there)
                 : "memory");
    return v;
}

#endif

/* Hopper's own instructions: barriers in shared memory that count bytes, TMA, products by whole
 * warpgroups, clusters. For code that is built for sm_90a. Terms and layouts are those of the PTX
 * ISA 9.0, sections on mbarrier, cp.async.bulk.tensor, wgmma and barrier.cluster. */
#ifndef PHALANX_KERNELS_CUDA_HOPPER_CUH
#define PHALANX_KERNELS_CUDA_HOPPER_CUH

#include "kernels/cuda/half.cuh"

/* A matrix in shared memory is panels of 64 columns, one after the other: rows of 128 bytes whose
 * 16-byte chunks are permuted by the row's lowest three bits (the 128-byte swizzle). */
#define PANEL 64u
#define PANEL_ROW 128u        /* bytes */
#define PANEL_ALIGNMENT 1024u /* eight rows, after which the permutation repeats */

/* Byte offset of a row's 16-byte chunk in a matrix of ROWS rows. */
template <uint32_t ROWS>
static __device__ __forceinline__ uint32_t panel_at(uint32_t row, uint32_t chunk)
{
    return (chunk / 8 * ROWS + row) * PANEL_ROW + ((chunk ^ row) & 7u) * 16;
}

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

/* Behind the last barrier_init, before others see the barriers. */
static __device__ __forceinline__ void barriers_publish(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* What was stored to shared memory can be read by wgmma. */
static __device__ __forceinline__ void stores_publish(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
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

/* The same with a policy of the L2 cache. */
static __device__ __forceinline__ void box_load(const CUtensorMap *map, uint32_t to,
                                                uint32_t barrier, uint32_t column, uint32_t row,
                                                uint32_t unit, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(column), "r"(row), "r"(unit), "l"(policy)
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
#define OUT8(c, i) OUT4(c, i), OUT4(c, i + 4)
#define OUT16(c, i) OUT8(c, i), OUT8(c, i + 8)
#define OUT32(c) OUT16(c, 0), OUT16(c, 16)
#define OUT64(c) OUT32(c), OUT16(c, 32), OUT16(c, 48)
#define NAMES4 "%0, %1, %2, %3"
#define NAMES8 NAMES4 ", %4, %5, %6, %7"
#define NAMES16 NAMES8 ", %8, %9, %10, %11, %12, %13, %14, %15"
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

/* few: c (64 x N) (+)= a b^T for N of 8, 16, 32 or 64, both in shared memory, as scores. */
template <class T> struct products_few;

#define FEW(N, type, names, outs, a_at, b_at, adds_at)                                             \
    asm volatile("{\n"                                                                             \
                 ".reg .pred adds;\n"                                                              \
                 "setp.ne.s32 adds, " adds_at ", 0;\n"                                             \
                 "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." type "." type " {" names         \
                 "}, " a_at ", " b_at ", adds, 1, 1, 0, 0;\n"                                      \
                 "}"                                                                               \
                 : outs                                                                            \
                 : "l"(a), "l"(b), "r"(adds))

#define PRODUCTS_FEW(T, type)                                                                      \
    template <> struct products_few<T> {                                                           \
        static __device__ __forceinline__ void few(float (&c)[4], uint64_t a, uint64_t b,          \
                                                   int adds)                                       \
        {                                                                                          \
            FEW("8", type, NAMES4, OUT4(c, 0), "%4", "%5", "%6");                                  \
        }                                                                                          \
        static __device__ __forceinline__ void few(float (&c)[8], uint64_t a, uint64_t b,          \
                                                   int adds)                                       \
        {                                                                                          \
            FEW("16", type, NAMES8, OUT8(c, 0), "%8", "%9", "%10");                                \
        }                                                                                          \
        static __device__ __forceinline__ void few(float (&c)[16], uint64_t a, uint64_t b,         \
                                                   int adds)                                       \
        {                                                                                          \
            FEW("32", type, NAMES16, OUT16(c, 0), "%16", "%17", "%18");                            \
        }                                                                                          \
        static __device__ __forceinline__ void few(float (&c)[32], uint64_t a, uint64_t b,         \
                                                   int adds)                                       \
        {                                                                                          \
            FEW("64", type, NAMES32, OUT32(c), "%32", "%33", "%34");                               \
        }                                                                                          \
    }

PRODUCTS_FEW(__nv_bfloat16, "bf16");
PRODUCTS_FEW(__half, "f16");

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

/* What other blocks of the cluster send to this one's shared memory is counted by `barrier`, once:
 * it opens when `bytes` have come. Nobody may send before exchange_ready(). */
static __device__ __forceinline__ void exchange_open(uint32_t barrier, uint32_t bytes)
{
    if (threadIdx.x == 0) {
        barrier_init(barrier, 1);
        barriers_publish();
        barrier_expect(barrier, bytes);
    }
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

static __device__ __forceinline__ void exchange_ready(void)
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

static __device__ __forceinline__ void exchange_wait(uint32_t barrier)
{
    uint32_t open;

    do
        asm volatile("{\n\t"
                     ".reg .pred p;\n\t"
                     "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0;\n\t"
                     "selp.u32 %0, 1, 0, p;\n\t"
                     "}"
                     : "=r"(open)
                     : "r"(barrier)
                     : "memory");
    while (!open);
}

/* 16 bytes to block `rank`'s shared memory; addresses are this block's of the same things. */
static __device__ __forceinline__ void exchange_send(uint32_t to, uint32_t barrier, uint32_t rank,
                                                     float4 x)
{
    asm volatile("{\n\t"
                 ".reg .b32 to, counter;\n\t"
                 "mapa.shared::cluster.u32 to, %0, %2;\n\t"
                 "mapa.shared::cluster.u32 counter, %1, %2;\n\t"
                 "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 "
                 "[to], {%3, %4, %5, %6}, [counter];\n\t"
                 "}" ::"r"(to),
                 "r"(barrier), "r"(rank), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w)
                 : "memory");
}

#endif
#endif

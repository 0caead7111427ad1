/* Decode attention on Hopper: a warp's tiles of keys, which the tensor copy engine brings into its
 * ring. What the kernels share. */
#ifndef PHALANX_KERNELS_CUDA_DECODE_HOPPER_CUH
#define PHALANX_KERNELS_CUDA_DECODE_HOPPER_CUH

#include "kernels/cuda/decode_rope.cuh"
#include "kernels/cuda/hopper.cuh"

/* A layer's pages as one matrix of keys, one of values, in tiles. */
struct key_maps {
    CUtensorMap k, v;
};

static cudaError_t pages_map(CUtensorMap *out, enum half_type t, const struct attention_args *a,
                             const void *data)
{
    const uint32_t panels = a->head_dim / PANEL, rows = a->pages * a->kv_heads * a->page_size;
    const uint32_t sizes[] = {PANEL, rows, panels}, box[] = {PANEL, DECODE_KEYS, panels};
    const uint64_t strides[] = {(uint64_t)a->head_dim * 2, PANEL_ROW};

    return tensor_map_make(out, t, data, 3, sizes, strides, box);
}

static cudaError_t keys_map(struct key_maps *out, enum half_type t, const struct attention_args *a)
{
    cudaError_t rc = pages_map(&out->k, t, a, a->k);

    return rc == cudaSuccess ? pages_map(&out->v, t, a, a->v) : rc;
}

/* Kind<T, D, ROTATE, HALVES>::at is a kernel: ROTATE: the queries and the newest key are made
 * there; HALVES: 1 where a unit has at most 8 heads, else 2. */
typedef void decode_kernel(struct attention_args, struct key_maps);

template <template <class, int, bool, int> class Kind, class T, int D>
static decode_kernel *kernel_of_size(bool rotate, bool halves)
{
    return rotate   ? halves ? Kind<T, D, true, 2>::at : Kind<T, D, true, 1>::at
           : halves ? Kind<T, D, false, 2>::at
                    : Kind<T, D, false, 1>::at;
}

template <template <class, int, bool, int> class Kind, class T>
static decode_kernel *kernel_of_type(uint32_t head_dim, bool rotate, bool halves)
{
    return head_dim == 64 ? kernel_of_size<Kind, T, 64>(rotate, halves)
                          : kernel_of_size<Kind, T, 128>(rotate, halves);
}

template <template <class, int, bool, int> class Kind>
static decode_kernel *kernel_of(enum half_type t, uint32_t head_dim, bool rotate, bool halves)
{
    return t == HALF_BF16 ? kernel_of_type<Kind, __nv_bfloat16>(head_dim, rotate, halves)
                          : kernel_of_type<Kind, __half>(head_dim, rotate, halves);
}

template <template <class, int, bool, int> class Kind>
static decode_kernel *kernel_for(enum half_type t, const struct attention_args *a)
{
    return kernel_of<Kind>(t, a->head_dim, a->rope != NULL,
                           a->heads / a->kv_heads > DECODE_ROWS / 2);
}

/* All of them may have so many bytes of shared memory. */
template <template <class, int, bool, int> class Kind>
static cudaError_t kernels_prepare(size_t (*bytes)(uint32_t head_dim))
{
    cudaError_t rc = cudaSuccess;

    for (uint32_t i = 0; i < 16 && rc == cudaSuccess; i++) {
        uint32_t head_dim = i & 1 ? 64 : 128;

        rc = cudaFuncSetAttribute(
            kernel_of<Kind>(i & 2 ? HALF_BF16 : HALF_F16, head_dim, i & 4, i & 8),
            cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes(head_dim));
    }
    return rc;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* The tiles a warp has still to load. Of 64 of them it is known ahead where they are, a lane knows
 * two: the row where one begins, all pages being one matrix. */
struct queue {
    uint32_t first, step; /* position of the next tile; from one to the next */
    uint32_t end;         /* of the sequence */
    uint32_t turn;        /* tiles there were */
    uint32_t row, later;  /* of this lane's tile of 32, of the next 32 */
};

static __device__ __forceinline__ uint32_t queue_look(const struct queue &q, const struct keys &s,
                                                      uint32_t ahead)
{
    uint32_t position = q.first + (ahead + threadIdx.x % 32) * q.step, page;

    if (position >= q.end)
        return 0;
    page = position / s.page_size;
    return (s.pages[page] * s.kv_heads + s.head) * s.page_size + position - page * s.page_size;
}

static __device__ __forceinline__ void queue_open(struct queue &q, const struct keys &s,
                                                  uint32_t first, uint32_t step, uint32_t end)
{
    q = {first, step, end, 0, 0, 0};
    q.row = queue_look(q, s, 0);
    q.later = queue_look(q, s, 32);
}

/* The next tile, if there is one, to shared memory: k, then v. All lanes. */
template <int D>
static __device__ __forceinline__ void queue_load(struct queue &q, const struct keys &s,
                                                  const struct key_maps &maps, uint32_t to,
                                                  uint32_t full)
{
    const uint32_t bytes = DECODE_KEYS * D * 2;
    uint32_t row = __shfl_sync(0xffffffffu, q.row, q.turn % 32);

    if (q.first < q.end && threadIdx.x % 32 == 0) {
        barrier_expect(full, 2 * bytes);
        box_load(&maps.k, to, full, 0, row, 0);
        box_load(&maps.v, to + bytes, full, 0, row, 0);
    }
    q.first += q.step;
    if (++q.turn % 32 == 0) {
        q.row = q.later;
        q.later = queue_look(q, s, 32);
    }
}

/* Values from the count'th key of a tile on count for nothing, but 0 * NaN is NaN. */
template <int D> static __device__ __forceinline__ void values_clear(char *values, uint32_t count)
{
    for (uint32_t key = count; key < DECODE_KEYS; key++)
#pragma unroll
        for (uint32_t panel = 0; panel < D / PANEL; panel++)
            *reinterpret_cast<uint32_t *>(values + (panel * DECODE_KEYS + key) * PANEL_ROW +
                                          threadIdx.x % 32 * 4) = 0;
}

#define PARTS_AHEAD 8u /* parts on their way at once */

/* Two numbers of up to PARTS_AHEAD parts in memory, `stride` apart; their top and sum too. */
static __device__ __forceinline__ float2 pair_add(const float4 *at, uint32_t count, uint32_t stride,
                                                  float *top, float *sum)
{
    float2 own[PARTS_AHEAD], values[PARTS_AHEAD];

#pragma unroll
    for (uint32_t p = 0; p < PARTS_AHEAD; p++) {
        float4 x =
            p < count ? __ldcg(at + p * stride) : make_float4(0.0f, 0.0f, -CUDART_INF_F, 0.0f);

        values[p] = make_float2(x.x, x.y);
        own[p] = make_float2(x.z, x.w);
    }
    return parts_merge(own, values, top, sum);
}

/* What has been written before is there for all who see that this warp has arrived. Of `count`
 * warps, one a part, whether this is the last; then it sees what the others wrote. All lanes. */
static __device__ __forceinline__ bool parts_arrive(uint32_t *arrivals, uint32_t count)
{
    uint32_t arrived = 0;

    __threadfence();
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        arrived = atomicAdd(arrivals, 1u);
    arrived = __shfl_sync(0xffffffffu, arrived, 0);
    if (arrived != count - 1)
        return false;
    __threadfence();
    if (threadIdx.x % 32 == 0)
        *arrivals = 0;
    return true;
}

/* The i'th two numbers of a unit's output. */
template <class T, int D>
static __device__ __forceinline__ void
pair_out(const struct attention_args &a, const struct unit &u, uint32_t i, float2 value, float sum)
{
    *reinterpret_cast<uint32_t *>(unit_out<T, D>(a, u) + i * 2) =
        half_ops<T>::narrow2(__fdividef(value.x, sum), __fdividef(value.y, sum));
}

#endif
#endif

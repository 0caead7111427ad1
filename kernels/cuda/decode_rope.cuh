/* Norm and rotation within decode attention: of a unit's queries by every warp, in the layout of
 * its products, where both numbers of a pair are a lane's; of the newest key by one warp. */
#ifndef PHALANX_KERNELS_CUDA_DECODE_ROPE_CUH
#define PHALANX_KERNELS_CUDA_DECODE_ROPE_CUH

#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/rope.cuh"

/* What a lane's numbers of the queries (struct rows16) are turned with: of pair i = 16 kk + 8 c +
 * lane % 4 * 2 + e, pair[kk][c][e]. */
template <int D> struct query_turns {
    float4 pair[D / 32][2][2];
};

/* The newest key of a sequence, of a lane of the warp that makes it: pairs i = lane + 32 k, and as
 * many words of v. */
template <class T, int D> struct newest {
    float4 turn[D / 64];
    T k[D / 64][2];
    uint32_t v[D / 64];
    size_t at;   /* in the pages */
    bool writes; /* them: of a KV head's units the first */
};

static __device__ __forceinline__ float2 norm_weight(const float *norm, uint32_t i, uint32_t half)
{
    return norm ? make_float2(norm[i], norm[i + half]) : make_float2(1.0f, 1.0f);
}

/* The step's rotations and the norms are there before the kernel ahead of this one starts. */
template <int D>
static __device__ __forceinline__ void
query_look(struct query_turns<D> &t, const struct attention_args &a, const struct unit &u)
{
    const uint32_t half = D / 2;
    const float *angles = a.rope + (size_t)u.row.token * D;

#pragma unroll
    for (uint32_t kk = 0; kk < D / 32; kk++)
#pragma unroll
        for (uint32_t c = 0; c < 2; c++) {
            uint32_t i = kk * 16 + c * 8 + threadIdx.x % 4 * 2;
            float4 two = *reinterpret_cast<const float4 *>(angles + i * 2);
            float2 lo = make_float2(1.0f, 1.0f), hi = lo;

            if (a.q_norm) {
                lo = *reinterpret_cast<const float2 *>(a.q_norm + i);
                hi = *reinterpret_cast<const float2 *>(a.q_norm + i + half);
            }
            t.pair[kk][c][0] = pair_turn(make_float2(two.x, two.y), make_float2(lo.x, hi.x));
            t.pair[kk][c][1] = pair_turn(make_float2(two.z, two.w), make_float2(lo.y, hi.y));
        }
}

template <class T, int D>
static __device__ __forceinline__ void
newest_look(struct newest<T, D> &n, const struct attention_args &a, const struct unit &u)
{
    const float2 *angles = reinterpret_cast<const float2 *>(a.rope + (size_t)u.row.token * D);

    n.at = key_offset<D>(u.keys, u.row.start);
    n.writes = u.head0 == u.keys.head * (a.heads / a.kv_heads);
#pragma unroll
    for (uint32_t k = 0; k < D / 64; k++) {
        uint32_t i = threadIdx.x % 32 + 32 * k;

        n.turn[k] = pair_turn(angles[i], norm_weight(a.k_norm, i, D / 2));
    }
}

/* Row h of the queries as rows_query has read it, turned. */
template <class T, int D>
static __device__ __forceinline__ void query_rotate(struct rows16<D> &r, int h,
                                                    const struct query_turns<D> &t,
                                                    const struct attention_args &a)
{
    typedef half_ops<T> ops;
    float2 v[D / 32][2][2];
    float sums[2], scale;

#pragma unroll
    for (int kk = 0; kk < D / 32; kk++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            float2 lo = ops::widen2(r.q[kk][h + c * 2]);
            float2 hi = ops::widen2(r.q[kk + D / 32][h + c * 2]);

            v[kk][c][0] = make_float2(lo.x, hi.x);
            v[kk][c][1] = make_float2(lo.y, hi.y);
        }
#pragma unroll
    for (int e = 0; e < 2; e++) {
        float by_c[2];

#pragma unroll
        for (int c = 0; c < 2; c++) {
            float even = pair_squares(v[0][c][e]), odd = pair_squares(v[1][c][e]);

#pragma unroll
            for (int kk = 2; kk < D / 32; kk += 2) {
                even += pair_squares(v[kk][c][e]);
                odd += pair_squares(v[kk + 1][c][e]);
            }
            by_c[c] = even + odd;
        }
        sums[e] = by_c[0] + by_c[1];
    }
    sums[0] += sums[1];
    sums[0] += __shfl_xor_sync(0xffffffffu, sums[0], 1);
    sums[0] += __shfl_xor_sync(0xffffffffu, sums[0], 2);
    scale = head_scale(sums[0], D, a.eps);
    scale = a.q_norm ? scale : 1.0f;
#pragma unroll
    for (int kk = 0; kk < D / 32; kk++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            float2 x = pair_rotate(v[kk][c][0], t.pair[kk][c][0], scale);
            float2 y = pair_rotate(v[kk][c][1], t.pair[kk][c][1], scale);

            r.q[kk][h + c * 2] = ops::narrow2(x.x, y.x);
            r.q[kk + D / 32][h + c * 2] = ops::narrow2(x.y, y.y);
        }
}

template <class T, int D>
static __device__ __forceinline__ void
newest_read(struct newest<T, D> &n, const struct attention_args &a, const struct unit &u)
{
    const T *k = static_cast<const T *>(a.qkv) + (size_t)u.row.token * a.qkv_stride +
                 (a.heads + u.keys.head) * D;
    const uint32_t *v = reinterpret_cast<const uint32_t *>(k + a.kv_heads * D);
    uint32_t lane = threadIdx.x % 32;

#pragma unroll
    for (uint32_t i = 0; i < D / 64; i++) {
        n.k[i][0] = k[lane + 32 * i];
        n.k[i][1] = k[lane + 32 * i + D / 2];
        n.v[i] = v[lane + 32 * i];
    }
}

/* Without a branch before the end, so that it runs along with query_rotate. */
template <class T, int D>
static __device__ __forceinline__ void newest_make(struct newest<T, D> &n,
                                                   const struct attention_args &a)
{
    typedef half_ops<T> ops;
    T *k = static_cast<T *>(a.k) + n.at;
    uint32_t *v = reinterpret_cast<uint32_t *>(static_cast<T *>(a.v) + n.at);
    uint32_t lane = threadIdx.x % 32;
    float scale, sum = 0.0f;
    float2 x[D / 64];

#pragma unroll
    for (uint32_t i = 0; i < D / 64; i++) {
        x[i] = make_float2(ops::widen(n.k[i][0]), ops::widen(n.k[i][1]));
        sum += pair_squares(x[i]);
    }
    scale = head_scale(head_sum(sum), D, a.eps);
    scale = a.k_norm ? scale : 1.0f;
#pragma unroll
    for (uint32_t i = 0; i < D / 64; i++) {
        x[i] = pair_rotate(x[i], n.turn[i], scale);
        n.k[i][0] = ops::narrow(x[i].x);
        n.k[i][1] = ops::narrow(x[i].y);
    }
    if (!n.writes)
        return;
#pragma unroll
    for (uint32_t i = 0; i < D / 64; i++) {
        k[lane + 32 * i] = n.k[i][0];
        k[lane + 32 * i + D / 2] = n.k[i][1];
        v[lane + 32 * i] = n.v[i];
    }
}

/* As the key'th of a tile in shared memory. */
template <class T, int D>
static __device__ __forceinline__ void newest_put(const struct newest<T, D> &n, char *k, char *v,
                                                  uint32_t key)
{
    uint32_t lane = threadIdx.x % 32;

#pragma unroll
    for (uint32_t i = 0; i < D / 64; i++) {
        uint32_t word = lane + 32 * i;

#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            uint32_t column = word + h * (D / 2);

            *reinterpret_cast<T *>(k + panel_at<DECODE_KEYS>(key, column / 8) + column % 8 * 2) =
                n.k[i][h];
        }
        *reinterpret_cast<uint32_t *>(v + panel_at<DECODE_KEYS>(key, word / 4) + word % 4 * 4) =
            n.v[i];
    }
}

/* The queries, as unit_query has them, and for their warp (OWN) the newest key. Rows that nobody
 * asked for are another's, or zeros. HALVES: 1 where there are at most 8. */
template <class T, int D, bool OWN, int HALVES>
static __device__ __forceinline__ void
unit_rotate(struct rows16<D> &r, struct newest<T, D> &n, const struct query_turns<D> &t,
            const struct attention_args &a, const struct unit &u, uint32_t end)
{
    const uint16_t *q =
        static_cast<const uint16_t *>(a.qkv) + (size_t)u.row.token * a.qkv_stride + u.head0 * D;
    uint32_t m = threadIdx.x % 32 / 4, last = u.heads - 1;

    r.first[0] = r.first[1] = u.first;
    r.last[0] = r.last[1] = end - 1;
    if (OWN)
        newest_read(n, a, u);
    rows_query(r, 0, q + (m < last ? m : last) * D);
    rows_query(r, 1, HALVES > 1 ? q + (m + 8 < last ? m + 8 : last) * D : NULL);
    query_rotate<T>(r, 0, t, a);
    if (OWN)
        newest_make(n, a);
    if (HALVES > 1)
        query_rotate<T>(r, 1, t, a);
}

#endif

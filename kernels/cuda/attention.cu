/* Attention over KV pages: of prompts, where prefill_hopper.cu does not serve, and for head sizes
 * without tensor-core kernels. A block of the first takes PREFILL_ROWS rows, 16 a warp; all warps
 * see the same keys. */
#include "kernels/cuda/attention.cuh"

template <class T, int D>
__global__ void __launch_bounds__(THREADS) prefill_kernel(struct attention_args a)
{
    extern __shared__ uint4 shared[];
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = a.heads / a.kv_heads;
    struct frame_tile tile = a.tiles[blockIdx.x];
    struct frame_row row = a.rows[tile.row];
    struct keys s = {static_cast<const uint16_t *>(a.k),
                     static_cast<const uint16_t *>(a.v),
                     a.slot_pages + (size_t)row.slot * a.pages_per_slot,
                     a.page_size,
                     a.kv_heads,
                     blockIdx.y};
    uint32_t base = shared_address(shared), bytes = TILE * D * 2;
    uint32_t last_token = (tile.first + PREFILL_ROWS - 1) / group;
    uint32_t begin = row.start + tile.first / group, end, turn = 0;
    struct rows16<D> r;

    last_token = last_token < row.count ? last_token : row.count - 1;
    end = row.start + last_token + 1;
    begin = a.window && begin + 1 > a.window ? (begin + 1 - a.window) / TILE * TILE : 0;
    rows_reset(r);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t m = tile.first + warp * 16 + lane / 4 + h * 8, token = m / group;
        uint32_t position = row.start + token, head = blockIdx.y * group + m % group;
        bool real = token < row.count;

        rows_query(r, h,
                   real ? static_cast<const uint16_t *>(a.qkv) +
                              (size_t)(row.token + token) * a.qkv_stride + head * D
                        : NULL);
        r.last[h] = real ? position : 0;
        r.first[h] = !real ? 1 : a.window && position + 1 > a.window ? position + 1 - a.window : 0;
    }
    tile_load<D>(s, base, base + bytes, begin, TILE, end, threadIdx.x, THREADS);
    copies_commit();
    for (uint32_t p = begin; p < end; p += TILE, turn ^= 1) {
        uint32_t here = base + turn * 2 * bytes;

        if (p + TILE < end) {
            uint32_t next = base + (turn ^ 1) * 2 * bytes;

            tile_load<D>(s, next, next + bytes, p + TILE, TILE, end, threadIdx.x, THREADS);
        }
        copies_commit();
        copies_wait<1>();
        __syncthreads();
        rows_attend<T, D, TILE>(r, here, here + bytes, p, a.scale * LOG2E);
        __syncthreads();
    }
    rows_finish(r);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t m = tile.first + warp * 16 + lane / 4 + h * 8, token = m / group;
        uint32_t head = blockIdx.y * group + m % group;
        uint16_t *out =
            static_cast<uint16_t *>(a.out) + (size_t)(row.token + token) * a.out_stride + head * D;
        float scale = 1.0f / r.sum[h];

        if (token >= row.count)
            continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *reinterpret_cast<uint32_t *>(out + n * 8 + lane % 4 * 2) =
                half_ops<T>::narrow2(r.o[n][h * 2] * scale, r.o[n][h * 2 + 1] * scale);
    }
}

/* Any head size up to 256, one warp a (token, head), a key at a time: for small models. */
template <class T> __global__ void any_kernel(struct attention_args a)
{
    typedef half_ops<T> ops;
    uint32_t warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t t = warp / a.heads, h = warp % a.heads, kv_head = h / (a.heads / a.kv_heads);
    float q[8], o[8], top = -CUDART_INF_F, sum = 0.0f;

    if (t >= a.tokens)
        return;

    const T *x = static_cast<const T *>(a.qkv) + (size_t)t * a.qkv_stride + h * a.head_dim;
    T *out = static_cast<T *>(a.out) + (size_t)t * a.out_stride + h * a.head_dim;
    const uint32_t *pages = a.slot_pages + (size_t)a.token_slot[t] * a.pages_per_slot;
    uint32_t last = a.token_position[t];
    uint32_t first = a.window && last + 1 > a.window ? last + 1 - a.window : 0;

#pragma unroll
    for (int i = 0; i < 8; i++) {
        q[i] = lane + 32 * i < a.head_dim ? ops::widen(x[lane + 32 * i]) : 0.0f;
        o[i] = 0.0f;
    }
    for (uint32_t p = first; p <= last; p++) {
        size_t at = (((size_t)pages[p / a.page_size] * a.kv_heads + kv_head) * a.page_size +
                     p % a.page_size) *
                    a.head_dim;
        const T *k = static_cast<const T *>(a.k) + at, *v = static_cast<const T *>(a.v) + at;
        float score = 0.0f, next, alpha, weight;

#pragma unroll
        for (int i = 0; i < 8; i++)
            if (lane + 32 * i < a.head_dim)
                score += q[i] * ops::widen(k[lane + 32 * i]);
        score = warp_sum(score) * a.scale;
        next = fmaxf(top, score);
        alpha = expf(top - next);
        weight = expf(score - next);
        top = next;
        sum = sum * alpha + weight;
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (lane + 32 * i < a.head_dim)
                o[i] = o[i] * alpha + weight * ops::widen(v[lane + 32 * i]);
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (lane + 32 * i < a.head_dim)
            out[lane + 32 * i] = ops::narrow(o[i] / sum);
}

/* Two turns of k and v. */
template <int D> static size_t shared_bytes(void)
{
    return 2 * 2 * TILE * D * 2;
}

template <class T, int D> struct prepare {
    static cudaError_t kernels(void)
    {
        return cudaFuncSetAttribute(prefill_kernel<T, D>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    (int)shared_bytes<D>());
    }
};

int attention_has_tiles(uint32_t head_dim)
{
    return head_dim == 64 || head_dim == 128;
}

cudaError_t attention_setup(void)
{
    cudaError_t rc = heads_prepare<prepare>();

    if (rc == cudaSuccess)
        rc = attention_decode_setup();
    return rc == cudaSuccess ? prefill_hopper_setup() : rc;
}

template <class T> static cudaError_t prefill(cudaStream_t s, const struct attention_args *a)
{
    dim3 grid(a->tile_count, a->kv_heads);

    if (a->head_dim == 64)
        prefill_kernel<T, 64><<<grid, THREADS, shared_bytes<64>(), s>>>(*a);
    else
        prefill_kernel<T, 128><<<grid, THREADS, shared_bytes<128>(), s>>>(*a);
    return cudaGetLastError();
}

cudaError_t launch_attention_prefill(cudaStream_t s, enum half_type t,
                                     const struct attention_args *a)
{
    if (a->tile_rows == PREFILL_ROWS_HOPPER)
        return launch_prefill_hopper(s, t, a);
    return t == HALF_BF16 ? prefill<__nv_bfloat16>(s, a) : prefill<__half>(s, a);
}

cudaError_t launch_attention_any(cudaStream_t s, enum half_type t, const struct attention_args *a)
{
    uint64_t warps = (uint64_t)a->tokens * a->heads;
    uint32_t blocks = (uint32_t)((warps + 3) / 4);

    if (t == HALF_BF16)
        any_kernel<__nv_bfloat16><<<blocks, 128, 0, s>>>(*a);
    else
        any_kernel<__half><<<blocks, 128, 0, s>>>(*a);
    return cudaGetLastError();
}

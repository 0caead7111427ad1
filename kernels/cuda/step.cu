/* The small kernels of a step: upload, embedding, norms, activation, rotary embedding. */
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/rope.cuh"

__global__ void patches_kernel(const uint32_t *staging, const struct patch *patches)
{
    struct patch p = patches[blockIdx.x];
    uint32_t *dst = reinterpret_cast<uint32_t *>(p.dst);

    for (uint32_t i = threadIdx.x; i < p.words; i += blockDim.x)
        dst[i] = staging[p.src + i];
}

cudaError_t launch_patches(cudaStream_t s, const uint32_t *staging, const struct patch *patches,
                           uint32_t count)
{
    patches_kernel<<<count, 256, 0, s>>>(staging, patches);
    return cudaGetLastError();
}

__global__ void prepare_kernel(struct prepare_args a)
{
    uint32_t t = blockIdx.x, position = a.token_position[t];

    if (threadIdx.x == 0)
        a.token_id[t] = a.slot_tokens[(size_t)a.token_slot[t] * a.slot_stride + position];
    for (uint32_t i = threadIdx.x; i < a.half; i += blockDim.x) {
        float angle = (float)position * a.inv_freq[i], sine, cosine;

        sincosf(angle, &sine, &cosine);
        reinterpret_cast<float2 *>(a.rope)[(size_t)t * a.half + i] =
            make_float2(cosine * a.rope_scale, sine * a.rope_scale);
    }
}

cudaError_t launch_prepare(cudaStream_t s, const struct prepare_args *a)
{
    prepare_kernel<<<a->tokens, 64, 0, s>>>(*a);
    return cudaGetLastError();
}

__global__ void embed_kernel(const uint16_t *table, const uint32_t *token_id, uint16_t *out,
                             uint32_t hidden, uint32_t begin, uint32_t count)
{
    uint32_t t = blockIdx.x, id = token_id[t];
    bool here = id >= begin && id - begin < count;
    const uint16_t *row = table + (here ? (size_t)(id - begin) * hidden : 0);

    for (uint32_t i = threadIdx.x; i < hidden; i += blockDim.x)
        out[(size_t)t * hidden + i] = here ? row[i] : (uint16_t)0;
}

cudaError_t launch_embed(cudaStream_t s, const void *table, const uint32_t *token_id, void *out,
                         uint32_t tokens, uint32_t hidden, uint32_t begin, uint32_t count)
{
    embed_kernel<<<tokens, 256, 0, s>>>(static_cast<const uint16_t *>(table), token_id,
                                        static_cast<uint16_t *>(out), hidden, begin, count);
    return cudaGetLastError();
}

/* A row's scale, of the threads' sums of squares. */
static __device__ float block_scale(float sum, uint32_t hidden, float eps)
{
    __shared__ float parts[NORM_WARPS];

    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = sum;
    __syncthreads();
    return norm_scale(parts, hidden, eps);
}

/* One block a token; rows of any width. */
template <class T>
__global__ void __launch_bounds__(NORM_THREADS)
    add_norm_any_kernel(const T *x, float *residual, const float *weight, T *normed,
                        uint32_t hidden, float eps, int fresh)
{
    typedef half_ops<T> ops;
    float *r = residual + (size_t)blockIdx.x * hidden, sum = 0.0f, scale;
    const T *in = x + (size_t)blockIdx.x * hidden;
    T *out = normed + (size_t)blockIdx.x * hidden;

    next_start();
    previous_wait();
    for (uint32_t i = threadIdx.x; i < hidden; i += NORM_THREADS) {
        float v = ops::widen(in[i]) + (fresh ? 0.0f : r[i]);

        r[i] = v;
        sum += v * v;
    }
    scale = block_scale(sum, hidden, eps);
    for (uint32_t i = threadIdx.x; i < hidden; i += NORM_THREADS)
        out[i] = ops::narrow(r[i] * scale * weight[i]);
}

#define NORM_KEPT 8 /* pieces of four numbers a thread keeps */

/* One block a token; hidden is a multiple of 4 and the row fits the threads' registers. */
template <class T>
__global__ void __launch_bounds__(NORM_THREADS)
    add_norm_kernel(const T *x, float *residual, const float *weight, T *normed, uint32_t hidden,
                    float eps, int fresh)
{
    typedef half_ops<T> ops;
    float *r = residual + (size_t)blockIdx.x * hidden, sum = 0.0f, scale;
    const T *in = x ? x + (size_t)blockIdx.x * hidden : NULL;
    T *out = normed + (size_t)blockIdx.x * hidden;
    float4 kept[NORM_KEPT], w[NORM_KEPT];

    next_start();
#pragma unroll
    for (uint32_t k = 0; k < NORM_KEPT; k++) {
        uint32_t i = (k * NORM_THREADS + threadIdx.x) * 4;

        if (i < hidden)
            w[k] = *reinterpret_cast<const float4 *>(weight + i);
    }
    previous_wait();
#pragma unroll
    for (uint32_t k = 0; k < NORM_KEPT; k++) {
        uint32_t i = (k * NORM_THREADS + threadIdx.x) * 4;

        if (i < hidden) {
            float4 v = fresh ? make_float4(0.0f, 0.0f, 0.0f, 0.0f)
                             : *reinterpret_cast<const float4 *>(r + i);

            if (in) {
                uint2 packed = *reinterpret_cast<const uint2 *>(in + i);
                float2 a = ops::widen2(packed.x), b = ops::widen2(packed.y);

                v = make_float4(v.x + a.x, v.y + a.y, v.z + b.x, v.w + b.y);
                *reinterpret_cast<float4 *>(r + i) = v;
            }
            kept[k] = v;
            sum += norm_squares(v);
        }
    }
    scale = block_scale(sum, hidden, eps);
#pragma unroll
    for (uint32_t k = 0; k < NORM_KEPT; k++) {
        uint32_t i = (k * NORM_THREADS + threadIdx.x) * 4;

        if (i < hidden)
            *reinterpret_cast<uint2 *>(out + i) = norm_narrow<T>(kept[k], scale, w[k]);
    }
}

static bool norm_fits(uint32_t hidden)
{
    return hidden % 4 == 0 && hidden <= NORM_KEPT * NORM_THREADS * 4;
}

template <class T>
static cudaError_t add_norm(cudaStream_t s, const void *x, float *residual, const float *weight,
                            void *normed, uint32_t tokens, uint32_t hidden, float eps, int fresh)
{
    return launch_chained(norm_fits(hidden) ? add_norm_kernel<T> : add_norm_any_kernel<T>,
                          dim3(tokens), NORM_THREADS, 0, s, static_cast<const T *>(x), residual,
                          weight, static_cast<T *>(normed), hidden, eps, fresh);
}

cudaError_t launch_add_norm(cudaStream_t s, enum half_type type, const void *x, float *residual,
                            const float *weight, void *normed, uint32_t tokens, uint32_t hidden,
                            float eps, int fresh)
{
    if (!x && !norm_fits(hidden))
        return cudaErrorInvalidValue;
    return type == HALF_BF16
               ? add_norm<__nv_bfloat16>(s, x, residual, weight, normed, tokens, hidden, eps, fresh)
               : add_norm<__half>(s, x, residual, weight, normed, tokens, hidden, eps, fresh);
}

template <class T>
__global__ void silu_kernel(const T *gate_up, T *out, uint32_t n, uint32_t out_stride)
{
    typedef half_ops<T> ops;
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    const T *gate = gate_up + (size_t)blockIdx.y * 2 * n, *up = gate + n;

    if (i < n) {
        float g = ops::widen(gate[i]);

        out[(size_t)blockIdx.y * out_stride + i] =
            ops::narrow(g / (1.0f + expf(-g)) * ops::widen(up[i]));
    }
}

cudaError_t launch_silu(cudaStream_t s, enum half_type type, const void *gate_up, void *out,
                        uint32_t tokens, uint32_t n, uint32_t out_stride)
{
    dim3 grid((n + 255) / 256, tokens);

    if (type == HALF_BF16)
        silu_kernel<<<grid, 256, 0, s>>>(static_cast<const __nv_bfloat16 *>(gate_up),
                                         static_cast<__nv_bfloat16 *>(out), n, out_stride);
    else
        silu_kernel<<<grid, 256, 0, s>>>(static_cast<const __half *>(gate_up),
                                         static_cast<__half *>(out), n, out_stride);
    return cudaGetLastError();
}

#define ROPE_PAIRS 4 /* a lane's, at most: head_dim 256 */

/* One warp a (token, head); heads in qkv's order: q, k, v. The frame and the rotations are complete
 * before the kernel ahead of this one starts: what is known without qkv is read before the wait. */
template <class T> __global__ void qk_norm_rope_kv_kernel(struct kv_args a)
{
    typedef half_ops<T> ops;
    uint32_t warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t all = a.heads + 2 * a.kv_heads, half = a.head_dim / 2;
    uint32_t t = warp / all < a.tokens ? warp / all : a.tokens - 1, h = warp % all;
    bool is_q = h < a.heads, is_v = h >= a.heads + a.kv_heads;
    const float *norm = is_v ? NULL : is_q ? a.q_norm : a.k_norm;
    T *x = static_cast<T *>(a.qkv) + (size_t)t * a.stride + (size_t)h * a.head_dim, *out = x;
    float4 turn[ROPE_PAIRS];
    float2 v[ROPE_PAIRS];
    float scale = 1.0f, sum = 0.0f;

    next_start();
    if (!is_q) {
        uint32_t position = a.token_position[t], head = h - a.heads - (is_v ? a.kv_heads : 0);
        uint32_t page =
            a.slot_pages[(size_t)a.token_slot[t] * a.pages_per_slot + position / a.page_size];

        out = static_cast<T *>(is_v ? a.v : a.k) +
              (((size_t)page * a.kv_heads + head) * a.page_size + position % a.page_size) *
                  a.head_dim;
    }
#pragma unroll
    for (uint32_t k = 0; k < ROPE_PAIRS; k++) {
        uint32_t i = lane + 32 * k;
        float2 angle = make_float2(1.0f, 0.0f), weight = make_float2(1.0f, 1.0f);

        if (i < half && !is_v)
            angle = reinterpret_cast<const float2 *>(a.rope)[(size_t)t * half + i];
        if (i < half && norm)
            weight = make_float2(norm[i], norm[i + half]);
        turn[k] = pair_turn(angle, weight);
    }
    previous_wait();
    if (warp / all >= a.tokens)
        return;
#pragma unroll
    for (uint32_t k = 0; k < ROPE_PAIRS; k++) {
        uint32_t i = lane + 32 * k;

        v[k] = i < half ? make_float2(ops::widen(x[i]), ops::widen(x[i + half]))
                        : make_float2(0.0f, 0.0f);
        sum += pair_squares(v[k]);
    }
    if (norm)
        scale = head_scale(head_sum(sum), a.head_dim, a.eps);
#pragma unroll
    for (uint32_t k = 0; k < ROPE_PAIRS; k++) {
        uint32_t i = lane + 32 * k;
        float2 y = is_v ? v[k] : pair_rotate(v[k], turn[k], scale);

        if (i < half) {
            out[i] = ops::narrow(y.x);
            out[i + half] = ops::narrow(y.y);
        }
    }
}

cudaError_t launch_qk_norm_rope_kv(cudaStream_t s, enum half_type type, const struct kv_args *a)
{
    uint64_t warps = (uint64_t)a->tokens * (a->heads + 2 * a->kv_heads);
    uint32_t blocks = (uint32_t)((warps + 3) / 4);

    return launch_chained(type == HALF_BF16 ? qk_norm_rope_kv_kernel<__nv_bfloat16>
                                            : qk_norm_rope_kv_kernel<__half>,
                          dim3(blocks), 128, 0, s, *a);
}

__global__ void gather_rows_kernel(const uint16_t *x, const uint32_t *index, uint16_t *out,
                                   uint32_t width)
{
    const uint16_t *row = x + (size_t)index[blockIdx.x] * width;

    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x)
        out[(size_t)blockIdx.x * width + i] = row[i];
}

cudaError_t launch_gather_rows(cudaStream_t s, const void *x, const uint32_t *index, void *out,
                               uint32_t rows, uint32_t width)
{
    gather_rows_kernel<<<rows, 256, 0, s>>>(static_cast<const uint16_t *>(x), index,
                                            static_cast<uint16_t *>(out), width);
    return cudaGetLastError();
}

template <class T> __global__ void narrow_kernel(const float *x, T *out, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;

    if (i < n)
        out[i] = half_ops<T>::narrow(x[i]);
}

cudaError_t launch_narrow(cudaStream_t s, enum half_type type, const float *x, void *out, size_t n)
{
    uint32_t blocks = (uint32_t)((n + 255) / 256);

    if (type == HALF_BF16)
        narrow_kernel<<<blocks, 256, 0, s>>>(x, static_cast<__nv_bfloat16 *>(out), n);
    else
        narrow_kernel<<<blocks, 256, 0, s>>>(x, static_cast<__half *>(out), n);
    return cudaGetLastError();
}

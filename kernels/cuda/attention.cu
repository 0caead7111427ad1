/* Attention over KV pages with tensor cores (mma.sync), after FlashAttention-2 (Dao, 2023): softmax
 * is kept online, scores never leave registers. The query heads of one KV head share its keys, so
 * the rows of a block are (token, head of the group) pairs.
 *
 * Prefill, where prefill_hopper.cu does not serve: a block takes PREFILL_ROWS rows, 16 a warp; all
 * warps see the same keys. Decode: a block takes the DECODE_ROWS heads of one token; each warp sees
 * every fourth tile of 16 keys, blocks share the positions of a sequence, and the last block to
 * finish adds the parts in order. */
#include "kernels/cuda/half.cuh"

#include <math_constants.h>

#define THREADS 128
#define WARPS 4
#define TILE 64 /* keys of a block's turn */
#define LOG2E 1.4426950408889634f

static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes from global to shared memory; zeros when not valid. */
static __device__ __forceinline__ void copy16(uint32_t dst, const void *src, bool valid)
{
    int bytes = valid ? 16 : 0;

    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes));
}

static __device__ __forceinline__ void copies_commit(void)
{
    asm volatile("cp.async.commit_group;" ::);
}

template <int N> static __device__ __forceinline__ void copies_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

static __device__ __forceinline__ void load_matrices(uint32_t r[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

static __device__ __forceinline__ void load_matrices_t(uint32_t r[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* Byte offset of 16-byte chunk `chunk` of a key's row: chunks are permuted so that eight rows of
 * one column lie in different banks. */
template <int D> static __device__ __forceinline__ uint32_t swizzle(uint32_t key, uint32_t chunk)
{
    return key * (D * 2) + ((chunk ^ (key & 7u)) << 4);
}

/* Where a sequence's keys are. */
struct keys {
    const uint16_t *k, *v;
    const uint32_t *pages;
    uint32_t page_size, kv_heads, head;
};

template <int D>
static __device__ __forceinline__ size_t key_offset(const struct keys &s, uint32_t position)
{
    uint32_t page = position / s.page_size, offset = position - page * s.page_size;

    return (((size_t)s.pages[page] * s.kv_heads + s.head) * s.page_size + offset) * D;
}

/* `count` keys from `first` on to shared memory by `threads` threads; zeros from `end` on, since
 * what nobody has written may be NaN. */
template <int D>
static __device__ __forceinline__ void tile_load(const struct keys &s, uint32_t k_shared,
                                                 uint32_t v_shared, uint32_t first, uint32_t count,
                                                 uint32_t end, uint32_t thread, uint32_t threads)
{
    for (uint32_t i = thread; i < count * (D / 8); i += threads) {
        uint32_t key = i / (D / 8), chunk = i % (D / 8), position = first + key;
        bool valid = position < end;
        size_t at = valid ? key_offset<D>(s, position) + chunk * 8 : 0;
        uint32_t dst = swizzle<D>(key, chunk);

        copy16(k_shared + dst, s.k + at, valid);
        copy16(v_shared + dst, s.v + at, valid);
    }
}

/* A warp's 16 rows. A lane holds parts of rows lane / 4 and lane / 4 + 8. */
template <int D> struct rows16 {
    uint32_t q[D / 16][4];
    float o[D / 8][4];
    float top[2], sum[2];       /* sum: this lane's part */
    uint32_t first[2], last[2]; /* positions each row sees, both included */
};

template <int D> static __device__ __forceinline__ void rows_reset(struct rows16<D> &r)
{
#pragma unroll
    for (int n = 0; n < D / 8; n++)
        r.o[n][0] = r.o[n][1] = r.o[n][2] = r.o[n][3] = 0.0f;
    r.top[0] = r.top[1] = -CUDART_INF_F;
    r.sum[0] = r.sum[1] = 0.0f;
}

/* N keys from position `base` on, in shared memory. */
template <class T, int D, int N>
static __device__ __forceinline__ void rows_attend(struct rows16<D> &r, uint32_t k_shared,
                                                   uint32_t v_shared, uint32_t base,
                                                   float scale_log2)
{
    uint32_t lane = threadIdx.x % 32;
    float s[N / 8][4];

#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
#pragma unroll
        for (int kk = 0; kk < D / 16; kk += 2) {
            uint32_t b[4];

            load_matrices(b, k_shared + swizzle<D>(j * 8 + lane % 8, kk * 2 + lane / 8));
            half_ops<T>::mma(s[j], r.q[kk], b[0], b[1]);
            half_ops<T>::mma(s[j], r.q[kk + 1], b[2], b[3]);
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float top = r.top[h], part = 0.0f, alpha, shift;

#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                uint32_t position = base + j * 8 + lane % 4 * 2 + c;
                float *x = &s[j][h * 2 + c];

                *x = position >= r.first[h] && position <= r.last[h] ? *x * scale_log2
                                                                     : -CUDART_INF_F;
                top = fmaxf(top, *x);
            }
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        shift = top == -CUDART_INF_F ? 0.0f : top;
        alpha = exp2f(r.top[h] - shift);
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                s[j][h * 2 + c] = exp2f(s[j][h * 2 + c] - shift);
                part += s[j][h * 2 + c];
            }
        r.sum[h] = r.sum[h] * alpha + part;
        r.top[h] = top;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            r.o[n][h * 2] *= alpha;
            r.o[n][h * 2 + 1] *= alpha;
        }
    }
#pragma unroll
    for (int kk = 0; kk < N / 16; kk++) {
        uint32_t p[4] = {half_ops<T>::narrow2(s[2 * kk][0], s[2 * kk][1]),
                         half_ops<T>::narrow2(s[2 * kk][2], s[2 * kk][3]),
                         half_ops<T>::narrow2(s[2 * kk + 1][0], s[2 * kk + 1][1]),
                         half_ops<T>::narrow2(s[2 * kk + 1][2], s[2 * kk + 1][3])};

#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t b[4], key = kk * 16 + lane % 8 + (lane / 8 & 1) * 8;

            load_matrices_t(b, v_shared + swizzle<D>(key, n + lane / 16));
            half_ops<T>::mma(r.o[n], p, b[0], b[1]);
            half_ops<T>::mma(r.o[n + 1], p, b[2], b[3]);
        }
    }
}

/* Adds the lanes' parts of the sums. */
template <int D> static __device__ __forceinline__ void rows_finish(struct rows16<D> &r)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        r.sum[h] += __shfl_xor_sync(0xffffffffu, r.sum[h], 1);
        r.sum[h] += __shfl_xor_sync(0xffffffffu, r.sum[h], 2);
    }
}

/* Row h (0, 1) of this lane from one head of qkv; NULL: a row that nobody asked for. */
template <int D>
static __device__ __forceinline__ void rows_query(struct rows16<D> &r, int h, const uint16_t *q)
{
    uint32_t lane = threadIdx.x % 32;

#pragma unroll
    for (int kk = 0; kk < D / 16; kk++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            uint32_t at = kk * 16 + lane % 4 * 2 + c * 8;

            r.q[kk][h + c * 2] = q ? *reinterpret_cast<const uint32_t *>(q + at) : 0u;
        }
}

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

/* A block's result for DECODE_ROWS rows, in shared or global memory: sums of v, then top and sum of
 * the weights, a row after the other. */
#define PART_STRIDE(D) ((D) + 2)

/* What each of `parts` parts counts for in each row, to shared memory: weights[part][row], whose
 * sum over parts times the parts' sums is 1. A warp a row; all it reads is on its way at once. */
template <int D, int ROWS>
static __device__ __forceinline__ void parts_weigh(const float *parts_at, uint32_t parts,
                                                   uint32_t rows, float *weights)
{
    const int turns = ROWS / WARPS, each = SPLITS_MAX / 32;
    const size_t stride = DECODE_ROWS * PART_STRIDE(D);
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float2 seen[turns][each];

#pragma unroll
    for (int t = 0; t < turns; t++)
#pragma unroll
        for (int i = 0; i < each; i++) {
            uint32_t part = lane + 32 * i, m = warp + WARPS * t;

            seen[t][i] = make_float2(-CUDART_INF_F, 0.0f);
            if (part < parts && m < rows)
                seen[t][i] = __ldcg(reinterpret_cast<const float2 *>(parts_at + part * stride +
                                                                     m * PART_STRIDE(D) + D));
        }
#pragma unroll
    for (int t = 0; t < turns; t++) {
        uint32_t m = warp + WARPS * t;
        float all = -CUDART_INF_F, total = 0.0f;

        if (m >= rows)
            break;
#pragma unroll
        for (int i = 0; i < each; i++)
            all = fmaxf(all, seen[t][i].x);
        for (int i = 16; i; i >>= 1)
            all = fmaxf(all, __shfl_xor_sync(0xffffffffu, all, i));
#pragma unroll
        for (int i = 0; i < each; i++) {
            seen[t][i].x = exp2f(seen[t][i].x - all);
            total += seen[t][i].x * seen[t][i].y;
        }
        total = warp_sum(total);
#pragma unroll
        for (int i = 0; i < each; i++)
            if (lane + 32 * i < parts)
                weights[(lane + 32 * i) * DECODE_ROWS + m] = seen[t][i].x / total;
    }
}

template <int D>
static __device__ __forceinline__ void rows_store(const struct rows16<D> &r, float *part)
{
    uint32_t lane = threadIdx.x % 32;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        float *row = part + (lane / 4 + h * 8) * PART_STRIDE(D);

#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            row[n * 8 + lane % 4 * 2] = r.o[n][h * 2];
            row[n * 8 + lane % 4 * 2 + 1] = r.o[n][h * 2 + 1];
        }
        if (lane % 4 == 0) {
            row[D] = r.top[h];
            row[D + 1] = r.sum[h];
        }
    }
}

/* Two numbers of a row from the warps' parts in shared memory; its top and sum. */
template <int D>
static __device__ __forceinline__ float2 warps_merge(const float *row, uint32_t d, float *top,
                                                     float *sum)
{
    const size_t stride = DECODE_ROWS * PART_STRIDE(D);
    float2 own[WARPS], value = make_float2(0.0f, 0.0f);
    float shift;

    *top = -CUDART_INF_F;
    *sum = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) {
        own[i] = *reinterpret_cast<const float2 *>(row + i * stride + D);
        *top = fmaxf(*top, own[i].x);
    }
    shift = *top == -CUDART_INF_F ? 0.0f : *top;
#pragma unroll
    for (int i = 0; i < WARPS; i++) {
        float2 v = *reinterpret_cast<const float2 *>(row + i * stride + d);
        float weight = exp2f(own[i].x - shift);

        *sum += weight * own[i].y;
        value = make_float2(fmaf(weight, v.x, value.x), fmaf(weight, v.y, value.y));
    }
    return value;
}

#define PARTS_AHEAD 16

/* The first parts of the i'th two numbers. */
template <int D>
static __device__ __forceinline__ void pair_load(const float *parts_at, uint32_t parts, uint32_t i,
                                                 uint32_t rows, float2 out[PARTS_AHEAD])
{
    const float *at = parts_at + i / (D / 2) * PART_STRIDE(D) + i % (D / 2) * 2;

#pragma unroll
    for (uint32_t p = 0; p < PARTS_AHEAD; p++)
        if (p < parts && i < rows * (D / 2))
            out[p] =
                __ldcg(reinterpret_cast<const float2 *>(at + p * DECODE_ROWS * PART_STRIDE(D)));
}

/* out (rows, D): the parts' weighted sum, in order. What most launches have of them is on its way
 * while the weights are made. */
template <class T, int D, int ROWS>
static __device__ __forceinline__ void parts_add(const float *parts_at, uint32_t parts,
                                                 uint32_t rows, float *weights, T *out)
{
    const size_t stride = DECODE_ROWS * PART_STRIDE(D);
    const uint32_t pairs = ROWS <= WARPS ? 1 : 2; /* of numbers, on their way */
    float2 ahead[pairs][PARTS_AHEAD];

#pragma unroll
    for (uint32_t k = 0; k < pairs; k++)
        pair_load<D>(parts_at, parts, threadIdx.x + k * THREADS, rows, ahead[k]);
    parts_weigh<D, ROWS>(parts_at, parts, rows, weights);
    __syncthreads();
    for (uint32_t base = threadIdx.x; base < rows * (D / 2); base += pairs * THREADS) {
        if (base != threadIdx.x)
#pragma unroll
            for (uint32_t k = 0; k < pairs; k++)
                pair_load<D>(parts_at, parts, base + k * THREADS, rows, ahead[k]);
#pragma unroll
        for (uint32_t k = 0; k < pairs; k++) {
            uint32_t i = base + k * THREADS, m = i / (D / 2), d = i % (D / 2) * 2;
            const float *at = parts_at + m * PART_STRIDE(D) + d;
            float2 sum = make_float2(0.0f, 0.0f);

            if (m >= rows)
                break;
#pragma unroll
            for (uint32_t p = 0; p < PARTS_AHEAD; p++)
                if (p < parts) {
                    float weight = weights[p * DECODE_ROWS + m];

                    sum = make_float2(fmaf(weight, ahead[k][p].x, sum.x),
                                      fmaf(weight, ahead[k][p].y, sum.y));
                }
#pragma unroll 8
            for (uint32_t p = PARTS_AHEAD; p < parts; p++) {
                float weight = weights[p * DECODE_ROWS + m];
                float2 v = __ldcg(reinterpret_cast<const float2 *>(at + p * stride));

                sum = make_float2(fmaf(weight, v.x, sum.x), fmaf(weight, v.y, sum.y));
            }
            *reinterpret_cast<uint32_t *>(out + m * D + d) = half_ops<T>::narrow2(sum.x, sum.y);
        }
    }
}

/* Grid: (splits, KV heads * tiles of 16 heads, rows). A tile has at most ROWS heads: few take fewer
 * registers, which the next kernel's blocks then start in. */
template <class T, int D, int ROWS>
__global__ void __launch_bounds__(THREADS) decode_kernel(struct attention_args a)
{
    extern __shared__ uint4 shared[];
    __shared__ uint32_t arrived;

    next_start();

    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = a.heads / a.kv_heads;
    uint32_t tiles = (group + DECODE_ROWS - 1) / DECODE_ROWS;
    uint32_t kv_head = blockIdx.y / tiles, head0 = blockIdx.y % tiles * DECODE_ROWS;
    struct frame_row row = a.rows[a.decode_rows[blockIdx.z]];
    struct keys s = {static_cast<const uint16_t *>(a.k),
                     static_cast<const uint16_t *>(a.v),
                     a.slot_pages + (size_t)row.slot * a.pages_per_slot,
                     a.page_size,
                     a.kv_heads,
                     kv_head};
    uint32_t position = row.start, first = 0, begin, end = position + 1, span, splits, mine_end;
    const uint32_t warp_bytes = TILE / WARPS * D * 2; /* of k or v, one turn, one warp */
    const size_t part_floats = DECODE_ROWS * PART_STRIDE(D);
    uint32_t base = shared_address(shared) + warp * 4 * warp_bytes, turn = 0;
    size_t unit = (size_t)blockIdx.z * gridDim.y + blockIdx.y;
    float *partials = a.partials + unit * gridDim.x * part_floats;
    struct rows16<D> r;
    bool early;

    if (a.window && position + 1 > a.window)
        first = position + 1 - a.window;
    begin = first / TILE * TILE;
    span = ((end - begin + gridDim.x - 1) / gridDim.x + TILE - 1) / TILE * TILE;
    splits = (end - begin + span - 1) / span;
    if (blockIdx.x >= splits) {
        previous_wait();
        return;
    }
    begin += blockIdx.x * span;
    mine_end = begin + span < end ? begin + span : end;

    begin += warp * (TILE / WARPS);
    /* Keys of earlier positions are there since earlier steps, and the frame since the step's
     * upload: only the queries and the newest key have to be waited for. */
    early = begin + TILE / WARPS <= position;
    if (early)
        tile_load<D>(s, base, base + warp_bytes, begin, TILE / WARPS, mine_end, lane, 32);
    rows_reset(r);
    previous_wait();
    if (!early)
        tile_load<D>(s, base, base + warp_bytes, begin, TILE / WARPS, mine_end, lane, 32);
    copies_commit();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t m = head0 + lane / 4 + h * 8;

        rows_query(r, h,
                   m < group ? static_cast<const uint16_t *>(a.qkv) +
                                   (size_t)row.token * a.qkv_stride + (kv_head * group + m) * D
                             : NULL);
        r.first[h] = first;
        r.last[h] = mine_end - 1;
    }
    for (uint32_t p = begin; p < mine_end; p += TILE, turn ^= 1) {
        uint32_t here = base + turn * 2 * warp_bytes;

        if (p + TILE < mine_end) {
            uint32_t next = base + (turn ^ 1) * 2 * warp_bytes;

            tile_load<D>(s, next, next + warp_bytes, p + TILE, TILE / WARPS, mine_end, lane, 32);
        }
        copies_commit();
        copies_wait<1>();
        __syncwarp();
        rows_attend<T, D, TILE / WARPS>(r, here, here + warp_bytes, p, a.scale * LOG2E);
        __syncwarp();
    }
    copies_wait<0>();
    rows_finish(r);
    __syncthreads();
    rows_store(r, reinterpret_cast<float *>(shared) + warp * part_floats);
    __syncthreads();

    uint16_t *out = static_cast<uint16_t *>(a.out) + (size_t)row.token * a.out_stride;

    for (uint32_t i = threadIdx.x; i < DECODE_ROWS * (D / 2); i += THREADS) {
        uint32_t m = i / (D / 2), d = i % (D / 2) * 2;
        float *part = partials + blockIdx.x * part_floats + m * PART_STRIDE(D), top, sum;
        float2 value;

        if (head0 + m >= group)
            break;
        value = warps_merge<D>(reinterpret_cast<const float *>(shared) + m * PART_STRIDE(D), d,
                               &top, &sum);
        if (splits == 1) {
            *reinterpret_cast<uint32_t *>(out + (kv_head * group + head0 + m) * D + d) =
                half_ops<T>::narrow2(value.x / sum, value.y / sum);
            continue;
        }
        *reinterpret_cast<float2 *>(part + d) = value;
        if (d == 0)
            *reinterpret_cast<float2 *>(part + D) = make_float2(top, sum);
    }
    if (splits == 1)
        return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        arrived = atomicAdd(&a.arrivals[unit], 1u);
    __syncthreads();
    if (arrived != splits - 1)
        return;
    __threadfence();

    parts_add<T, D, ROWS>(partials, splits,
                          group - head0 < DECODE_ROWS ? group - head0 : DECODE_ROWS,
                          reinterpret_cast<float *>(shared),
                          reinterpret_cast<T *>(out) + (kv_head * group + head0) * D);
    if (threadIdx.x == 0)
        a.arrivals[unit] = 0;
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

/* Two turns of k and v; the warps' parts go over them at the end. */
template <int D> static size_t shared_bytes(void)
{
    size_t tiles = 2 * 2 * TILE * D * 2, parts = WARPS * DECODE_ROWS * PART_STRIDE(D) * 4;

    return tiles > parts ? tiles : parts;
}

template <class T, int D> static cudaError_t kernels_setup(void)
{
    const cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    cudaError_t rc = cudaFuncSetAttribute(prefill_kernel<T, D>, most, (int)shared_bytes<D>());

    if (rc == cudaSuccess)
        rc = cudaFuncSetAttribute(decode_kernel<T, D, WARPS>, most, (int)shared_bytes<D>());
    if (rc == cudaSuccess)
        rc = cudaFuncSetAttribute(decode_kernel<T, D, DECODE_ROWS>, most, (int)shared_bytes<D>());
    return rc;
}

int attention_has_tiles(uint32_t head_dim)
{
    return head_dim == 64 || head_dim == 128;
}

cudaError_t attention_setup(void)
{
    cudaError_t rc = kernels_setup<__nv_bfloat16, 64>();

    if (rc == cudaSuccess)
        rc = kernels_setup<__nv_bfloat16, 128>();
    if (rc == cudaSuccess)
        rc = kernels_setup<__half, 64>();
    if (rc == cudaSuccess)
        rc = kernels_setup<__half, 128>();
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

template <class T, int D> static cudaError_t decode(cudaStream_t s, const struct attention_args *a)
{
    uint32_t group = a->heads / a->kv_heads, tiles = (group + DECODE_ROWS - 1) / DECODE_ROWS;
    dim3 grid(a->splits, a->kv_heads * tiles, a->decode_count);

    return launch_chained(group <= WARPS ? decode_kernel<T, D, WARPS>
                                         : decode_kernel<T, D, DECODE_ROWS>,
                          grid, THREADS, shared_bytes<D>(), s, *a);
}

template <class T> static cudaError_t decode_of(cudaStream_t s, const struct attention_args *a)
{
    return a->head_dim == 64 ? decode<T, 64>(s, a) : decode<T, 128>(s, a);
}

cudaError_t launch_attention_decode(cudaStream_t s, enum half_type t,
                                    const struct attention_args *a)
{
    return t == HALF_BF16 ? decode_of<__nv_bfloat16>(s, a) : decode_of<__half>(s, a);
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

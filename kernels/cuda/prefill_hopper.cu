/* Prefill attention for Hopper, after FlashAttention-3 (Shah et al., 2024). A block takes
 * PREFILL_ROWS_HOPPER rows, (token, head of the group) pairs as in attention.cu. One warp has TMA
 * bring tiles of keys and values, page by page, into rings in shared memory; two warpgroups of 64
 * rows consume them with wgmma. While a warpgroup's softmax runs, its product with the values of
 * the turn before and the other warpgroup's products keep the tensor cores busy.
 *
 * Pages of a multiple of 8 tokens: the swizzle repeats after 8 rows. */
#include "kernels/cuda/hopper.cuh"

#include <math_constants.h>

#define LOG2E 1.4426950408889634f
#define WARPGROUP 128u
#define CONSUMERS 2u
#define THREADS ((CONSUMERS + 1) * WARPGROUP)
#define ROWS 64u  /* of a consumer */
#define KEYS 128u /* of a turn */
#define STAGES 3u /* of a ring */

static_assert(CONSUMERS * ROWS == PREFILL_ROWS_HOPPER, "a consumer's rows are wgmma's");

enum barrier { K_FULL, V_FULL, K_EMPTY, V_EMPTY, V_CLEAN, BARRIERS };

template <int D> struct layout {
    static const uint32_t rows = ROWS * D * 2, tile = KEYS * D * 2;
    static const uint32_t k = CONSUMERS * rows, v = k + STAGES * tile, barriers = v + STAGES * tile;
    static const uint32_t bytes = barriers + BARRIERS * STAGES * 8;
};

/* Rows of one TMA box. Boxes lie within a page, and a turn's keys are whole boxes. */
static __host__ __device__ __forceinline__ uint32_t box_rows(uint32_t page_size)
{
    uint32_t power = page_size & (0u - page_size);

    return power < KEYS ? power : KEYS;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* Barriers of bar.sync: 0 is __syncthreads's, then one a consumer for each purpose. */
static __device__ __forceinline__ void consumer_sync(uint32_t consumer)
{
    asm volatile("bar.sync %0, %1;" ::"r"(1 + consumer), "n"(WARPGROUP) : "memory");
}

static __device__ __forceinline__ void order_wait(uint32_t consumer)
{
    asm volatile("bar.sync %0, %1;" ::"r"(1 + CONSUMERS + consumer), "n"(CONSUMERS * WARPGROUP)
                 : "memory");
}

static __device__ __forceinline__ void order_signal(uint32_t consumer)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(1 + CONSUMERS + consumer), "n"(CONSUMERS * WARPGROUP)
                 : "memory");
}

/* The same in all lanes, and known to be by the compiler: products want no branch that splits. */
static __device__ __forceinline__ uint32_t warpgroup(void)
{
    return __shfl_sync(0xffffffffu, threadIdx.x / WARPGROUP, 0);
}

/* Where in a ring one is, and how often it was gone round. */
struct ring {
    uint32_t stage, phase;
};

static __device__ __forceinline__ void ring_next(struct ring &r)
{
    r.stage++;
    if (r.stage == STAGES) {
        r.stage = 0;
        r.phase ^= 1;
    }
}

template <int D>
static __device__ __forceinline__ uint32_t barrier_at(uint32_t shared, enum barrier which,
                                                      uint32_t stage)
{
    return shared + layout<D>::barriers + (which * STAGES + stage) * 8;
}

/* A block's part: rows from `first` on of one row of the step, one KV head, keys [begin, end). */
struct work {
    struct frame_row row;
    uint32_t first, head, group, begin, end, turns;
};

static __device__ __forceinline__ struct work work_of(const struct attention_args &a)
{
    struct frame_tile tile = a.tiles[blockIdx.x / a.kv_heads];
    struct work w = {
        a.rows[tile.row], tile.first, blockIdx.x % a.kv_heads, a.heads / a.kv_heads, 0, 0, 0};
    uint32_t last_token = (w.first + CONSUMERS * ROWS - 1) / w.group;
    uint32_t seen = w.row.start + w.first / w.group + 1; /* by the first row, without a window */

    last_token = last_token < w.row.count ? last_token : w.row.count - 1;
    w.end = w.row.start + last_token + 1;
    w.begin = a.window && seen > a.window ? (seen - a.window) / KEYS * KEYS : 0;
    w.turns = (w.end - w.begin + KEYS - 1) / KEYS;
    return w;
}

/* One tile into a ring, each lane its box. */
static __device__ __forceinline__ void tile_load(const CUtensorMap *map, uint32_t to, uint32_t full,
                                                 uint32_t empty, uint32_t phase, uint32_t bytes,
                                                 bool valid, uint32_t column, uint32_t row,
                                                 uint32_t unit)
{
    barrier_wait(empty, phase ^ 1);
    if (threadIdx.x == 0)
        barrier_expect(full, bytes);
    __syncwarp();
    if (valid)
        box_load(map, to, full, column, row, unit);
}

/* Values behind the end count for nothing, but 0 * NaN is NaN. */
template <int D>
static __device__ __forceinline__ void tail_clean(const struct work &w, uint32_t shared)
{
    uint32_t last = w.turns - 1, stage = last % STAGES, rows = w.end - w.begin - last * KEYS;
    uint32_t v = shared + layout<D>::v + stage * layout<D>::tile;

    barrier_wait(barrier_at<D>(shared, V_FULL, stage), last / STAGES & 1);
    for (uint32_t i = rows * PANEL_ROW + threadIdx.x * 16; i < KEYS * PANEL_ROW; i += 32 * 16)
#pragma unroll
        for (uint32_t panel = 0; panel < D / PANEL; panel++)
            asm volatile(
                "st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(v + panel * KEYS * PANEL_ROW + i),
                "r"(0)
                : "memory");
    stores_publish();
    barrier_arrive(barrier_at<D>(shared, V_CLEAN, 0));
}

/* One warp. Pages behind the end are not touched: their numbers may be anything. */
template <int D>
static __device__ __forceinline__ void produce(const struct attention_args &a,
                                               const CUtensorMap *k_map, const CUtensorMap *v_map,
                                               const struct work &w, uint32_t shared)
{
    uint32_t rows = box_rows(a.page_size), boxes = KEYS / rows;
    uint32_t panel = threadIdx.x / boxes, first = threadIdx.x % boxes * rows;
    uint32_t to = (panel * KEYS + first) * PANEL_ROW;
    const uint32_t *pages = a.slot_pages + (size_t)w.row.slot * a.pages_per_slot;
    struct ring r = {0, 0};

    for (uint32_t turn = 0; turn < w.turns; turn++, ring_next(r)) {
        uint32_t position = w.begin + turn * KEYS + first, page = position / a.page_size;
        uint32_t row = position - page * a.page_size;
        bool valid = panel < D / PANEL && position < w.end;
        uint32_t bytes = __popc(__ballot_sync(0xffffffffu, valid)) * rows * PANEL_ROW;
        uint32_t unit = valid ? pages[page] * a.kv_heads + w.head : 0;
        uint32_t tile = shared + r.stage * layout<D>::tile + to;

        tile_load(k_map, tile + layout<D>::k, barrier_at<D>(shared, K_FULL, r.stage),
                  barrier_at<D>(shared, K_EMPTY, r.stage), r.phase, bytes, valid, panel * PANEL,
                  row, unit);
        tile_load(v_map, tile + layout<D>::v, barrier_at<D>(shared, V_FULL, r.stage),
                  barrier_at<D>(shared, V_EMPTY, r.stage), r.phase, bytes, valid, panel * PANEL,
                  row, unit);
    }
    tail_clean<D>(w, shared);
}

/* A consumer's 64 rows. A lane holds parts of rows lane / 4 and lane / 4 + 8 of its warp's 16; rows
 * that nobody asked for see what the last real one does. */
template <int D> struct rows64 {
    float o[D / 2], s[KEYS / 2];
    uint32_t p[KEYS / 4];
    float top[2], sum[2];         /* top: before scaling; sum: this lane's part */
    uint32_t first[2], last[2];   /* positions each row sees, both included */
    uint32_t first_all, last_all; /* what all 64 see */
};

static __device__ __forceinline__ uint32_t row_position(const struct work &w, uint32_t m)
{
    uint32_t token = m / w.group;

    return w.row.start + (token < w.row.count ? token : w.row.count - 1);
}

static __device__ __forceinline__ uint32_t first_seen(uint32_t position, uint32_t window)
{
    return window && position + 1 > window ? position + 1 - window : 0;
}

template <int D>
static __device__ __forceinline__ void rows_reset(struct rows64<D> &r, const struct work &w,
                                                  uint32_t m0, uint32_t window)
{
    uint32_t m = m0 + threadIdx.x % WARPGROUP / 32 * 16 + threadIdx.x % 32 / 4;

#pragma unroll
    for (int i = 0; i < D / 2; i++)
        r.o[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++)
        r.s[i] = 0.0f;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        r.top[h] = -CUDART_INF_F;
        r.sum[h] = 0.0f;
        r.last[h] = row_position(w, m + h * 8);
        r.first[h] = first_seen(r.last[h], window);
    }
    r.last_all = row_position(w, m0);
    r.first_all = first_seen(row_position(w, m0 + ROWS - 1), window);
}

/* The rows' queries to shared memory. */
template <int D>
static __device__ __forceinline__ void queries_load(const struct attention_args &a,
                                                    const struct work &w, uint32_t m0, uint32_t to)
{
    const uint32_t chunks = D / 8, turns = ROWS * chunks / WARPGROUP;
    uint32_t thread = threadIdx.x % WARPGROUP;
    uint4 x[turns];

#pragma unroll
    for (uint32_t i = 0; i < turns; i++) {
        uint32_t at = thread + i * WARPGROUP, m = m0 + at / chunks, token = m / w.group;
        uint32_t head = w.head * w.group + m % w.group;
        const uint16_t *q = static_cast<const uint16_t *>(a.qkv) +
                            (size_t)(w.row.token + token) * a.qkv_stride + head * D;

        x[i] = make_uint4(0, 0, 0, 0);
        if (token < w.row.count)
            x[i] = *reinterpret_cast<const uint4 *>(q + at % chunks * 8);
    }
#pragma unroll
    for (uint32_t i = 0; i < turns; i++) {
        uint32_t at = thread + i * WARPGROUP, row = at / chunks, chunk = at % chunks;
        uint32_t dst = to + (chunk / 8 * ROWS + row) * PANEL_ROW + ((chunk ^ row) % 8) * 16;

        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(dst), "r"(x[i].x),
                     "r"(x[i].y), "r"(x[i].z), "r"(x[i].w)
                     : "memory");
    }
    stores_publish();
}

/* s = q k^T, begun. */
template <class T, int D>
static __device__ __forceinline__ void scores_begin(float (&s)[KEYS / 2], uint64_t q, uint64_t k)
{
#pragma unroll
    for (uint32_t kk = 0; kk < D / 16; kk++)
        products<T>::scores(s, q + ((kk / 4 * ROWS * PANEL_ROW + kk % 4 * 32) >> 4),
                            k + ((kk / 4 * KEYS * PANEL_ROW + kk % 4 * 32) >> 4), kk != 0);
    products_commit();
}

/* o += p v, begun. */
template <class T, int D>
static __device__ __forceinline__ void values_begin(struct rows64<D> &r, uint64_t v)
{
#pragma unroll
    for (uint32_t kk = 0; kk < KEYS / 16; kk++)
        products<T>::values(r.o, r.p + 4 * kk, v + (kk * 16 * PANEL_ROW >> 4));
    products_commit();
}

template <int D>
static __device__ __forceinline__ void rows_mask(struct rows64<D> &r, uint32_t base)
{
    uint32_t position = base + threadIdx.x % 4 * 2;

#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t here = position + j * 8 + i % 2;

            if (here < r.first[i / 2] || here > r.last[i / 2])
                r.s[j * 4 + i] = -CUDART_INF_F;
        }
}

/* Scores to weights in place; alpha: what earlier sums count for now. */
template <int D>
static __device__ __forceinline__ void rows_weigh(struct rows64<D> &r, uint32_t base,
                                                  float scale_log2, float (&alpha)[2])
{
    float top[2] = {r.top[0], r.top[1]}, shift[2], part[4] = {0.0f, 0.0f, 0.0f, 0.0f};

    if (base < r.first_all || base + KEYS - 1 > r.last_all)
        rows_mask(r, base);
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            top[i / 2] = fmaxf(top[i / 2], r.s[j * 4 + i]);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2));
        shift[h] = top[h] == -CUDART_INF_F ? 0.0f : top[h] * scale_log2;
        alpha[h] = exp2_fast(fmaf(r.top[h], scale_log2, -shift[h]));
        r.top[h] = top[h];
    }
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float x = exp2_fast(fmaf(r.s[j * 4 + i], scale_log2, -shift[i / 2]));

            r.s[j * 4 + i] = x;
            part[i] += x;
        }
#pragma unroll
    for (int h = 0; h < 2; h++)
        r.sum[h] = fmaf(r.sum[h], alpha[h], part[h * 2] + part[h * 2 + 1]);
}

template <class T, int D> static __device__ __forceinline__ void rows_narrow(struct rows64<D> &r)
{
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++)
        r.p[i] = half_ops<T>::narrow2(r.s[2 * i], r.s[2 * i + 1]);
}

template <class T, int D>
static __device__ __forceinline__ void
rows_store(const struct attention_args &a, const struct work &w, struct rows64<D> &r, uint32_t m0)
{
    uint32_t lane = threadIdx.x % 32;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t m = m0 + threadIdx.x % WARPGROUP / 32 * 16 + lane / 4 + h * 8;
        uint32_t token = m / w.group, head = w.head * w.group + m % w.group;
        uint16_t *out = static_cast<uint16_t *>(a.out) +
                        (size_t)(w.row.token + token) * a.out_stride + head * D + lane % 4 * 2;
        float scale;

        r.sum[h] += __shfl_xor_sync(0xffffffffu, r.sum[h], 1);
        r.sum[h] += __shfl_xor_sync(0xffffffffu, r.sum[h], 2);
        scale = 1.0f / r.sum[h];
        if (token >= w.row.count)
            continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *reinterpret_cast<uint32_t *>(out + n * 8) =
                half_ops<T>::narrow2(r.o[n * 4 + h * 2] * scale, r.o[n * 4 + h * 2 + 1] * scale);
    }
}

/* Consumers begin their products in turn: one's softmax then falls into the other's products. */
static __device__ __forceinline__ void order_take(uint32_t consumer, uint32_t turn)
{
    if (consumer || turn)
        order_wait(consumer);
}

static __device__ __forceinline__ void order_pass(uint32_t consumer, uint32_t turn, uint32_t turns)
{
    if (!consumer || turn + 1 < turns)
        order_signal(!consumer);
}

static __device__ __forceinline__ void stage_free(uint32_t empty)
{
    if (threadIdx.x % 32 == 0)
        barrier_arrive(empty);
}

template <class T, int D>
static __device__ __forceinline__ void consume(const struct attention_args &a, const struct work &w,
                                               uint32_t shared)
{
    typedef layout<D> at;
    uint32_t consumer = warpgroup() - 1, m0 = w.first + consumer * ROWS;
    uint64_t q = descriptor(shared + consumer * at::rows, 16);
    uint64_t k_tiles = descriptor(shared + at::k, 16);
    uint64_t v_tiles = descriptor(shared + at::v, KEYS * PANEL_ROW);
    float scale_log2 = a.scale * LOG2E, alpha[2];
    struct ring k = {0, 0}, v = {0, 0};
    struct rows64<D> r;

    queries_load<D>(a, w, m0, shared + consumer * at::rows);
    rows_reset(r, w, m0, a.window);
    consumer_sync(consumer);
    barrier_wait(barrier_at<D>(shared, K_FULL, 0), 0);
    order_take(consumer, 0);
    hold(r.s);
    products_fence();
    scores_begin<T, D>(r.s, q, k_tiles);
    order_pass(consumer, 0, w.turns);
    products_wait<0>();
    hold(r.s);
    stage_free(barrier_at<D>(shared, K_EMPTY, 0));
    ring_next(k);
    rows_weigh(r, w.begin, scale_log2, alpha);
    rows_narrow<T>(r);
    barrier_wait(barrier_at<D>(shared, V_FULL, 0), 0);
    for (uint32_t turn = 1; turn < w.turns; turn++) {
        uint32_t used = barrier_at<D>(shared, V_EMPTY, v.stage);

        barrier_wait(barrier_at<D>(shared, K_FULL, k.stage), k.phase);
        order_take(consumer, turn);
        hold(r.s);
        hold(r.o);
        hold(r.p);
        products_fence();
        scores_begin<T, D>(r.s, q, k_tiles + k.stage * (at::tile >> 4));
        values_begin<T, D>(r, v_tiles + v.stage * (at::tile >> 4));
        order_pass(consumer, turn, w.turns);
        products_wait<1>();
        hold(r.s);
        stage_free(barrier_at<D>(shared, K_EMPTY, k.stage));
        ring_next(k);
        rows_weigh(r, w.begin + turn * KEYS, scale_log2, alpha);
        ring_next(v);
        /* Here: a loop keeps the compiler from waiting for products before the weights are made. */
        barrier_wait(barrier_at<D>(shared, V_FULL, v.stage), v.phase);
        products_wait<0>();
        hold(r.o);
        hold(r.p);
        stage_free(used);
#pragma unroll
        for (int i = 0; i < D / 2; i++)
            r.o[i] *= alpha[i / 2 % 2];
        rows_narrow<T>(r);
    }
    barrier_wait(barrier_at<D>(shared, V_CLEAN, 0), 0);
    hold(r.o);
    hold(r.p);
    products_fence();
    values_begin<T, D>(r, v_tiles + v.stage * (at::tile >> 4));
    products_wait<0>();
    hold(r.o);
    hold(r.p);
    rows_store<T>(a, w, r, m0);
}

#endif

/* Registers go from the warpgroup that only loads to those that compute. */
template <class T, int D>
__global__ void __launch_bounds__(THREADS, 1)
    prefill_hopper_kernel(const __grid_constant__ struct attention_args a,
                          const __grid_constant__ CUtensorMap k_map,
                          const __grid_constant__ CUtensorMap v_map)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ uint4 memory[];
    uint32_t shared = shared_address(memory);
    struct work w = work_of(a);

    shared = (shared + PANEL_ALIGNMENT - 1) / PANEL_ALIGNMENT * PANEL_ALIGNMENT;
    if (threadIdx.x == 0) {
        for (uint32_t stage = 0; stage < STAGES; stage++) {
            barrier_init(barrier_at<D>(shared, K_FULL, stage), 1);
            barrier_init(barrier_at<D>(shared, V_FULL, stage), 1);
            barrier_init(barrier_at<D>(shared, K_EMPTY, stage), CONSUMERS * WARPGROUP / 32);
            barrier_init(barrier_at<D>(shared, V_EMPTY, stage), CONSUMERS * WARPGROUP / 32);
        }
        barrier_init(barrier_at<D>(shared, V_CLEAN, 0), 32);
        barriers_publish();
    }
    __syncthreads();
    if (warpgroup() == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x < 32)
            produce<D>(a, &k_map, &v_map, w, shared);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        consume<T, D>(a, w, shared);
    }
#endif
}

uint32_t attention_tile_rows(uint32_t head_dim, uint32_t page_size)
{
    bool suits = (head_dim == 64 || head_dim == 128) && page_size % 8 == 0;

    return suits && tensor_maps() ? PREFILL_ROWS_HOPPER : PREFILL_ROWS;
}

template <class T, int D> struct prepare {
    static cudaError_t kernels(void)
    {
        return cudaFuncSetAttribute(prefill_hopper_kernel<T, D>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    (int)(layout<D>::bytes + PANEL_ALIGNMENT));
    }
};

cudaError_t prefill_hopper_setup(void)
{
    return tensor_maps() ? heads_prepare<prepare>() : cudaSuccess;
}

/* A layer's keys or values: (pages and heads, page_size, head_dim). */
static cudaError_t map_make(const struct attention_args *a, enum half_type t, const void *data,
                            CUtensorMap *out)
{
    const uint32_t sizes[] = {a->head_dim, a->page_size, a->pages * a->kv_heads};
    const uint64_t row = (uint64_t)a->head_dim * 2, strides[] = {row, row * a->page_size};
    const uint32_t box[] = {PANEL, box_rows(a->page_size), 1};

    return tensor_map_make(out, t, data, 3, sizes, strides, box);
}

template <class T, int D>
static cudaError_t prefill(cudaStream_t s, const struct attention_args *a, const CUtensorMap &k,
                           const CUtensorMap &v)
{
    prefill_hopper_kernel<T, D>
        <<<a->tile_count * a->kv_heads, THREADS, layout<D>::bytes + PANEL_ALIGNMENT, s>>>(*a, k, v);
    return cudaGetLastError();
}

cudaError_t launch_prefill_hopper(cudaStream_t s, enum half_type t, const struct attention_args *a)
{
    CUtensorMap k, v;
    cudaError_t rc = map_make(a, t, a->k, &k);

    if (rc == cudaSuccess)
        rc = map_make(a, t, a->v, &v);
    if (rc != cudaSuccess)
        return rc;
    if (t == HALF_BF16)
        return a->head_dim == 64 ? prefill<__nv_bfloat16, 64>(s, a, k, v)
                                 : prefill<__nv_bfloat16, 128>(s, a, k, v);
    return a->head_dim == 64 ? prefill<__half, 64>(s, a, k, v) : prefill<__half, 128>(s, a, k, v);
}

/* Attention of single tokens on Hopper where sequences are long or of different lengths: the tiles
 * of all units, one unit behind the other, are shared evenly among blocks, two a multiprocessor
 * (after Stream-K, Osama et al. 2023). A warp's ring is filled across units, so that memory has
 * work while results go out. Of a unit that several blocks share, the parts go through memory, and
 * the last block to finish adds them in order. */
#include "kernels/cuda/decode_hopper.cuh"

#define EARLY 2         /* tiles of a warp that are asked for ahead of the queries */
#define TILES_LEAST 16u /* of a block */
#define UNIT_BLOCKS 32u /* of the longest unit, about: all of their parts are added by one */

/* Tiles of a warp's ring: of half a multiprocessor, so that there is room for another block or for
 * one of the kernels before and behind. */
static __host__ __device__ constexpr uint32_t stages_of(uint32_t head_dim)
{
    return 384 / head_dim;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* Where in the tiles of all units. A lane knows one of 32 rows. */
struct walk {
    uint32_t at, end;     /* the next tile, and where this block's end */
    uint32_t row, y;      /* the unit it belongs to */
    uint32_t tile, tiles; /* which of the unit's it is, and how many that has */
    struct frame_row known;
};

static __device__ __forceinline__ uint32_t row_tiles(const struct attention_args &a,
                                                     const struct frame_row &row)
{
    uint32_t end = row.start + 1, first = a.window && end > a.window ? end - a.window : 0;

    return (end + DECODE_KEYS - 1) / DECODE_KEYS - first / DECODE_KEYS;
}

/* Of 32 rows from `base` on this lane's, and the tiles of one of its units. */
static __device__ __forceinline__ uint32_t rows_look(const struct attention_args &a, uint32_t base,
                                                     struct frame_row &row)
{
    uint32_t index = base + threadIdx.x % 32;

    if (index >= a.decode_count)
        return 0;
    row = row_at(a, index);
    return row_tiles(a, row);
}

/* All tiles, and how many blocks share them: each has some. */
struct sharing {
    uint32_t tiles, blocks;
};

static __device__ __forceinline__ struct sharing sharing_of(uint32_t tiles, uint32_t longest)
{
    uint32_t least = longest / UNIT_BLOCKS, blocks;

    least = least < TILES_LEAST ? TILES_LEAST : least;
    blocks = tiles / least;
    return {tiles, blocks < 1 ? 1 : blocks < gridDim.x ? blocks : gridDim.x};
}

static __device__ __forceinline__ uint32_t block_begin(const struct sharing &s, uint32_t block)
{
    return (uint32_t)((uint64_t)s.tiles * block / s.blocks);
}

/* The block that has a tile. */
static __device__ __forceinline__ uint32_t block_of(const struct sharing &s, uint32_t tile)
{
    return (uint32_t)(((uint64_t)(tile + 1) * s.blocks - 1) / s.tiles);
}

static __device__ __forceinline__ uint32_t scan_add(uint32_t x)
{
#pragma unroll
    for (uint32_t i = 1; i < 32; i *= 2) {
        uint32_t y = __shfl_up_sync(0xffffffffu, x, i);

        x += threadIdx.x % 32 >= i ? y : 0;
    }
    return x;
}

/* How all tiles are shared, and this block's. False: it has none. All lanes. */
static __device__ __forceinline__ bool walk_open(const struct attention_args &a, struct walk &w,
                                                 struct sharing &s)
{
    uint32_t units = ROW_UNITS(a.heads, a.kv_heads), before = 0, base = 0, found, sum, longest;

    w.known = {};
    w.tiles = sum = longest = rows_look(a, 0, w.known);
#pragma unroll 4
    for (uint32_t next = 32; next < a.decode_count; next += 32) {
        struct frame_row row = {};
        uint32_t tiles = rows_look(a, next, row);

        sum += tiles;
        longest = tiles > longest ? tiles : longest;
    }
    s = sharing_of(__reduce_add_sync(0xffffffffu, sum) * units,
                   __reduce_max_sync(0xffffffffu, longest));
    if (blockIdx.x >= s.blocks)
        return false;
    w.at = block_begin(s, blockIdx.x);
    w.end = block_begin(s, blockIdx.x + 1);
    for (;;) {
        sum = scan_add(w.tiles);
        found = __ballot_sync(0xffffffffu, (before + sum) * units > w.at);
        if (found)
            break;
        before += __shfl_sync(0xffffffffu, sum, 31);
        base += 32;
        w.tiles = rows_look(a, base, w.known);
    }
    w.row = base + __ffs(found) - 1;
    before += __shfl_sync(0xffffffffu, sum - w.tiles, __ffs(found) - 1);
    w.tiles = __shfl_sync(0xffffffffu, w.tiles, __ffs(found) - 1);
    w.y = (w.at - before * units) / w.tiles;
    w.tile = (w.at - before * units) % w.tiles;
    return true;
}

/* All lanes. */
static __device__ __forceinline__ struct frame_row walk_row(const struct walk &w)
{
    int lane = (int)w.row % 32;

    return {__shfl_sync(0xffffffffu, w.known.slot, lane),
            __shfl_sync(0xffffffffu, w.known.start, lane),
            __shfl_sync(0xffffffffu, w.known.count, lane),
            __shfl_sync(0xffffffffu, w.known.token, lane)};
}

/* Tiles of the unit from here on that are this block's. */
static __device__ __forceinline__ uint32_t walk_count(const struct walk &w)
{
    uint32_t rest = w.tiles - w.tile;

    return rest < w.end - w.at ? rest : w.end - w.at;
}

/* To the next unit; false: this block has no more. All lanes. */
static __device__ __forceinline__ bool walk_next(struct walk &w, const struct attention_args &a)
{
    w.at += walk_count(w);
    if (w.at == w.end)
        return false;
    w.tile = 0;
    if (++w.y == ROW_UNITS(a.heads, a.kv_heads)) {
        w.y = 0;
        if (++w.row % 32 == 0)
            (void)rows_look(a, w.row, w.known);
        w.tiles = row_tiles(a, walk_row(w));
    }
    return true;
}

/* What of a unit is this block's: positions [begin, end). */
struct segment {
    struct unit u;
    uint32_t begin, end;
};

static __device__ __forceinline__ struct segment segment_of(const struct attention_args &a,
                                                            const struct walk &w)
{
    struct segment g;
    uint32_t end;

    g.u = unit_of(a, walk_row(w), w.y);
    g.begin = (g.u.first / DECODE_KEYS + w.tile) * DECODE_KEYS;
    end = g.begin + walk_count(w) * DECODE_KEYS;
    g.end = end < g.u.row.start + 1 ? end : g.u.row.start + 1;
    return g;
}

/* A warp's loads, which are ahead of what it computes. */
struct loads {
    struct walk w;
    struct keys keys;
    struct queue q;
    uint32_t newest; /* position of the unit's newest key */
    uint32_t ahead;  /* tiles that are on their way or there */
    uint32_t stage;  /* where the next tile goes */
};

static __device__ __forceinline__ void loads_open(struct loads &l, const struct attention_args &a)
{
    struct segment g = segment_of(a, l.w);

    l.keys = g.u.keys;
    l.newest = g.u.row.start;
    queue_open(l.q, l.keys, g.begin + threadIdx.x / 32 * DECODE_KEYS, WARPS * DECODE_KEYS, g.end);
}

/* Whether there is another tile of this warp. All lanes. */
static __device__ __forceinline__ bool loads_find(struct loads &l, const struct attention_args &a)
{
    while (l.q.first >= l.q.end) {
        if (!walk_next(l.w, a))
            return false;
        loads_open(l, a);
    }
    return true;
}

/* The next tile's, if there is one and room for it. All lanes. */
template <int D>
static __device__ __forceinline__ bool loads_next(struct loads &l, const struct attention_args &a,
                                                  const struct key_maps &maps, uint32_t ring,
                                                  uint32_t full)
{
    if (l.ahead == stages_of(D) || !loads_find(l, a))
        return false;
    queue_load<D>(l.q, l.keys, maps, ring + l.stage * 2 * DECODE_KEYS * D * 2, full + 8 * l.stage);
    l.stage = l.stage + 1 == stages_of(D) ? 0 : l.stage + 1;
    l.ahead++;
    return true;
}

/* A warp's part of a segment, where its last tile was, which has just that room: rows of D numbers,
 * permuted so that eight rows of one column lie in different banks; what belongs to a row besides
 * is elsewhere. */
struct warp_parts {
    float *numbers[WARPS]; /* NULL: it had no tile */
    float2 *sums;          /* (WARPS, DECODE_ROWS): top and sum of the weights */
};

static __device__ __forceinline__ uint32_t number_at(uint32_t head_dim, uint32_t row,
                                                     uint32_t column)
{
    return row * head_dim + (column ^ (row & 7) * 8);
}

template <int D, int HALVES>
static __device__ __forceinline__ void part_store(const struct rows16<D> &r, float *numbers,
                                                  float2 *sums)
{
    uint32_t lane = threadIdx.x % 32;

#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        uint32_t m = lane / 4 + h * 8;

        if (numbers)
#pragma unroll
            for (int n = 0; n < D / 8; n++)
                *reinterpret_cast<float2 *>(numbers + number_at(D, m, n * 8 + lane % 4 * 2)) =
                    make_float2(r.o[n][h * 2], r.o[n][h * 2 + 1]);
        if (lane % 4 == 0)
            sums[m] = make_float2(r.top[h], r.sum[h]);
    }
}

/* The i'th two numbers of a segment: the warps' parts of them. */
template <int D>
static __device__ __forceinline__ float2 warps_add(const struct warp_parts &from, uint32_t i,
                                                   float *top, float *sum)
{
    uint32_t m = i / (D / 2), d = i % (D / 2) * 2;
    float2 own[WARPS], values[WARPS];

#pragma unroll
    for (uint32_t k = 0; k < WARPS; k++) {
        own[k] = from.sums[k * DECODE_ROWS + m];
        values[k] = from.numbers[k]
                        ? *reinterpret_cast<const float2 *>(from.numbers[k] + number_at(D, m, d))
                        : make_float2(0.0f, 0.0f);
    }
    return parts_merge(own, values, top, sum);
}

/* Of a unit, the numbers of a warp's turns, to the output: of `count` parts in memory. What all
 * turns have of PARTS_AHEAD parts is on its way at once. */
template <class T, int D, int TURNS>
static __device__ __forceinline__ void parts_add(const struct attention_args &a,
                                                 const struct unit &u, const float4 *memory,
                                                 uint32_t count, uint32_t begin)
{
    const uint32_t pairs = u.heads * (D / 2), stride = DECODE_ROWS * (D / 2);
    float2 own[TURNS], values[TURNS];

#pragma unroll
    for (uint32_t k = 0; k < TURNS; k++) {
        own[k] = make_float2(-CUDART_INF_F, 0.0f);
        values[k] = make_float2(0.0f, 0.0f);
    }
    for (uint32_t base = 0; base < count; base += PARTS_AHEAD)
#pragma unroll
        for (uint32_t k = 0; k < TURNS; k++) {
            uint32_t i = begin + k * THREADS, left = i < pairs ? count - base : 0;
            float2 tops[2] = {own[k]}, sums[2] = {values[k]};

            sums[1] = pair_add(memory + base * stride + i, left, stride, &tops[1].x, &tops[1].y);
            values[k] = parts_merge(tops, sums, &own[k].x, &own[k].y);
        }
#pragma unroll
    for (uint32_t k = 0; k < TURNS; k++)
        if (begin + k * THREADS < pairs)
            pair_out<T, D>(a, u, begin + k * THREADS, values[k], own[k].y);
}

/* A segment to where it belongs: the output, or, where other blocks have parts of the unit, memory,
 * from where they are added up, what a warp has by the last warp to arrive of those that have the
 * same of other parts. All threads. */
template <class T, int D>
static __device__ __forceinline__ void
segment_finish(const struct attention_args &a, const struct segment &g, const struct walk &w,
               const struct sharing &s, const struct warp_parts &from)
{
    const int turns = D / 32; /* of eight heads */
    const uint32_t pairs = g.u.heads * (D / 2), stride = DECODE_ROWS * (D / 2);
    uint32_t first = block_of(s, w.at - w.tile);
    uint32_t count = block_of(s, w.at - w.tile + w.tiles - 1) - first + 1;
    /* A unit that goes on behind its first block ends where the next such unit begins, or before:
     * so twice the first block is a place that leaves room for all of its parts. */
    float4 *memory = reinterpret_cast<float4 *>(a.partials) + (size_t)2 * first * stride;
    float top, sum;

    for (uint32_t i = threadIdx.x; i < pairs; i += THREADS) {
        float2 value = warps_add<D>(from, i, &top, &sum);

        if (count == 1)
            pair_out<T, D>(a, g.u, i, value, sum);
        else
            memory[(blockIdx.x - first) * stride + i] = make_float4(value.x, value.y, top, sum);
    }
    if (count == 1 || threadIdx.x >= pairs ||
        !parts_arrive(a.arrivals + first * WARPS + threadIdx.x / 32, count))
        return;
    for (uint32_t i = threadIdx.x; i < pairs; i += turns * THREADS)
        parts_add<T, D, turns>(a, g.u, memory, count, i);
}

/* Shared memory: the warps' rings of tiles. */
template <class T, int D, bool ROTATE, int HALVES>
static __device__ __forceinline__ void balanced_attend(const struct attention_args &a,
                                                       const struct key_maps &maps)
{
    extern __shared__ uint4 shared[];
    constexpr uint32_t STAGES = stages_of(D), tile_bytes = 2 * DECODE_KEYS * D * 2;
    __shared__ uint64_t arrivals[WARPS][STAGES];
    __shared__ float2 sums[WARPS * DECODE_ROWS];
    uint32_t warp = threadIdx.x / 32, full = shared_address(arrivals[warp]), stage = 0, phase = 0;
    uint32_t slack = (0u - shared_address(shared)) % PANEL_ALIGNMENT;
    char *rings = reinterpret_cast<char *>(shared) + slack;
    char *tiles = rings + warp * STAGES * tile_bytes;
    uint32_t ring = shared_address(tiles);
    uint32_t turns[WARPS] = {}; /* tiles that each warp has had */
    struct query_turns<D> q;
    struct sharing s;
    struct segment g;
    struct loads l;
    struct walk w;

    static_assert(tile_bytes == DECODE_ROWS * D * 4, "a warp's part fits a tile");
    if (!walk_open(a, w, s))
        return;
    l.w = w;
    l.ahead = l.stage = 0;
    loads_open(l, a);
    if (threadIdx.x % 32 == 0) {
#pragma unroll
        for (uint32_t i = 0; i < STAGES; i++)
            barrier_init(full + 8 * i, 1);
        barriers_publish();
    }
    __syncwarp();
    while (l.ahead < EARLY && loads_find(l, a) && (ROTATE || l.q.first + DECODE_KEYS <= l.newest))
        (void)loads_next<D>(l, a, maps, ring, full);
    g = segment_of(a, w);
    if (ROTATE)
        query_look(q, a, g.u);
    previous_wait();
    for (;;) {
        uint32_t last = g.u.row.start; /* position: the newest */
        uint32_t count = walk_count(w), done = 0;
        bool own = ROTATE && g.end == last + 1 && (last - g.begin) / DECODE_KEYS % WARPS == warp;
        struct warp_parts parts;
        struct newest<T, D> n;
        struct rows16<D> r;

        if (own)
            newest_look(n, a, g.u);
        rows_reset(r);
        if (!ROTATE)
            unit_query(r, a, g.u, last + 1);
        else if (own)
            unit_rotate<T, D, true, HALVES>(r, n, q, a, g.u, last + 1);
        else
            unit_rotate<T, D, false, HALVES>(r, n, q, a, g.u, last + 1);
        while (loads_next<D>(l, a, maps, ring, full))
            ;
        for (uint32_t p = g.begin + warp * DECODE_KEYS; p < g.end; p += WARPS * DECODE_KEYS) {
            uint32_t at = stage * tile_bytes, here = ring + at;

            barrier_wait(full + 8 * stage, phase);
            if (last - p < DECODE_KEYS) {
                char *values = tiles + at + tile_bytes / 2;

                if (ROTATE)
                    newest_put(n, tiles + at, values, last - p);
                values_clear<D>(values, last + 1 - p);
                __syncwarp();
            }
            rows_attend<T, D, DECODE_KEYS, HALVES, panel_at<DECODE_KEYS>>(
                r, here, here + tile_bytes / 2, p, a.scale * LOG2E);
            __syncwarp();
            l.ahead--;
            if (p + WARPS * DECODE_KEYS < g.end)
                (void)loads_next<D>(l, a, maps, ring, full);
            done = stage;
            if (++stage == STAGES) {
                stage = 0;
                phase ^= 1;
            }
        }
        rows_finish(r);
        parts.sums = sums;
#pragma unroll
        for (uint32_t k = 0; k < WARPS; k++) {
            turns[k] += (count + WARPS - 1 - k) / WARPS;
            parts.numbers[k] =
                count > k ? reinterpret_cast<float *>(
                                rings + (k * STAGES + (turns[k] - 1) % STAGES) * tile_bytes)
                          : NULL;
        }
        part_store<D, HALVES>(
            r, count > warp ? reinterpret_cast<float *>(tiles + done * tile_bytes) : NULL,
            sums + warp * DECODE_ROWS);
        __syncthreads();
        segment_finish<T, D>(a, g, w, s, parts);
        if (!walk_next(w, a))
            break;
        stores_publish(); /* before the next tiles come there */
        __syncthreads();
        g = segment_of(a, w);
        if (ROTATE)
            query_look(q, a, g.u);
    }
}

#endif

/* Grid: blocks. */
template <class T, int D, bool ROTATE, int HALVES>
__global__ void __launch_bounds__(THREADS)
    balanced_kernel(const __grid_constant__ struct attention_args a,
                    const __grid_constant__ struct key_maps maps)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    next_start();
    balanced_attend<T, D, ROTATE, HALVES>(a, maps);
#endif
}

template <class T, int D, bool ROTATE, int HALVES> struct balanced {
    static constexpr decode_kernel *at = balanced_kernel<T, D, ROTATE, HALVES>;
};

static size_t balanced_bytes(uint32_t head_dim)
{
    return PANEL_ALIGNMENT + WARPS * stages_of(head_dim) * 2 * DECODE_KEYS * head_dim * 2;
}

cudaError_t decode_balanced_setup(void)
{
    return kernels_prepare<balanced>(balanced_bytes);
}

cudaError_t launch_decode_balanced(cudaStream_t s, enum half_type t, const struct attention_args *a)
{
    struct key_maps maps;
    cudaError_t rc = keys_map(&maps, t, a);

    if (rc != cudaSuccess)
        return rc;
    return launch_chained(kernel_for<balanced>(t, a), dim3(2 * a->multiprocessors), THREADS,
                          balanced_bytes(a->head_dim), s, *a, maps);
}

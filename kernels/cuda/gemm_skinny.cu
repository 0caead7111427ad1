/* Products with few rows of x on Hopper, bound by the reading of w: rows of w are the rows of a
 * warpgroup's products, those of x their 8 to 64 columns. Two warps keep a ring of tiles filled by
 * the tensor copy engine, one w's part, and before the kernel that makes x is done, the other x's.
 * The ring is deep, so that memory has work while kernels wait for each other, but only some of it
 * is asked for at once: what is asked for queues up, and what others wait for behind it.
 *
 * Memory is shared evenly among the multiprocessors that ask, so a block a multiprocessor reads,
 * and all of them about the same number of bytes: a tile has as many rows as that takes, and blocks
 * take as many tiles. Blocks of a cluster may share a tile's k; each adds up its share of the
 * results from all of them, in order. So the order of a sum depends on the shapes alone. */
#include "kernels/cuda/hopper.cuh"

#define CONSUMERS 128
#define THREADS (CONSUMERS + 2 * 32)
#define PRODUCT_ROWS 64u /* of w in one product */
#define TILE_ROWS_MAX (2 * PRODUCT_ROWS)
#define ROW_STRIDE (TILE_ROWS_MAX + 4) /* floats of a row of x; apart in banks */
#define PARTS_MAX 8u
#define STAGES_MAX 16u
/* Bytes of shared memory: more than half of a multiprocessor's (SHARED_HALF), since two blocks of
 * one kernel on it would take twice as long as the others; but little (SHARED_FEW) stays little. A
 * small matrix, as those beside attention, leaves room for a block of attention's. */
#define SHARED_FEW (96u << 10)
#define SHARED_HALF (115u << 10)
#define SHARED_SMALL (118u << 10)
#define SHARED_LARGE (200u << 10)
#define LARGE (40u << 20)  /* bytes of w, from there on */
#define FLIGHT (48u << 10) /* bytes of w that a block asks for at once */

struct skinny_args {
    const void *bias;
    void *y;
    uint32_t m, n, k, y_stride;
    uint32_t rows, tiles;         /* rows: of w in a tile; of gate's and up's, half of it each */
    uint32_t parts;               /* blocks of a tile */
    uint32_t stages, part, inbox; /* the last two: bytes from the ring's begin */
    uint32_t lead;                /* turns left when the next kernel may come */
    uint32_t flight;              /* turns of w that are asked for at once */
};

/* Panels of a turn: what a turn takes besides its bytes counts less for a wider one. */
static __host__ __device__ constexpr uint32_t depth_of(uint32_t products)
{
    return products == 1 ? 2 : 1;
}

/* Of a panel of w in a stage: products want it to begin where the swizzle does. */
static __host__ __device__ __forceinline__ uint32_t panel_rows(uint32_t rows)
{
    return (rows + 7) / 8 * 8;
}

static __host__ __device__ __forceinline__ uint32_t stage_bytes(uint32_t columns, uint32_t rows)
{
    return (columns + panel_rows(rows)) * depth_of(rows <= PRODUCT_ROWS ? 1 : 2) * PANEL_ROW;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* What a block does: panels [begin, end) of w's columns, in turns of one or two, of tiles `tile`,
 * tile + step, ... A stage has x's rows, then w's, panel by panel. A turn that is not full has
 * panels behind the last one, which are zeros. */
struct block {
    uint32_t ring;                            /* in shared memory */
    uint32_t w_full, x_full, empty, exchange; /* barriers; of the first three the first */
    uint32_t rank, begin, end, tile, step;
    float *part;   /* this block's results of a tile, N rows */
    float4 *inbox; /* what the others have of this block's share of them */
};

/* Where in the ring, and which panel of which tile. */
struct place {
    uint32_t stage, phase, panel, tile;
};

template <int P>
static __device__ __forceinline__ void place_next(const struct block &b,
                                                  const struct skinny_args &a, struct place &p)
{
    p.panel += depth_of(P);
    if (p.panel >= b.end) {
        p.panel = b.begin;
        p.tile += b.step;
    }
    if (++p.stage == a.stages) {
        p.stage = 0;
        p.phase ^= 1;
    }
}

template <int N, int P, int OUT>
static __device__ __forceinline__ void w_copy(const struct block &b, const struct skinny_args &a,
                                              const CUtensorMap *w, const struct place &p,
                                              uint64_t policy)
{
    uint32_t at = b.ring + p.stage * stage_bytes(N, a.rows) + N * depth_of(P) * PANEL_ROW;
    uint32_t full = b.w_full + 8 * p.stage, rows = OUT == GEMV_SILU ? a.rows / 2 : a.rows;

    barrier_expect(full, a.rows * depth_of(P) * PANEL_ROW);
#pragma unroll
    for (uint32_t d = 0; d < depth_of(P); d++) {
        uint32_t to = at + d * panel_rows(a.rows) * PANEL_ROW;

        box_load(w, to, full, 0, p.tile * rows, p.panel + d, policy);
        if (OUT == GEMV_SILU)
            box_load(w, to + rows * PANEL_ROW, full, 0, a.n + p.tile * rows, p.panel + d, policy);
    }
}

template <int P> static __device__ __forceinline__ uint32_t tile_turns(const struct block &b)
{
    return (b.end - b.begin + depth_of(P) - 1) / depth_of(P);
}

template <int P>
static __device__ __forceinline__ uint32_t block_turns(const struct block &b,
                                                       const struct skinny_args &a)
{
    return (a.tiles - b.tile + b.step - 1) / b.step * tile_turns<P>(b);
}

/* One thread. */
template <int N, int P, int OUT>
static __device__ __forceinline__ void w_fill(const struct block &b, const struct skinny_args &a,
                                              const CUtensorMap *w)
{
    uint32_t turns = block_turns<P>(b, a);
    uint64_t once = policy_evict_first();
    struct place p = {0, 0, b.begin, b.tile}, landed = p;

    for (uint32_t i = 0; i < turns; i++, place_next<P>(b, a, p)) {
        barrier_wait(b.empty + 8 * p.stage, p.phase ^ 1);
        if (i >= a.flight) {
            barrier_wait(b.w_full + 8 * landed.stage, landed.phase);
            place_next<P>(b, a, landed);
        }
        w_copy<N, P, OUT>(b, a, w, p, once);
    }
}

/* One thread. The next kernel's blocks come when the last turns are asked for: what they ask for
 * then keeps memory busy while this kernel ends. */
template <int N, int P>
static __device__ __forceinline__ void x_fill(const struct block &b, const struct skinny_args &a,
                                              const CUtensorMap *x)
{
    uint32_t left = block_turns<P>(b, a);
    uint64_t again = policy_evict_last();
    struct place p = {0, 0, b.begin, b.tile};

    if (left < a.lead)
        next_start();
    previous_wait();
    for (; left; left--, place_next<P>(b, a, p)) {
        uint32_t full = b.x_full + 8 * p.stage;

        if (left == a.lead)
            next_start();
        barrier_wait(b.empty + 8 * p.stage, p.phase ^ 1);
        barrier_expect(full, N * depth_of(P) * PANEL_ROW);
        box_load(x, b.ring + p.stage * stage_bytes(N, a.rows), full, 0, 0, p.panel, again);
    }
}

/* The products of one turn: of two, or of one in two sums that are added later, so that a product
 * need not wait for the one before. */
template <class T, int N, int P>
static __device__ __forceinline__ void turn_multiply(const struct skinny_args &a, uint32_t at,
                                                     bool adds, float (&c)[2][N / 2])
{
#pragma unroll
    for (uint32_t d = 0; d < depth_of(P); d++) {
        uint64_t x = descriptor(at + d * N * PANEL_ROW, 16);
        uint64_t w = descriptor(at + (depth_of(P) * N + d * panel_rows(a.rows)) * PANEL_ROW, 16);

#pragma unroll
        for (uint32_t k = 0; k < PANEL / 16; k++)
            if (P == 1)
                products_few<T>::few(c[k % 2], w + 2 * k, x + 2 * k, adds || d || k > 1);
            else
#pragma unroll
                for (int i = 0; i < 2; i++)
                    products_few<T>::few(c[i], w + (i * PRODUCT_ROWS * PANEL_ROW >> 4) + 2 * k,
                                         x + 2 * k, adds || k);
    }
    products_commit();
}

/* A warpgroup's products of one tile: PRODUCT_ROWS rows of w in c[0] and, where P is 2, the next in
 * c[1]. They read all rows of a product also where the tile has fewer; nobody looks at what comes
 * of that. */
template <class T, int N, int P>
static __device__ __forceinline__ void tile_multiply(const struct block &b,
                                                     const struct skinny_args &a, struct place &p,
                                                     float (&c)[2][N / 2])
{
    uint32_t before = 0, turns = tile_turns<P>(b);

    for (uint32_t i = 0; i < turns; i++, place_next<P>(b, a, p)) {
        barrier_wait(b.w_full + 8 * p.stage, p.phase);
        barrier_wait(b.x_full + 8 * p.stage, p.phase);
        products_fence();
        turn_multiply<T, N, P>(a, b.ring + p.stage * stage_bytes(N, a.rows), i > 0, c);
        products_wait<1>();
        if (before && threadIdx.x % 32 == 0)
            barrier_arrive(before);
        before = b.empty + 8 * p.stage;
    }
    products_wait<0>();
    if (threadIdx.x % 32 == 0)
        barrier_arrive(before);
    if (P == 1)
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            c[0][i] += c[1][i];
}

/* To shared memory, (N, ROW_STRIDE): a row of x after the other. */
template <int N, int P>
static __device__ __forceinline__ void part_store(const float (&c)[2][N / 2], float *part)
{
    uint32_t row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;

#pragma unroll
    for (uint32_t half = 0; half < P; half++)
#pragma unroll
        for (uint32_t i = 0; i < N / 2; i++)
            part[(i / 4 * 8 + column + i % 2) * ROW_STRIDE + half * PRODUCT_ROWS + row +
                 i / 2 % 2 * 8] = c[half][i];
}

static __device__ __forceinline__ float silu_times(float gate, float up)
{
    return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

template <class T>
static __device__ __forceinline__ float4 bias_add(float4 v, const void *bias, uint32_t row)
{
    typedef half_ops<T> ops;
    uint2 packed = bias ? *reinterpret_cast<const uint2 *>(static_cast<const T *>(bias) + row)
                        : make_uint2(0, 0);
    float2 a = ops::widen2(packed.x), b = ops::widen2(packed.y);

    return make_float4(v.x + a.x, v.y + a.y, v.z + b.x, v.w + b.y);
}

/* Of a tile's results, four of a token at a time, each of its blocks finishes a share, the first
 * ones the first. Of SILU's, one is two: gate's and up's. */
struct share {
    uint32_t fours, all, most; /* of a token; of all; of a block */
};

template <int OUT>
static __device__ __forceinline__ struct share share_of(const struct skinny_args &a)
{
    struct share s = {a.rows / (OUT == GEMV_SILU ? 8 : 4), 0, 0};

    s.all = a.m * s.fours;
    s.most = (s.all + a.parts - 1) / a.parts;
    return s;
}

static __device__ __forceinline__ uint32_t share_begin(const struct share &s, uint32_t rank)
{
    uint32_t begin = rank * s.most;

    return begin < s.all ? begin : s.all;
}

/* The i'th of this block's results. */
static __device__ __forceinline__ const float *result_at(const struct block &b,
                                                         const struct share &s, uint32_t i)
{
    return b.part + i / s.fours * ROW_STRIDE + i % s.fours * 4;
}

/* What others finish, to them. */
template <int OUT>
static __device__ __forceinline__ void results_send(const struct block &b,
                                                    const struct skinny_args &a)
{
    const uint32_t each = OUT == GEMV_SILU ? 2 : 1;
    struct share s = share_of<OUT>(a);

    for (uint32_t i = threadIdx.x; i < s.all; i += CONSUMERS) {
        uint32_t to = i / s.most, at = (b.rank * s.most + i - to * s.most) * each;

        if (to == b.rank)
            continue;
#pragma unroll
        for (uint32_t k = 0; k < each; k++)
            exchange_send(shared_address(b.inbox + at + k), b.exchange, to,
                          *reinterpret_cast<const float4 *>(result_at(b, s, i) + k * s.fours * 4));
    }
}

/* Four results: the sum of the parts in the order of the blocks. others: the first one's. */
static __device__ __forceinline__ float4 parts_sum(const struct block &b,
                                                   const struct skinny_args &a, const float *own,
                                                   const float4 *others, uint32_t apart)
{
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float4 mine = *reinterpret_cast<const float4 *>(own);

    if (a.parts == 1)
        return mine;
#pragma unroll
    for (uint32_t p = 0; p < PARTS_MAX; p++)
        if (p < a.parts) {
            float4 x = p == b.rank ? mine : others[p * apart];

            sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
        }
    return sum;
}

/* This block's share of a tile's results to y. */
template <class T, int OUT>
static __device__ __forceinline__ void results_store(const struct block &b,
                                                     const struct skinny_args &a, uint32_t tile)
{
    typedef half_ops<T> ops;
    const uint32_t each = OUT == GEMV_SILU ? 2 : 1;
    struct share s = share_of<OUT>(a);
    uint32_t begin = share_begin(s, b.rank), end = share_begin(s, b.rank + 1);

#pragma unroll 4
    for (uint32_t i = begin + threadIdx.x; i < end; i += CONSUMERS) {
        uint32_t token = i / s.fours, row = (tile * s.fours + i % s.fours) * 4;
        const float *own = result_at(b, s, i);
        const float4 *others = b.inbox + (i - begin) * each;
        size_t to = (size_t)token * a.y_stride + row;
        float4 v = parts_sum(b, a, own, others, s.most * each);

        if (row >= a.n)
            continue;
        if (OUT == GEMV_FLOAT) {
            *reinterpret_cast<float4 *>(static_cast<float *>(a.y) + to) = v;
            continue;
        }
        if (OUT == GEMV_SILU) {
            float4 up = parts_sum(b, a, own + s.fours * 4, others + 1, s.most * each);

            v = make_float4(silu_times(v.x, up.x), silu_times(v.y, up.y), silu_times(v.z, up.z),
                            silu_times(v.w, up.w));
        } else {
            v = bias_add<T>(v, a.bias, row);
        }
        *reinterpret_cast<uint2 *>(static_cast<T *>(a.y) + to) =
            make_uint2(ops::narrow2(v.x, v.y), ops::narrow2(v.z, v.w));
    }
}

static __device__ __forceinline__ void consumers_sync(void)
{
    asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory");
}

/* All tiles of a block that has its k alone; `part` is read before it is written again. */
template <class T, int N, int P, int OUT>
static __device__ __forceinline__ void tiles_multiply(const struct block &b,
                                                      const struct skinny_args &a)
{
    struct place p = {0, 0, b.begin, b.tile};

    while (p.tile < a.tiles) {
        uint32_t tile = p.tile;
        float c[2][N / 2];

        tile_multiply<T, N, P>(b, a, p, c);
        consumers_sync();
        part_store<N, P>(c, b.part);
        consumers_sync();
        results_store<T, OUT>(b, a, tile);
    }
}

/* The one tile of a cluster. All threads of its blocks come here. */
template <class T, int N, int P, int OUT>
static __device__ __forceinline__ void tile_share(const struct block &b,
                                                  const struct skinny_args &a)
{
    if (threadIdx.x < CONSUMERS) {
        struct place p = {0, 0, b.begin, b.tile};
        float c[2][N / 2];

        tile_multiply<T, N, P>(b, a, p, c);
        consumers_sync();
        part_store<N, P>(c, b.part);
        consumers_sync();
    }
    __syncwarp();
    exchange_ready();
    if (threadIdx.x < CONSUMERS) {
        results_send<OUT>(b, a);
        exchange_wait(b.exchange);
        results_store<T, OUT>(b, a, b.tile);
    }
}
#endif

/* Grid: blocks of a cluster share a tile's k; clusters take tiles in turn, one where they have more
 * than one block. P: products for the rows of a tile. */
template <class T, int N, int P, int OUT>
__global__ void __launch_bounds__(THREADS)
    skinny_kernel(const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap x,
                  const __grid_constant__ struct skinny_args a)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ uint8_t shared[];
    __shared__ uint64_t barriers[3][STAGES_MAX];
    __shared__ uint64_t exchange;
    uint32_t base = shared_address(shared);
    uint32_t turns = (a.k / PANEL + depth_of(P) - 1) / depth_of(P), slack;
    struct block b = {};

    b.ring = (base + PANEL_ALIGNMENT - 1) / PANEL_ALIGNMENT * PANEL_ALIGNMENT;
    slack = b.ring - base;
    b.part = reinterpret_cast<float *>(shared + slack + a.part);
    b.inbox = reinterpret_cast<float4 *>(shared + slack + a.inbox);
    b.w_full = shared_address(barriers[0]);
    b.x_full = shared_address(barriers[1]);
    b.empty = shared_address(barriers[2]);
    b.exchange = shared_address(&exchange);
    b.rank = blockIdx.x % a.parts;
    b.begin = turns * b.rank / a.parts * depth_of(P);
    b.end = turns * (b.rank + 1) / a.parts * depth_of(P);
    b.tile = blockIdx.x / a.parts;
    b.step = gridDim.x / a.parts;
    if (threadIdx.x == CONSUMERS) {
        for (uint32_t i = 0; i < a.stages; i++) {
            barrier_init(b.w_full + 8 * i, 1);
            barrier_init(b.x_full + 8 * i, 1);
            barrier_init(b.empty + 8 * i, CONSUMERS / 32);
        }
        barriers_publish();
    }
    __syncwarp();
    if (a.parts > 1) {
        struct share s = share_of<OUT>(a);
        uint32_t own = share_begin(s, b.rank + 1) - share_begin(s, b.rank);

        exchange_open(b.exchange, own * (a.parts - 1) * (OUT == GEMV_SILU ? 32 : 16));
    }
    __syncthreads();
    if (threadIdx.x == CONSUMERS)
        w_fill<N, P, OUT>(b, a, &w);
    if (threadIdx.x == CONSUMERS + 32)
        x_fill<N, P>(b, a, &x);
    if (a.parts > 1)
        tile_share<T, N, P, OUT>(b, a);
    else if (threadIdx.x < CONSUMERS)
        tiles_multiply<T, N, P, OUT>(b, a);
#endif
}

struct cut {
    uint32_t parts, rows, tiles, clusters;
};

static uint32_t ceil_div(uint32_t x, uint32_t y)
{
    return (x + y - 1) / y;
}

/* How w's rows are cut for clusters of so many blocks; false: not at all. `boxes` of rows make a
 * tile: gate's and up's, or one. */
static bool rows_cut(uint32_t parts, uint32_t n, uint32_t boxes, uint32_t multiprocessors,
                     struct cut *c)
{
    uint32_t most = multiprocessors / parts, each = 1, box;

    do
        box = ceil_div(ceil_div(n, most * each), 4) * 4;
    while (box * boxes > TILE_ROWS_MAX && parts == 1 && ++each);
    c->parts = parts;
    c->rows = box * boxes;
    c->tiles = ceil_div(n, box);
    c->clusters = c->tiles < most ? c->tiles : most;
    return c->rows <= TILE_ROWS_MAX;
}

/* Nanoseconds of a block from when x is there, roughly, on an H200: turns take what they take, or
 * their share of memory does, but for what the ring holds by then; adding up the parts of a cluster
 * takes two meetings. */
static double cut_time(const struct cut *c, uint32_t k, uint32_t columns)
{
    const double ring = 100e3, bytes_per_ns = 4400.0, reach = 75.0; /* reach: of one block */
    uint32_t products = ceil_div(c->rows, PRODUCT_ROWS), each = ceil_div(c->tiles, c->clusters);
    uint32_t turns = ceil_div(ceil_div(k / PANEL, depth_of(products)), c->parts) * each;
    double bytes = (double)turns * depth_of(products) * c->rows * PANEL_ROW - ring;
    double share = bytes_per_ns / (c->clusters * c->parts);
    double memory = bytes > 0 ? bytes / (share < reach ? share : reach) : 0.0;
    double computing = turns * (150.0 + columns);

    return (memory > computing ? memory : computing) + (c->parts > 1 ? 900.0 : 0.0);
}

static struct cut cut_choose(uint32_t n, uint32_t k, uint32_t columns, uint32_t boxes,
                             uint32_t multiprocessors)
{
    struct cut best = {}, c;
    double least = 0.0;

    for (uint32_t parts = 1; parts <= PARTS_MAX; parts *= 2) {
        double time;

        if (!rows_cut(parts, n, boxes, multiprocessors, &c) || (parts > 1 && k / parts < PANEL * 2))
            continue;
        time = cut_time(&c, k, columns);
        if (best.parts && time >= least)
            continue;
        least = time;
        best = c;
    }
    return best;
}

struct skinny_call {
    cudaStream_t stream;
    CUtensorMap w, x;
    struct skinny_args a;
    uint32_t clusters;
};

template <class T, int N, int P, int OUT> static cudaError_t skinny(struct skinny_call *c)
{
    const uint32_t stage = stage_bytes(N, c->a.rows), part = N * ROW_STRIDE * 4;
    const bool again = c->a.tiles > c->clusters; /* the ring is filled again when a tile is done */
    const bool large = (uint64_t)c->a.n * c->a.k * (OUT == GEMV_SILU ? 4 : 2) >= LARGE;
    uint32_t behind = (P * PRODUCT_ROWS - panel_rows(c->a.rows)) * PANEL_ROW; /* products read it */
    uint32_t inbox = c->a.parts == 1 ? 0 : (N * c->a.rows / 4 + 2 * c->a.parts) * 16, bytes;
    uint32_t turns = ceil_div(ceil_div(c->a.k / PANEL, depth_of(P)), c->a.parts); /* of a tile */
    bool whole; /* all that a block reads has room in its ring: the next kernel may come at once */

    if (again && behind < part)
        behind = part;
    c->a.stages =
        ((large ? SHARED_LARGE : SHARED_SMALL) - PANEL_ALIGNMENT - behind - inbox) / stage;
    c->a.stages = c->a.stages < STAGES_MAX ? c->a.stages : STAGES_MAX;
    whole = !again && c->a.stages >= turns;
    if (whole)
        c->a.stages = turns;
    if (!again && c->a.stages * stage + behind < part)
        behind = part - c->a.stages * stage;
    c->a.part = again ? c->a.stages * stage : 0;
    c->a.inbox = c->a.stages * stage + behind;
    c->a.lead = again || whole ? UINT32_MAX : c->a.stages / 2;
    c->a.flight = ceil_div(FLIGHT, c->a.rows * depth_of(P) * PANEL_ROW);
    c->a.flight = c->a.flight < c->a.stages ? c->a.flight : c->a.stages;
    bytes = PANEL_ALIGNMENT + c->a.inbox + inbox;
    bytes = bytes > SHARED_FEW && bytes < SHARED_HALF ? SHARED_HALF : bytes;
    return launch_clustered(skinny_kernel<T, N, P, OUT>, dim3(c->clusters * c->a.parts), c->a.parts,
                            THREADS, bytes, c->stream, c->w, c->x, c->a);
}

/* Columns of the products. */
static uint32_t columns_of(uint32_t m)
{
    return m <= 8 ? 8 : m <= 16 ? 16 : m <= 32 ? 32 : SKINNY_ROWS;
}

template <class T, int N, int OUT> static cudaError_t skinny_products(struct skinny_call *c)
{
    return c->a.rows <= PRODUCT_ROWS ? skinny<T, N, 1, OUT>(c) : skinny<T, N, 2, OUT>(c);
}

template <class T, int OUT> static cudaError_t skinny_columns(struct skinny_call *c)
{
    switch (columns_of(c->a.m)) {
    case 8:
        return skinny_products<T, 8, OUT>(c);
    case 16:
        return skinny_products<T, 16, OUT>(c);
    case 32:
        return skinny_products<T, 32, OUT>(c);
    default:
        return skinny_products<T, SKINNY_ROWS, OUT>(c);
    }
}

template <class T> static cudaError_t skinny_out(enum gemv_out out, struct skinny_call *c)
{
    return out == GEMV_FLOAT  ? skinny_columns<T, GEMV_FLOAT>(c)
           : out == GEMV_SILU ? skinny_columns<T, GEMV_SILU>(c)
                              : skinny_columns<T, GEMV_HALF>(c);
}

/* A matrix (rows, k) as panels: (k / PANEL, rows, PANEL). */
static cudaError_t panels_map(CUtensorMap *out, enum half_type type, const void *data,
                              uint32_t rows, uint32_t k, uint32_t box_rows, uint32_t box_panels)
{
    const uint32_t sizes[] = {PANEL, rows, k / PANEL}, box[] = {PANEL, box_rows, box_panels};
    const uint64_t strides[] = {(uint64_t)k * 2, PANEL_ROW};

    return tensor_map_make(out, type, data, 3, sizes, strides, box);
}

cudaError_t launch_skinny(cudaStream_t s, enum half_type type, enum gemv_out out,
                          const struct skinny_product *p)
{
    const uint32_t boxes = out == GEMV_SILU ? 2 : 1, columns = columns_of(p->m);
    const struct cut cut = cut_choose(p->n, p->k, columns, boxes, p->multiprocessors);
    const uint32_t depth = depth_of(cut.rows <= PRODUCT_ROWS ? 1 : 2);
    struct skinny_call c = {};
    cudaError_t rc = panels_map(&c.w, type, p->w, boxes * p->n, p->k, cut.rows / boxes, 1);

    if (rc == cudaSuccess)
        rc = panels_map(&c.x, type, p->x, p->m, p->k, columns, depth);
    if (rc != cudaSuccess)
        return rc;
    c.stream = s;
    c.a.parts = cut.parts;
    c.clusters = cut.clusters;
    c.a.bias = p->bias;
    c.a.y = p->y;
    c.a.m = p->m;
    c.a.n = p->n;
    c.a.k = p->k;
    c.a.y_stride = p->y_stride;
    c.a.rows = cut.rows;
    c.a.tiles = cut.tiles;
    return type == HALF_BF16 ? skinny_out<__nv_bfloat16>(out, &c) : skinny_out<__half>(out, &c);
}

template <class T, int N, int OUT> static cudaError_t shared_allow(void)
{
    const cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    cudaError_t rc = cudaFuncSetAttribute(skinny_kernel<T, N, 1, OUT>, most, SHARED_LARGE);

    return rc == cudaSuccess ? cudaFuncSetAttribute(skinny_kernel<T, N, 2, OUT>, most, SHARED_LARGE)
                             : rc;
}

template <class T, int OUT> static cudaError_t setup_rows(void)
{
    cudaError_t rc = shared_allow<T, 8, OUT>();

    if (rc == cudaSuccess)
        rc = shared_allow<T, 16, OUT>();
    if (rc == cudaSuccess)
        rc = shared_allow<T, 32, OUT>();
    return rc == cudaSuccess ? shared_allow<T, SKINNY_ROWS, OUT>() : rc;
}

template <class T> static cudaError_t setup_out(void)
{
    cudaError_t rc = setup_rows<T, GEMV_HALF>();

    if (rc == cudaSuccess)
        rc = setup_rows<T, GEMV_FLOAT>();
    return rc == cudaSuccess ? setup_rows<T, GEMV_SILU>() : rc;
}

cudaError_t skinny_setup(void)
{
    cudaError_t rc = setup_out<__nv_bfloat16>();

    return rc == cudaSuccess ? setup_out<__half>() : rc;
}

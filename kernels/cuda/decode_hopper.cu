/* Attention of single tokens on Hopper. The blocks of a unit are a cluster: all its warps take the
 * tiles in turn, which the tensor copy engine brings into a ring of the warp; each block hands its
 * part of the sums to those that finish them through shared memory. A long sequence is shared by
 * several clusters, whose parts go through memory: the last warp to arrive adds them up.
 *
 * Queries may come as their product left them: every warp then makes its own of them, and the one
 * whose tile has the newest key makes that, for its tile and for the pages. */
#include "kernels/cuda/decode_hopper.cuh"

#define STAGES 3 /* tiles of a warp in shared memory */
#define EARLY 2  /* of them asked for at once: more is in the way of what the kernel ahead reads */
#define CLUSTER_MAX 8u
#define PARTS_MAX 8u /* clusters of a unit */
#define PIECE 4096u  /* bytes of weights that a thread asks for at once */

/* What a block of a cluster is sent, in bytes: of every `ranks`th group of 32 pairs of numbers, all
 * blocks' parts, 16 bytes a pair. The first is sent most. */
static __host__ __device__ __forceinline__ uint32_t exchange_bytes(uint32_t groups, uint32_t ranks,
                                                                   uint32_t rank)
{
    return ((groups + ranks - 1 - rank) & -ranks) * 32 * 16;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* A cluster goes through 512 positions in about 0.5 us, and a part costs about 2 us to be handed
 * on: fewer positions than SHARED_FROM are faster on one cluster alone. From there on what counts
 * is bytes, and a part has at least PART_KEYS. */
#define PART_KEYS 1024u
#define SHARED_FROM (3 * PART_KEYS)

static __device__ __forceinline__ uint32_t parts_worth(uint32_t keys, uint32_t most)
{
    uint32_t parts = keys < SHARED_FROM ? 1 : keys / PART_KEYS;

    return parts < most ? parts : most;
}

/* Which block this is of a cluster's `ranks` (a power of two), and which cluster of a unit's. */
struct team {
    uint32_t rank, ranks, part, parts;
    uint32_t unit; /* of all rows' */
};

/* A multiple of 16 bytes on its way to the L2 cache. */
static __device__ __forceinline__ void span_prefetch(const void *data, uint32_t bytes)
{
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(data), "r"(bytes) : "memory");
}

/* The i'th two numbers of a unit, a cluster's part, to where they belong: the output, or memory,
 * from where the last of the clusters' warps to arrive adds them up. All lanes of a warp. */
template <class T, int D>
static __device__ __forceinline__ void pair_put(const struct attention_args &a,
                                                const struct unit &u, const struct team &t,
                                                uint32_t i, float2 value, float top, float sum)
{
    const uint32_t pairs = DECODE_ROWS * (D / 2);
    float4 *at = reinterpret_cast<float4 *>(a.partials) + (size_t)t.unit * PARTS_MAX * pairs + i;

    static_assert(PARTS_MAX <= PARTS_AHEAD, "all parts are added at once");
    if (t.parts > 1) {
        at[t.part * pairs] = make_float4(value.x, value.y, top, sum);
        if (!parts_arrive(a.arrivals + t.unit * (pairs / 32) + i / 32, t.parts))
            return;
        value = pair_add(at, t.parts, pairs, &top, &sum);
    }
    pair_out<T, D>(a, u, i, value, sum);
}

/* The warps' parts, one behind the other in shared memory, to the blocks that finish them: groups
 * of 32 pairs of numbers belong to the blocks in turn. An inbox has all blocks' parts of a group,
 * then those of the next. */
template <int D>
static __device__ __forceinline__ void parts_send(const struct unit &u, const struct team &t,
                                                  const float *parts, uint32_t stride,
                                                  float4 *inbox, uint32_t barrier)
{
    for (uint32_t i = threadIdx.x; i < u.heads * (D / 2); i += THREADS) {
        uint32_t m = i / (D / 2), d = i % (D / 2) * 2, group = i / 32;
        float4 *to = inbox + ((group & -t.ranks) + t.rank) * 32 + i % 32;
        float top, sum;
        float2 value = warps_merge<D>(parts + m * PART_STRIDE(D), stride, d, &top, &sum);
        float4 x = make_float4(value.x, value.y, top, sum);

        if (t.ranks > 1)
            exchange_send(shared_address(to), barrier, group & (t.ranks - 1), x);
        else
            *to = x; /* for this thread */
    }
}

/* The blocks' parts of what this one finishes, in order, and on with them. */
template <class T, int D>
static __device__ __forceinline__ void parts_finish(const struct attention_args &a,
                                                    const struct unit &u, const struct team &t,
                                                    const float4 *inbox)
{
    uint32_t groups = u.heads * (D / 2) / 32, lane = threadIdx.x % 32;

    for (uint32_t k = threadIdx.x / 32; k * t.ranks + t.rank < groups; k += WARPS) {
        float2 own[CLUSTER_MAX], values[CLUSTER_MAX], value;
        float top, sum;

#pragma unroll
        for (uint32_t c = 0; c < CLUSTER_MAX; c++) {
            float4 x = c < t.ranks ? inbox[(k * t.ranks + c) * 32 + lane]
                                   : make_float4(0.0f, 0.0f, -CUDART_INF_F, 0.0f);

            values[c] = make_float2(x.x, x.y);
            own[c] = make_float2(x.z, x.w);
        }
        value = parts_merge(own, values, &top, &sum);
        pair_put<T, D>(a, u, t, (k * t.ranks + t.rank) * 32 + lane, value, top, sum);
    }
}

/* By blocks that have nothing else to do: weights on their way to the L2 cache while few blocks
 * work and memory is idle. Only where those are on half of the multiprocessors at most, and by no
 * more blocks than there are other multiprocessors, the last ones of the grid. They wait for
 * nothing, as weights do not change; the copy engine does not hold their threads up. */
static __device__ __forceinline__ void weights_fetch(const struct attention_args &a,
                                                     const struct team &t)
{
    uint32_t working =
        gridDim.x * gridDim.y * a.decode_count; /* blocks of a unit's first cluster */
    uint32_t most = gridDim.z / a.decode_count, idle, first, block, blocks;

    if (2 * working > a.multiprocessors)
        return;
    idle = a.multiprocessors / working - 1;
    first = idle < most ? most - idle : 1;
    if (t.part < first)
        return;
    blocks = (most - first) * working;
    block = ((blockIdx.z - first * a.decode_count) * gridDim.y + blockIdx.y) * gridDim.x + t.rank;
#pragma unroll
    for (uint32_t i = 0; i < AHEAD_MAX; i++) {
        const char *data = static_cast<const char *>(a.ahead[i].data);
        size_t bytes = a.ahead[i].bytes;

        for (size_t at = (size_t)(threadIdx.x * blocks + block) * PIECE; at < bytes;
             at += (size_t)THREADS * blocks * PIECE)
            span_prefetch(data + at, bytes - at < PIECE ? (uint32_t)(bytes - at) : PIECE);
    }
}

/* Shared memory: the warps' rings of tiles, over which their parts go; the inbox. */
template <class T, int D, bool ROTATE, int HALVES>
static __device__ __forceinline__ void cluster_attend(const struct attention_args &a,
                                                      const struct key_maps &maps)
{
    extern __shared__ uint4 shared[];
    __shared__ uint64_t counter, arrivals[WARPS][STAGES];
    const uint32_t tile_bytes = 2 * DECODE_KEYS * D * 2, ring_floats = STAGES * tile_bytes / 4;
    uint32_t warp = threadIdx.x / 32, barrier = shared_address(&counter);
    uint32_t full = shared_address(arrivals[warp]), stage = 0, phase = 0;
    uint32_t slack = (0u - shared_address(shared)) % PANEL_ALIGNMENT;
    char *rings = reinterpret_cast<char *>(shared) + slack;
    char *tiles = rings + warp * STAGES * tile_bytes;
    uint32_t ring = shared_address(tiles);
    float *parts = reinterpret_cast<float *>(rings);
    float4 *inbox = reinterpret_cast<float4 *>(parts + WARPS * ring_floats);
    struct team t = {blockIdx.x, gridDim.x, blockIdx.z / a.decode_count, 0, 0};
    uint32_t row = blockIdx.z - t.part * a.decode_count;
    struct unit u = unit_of(a, row_at(a, row), blockIdx.y);
    uint32_t begin = u.first / DECODE_KEYS * DECODE_KEYS, end = u.row.start + 1;
    bool own;
    struct queue q;
    struct query_turns<D> turns;
    struct newest<T, D> n;
    struct rows16<D> r;

    static_assert(DECODE_ROWS * PART_STRIDE(D) <= ring_floats, "a warp's part fits its ring");
    t.unit = row * gridDim.y + blockIdx.y;
    t.parts = parts_worth(end - begin, gridDim.z / a.decode_count);
    if (t.part >= t.parts) { /* other clusters wait for the kernel before */
        weights_fetch(a, t);
        return;
    }
    begin += ((t.part * t.ranks + t.rank) * WARPS + warp) * DECODE_KEYS;
    queue_open(q, u.keys, begin, t.parts * t.ranks * WARPS * DECODE_KEYS, end);
    if (threadIdx.x % 32 == 0) {
#pragma unroll
        for (uint32_t i = 0; i < STAGES; i++)
            barrier_init(full + 8 * i, 1);
        barriers_publish();
    }
    __syncwarp();
    own = ROTATE && begin < end && (end - 1 - begin) % q.step < DECODE_KEYS;
    if (ROTATE)
        query_look(turns, a, u);
    if (own)
        newest_look(n, a, u);
    if (t.ranks > 1)
        exchange_open(barrier, exchange_bytes(u.heads * (D / 2) / 32, t.ranks, t.rank));
    rows_reset(r);
    /* Keys of earlier positions are there since earlier steps, and the frame since the step's
     * upload: only the queries and the newest key, in one warp's last tile, have to be waited for.
     */
    while (q.turn < EARLY && (ROTATE || q.first + DECODE_KEYS <= u.row.start || q.first >= end))
        queue_load<D>(q, u.keys, maps, ring + q.turn * tile_bytes, full + 8 * q.turn);
    previous_wait();
    if (!ROTATE)
        unit_query(r, a, u, end);
    else if (own)
        unit_rotate<T, D, true, HALVES>(r, n, turns, a, u, end);
    else
        unit_rotate<T, D, false, HALVES>(r, n, turns, a, u, end);
    while (q.turn < STAGES)
        queue_load<D>(q, u.keys, maps, ring + q.turn * tile_bytes, full + 8 * q.turn);
    for (uint32_t p = begin; p < end; p += q.step) {
        uint32_t at = stage * tile_bytes, here = ring + at;

        barrier_wait(full + 8 * stage, phase);
        if (end - p <= DECODE_KEYS) {
            char *values = tiles + at + tile_bytes / 2;

            if (ROTATE)
                newest_put(n, tiles + at, values, end - 1 - p);
            values_clear<D>(values, end - p);
            __syncwarp();
        }
        rows_attend<T, D, DECODE_KEYS, HALVES, panel_at<DECODE_KEYS>>(
            r, here, here + tile_bytes / 2, p, a.scale * LOG2E);
        __syncwarp();
        queue_load<D>(q, u.keys, maps, here, full + 8 * stage);
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
    rows_finish(r);
    rows_store(r, parts + warp * ring_floats, u.heads);
    __syncthreads();
    if (t.ranks > 1)
        exchange_ready();
    parts_send<D>(u, t, parts, ring_floats, inbox, barrier);
    if (t.ranks > 1)
        exchange_wait(barrier);
    parts_finish<T, D>(a, u, t, inbox);
}

#endif

/* Grid: (blocks of a cluster, units of a row, clusters of a unit * rows): the first clusters of all
 * units come before the others, which most lengths leave nothing to do. */
template <class T, int D, bool ROTATE, int HALVES>
__global__ void __launch_bounds__(THREADS)
    cluster_kernel(const __grid_constant__ struct attention_args a,
                   const __grid_constant__ struct key_maps maps)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    next_start();
    cluster_attend<T, D, ROTATE, HALVES>(a, maps);
#endif
}

template <class T, int D, bool ROTATE, int HALVES> struct clusters {
    static constexpr decode_kernel *at = cluster_kernel<T, D, ROTATE, HALVES>;
};

static size_t cluster_bytes(uint32_t head_dim, uint32_t rows, uint32_t ranks)
{
    return PANEL_ALIGNMENT + WARPS * STAGES * 2 * DECODE_KEYS * head_dim * 2 +
           exchange_bytes(rows * (head_dim / 2) / 32, ranks, 0);
}

static size_t cluster_bytes_most(uint32_t head_dim)
{
    return cluster_bytes(head_dim, DECODE_ROWS, CLUSTER_MAX);
}

cudaError_t decode_hopper_setup(void)
{
    return kernels_prepare<clusters>(cluster_bytes_most);
}

/* The largest clusters with which all units fit the GPU at once, a block on a multiprocessor, where
 * there is then room for the next kernel's: 8 blocks for up to 16 units of 132 multiprocessors, 4
 * up to 33, 2 up to 66, then single blocks. Of the largest, as many for a unit as fit: so a unit
 * has several only where few units have, which bounds what pool.c allocates. */
cudaError_t launch_decode_hopper(cudaStream_t s, enum half_type t, const struct attention_args *a,
                                 uint32_t units)
{
    uint32_t group = a->heads / a->kv_heads, rows = group < DECODE_ROWS ? group : DECODE_ROWS;
    uint32_t room = a->multiprocessors, ranks = CLUSTER_MAX, parts;
    struct key_maps maps;
    cudaError_t rc = keys_map(&maps, t, a);

    if (rc != cudaSuccess)
        return rc;
    while (ranks > 1 && units * ranks > room)
        ranks /= 2;
    parts = room / (units * ranks);
    parts = parts < 1 ? 1 : parts > PARTS_MAX ? PARTS_MAX : parts;
    return launch_clustered(kernel_for<clusters>(t, a),
                            dim3(ranks, units / a->decode_count, parts * a->decode_count), ranks,
                            THREADS, cluster_bytes(a->head_dim, rows, ranks), s, *a, maps);
}

int attention_rotates(uint32_t head_dim, uint32_t page_size)
{
    return tensor_maps() && attention_has_tiles(head_dim) && page_size % DECODE_KEYS == 0;
}

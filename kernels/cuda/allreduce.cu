/* Sums over ranks through peer memory, and gathers.
 *
 * One shot: every rank sends its part to all others, and each adds up all parts. Two shots: row r
 * is added up by rank r % ranks, which sends the sum to the others. Parts are added in the order of
 * the ranks, so all ranks hold the same bits. There are no barriers: whoever reads waits for the
 * words themselves (launch.h). A block waits only for blocks of the same number on other ranks. */
#include "kernels/cuda/half.cuh"

#define LOOK_EVERY 256u  /* empty reads between two looks at the clock */
#define ASK_NS 20000000u /* between two looks at the host's word */
#define GATHER_THREADS 512
#define FLAG_BYTES ((size_t)4 * PEERS_MAX * GATHER_BLOCKS)

static __device__ __forceinline__ uint4 read_fresh(const uint4 *at)
{
    uint4 v;

    asm volatile("ld.volatile.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at)
                 : "memory");
    return v;
}

static __device__ __forceinline__ void write_through(uint4 *at, uint4 v)
{
    asm volatile("st.volatile.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(at), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
}

static __device__ __forceinline__ bool is_empty(uint4 v)
{
    return v.x == EMPTY || v.y == EMPTY || v.z == EMPTY || v.w == EMPTY;
}

static __device__ __forceinline__ uint4 sendable(uint4 v)
{
    return make_uint4(v.x == EMPTY ? 0u : v.x, v.y == EMPTY ? 0u : v.y, v.z == EMPTY ? 0u : v.z,
                      v.w == EMPTY ? 0u : v.w);
}

static __device__ uint64_t time_ns(void)
{
    uint64_t t;

    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    return t;
}

struct patience {
    uint64_t begin, asked;
    uint32_t reads;
};

/* Whether to give up on rank `from`: told to, too late, or another thread has. */
static __device__ __noinline__ bool patience_ends(const struct peers &p, struct patience *w,
                                                  uint32_t from)
{
    volatile uint32_t *failed = &p.state->failed;
    uint64_t now = time_ns();

    if (*failed)
        return true;
    if (!w->begin)
        w->begin = w->asked = now;
    if (now - w->asked < ASK_NS)
        return false;
    w->asked = now;
    if (!p.words->abort && now - w->begin < p.patience_ns)
        return false;
    if (!atomicExch(&p.state->failed, 1u)) {
        p.words->fault = 1u + from;
        __threadfence_system();
    }
    return true;
}

/* What is at `at`, which is left empty for the sum after the next; v: a first look at it. */
static __device__ __forceinline__ uint4 take(const struct peers &p, uint4 *at, uint4 v,
                                             struct patience *w, uint32_t from)
{
    while (is_empty(v)) {
        if (++w->reads % LOOK_EVERY == 0 && patience_ends(p, w, from))
            break;
        v = read_fresh(at);
    }
    *at = make_uint4(EMPTY, EMPTY, EMPTY, EMPTY);
    return v;
}

struct turn {
    uint32_t area, failed;
};

/* Which area this launch has. Every block calls it once, then turn_seen. */
static __device__ struct turn turn_begin(const struct peers &p)
{
    __shared__ struct turn shared;

    if (threadIdx.x == 0) {
        volatile struct peers_state *s = p.state;

        shared.area = s->turn % INBOX_TURNS;
        shared.failed = s->failed;
    }
    __syncthreads();
    return shared;
}

/* The last block to come here opens the next turn: by then all have read this one. */
static __device__ void turn_seen(const struct peers &p)
{
    if (threadIdx.x || atomicAdd(&p.state->arrived, 1u) != gridDim.x - 1)
        return;
    p.state->arrived = 0;
    p.state->turn++;
}

template <class T> static __device__ __forceinline__ void add(float f[8], uint4 v)
{
    typedef half_ops<T> ops;
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};

#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 two = ops::widen2(words[i]);

        f[2 * i] += two.x;
        f[2 * i + 1] += two.y;
    }
}

template <class T> static __device__ __forceinline__ uint4 pack(const float f[8])
{
    typedef half_ops<T> ops;

    return make_uint4(ops::narrow2(f[0], f[1]), ops::narrow2(f[2], f[3]), ops::narrow2(f[4], f[5]),
                      ops::narrow2(f[6], f[7]));
}

/* Over the whole block; parts: 32 floats that no other sum of this block uses meanwhile. */
static __device__ float block_sum(float x, float *parts)
{
    uint32_t warps = (blockDim.x + 31) / 32, lane = threadIdx.x % 32;

    x = warp_sum(x);
    if (lane == 0)
        parts[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(lane < warps ? parts[lane] : 0.0f);
}

/* A thread's vectors of a row, VPT of them: first + v * blockDim.x. */
template <int VPT> struct row_values {
    float f[VPT][8];
};

template <int VPT>
static __device__ __forceinline__ void residual_read(const struct reduce_args &a, uint32_t row,
                                                     struct row_values<VPT> *old)
{
#pragma unroll
    for (int v = 0; v < VPT; v++) {
        uint32_t i = threadIdx.x + v * blockDim.x;
        const float4 *r =
            reinterpret_cast<const float4 *>(a.residual) + ((size_t)row * a.vectors + i) * 2;
        bool there = !a.fresh && i < a.vectors;
        float4 lo = there ? r[0] : make_float4(0, 0, 0, 0);
        float4 hi = there ? r[1] : make_float4(0, 0, 0, 0);

        old->f[v][0] = lo.x, old->f[v][1] = lo.y, old->f[v][2] = lo.z, old->f[v][3] = lo.w;
        old->f[v][4] = hi.x, old->f[v][5] = hi.y, old->f[v][6] = hi.z, old->f[v][7] = hi.w;
    }
}

template <int VPT>
static __device__ __forceinline__ void weight_read(const struct reduce_args &a,
                                                   struct row_values<VPT> *weight)
{
#pragma unroll
    for (int v = 0; v < VPT; v++) {
        uint32_t i = threadIdx.x + v * blockDim.x;
        const float4 *w = reinterpret_cast<const float4 *>(a.weight) + i * 2;
        float4 lo = i < a.vectors ? w[0] : make_float4(0, 0, 0, 0);
        float4 hi = i < a.vectors ? w[1] : make_float4(0, 0, 0, 0);

        weight->f[v][0] = lo.x, weight->f[v][1] = lo.y, weight->f[v][2] = lo.z;
        weight->f[v][3] = lo.w, weight->f[v][4] = hi.x, weight->f[v][5] = hi.y;
        weight->f[v][6] = hi.z, weight->f[v][7] = hi.w;
    }
}

/* sum holds the row's new residual. */
template <class T, int VPT>
static __device__ __forceinline__ void
norm_write(const struct reduce_args &a, uint32_t row, const struct row_values<VPT> &sum,
           const struct row_values<VPT> &weight, float *parts)
{
    float squares = 0.0f, scale;

#pragma unroll
    for (int v = 0; v < VPT; v++)
#pragma unroll
        for (int k = 0; k < 8; k++)
            squares += sum.f[v][k] * sum.f[v][k];
    scale = rsqrtf(block_sum(squares, parts) / (8.0f * (float)a.vectors) + a.eps);
#pragma unroll
    for (int v = 0; v < VPT; v++) {
        uint32_t i = threadIdx.x + v * blockDim.x;
        size_t at = (size_t)row * a.vectors + i;
        float4 *r = reinterpret_cast<float4 *>(a.residual) + at * 2;
        const float *f = sum.f[v];
        float out[8];

        if (i >= a.vectors)
            continue;
        r[0] = make_float4(f[0], f[1], f[2], f[3]);
        r[1] = make_float4(f[4], f[5], f[6], f[7]);
#pragma unroll
        for (int k = 0; k < 8; k++)
            out[k] = f[k] * scale * weight.f[v][k];
        static_cast<uint4 *>(a.out)[at] = pack<T>(out);
    }
}

static __device__ __forceinline__ uint4 *area_of(const struct peers &p, uint32_t rank,
                                                 uint32_t area, size_t vector)
{
    return reinterpret_cast<uint4 *>(p.inbox[rank] + area * INBOX_AREA) + vector;
}

/* Adds up the parts of one vector in the order of the ranks; those of the others are at
 * parts[rank * stride]. */
template <class T, int RANKS>
static __device__ __forceinline__ void parts_add(const struct peers &p, uint4 *parts, size_t stride,
                                                 uint4 own, float f[8], struct patience *w)
{
    uint4 got[RANKS];

#pragma unroll
    for (int r = 0; r < RANKS; r++)
        if ((uint32_t)r < p.ranks)
            got[r] = (uint32_t)r == p.rank ? own : read_fresh(parts + r * stride);
#pragma unroll
    for (int k = 0; k < 8; k++)
        f[k] = 0.0f;
#pragma unroll
    for (int r = 0; r < RANKS; r++)
        if ((uint32_t)r < p.ranks) {
            if ((uint32_t)r != p.rank)
                got[r] = take(p, parts + r * stride, got[r], w, (uint32_t)r);
            add<T>(f, got[r]);
        }
}

/* A block a row. */
template <class T, int RANKS, int VPT, bool NORM>
__global__ void __launch_bounds__(1024) one_shot_kernel(const __grid_constant__ reduce_args a)
{
    __shared__ float parts[32];
    const struct peers &p = a.peers;
    uint32_t row = blockIdx.x, count = a.rows * a.vectors;
    struct patience w = {};
    struct row_values<VPT> old, sum, weight;
    uint4 own[VPT];
    struct turn t;

    next_start();
    if (NORM)
        weight_read<VPT>(a, &weight);
    previous_wait();
#pragma unroll
    for (int v = 0; v < VPT; v++) {
        uint32_t i = threadIdx.x + v * blockDim.x, at = row * a.vectors + i;

        own[v] = make_uint4(0, 0, 0, 0);
        if (i < a.vectors && at < a.total)
            own[v] = sendable(static_cast<const uint4 *>(a.x)[at]);
    }
    if (NORM)
        residual_read<VPT>(a, row, &old);
    t = turn_begin(p);
    if (t.failed)
        return;
#pragma unroll
    for (int v = 0; v < VPT; v++) {
        uint32_t i = threadIdx.x + v * blockDim.x, at = row * a.vectors + i;

        if (i < a.vectors)
            for (uint32_t k = 1; k < p.ranks; k++) {
                uint32_t to = p.rank + k < p.ranks ? p.rank + k : p.rank + k - p.ranks;

                write_through(area_of(p, to, t.area, (size_t)p.rank * count + at), own[v]);
            }
    }
    turn_seen(p);
#pragma unroll
    for (int v = 0; v < VPT; v++) {
        uint32_t i = threadIdx.x + v * blockDim.x, at = row * a.vectors + i;

#pragma unroll
        for (int k = 0; k < 8; k++)
            sum.f[v][k] = 0.0f;
        if (i >= a.vectors)
            continue;
        parts_add<T, RANKS>(p, area_of(p, p.rank, t.area, at), count, own[v], sum.f[v], &w);
        if (!NORM && at < a.total)
            static_cast<uint4 *>(a.out)[at] = pack<T>(sum.f[v]);
        if (NORM)
#pragma unroll
            for (int k = 0; k < 8; k++)
                sum.f[v][k] += old.f[v][k];
    }
    if (NORM)
        norm_write<T, VPT>(a, row, sum, weight, parts);
}

/* What a row needs beside its sum. Read before the sum is waited for, where registers allow. */
template <int VPT, bool NORM>
static __device__ __forceinline__ void row_begin(const struct reduce_args &a, uint32_t row,
                                                 struct row_values<VPT> *old)
{
    if (NORM && VPT == 1)
        residual_read<VPT>(a, row, old);
}

/* The row's sum, rounded as it is sent, to its place. */
template <class T, int VPT, bool NORM>
static __device__ __forceinline__ void row_finish(const struct reduce_args &a, uint32_t row,
                                                  const uint4 got[VPT], struct row_values<VPT> &old,
                                                  float *parts)
{
    struct row_values<VPT> weight;

    if (NORM && VPT > 1)
        residual_read<VPT>(a, row, &old);
    if (NORM)
        weight_read<VPT>(a, &weight);
#pragma unroll
    for (int v = 0; v < VPT; v++) {
        uint32_t i = threadIdx.x + v * blockDim.x, at = row * a.vectors + i;

        if (NORM)
            add<T>(old.f[v], got[v]);
        else if (i < a.vectors && at < a.total)
            static_cast<uint4 *>(a.out)[at] = got[v];
    }
    if (NORM)
        norm_write<T, VPT>(a, row, old, weight, parts);
}

/* Blocks take rows in turn. The first part of an area holds the parts of the rows that this rank
 * adds up, (rows of it, ranks, vectors); the second the sums of all rows. */
template <class T, int RANKS, int VPT, bool NORM>
__global__ void __launch_bounds__(1024) two_shot_kernel(const __grid_constant__ reduce_args a)
{
    __shared__ float parts[2][32]; /* in turn, so that a row need not wait for the one before */
    const struct peers &p = a.peers;
    uint32_t second = (a.rows + p.ranks - 1) / p.ranks * p.ranks * a.vectors, turn = 0;
    struct row_values<VPT> old;
    struct patience w = {};
    uint4 got[VPT];
    struct turn t;

    next_start();
    previous_wait();
    t = turn_begin(p);
    if (t.failed)
        return;
    for (uint32_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        uint32_t owner = row % p.ranks, place = row - owner + p.rank;

        if (owner != p.rank)
            for (uint32_t i = threadIdx.x; i < a.vectors; i += blockDim.x) {
                uint32_t at = row * a.vectors + i;
                uint4 v = make_uint4(0, 0, 0, 0);

                if (at < a.total)
                    v = sendable(static_cast<const uint4 *>(a.x)[at]);
                write_through(area_of(p, owner, t.area, (size_t)place * a.vectors + i), v);
            }
    }
    turn_seen(p);
    for (uint32_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        if (row % p.ranks != p.rank)
            continue;
        row_begin<VPT, NORM>(a, row, &old);
#pragma unroll
        for (int v = 0; v < VPT; v++) {
            uint32_t i = threadIdx.x + v * blockDim.x, at = row * a.vectors + i;
            uint4 own = make_uint4(0, 0, 0, 0);
            float f[8];

            got[v] = own;
            if (i >= a.vectors)
                continue;
            if (at < a.total)
                own = sendable(static_cast<const uint4 *>(a.x)[at]);
            parts_add<T, RANKS>(p,
                                area_of(p, p.rank, t.area, (size_t)(row - p.rank) * a.vectors + i),
                                a.vectors, own, f, &w);
            got[v] = sendable(pack<T>(f));
            for (uint32_t k = 1; k < p.ranks; k++) {
                uint32_t to = p.rank + k < p.ranks ? p.rank + k : p.rank + k - p.ranks;

                write_through(area_of(p, to, t.area, (size_t)second + at), got[v]);
            }
        }
        row_finish<T, VPT, NORM>(a, row, got, old, parts[turn ^= 1]);
    }
    for (uint32_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        uint32_t owner = row % p.ranks;

        if (owner == p.rank)
            continue;
        row_begin<VPT, NORM>(a, row, &old);
#pragma unroll
        for (int v = 0; v < VPT; v++) {
            uint32_t i = threadIdx.x + v * blockDim.x;
            uint4 *at = area_of(p, p.rank, t.area, (size_t)second + row * a.vectors + i);

            got[v] = make_uint4(0, 0, 0, 0);
            if (i < a.vectors)
                got[v] = take(p, at, read_fresh(at), &w, owner);
        }
        row_finish<T, VPT, NORM>(a, row, got, old, parts[turn ^= 1]);
    }
}

template <class T, int RANKS, int VPT, bool NORM>
static cudaError_t reduce(cudaStream_t s, const struct reduce_args *a)
{
    uint32_t threads = ((a->vectors + VPT - 1) / VPT + 31) / 32 * 32;
    uint32_t each = threads <= 256 ? 4u : threads <= 512 ? 2u : 1u, blocks = a->rows;
    uint32_t most = a->multiprocessors * each;

    if (a->two_shots)
        return launch_chained(two_shot_kernel<T, RANKS, VPT, NORM>,
                              dim3(blocks < most ? blocks : most), threads, 0, s, *a);
    return launch_chained(one_shot_kernel<T, RANKS, VPT, NORM>, dim3(blocks), threads, 0, s, *a);
}

template <class T, int RANKS>
static cudaError_t reduce_shape(cudaStream_t s, const struct reduce_args *a)
{
    if (!a->residual)
        return reduce<T, RANKS, 1, false>(s, a);
    return a->vectors <= 1024 ? reduce<T, RANKS, 1, true>(s, a) : reduce<T, RANKS, 4, true>(s, a);
}

template <class T> static cudaError_t reduce_ranks(cudaStream_t s, const struct reduce_args *a)
{
    return a->peers.ranks == 2   ? reduce_shape<T, 2>(s, a)
           : a->peers.ranks <= 4 ? reduce_shape<T, 4>(s, a)
                                 : reduce_shape<T, PEERS_MAX>(s, a);
}

cudaError_t launch_reduce(cudaStream_t s, enum half_type type, const struct reduce_args *a)
{
    return type == HALF_BF16 ? reduce_ranks<__nv_bfloat16>(s, a) : reduce_ranks<__half>(s, a);
}

uint32_t reduce_rows_max(uint32_t ranks, uint32_t vectors, int two_shots)
{
    uint32_t rows = (uint32_t)(INBOX_AREA / 16 / vectors);

    return two_shots ? rows / 2 - ranks : rows / ranks;
}

size_t inbox_bytes(void)
{
    return INBOX_TURNS * INBOX_AREA + GATHER_TURNS * PEERS_MAX * GATHER_MAX + FLAG_BYTES;
}

__global__ void inbox_clear_kernel(char *inbox)
{
    uint32_t *words = reinterpret_cast<uint32_t *>(inbox);
    size_t empty = INBOX_TURNS * INBOX_AREA / 4, n = empty + FLAG_BYTES / 4;
    size_t flags = (INBOX_TURNS * INBOX_AREA + GATHER_TURNS * PEERS_MAX * GATHER_MAX) / 4;

    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        if (i < empty)
            words[i] = EMPTY;
        else
            words[flags + i - empty] = 0;
}

cudaError_t launch_inbox_clear(cudaStream_t s, char *inbox)
{
    inbox_clear_kernel<<<264, 512, 0, s>>>(inbox);
    return cudaGetLastError();
}

static __device__ __forceinline__ uint32_t *gather_flag(const struct peers &p, uint32_t at,
                                                        uint32_t from)
{
    char *flags = p.inbox[at] + INBOX_TURNS * INBOX_AREA + GATHER_TURNS * PEERS_MAX * GATHER_MAX;

    return reinterpret_cast<uint32_t *>(flags) + (size_t)from * GATHER_BLOCKS + blockIdx.x;
}

static __device__ __forceinline__ uint64_t *gather_area(const struct peers &p, uint32_t at,
                                                        uint32_t turn, uint32_t from)
{
    char *areas = p.inbox[at] + INBOX_TURNS * INBOX_AREA;

    return reinterpret_cast<uint64_t *>(areas +
                                        ((turn % GATHER_TURNS) * PEERS_MAX + from) * GATHER_MAX);
}

static __device__ void gather_wait(const struct peers &p, uint32_t turn, uint32_t from)
{
    uint32_t *flag = gather_flag(p, p.rank, from), seen;
    struct patience w = {};

    for (;;) {
        asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
        if ((int32_t)(seen - turn) >= 0 ||
            (++w.reads % LOOK_EVERY == 0 && patience_ends(p, &w, from)))
            return;
    }
}

/* Each block moves its share of every rank's bytes. Data first, then the flag; two areas are
 * enough, since a rank that is two gathers ahead has seen everybody's flag of the one between. */
__global__ void __launch_bounds__(GATHER_THREADS)
    gather_kernel(const __grid_constant__ peers p, const uint64_t *x, uint64_t *out, uint32_t words)
{
    __shared__ uint32_t shared[2];
    uint32_t share = (words + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * share, end, turn;

    end = begin + share < words ? begin + share : words;
    previous_wait();
    next_start();
    if (threadIdx.x == 0) {
        volatile struct peers_state *s = p.state;

        shared[0] = s->gathers + 1;
        shared[1] = s->failed;
    }
    __syncthreads();
    turn = shared[0];
    if (shared[1])
        return;
    for (uint32_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
        uint64_t v = x[i];

        for (uint32_t r = 0; r < p.ranks; r++)
            if (r == p.rank)
                out[(size_t)r * words + i] = v;
            else
                gather_area(p, r, turn, p.rank)[i] = v;
    }
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x < p.ranks && threadIdx.x != p.rank) {
        asm volatile(
            "st.release.sys.global.u32 [%0], %1;" ::"l"(gather_flag(p, threadIdx.x, p.rank)),
            "r"(turn)
            : "memory");
        gather_wait(p, turn, threadIdx.x);
    }
    __syncthreads();
    if (threadIdx.x == 0 && atomicAdd(&p.state->gather_arrived, 1u) == gridDim.x - 1) {
        p.state->gather_arrived = 0;
        p.state->gathers = turn;
    }
    for (uint32_t r = 0; r < p.ranks; r++)
        if (r != p.rank)
            for (uint32_t i = begin + threadIdx.x; i < end; i += blockDim.x)
                out[(size_t)r * words + i] = __ldcv(gather_area(p, p.rank, turn, r) + i);
}

cudaError_t launch_gather(cudaStream_t s, const struct peers *p, const void *x, void *out,
                          uint32_t bytes)
{
    return launch_chained(gather_kernel, dim3(GATHER_BLOCKS), GATHER_THREADS, 0, s, *p,
                          static_cast<const uint64_t *>(x), static_cast<uint64_t *>(out),
                          bytes / 8);
}

static __device__ uint32_t pattern_word(uint32_t i, uint32_t seed)
{
    uint32_t x = (i + 1) * 0x9E3779B1u ^ seed * 0x85EBCA77u;

    x = (x ^ x >> 15) * 0x2C1B3C6Du;
    return x ^ x >> 13;
}

__global__ void pattern_kernel(uint32_t *to, uint32_t words, uint32_t seed)
{
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words; i += gridDim.x * blockDim.x)
        to[i] = pattern_word(i, seed);
}

cudaError_t launch_pattern(cudaStream_t s, uint32_t *to, uint32_t words, uint32_t seed)
{
    pattern_kernel<<<64, 256, 0, s>>>(to, words, seed);
    return cudaGetLastError();
}

__global__ void pattern_check_kernel(const uint32_t *from, uint32_t words, uint32_t seed,
                                     uint32_t *wrong)
{
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words; i += gridDim.x * blockDim.x)
        if (__ldcv(from + i) != pattern_word(i, seed))
            atomicAdd(wrong, 1u);
}

cudaError_t launch_pattern_check(cudaStream_t s, const uint32_t *from, uint32_t words,
                                 uint32_t seed, uint32_t *wrong)
{
    pattern_check_kernel<<<64, 256, 0, s>>>(from, words, seed, wrong);
    return cudaGetLastError();
}

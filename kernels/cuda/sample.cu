/* Choosing tokens: the same decisions as kernels/cpu/sample.c, which says why they are right.
 *
 * A candidate is a 64-bit key: the upper half is its value as an unsigned number in the order of
 * floats, the lower half ~id; so comparing keys is comparing (value, then the smaller id first).
 * Compiled without contraction to fused multiply-adds, so that penalties round as in the
 * reference. */
#include "kernels/cuda/half.cuh"
#include "kernels/philox.h"

#include <math_constants.h>

#define PART_THREADS 256
#define PART_TURNS (SPAN_PART_MAX / PART_THREADS)
/* Keys above the k-th largest of the threads' maxima are in at most k threads. */
#define PART_KEYS (CANDIDATES * PART_TURNS)
#define MERGE_THREADS 512
#define MERGE_KEYS (SPAN_PARTS * CANDIDATES)
#define ALL_THREADS 1024
#define MASS_ONE 1099511627776.0f /* 2^40: weights as whole numbers, their sums have no order */

static __device__ __forceinline__ uint64_t key_of(float value, uint32_t id)
{
    uint32_t bits = __float_as_uint(value + 0.0f); /* -0 is 0 */

    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t)~id;
}

static __device__ __forceinline__ uint32_t key_id(uint64_t key)
{
    return ~(uint32_t)key;
}

static __device__ __forceinline__ float key_value(uint64_t key)
{
    uint32_t bits = (uint32_t)(key >> 32);

    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

static __device__ __forceinline__ float noise(const struct slot_state *s, uint32_t count,
                                              uint32_t id)
{
    return -logf(-logf(philox_uniform(s->seed, count, id)));
}

static __device__ bool is_plain(const struct slot_state *s)
{
    return s->top_k <= 0 && s->top_p >= 1.0f && s->min_p <= 0.0f;
}

static __device__ bool has_penalties(const struct slot_state *s)
{
    return s->repetition != 1.0f || s->presence != 0.0f || s->frequency != 0.0f;
}

static __device__ bool is_adjusted(const struct slot_state *s)
{
    return s->bias_count || has_penalties(s) || (s->end_count && s->generated < s->min_tokens);
}

/* z of one id: what adjust_kernel left, or the logit itself, over the temperature. */
struct row {
    const float *raw, *z; /* z: NULL when not adjusted */
    float temperature;
};

static __device__ __forceinline__ float row_z(const struct row &r, uint32_t i)
{
    float x = r.z ? r.z[i] : r.raw[i];

    if (isnan(x))
        x = -CUDART_INF_F;
    return r.temperature > 0.0f ? x / r.temperature : x;
}

static __device__ struct row row_at(const struct sample_args &a, uint32_t i,
                                    const struct slot_state *s)
{
    struct row r = {a.logits + (size_t)i * a.stride, NULL, s->temperature};

    if (is_adjusted(s))
        r.z = a.adjusted + (size_t)i * a.stride;
    return r;
}

/* One block a row. */
__global__ void __launch_bounds__(ALL_THREADS) adjust_kernel(struct sample_args a)
{
    uint32_t slot = a.result_slot[blockIdx.x];
    const struct slot_state *s = &a.slots[slot];
    const struct slot_bias *bias = a.biases + (size_t)slot * SLOT_BIASES;
    const float *raw = a.logits + (size_t)blockIdx.x * a.stride;
    const uint32_t *tokens = a.slot_tokens + (size_t)slot * a.slot_stride;
    float *z = a.adjusted + (size_t)blockIdx.x * a.stride;
    uint32_t *counts = a.counts + (size_t)blockIdx.x * a.stride;
    bool penalties = has_penalties(s);

    if (!is_adjusted(s))
        return;
    for (uint32_t i = threadIdx.x; i < a.count; i += ALL_THREADS) {
        z[i] = isnan(raw[i]) ? -CUDART_INF_F : raw[i];
        counts[i] = 0;
    }
    __syncthreads();
    if (threadIdx.x == 0) /* an id may come twice: in order */
        for (uint32_t i = 0; i < s->bias_count; i++)
            if (bias[i].id >= a.begin && bias[i].id - a.begin < a.count)
                z[bias[i].id - a.begin] += bias[i].value;
    for (uint32_t i = threadIdx.x; penalties && i < s->count; i += ALL_THREADS) {
        uint32_t at = tokens[i] - a.begin;

        if (tokens[i] < a.begin || at >= a.count)
            continue;
        if (i < s->count - s->generated)
            atomicOr(&counts[at], 0x80000000u);
        else
            atomicAdd(&counts[at], 1u);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; penalties && i < a.count; i += ALL_THREADS) {
        uint32_t seen = counts[i], n = seen & 0x7fffffffu;
        float x = z[i];

        if (!seen)
            continue;
        x = x > 0 ? x / s->repetition : x * s->repetition;
        if (n)
            x -= s->presence + s->frequency * (float)n;
        z[i] = x;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; s->generated < s->min_tokens && i < s->end_count;
         i += ALL_THREADS)
        if (s->end_ids[i] >= a.begin && s->end_ids[i] - a.begin < a.count)
            z[s->end_ids[i] - a.begin] = -CUDART_INF_F;
}

cudaError_t launch_adjust(cudaStream_t s, const struct sample_args *a)
{
    adjust_kernel<<<a->results_count, ALL_THREADS, 0, s>>>(*a);
    return cudaGetLastError();
}

/* Falling order; n is a power of two; the whole block calls. */
static __device__ void keys_sort(uint64_t *keys, uint32_t n)
{
    for (uint32_t size = 2; size <= n; size *= 2)
        for (uint32_t stride = size / 2; stride; stride /= 2) {
            __syncthreads();
            for (uint32_t i = threadIdx.x; i < n / 2; i += blockDim.x) {
                uint32_t lo = 2 * stride * (i / stride) + i % stride, hi = lo + stride;
                uint64_t x = keys[lo], y = keys[hi];

                if ((x < y) == ((lo & size) == 0)) {
                    keys[lo] = y;
                    keys[hi] = x;
                }
            }
        }
    __syncthreads();
}

static __device__ uint32_t power_of_two(uint32_t n)
{
    return n <= 2 ? 2 : 1u << (32 - __clz(n - 1));
}

/* Reductions over a block of up to 1024 threads; all threads get the result. */
template <class T, class F> static __device__ T block_reduce(T x, F combine)
{
    __shared__ T parts[32];
    T all;

    for (int i = 16; i; i >>= 1)
        x = combine(x, __shfl_xor_sync(0xffffffffu, x, i));
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = x;
    __syncthreads();
    all = parts[0];
    for (uint32_t i = 1; i < blockDim.x / 32; i++)
        all = combine(all, parts[i]);
    return all;
}

struct max_of {
    template <class T> __device__ T operator()(T a, T b) const
    {
        return a > b ? a : b;
    }
};

struct sum_of {
    template <class T> __device__ T operator()(T a, T b) const
    {
        return a + b;
    }
};

/* Where a part of the vocabulary begins and ends, as offsets in the rank's share. */
static __host__ __device__ uint32_t part_length(uint32_t count)
{
    uint32_t n = (count + SPAN_PARTS - 1) / SPAN_PARTS;

    n = (n + PART_THREADS - 1) / PART_THREADS * PART_THREADS;
    return n < 1024 ? 1024 : n;
}

/* The k largest keys of a part to out, falling; zeros behind. raw: by logit, else by z. */
static __device__ void part_select(const struct row &r, bool raw, uint32_t id0, uint32_t first,
                                   uint32_t end, uint32_t k, uint64_t *out, uint64_t *keys)
{
    __shared__ uint32_t taken;
    uint64_t most = 0, least;
    uint32_t n;

    __syncthreads();
    for (uint32_t i = first + threadIdx.x; i < end; i += PART_THREADS)
        most = max_of()(most, key_of(raw ? r.raw[i] : row_z(r, i), id0 + i));
    keys[threadIdx.x] = most;
    if (threadIdx.x == 0)
        taken = 0;
    keys_sort(keys, PART_THREADS);
    least = keys[k - 1];
    __syncthreads();
    for (uint32_t i = first + threadIdx.x; i < end; i += PART_THREADS) {
        uint64_t key = key_of(raw ? r.raw[i] : row_z(r, i), id0 + i);

        if (key >= least)
            keys[atomicAdd(&taken, 1u)] = key;
    }
    __syncthreads();
    n = power_of_two(taken);
    for (uint32_t i = taken + threadIdx.x; i < n || i < k; i += PART_THREADS)
        keys[i] = 0;
    keys_sort(keys, n);
    for (uint32_t i = threadIdx.x; i < k; i += PART_THREADS)
        out[i] = keys[i];
}

/* Grid: (parts, rows). */
__global__ void __launch_bounds__(PART_THREADS) parts_kernel(struct sample_args a)
{
    __shared__ uint64_t keys[PART_KEYS];
    const struct slot_state *s = &a.slots[a.result_slot[blockIdx.y]];
    struct sample_part *part = &a.parts[(size_t)blockIdx.y * SPAN_PARTS + blockIdx.x];
    struct row r = row_at(a, blockIdx.y, s);
    uint32_t length = part_length(a.count), first = blockIdx.x * length;
    uint32_t end = first + length < a.count ? first + length : a.count;
    bool greedy = s->temperature <= 0.0f, plain = is_plain(s);
    float raw_max = -CUDART_INF_F, z_max = -CUDART_INF_F;
    double raw_sum = 0.0, z_sum = 0.0;
    uint64_t winner = 0;

    for (uint32_t i = first + threadIdx.x; i < end; i += PART_THREADS) {
        float z = row_z(r, i);

        raw_max = fmaxf(raw_max, r.raw[i]);
        z_max = fmaxf(z_max, z);
        if (!greedy && plain)
            z += noise(s, s->count, a.begin + i);
        winner = max_of()(winner, key_of(z, a.begin + i));
    }
    winner = block_reduce(winner, max_of());
    raw_max = block_reduce(raw_max, max_of());
    z_max = block_reduce(z_max, max_of());
    if (s->logprobs >= 0) {
        for (uint32_t i = first + threadIdx.x; i < end; i += PART_THREADS)
            raw_sum += (double)expf(r.raw[i] - raw_max);
        raw_sum = block_reduce(raw_sum, sum_of());
    }
    if (!greedy && s->top_p < 1.0f && s->top_k <= 0) {
        for (uint32_t i = first + threadIdx.x; i < end; i += PART_THREADS)
            z_sum += (double)expf(row_z(r, i) - z_max);
        z_sum = block_reduce(z_sum, sum_of());
    }
    if (threadIdx.x == 0) {
        part->raw_max = raw_max;
        part->raw_sum = raw_sum;
        part->z_max = z_max;
        part->z_sum = z_sum;
        part->winner = winner;
    }
    if (!greedy && !plain)
        part_select(r, false, a.begin, first, end, CANDIDATES, part->best, keys);
    if (s->logprobs > 0)
        part_select(r, true, a.begin, first, end, (uint32_t)s->logprobs, part->top, keys);
}

/* The parts' keys of one kind, the k largest of them to out; returns how many there are. */
static __device__ uint32_t parts_select(const struct sample_part *parts, uint32_t parts_count,
                                        bool top, uint32_t k, uint64_t *out, uint64_t *keys)
{
    uint32_t n = power_of_two(parts_count * k), count = 0;

    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += MERGE_THREADS) {
        const struct sample_part *p = &parts[i / k];

        keys[i] = i >= parts_count * k ? 0 : top ? p->top[i % k] : p->best[i % k];
    }
    keys_sort(keys, n);
    for (uint32_t i = threadIdx.x; i < k; i += MERGE_THREADS) {
        uint64_t key = i < n ? keys[i] : 0;

        out[i] = key;
        count += key != 0;
    }
    return block_reduce(count, sum_of());
}

/* The key of the known token of a row where this rank has it, else 0. */
static __device__ uint64_t known_key(const struct sample_args &a, const float *raw, uint32_t row)
{
    struct score_row at = a.known[row];
    uint32_t id = a.slot_tokens[(size_t)at.slot * a.slot_stride + at.position];

    return id >= a.begin && id - a.begin < a.count ? key_of(raw[id - a.begin], id) : 0;
}

/* One block a row. */
__global__ void __launch_bounds__(MERGE_THREADS)
    merge_kernel(struct sample_args a, uint32_t parts_count)
{
    __shared__ uint64_t keys[MERGE_KEYS];
    const struct slot_state *s = &a.slots[a.result_slot[blockIdx.x]];
    const struct sample_part *parts = &a.parts[(size_t)blockIdx.x * SPAN_PARTS];
    struct sample_record *r = &a.records[blockIdx.x];
    const float *raw = a.logits + (size_t)blockIdx.x * a.stride;
    bool sampled = s->temperature > 0.0f && !is_plain(s);
    uint32_t count = 0, top_count = 0;

    if (sampled)
        count = parts_select(parts, parts_count, false, CANDIDATES, r->best, keys);
    if (s->logprobs > 0)
        top_count = parts_select(parts, parts_count, true, (uint32_t)s->logprobs, r->top, keys);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < count; i += MERGE_THREADS)
        r->best_raw[i] = raw[key_id(r->best[i]) - a.begin];

    bool mine = threadIdx.x < parts_count; /* a part a thread */
    const struct sample_part *p = &parts[mine ? threadIdx.x : 0];
    float raw_max = block_reduce(mine ? p->raw_max : -CUDART_INF_F, max_of());
    float z_max = block_reduce(mine ? p->z_max : -CUDART_INF_F, max_of());
    uint64_t winner = block_reduce(mine ? p->winner : (uint64_t)0, max_of());
    double raw_sum = mine && p->raw_sum > 0.0 ? p->raw_sum * (double)expf(p->raw_max - raw_max) : 0;
    double z_sum = mine && p->z_sum > 0.0 ? p->z_sum * (double)expf(p->z_max - z_max) : 0;

    raw_sum = block_reduce(raw_sum, sum_of());
    z_sum = block_reduce(z_sum, sum_of());
    if (threadIdx.x)
        return;
    if (a.known)
        winner = known_key(a, raw, blockIdx.x);
    r->raw_max = raw_max;
    r->z_max = z_max;
    r->winner = winner;
    r->count = count;
    r->top_count = top_count;
    r->reserved = 0;
    r->raw_sum = (float)raw_sum;
    r->z_sum = (float)z_sum;
    r->winner_raw = winner ? raw[key_id(winner) - a.begin] : -CUDART_INF_F;
}

cudaError_t launch_records(cudaStream_t s, const struct sample_args *a)
{
    uint32_t parts = a->count ? (a->count + part_length(a->count) - 1) / part_length(a->count) : 0;

    if (parts)
        parts_kernel<<<dim3(parts, a->results_count), PART_THREADS, 0, s>>>(*a);
    merge_kernel<<<a->results_count, MERGE_THREADS, 0, s>>>(*a, parts);
    return cudaGetLastError();
}

/* The allowed prefix of the ranks' candidates in order. False when it may go on past what they can
 * tell. One thread. */
static __device__ bool cut(const struct slot_state *s, const uint64_t *list, uint32_t count,
                           float frontier, bool complete, double z_sum, uint32_t *allowed)
{
    uint32_t n = count, sure = count;
    double total = z_sum, sum = 0.0;
    float z0 = count ? key_value(list[0]) : 0.0f;

    for (uint32_t i = 0; !complete && i < count; i++)
        if (key_value(list[i]) <= frontier) {
            sure = i;
            break;
        }
    if (s->top_k > 0) {
        if ((uint32_t)s->top_k < n)
            n = (uint32_t)s->top_k;
        total = 0.0;
        for (uint32_t i = 0; s->top_p < 1.0f && i < n; i++)
            total += (double)expf(key_value(list[i]) - z0);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0 && ((s->top_p < 1.0f && sum >= (double)s->top_p * total) ||
                      (s->min_p > 0.0f && key_value(list[i]) < z0 + logf(s->min_p)))) {
            n = i;
            break;
        }
        if (s->top_p < 1.0f)
            sum += (double)expf(key_value(list[i]) - z0);
    }
    *allowed = n;
    if (complete)
        return true;
    if (s->top_k > 0)
        return (uint32_t)s->top_k <= CANDIDATES;
    return n < sure;
}

/* log of the sum of exp(raw) over all ranks. */
static __device__ float log_sum(const struct sample_record *records, uint32_t ranks, size_t stride)
{
    float top = -CUDART_INF_F;
    double sum = 0.0;

    for (uint32_t i = 0; i < ranks; i++)
        top = fmaxf(top, records[i * stride].raw_max);
    for (uint32_t i = 0; i < ranks; i++)
        if (records[i * stride].raw_sum > 0.0f)
            sum += (double)records[i * stride].raw_sum *
                   (double)expf(records[i * stride].raw_max - top);
    return top + (float)log(sum);
}

/* Appends the token to its slot and to the results. One thread. */
static __device__ void choose(const struct sample_args &a, uint32_t slot, uint32_t id, float raw,
                              struct sample_result *out)
{
    struct slot_state *s = &a.slots[slot];

    out->id = id;
    out->logprob = s->logprobs >= 0 ? raw - out->norm : 0.0f;
    if (slot == a.nobody || a.known)
        return;
    a.slot_tokens[(size_t)slot * a.slot_stride + s->count] = id;
    s->count++;
    s->generated++;
}

/* The largest log probabilities of all ranks. */
static __device__ void fill_top(const struct sample_args &a, const struct slot_state *s,
                                const struct sample_record *records, uint64_t *keys,
                                struct sample_result *out)
{
    uint32_t k = s->logprobs > 0 ? (uint32_t)s->logprobs : 0, n = power_of_two(a.ranks * k);
    uint32_t count = 0;

    for (uint32_t i = threadIdx.x; k && i < n; i += blockDim.x) {
        const struct sample_record *r =
            &records[(size_t)(i < a.ranks * k ? i / k : 0) * a.results_count];

        keys[i] = i < a.ranks * k && i % k < r->top_count ? r->top[i % k] : 0;
    }
    if (k)
        keys_sort(keys, n);
    for (uint32_t i = threadIdx.x; i < k; i += blockDim.x)
        if (keys[i]) {
            out->top_ids[i] = key_id(keys[i]);
            out->top_logprobs[i] = key_value(keys[i]) - out->norm;
            count++;
        }
    count = block_reduce(count, sum_of());
    if (threadIdx.x == 0)
        out->top_count = count;
    __syncthreads();
}

/* Best of the allowed prefix, noise added; one key, all threads. */
static __device__ uint64_t best_allowed(const struct slot_state *s, const uint64_t *list,
                                        uint32_t allowed)
{
    uint64_t best = 0;

    for (uint32_t i = threadIdx.x; i < allowed; i += blockDim.x) {
        uint32_t id = key_id(list[i]);

        best = max_of()(best, key_of(key_value(list[i]) + noise(s, s->count, id), id));
    }
    return block_reduce(best, max_of());
}

/* Decides a row from the ranks' candidates: the winner's key or 0, and its logit. */
static __device__ uint64_t decide_row(const struct sample_args &a, const struct slot_state *s,
                                      const struct sample_record *records, uint64_t *keys,
                                      float *raw)
{
    __shared__ uint32_t allowed;
    __shared__ float found;
    uint32_t n = power_of_two(a.ranks * CANDIDATES), count = 0;
    uint64_t best;

    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        uint32_t rank = i / CANDIDATES, at = i % CANDIDATES;
        const struct sample_record *r =
            &records[(size_t)(rank < a.ranks ? rank : 0) * a.results_count];

        keys[i] = rank < a.ranks && at < r->count ? r->best[at] : 0;
        count += keys[i] != 0;
    }
    count = block_reduce(count, sum_of());
    keys_sort(keys, n);
    if (threadIdx.x == 0) {
        float z_max = -CUDART_INF_F, frontier = -CUDART_INF_F;
        double z_sum = 0.0;

        for (uint32_t i = 0; i < a.ranks; i++)
            z_max = fmaxf(z_max, records[(size_t)i * a.results_count].z_max);
        for (uint32_t i = 0; i < a.ranks; i++) {
            const struct sample_record *r = &records[(size_t)i * a.results_count];

            if (r->z_sum > 0.0f)
                z_sum += (double)r->z_sum * (double)expf(r->z_max - z_max);
            if (r->count == CANDIDATES)
                frontier = fmaxf(frontier, key_value(r->best[CANDIDATES - 1]));
        }
        if (!cut(s, keys, count, frontier, frontier == -CUDART_INF_F, z_sum, &allowed))
            allowed = 0;
        found = -CUDART_INF_F;
    }
    __syncthreads();
    best = best_allowed(s, keys, allowed);
    for (uint32_t i = threadIdx.x; best && i < a.ranks * CANDIDATES; i += blockDim.x) {
        const struct sample_record *r = &records[(size_t)(i / CANDIDATES) * a.results_count];

        if (i % CANDIDATES < r->count && key_id(r->best[i % CANDIDATES]) == key_id(best))
            found = r->best_raw[i % CANDIDATES];
    }
    __syncthreads();
    *raw = found;
    return best;
}

/* One block a row. */
__global__ void __launch_bounds__(MERGE_THREADS) decide_kernel(struct sample_args a)
{
    __shared__ uint64_t keys[RANKS_MAX * CANDIDATES];
    uint32_t slot = a.result_slot[blockIdx.x];
    const struct slot_state *s = &a.slots[slot];
    const struct sample_record *records = a.all_records + blockIdx.x;
    struct sample_result *out = &a.results[blockIdx.x];
    uint64_t best = 0;
    float raw = 0.0f;

    if (threadIdx.x == 0) {
        out->slot = slot;
        out->undecided = 0;
        out->norm = s->logprobs >= 0 ? log_sum(records, a.ranks, a.results_count) : 0.0f;
    }
    __syncthreads();
    fill_top(a, s, records, keys, out);
    if (s->temperature > 0.0f && !is_plain(s)) {
        best = decide_row(a, s, records, keys, &raw);
    } else {
        for (uint32_t i = 0; i < a.ranks; i++) {
            const struct sample_record *r = &records[(size_t)i * a.results_count];

            if (r->winner > best) {
                best = r->winner;
                raw = r->winner_raw;
            }
        }
    }
    __syncthreads();
    if (threadIdx.x)
        return;
    if (best)
        choose(a, slot, key_id(best), raw, out);
    else
        out->undecided = 1;
}

cudaError_t launch_decide(cudaStream_t s, const struct sample_args *a)
{
    decide_kernel<<<a->results_count, MERGE_THREADS, 0, s>>>(*a);
    return cudaGetLastError();
}

/* How many ids have a key of at least `key`, or what they weigh. All threads get the sum. */
static __device__ uint64_t reach(const struct row &r, uint32_t count, float z_max, bool mass,
                                 uint64_t key)
{
    uint64_t sum = 0;

    for (uint32_t i = threadIdx.x; i < count; i += ALL_THREADS) {
        float z = row_z(r, i);

        if (key_of(z, i) >= key)
            sum += mass ? (uint64_t)(expf(z - z_max) * MASS_ONE) : 1;
    }
    return block_reduce(sum, sum_of());
}

/* The largest key whose reach is at least target: the shortest prefix that has it. 0 when even all
 * ids together do not. By halves. */
static __device__ uint64_t prefix_for(const struct row &r, uint32_t count, float z_max, bool mass,
                                      uint64_t target)
{
    uint64_t lo = 0, hi = key_of(z_max, 0) + 1; /* reach(lo) >= target > reach(hi), or lo is 0 */

    while (hi - lo > 1) {
        uint64_t mid = lo + (hi - lo) / 2;

        if (reach(r, count, z_max, mass, mid) >= target)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

/* One block a row; ids are 0 .. count-1, the whole vocabulary. */
__global__ void __launch_bounds__(ALL_THREADS) decide_all_kernel(struct sample_args a)
{
    uint32_t slot = a.result_slot[blockIdx.x];
    const struct slot_state *s = &a.slots[slot];
    struct sample_result *out = &a.results[blockIdx.x];
    struct row r = row_at(a, blockIdx.x, s);
    float z_max = -CUDART_INF_F, least;
    uint64_t limit = 0, best = 0, top = 0;

    if (!out->undecided)
        return;
    for (uint32_t i = threadIdx.x; i < a.count; i += ALL_THREADS)
        top = max_of()(top, key_of(row_z(r, i), i));
    top = block_reduce(top, max_of());
    z_max = key_value(top);
    if (s->top_k > 0 && (uint32_t)s->top_k < a.count)
        limit = prefix_for(r, a.count, z_max, false, (uint64_t)s->top_k);
    if (s->top_p < 1.0f) {
        uint64_t all = reach(r, a.count, z_max, true, limit), nucleus;

        nucleus =
            prefix_for(r, a.count, z_max, true, (uint64_t)ceil((double)s->top_p * (double)all));
        limit = nucleus > limit ? nucleus : limit;
    }
    least = s->min_p > 0.0f ? z_max + logf(s->min_p) : -CUDART_INF_F;
    for (uint32_t i = threadIdx.x; i < a.count; i += ALL_THREADS) {
        float z = row_z(r, i);
        uint64_t key = key_of(z, i);

        if (key == top || (key >= limit && z >= least))
            best = max_of()(best, key_of(z + noise(s, s->count, i), i));
    }
    best = block_reduce(best, max_of());
    if (threadIdx.x)
        return;
    out->undecided = 0;
    choose(a, slot, key_id(best), r.raw[key_id(best)], out);
}

cudaError_t launch_decide_all(cudaStream_t s, const struct sample_args *a)
{
    decide_all_kernel<<<a->results_count, ALL_THREADS, 0, s>>>(*a);
    return cudaGetLastError();
}

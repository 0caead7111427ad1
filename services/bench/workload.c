#include "services/bench/workload.h"

#include "common/mem.h"
#include "services/bench/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Streams of random numbers: what they are for, and then the run and the index. */
enum stream { STREAM_LENGTHS = 1, STREAM_ARRIVALS, STREAM_PROMPT, STREAM_BLOCK };

static uint64_t stream_of(enum stream kind, uint64_t run, uint64_t index)
{
    return ((uint64_t)kind << 60) ^ (run << 40) ^ index;
}

void workload_fini(struct workload *w)
{
    free(w->requests);
    free(w->blocks);
    memset(w, 0, sizeof *w);
}

static uint32_t length_between(struct random *r, double ratio, uint32_t longest)
{
    uint32_t low = (uint32_t)(ratio * longest);

    if (low < 1)
        low = 1;
    return low + random_below(r, longest - low + 1);
}

void workload_random(struct workload *w, size_t count, uint32_t input_max, uint32_t output_max,
                     double ratio, uint64_t seed)
{
    struct random r;

    memset(w, 0, sizeof *w);
    w->requests = mem_array(count, sizeof *w->requests);
    w->count = count;
    random_init(&r, seed, stream_of(STREAM_LENGTHS, 0, 0));
    for (size_t i = 0; i < count; i++) {
        w->requests[i].input_tokens = length_between(&r, ratio, input_max);
        w->requests[i].output_tokens = length_between(&r, ratio, output_max);
    }
}

void arrivals_poisson(const struct workload *w, double rate, uint64_t seed, int64_t *out_us)
{
    struct random r;
    double at_s = 0;

    random_init(&r, seed, stream_of(STREAM_ARRIVALS, 0, 0));
    for (size_t i = 0; i < w->count; i++) {
        out_us[i] = isinf(rate) ? 0 : (int64_t)(at_s * 1e6);
        if (!isinf(rate))
            at_s += random_exponential(&r) / rate;
    }
}

void arrivals_trace(const struct workload *w, double scale, int64_t *out_us)
{
    for (size_t i = 0; i < w->count; i++)
        out_us[i] = (int64_t)((double)w->requests[i].arrival_us * scale);
}

static void fill(struct random *r, uint32_t vocab, uint32_t *out, size_t count)
{
    for (size_t i = 0; i < count; i++)
        out[i] = random_below(r, vocab);
}

void prompt_ids(const struct workload *w, size_t index, uint64_t seed, uint64_t run, uint32_t vocab,
                uint32_t *out)
{
    const struct request *q = &w->requests[index];
    size_t done = 0;
    struct random r;

    for (uint32_t b = 0; b < q->blocks_count && done < q->input_tokens; b++) {
        size_t n = q->input_tokens - done;

        if (n > TRACE_BLOCK_TOKENS)
            n = TRACE_BLOCK_TOKENS;
        random_init(&r, seed, stream_of(STREAM_BLOCK, run, w->blocks[q->blocks_at + b]));
        fill(&r, vocab, out + done, n);
        done += n;
    }
    random_init(&r, seed, stream_of(STREAM_PROMPT, run, index));
    fill(&r, vocab, out + done, q->input_tokens - done);
}

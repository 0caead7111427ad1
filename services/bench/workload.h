/* What a run sends, and when: lengths and arrival times, a function of the seed. */
#ifndef PHALANX_BENCH_WORKLOAD_H
#define PHALANX_BENCH_WORKLOAD_H

#include "common/err.h"

#include <stddef.h>
#include <stdint.h>

#define TOKENS_MAX 16777216 /* of one prompt or answer */
#define TRACE_BLOCK_TOKENS 512

struct request {
    int64_t arrival_us; /* since the start of the run */
    uint32_t input_tokens;
    uint32_t output_tokens;
    size_t blocks_at; /* of its block numbers, in workload.blocks */
    uint32_t blocks_count;
};

struct workload {
    struct request *requests; /* owned, in the order of arrival */
    size_t count;
    uint32_t *blocks; /* owned; prompts that share a number share 512 tokens (Mooncake) */
    size_t blocks_count;
    size_t skipped; /* rows of a trace that are longer than the server's context */
};

void workload_fini(struct workload *w);

/* Uniform lengths in [max(1, ratio * longest), longest], all arriving at 0. */
void workload_random(struct workload *w, size_t count, uint32_t input_max, uint32_t output_max,
                     double ratio, uint64_t seed);

/* The first `count` rows of a trace in the order of time; rows of more than `context` tokens (when
 * not 0) are skipped and counted. Arrival is as in the trace, the first row's at 0. ERR_INVALID
 * names the line. */
int workload_trace(struct workload *w, const char *path, size_t count, uint64_t context,
                   struct err *err);
int workload_trace_text(struct workload *w, const char *text, size_t len, size_t count,
                        uint64_t context, struct err *err);

/* When each request is due: Poisson arrivals at `rate` a second, the first at 0. */
void arrivals_poisson(const struct workload *w, double rate, uint64_t seed, int64_t *out_us);

/* As the trace has them, times `scale`. */
void arrivals_trace(const struct workload *w, double scale, int64_t *out_us);

/* The tokens of a prompt, uniform below vocab. A function of (seed, run, index) and, for requests
 * with block numbers, of (seed, run, number) within each block. */
void prompt_ids(const struct workload *w, size_t index, uint64_t seed, uint64_t run, uint32_t vocab,
                uint32_t *out);

#endif

/* Results for people (a table) and for programs (JSON). */
#ifndef PHALANX_BENCH_OUTPUT_H
#define PHALANX_BENCH_OUTPUT_H

#include "common/buf.h"
#include "services/bench/config.h"
#include "services/bench/results.h"

#include <stdbool.h>
#include <stddef.h>

/* What the runs have in common and the options do not say. */
struct output_facts {
    const char *base_url;
    const char *model;
    uint64_t context; /* of the server, 0: not known */
    uint32_t vocab;
    size_t skipped; /* rows of the trace */
};

/* "8 requests/s", "at most 4 in flight", ... */
void output_load_name(const struct bench_config *c, size_t run, struct buf *out);

/* The table of one run. */
void output_table(const struct bench_config *c, size_t run, const struct results *r,
                  const struct report *p, struct buf *out);

/* One line a run, when there were several. */
void output_sweep(const struct bench_config *c, const struct report *reports, size_t count,
                  struct buf *out);

/* The JSON document: begin, a run for each run, end. */
void output_json_begin(const struct bench_config *c, const struct output_facts *f, struct buf *out);
void output_json_run(const struct bench_config *c, size_t run, const struct results *r,
                     const struct report *p, struct buf *out);
void output_json_end(struct buf *out);

#endif

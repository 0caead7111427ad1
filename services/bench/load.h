/* One run: sends requests when they are due and gathers the replies. */
#ifndef PHALANX_BENCH_LOAD_H
#define PHALANX_BENCH_LOAD_H

#include "common/err.h"
#include "services/bench/config.h"
#include "services/bench/results.h"
#include "services/bench/target.h"
#include "services/bench/workload.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct load_plan {
    const struct bench_config *config;
    const struct target *target;
    const char *model;
    const struct workload *workload;
    const int64_t *due_us; /* one a request, rising */
    uint64_t run; /* prompts differ between runs, so that none finds another's in a cache */
    uint32_t vocab;
    size_t limit; /* requests in flight */
    bool progress;
};

/* results: initialised here, released by the caller also after an error. Interrupted (SIGINT) is
 * no error: results->interrupted, and what was unfinished has no outcome. */
int load_run(const struct load_plan *plan, struct results *results, struct err *err);

/* One GET; the body is appended to out, whatever the status, which comes back in *status. */
int load_get(const struct target *target, const char *path, struct buf *out, int *status,
             struct err *err);

#endif

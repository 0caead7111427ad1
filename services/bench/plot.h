/* Latency over load as an SVG picture: TTFT and TPOT, p50, p90 and p99 each. */
#ifndef PHALANX_BENCH_PLOT_H
#define PHALANX_BENCH_PLOT_H

#include "common/buf.h"
#include "services/bench/config.h"
#include "services/bench/results.h"

#include <stddef.h>

/* Runs without a finite load, or without a completed request, have no point. */
void plot_write(const struct bench_config *c, const char *title, const struct report *reports,
                size_t count, struct buf *out);

/* The round step (1, 2 or 5 times a power of ten) that cuts `span` into at most `parts`. */
double plot_step(double span, int parts);

#endif

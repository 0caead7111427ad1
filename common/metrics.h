/* The process's own metrics: a fixed table (common/metrics.def), plain numbers, one thread. */
#ifndef PHALANX_COMMON_METRICS_H
#define PHALANX_COMMON_METRICS_H

#include "common/buf.h"

#include <stdbool.h>
#include <stdint.h>

enum metric {
#define METRIC(ID, kind, name, help) METRIC_##ID,
#include "common/metrics.def"
#undef METRIC
    METRICS_COUNT
};

enum metric_kind { METRIC_COUNTER, METRIC_GAUGE, METRIC_HISTOGRAM };

/* Upper bounds of the histogram buckets in seconds; the last bucket is +Inf. */
#define METRIC_BUCKETS 22
extern const double metric_bounds[METRIC_BUCKETS - 1];

struct metrics {
    double value[METRICS_COUNT]; /* histogram: the sum */
    bool used[METRICS_COUNT];    /* only what was ever set is sent and printed */
    uint64_t buckets[METRICS_COUNT][METRIC_BUCKETS]; /* histograms only */
};

void metric_add(struct metrics *m, enum metric id, double value);     /* counter */
void metric_set(struct metrics *m, enum metric id, double value);     /* gauge */
void metric_observe(struct metrics *m, enum metric id, double value); /* histogram, seconds */

const char *metric_name(enum metric id); /* without the prefix */
enum metric_kind metric_kind(enum metric id);
/* METRICS_COUNT when there is no such name. */
enum metric metric_find(const char *name, size_t len);

/* Sets RESIDENT_BYTES and CPU_SECONDS from /proc/self. */
void metrics_sample_process(struct metrics *m);

/* Prometheus text exposition (version 0.0.4) of several processes' metrics: each sample carries the
 * label process="<names[i]>". HELP and TYPE are written once a name. */
void metrics_print(const struct metrics *const *all, const char *const *names, size_t count,
                   struct buf *out);

#endif

/* A process's metrics as the bus carries them, and back. */
#ifndef PHALANX_PROTO_STATS_H
#define PHALANX_PROTO_STATS_H

#include "common/metrics.h"
#include "proto/proto.h"

/* The metrics that were ever set, in stats (the caller's; the buckets stay m's). */
struct proto_source stats_source(const struct metrics *m, const char *name,
                                 struct proto_stat stats[METRICS_COUNT]);

/* Sets m to what the source says. Names this build does not know are left out. */
void stats_read(const struct proto_source *source, struct metrics *m);

#endif

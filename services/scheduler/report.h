/* What the scheduler tells about itself: STATS to tokenizers, and a log line while it is busy. */
#ifndef PHALANX_SCHEDULER_REPORT_H
#define PHALANX_SCHEDULER_REPORT_H

#include "common/metrics.h"
#include "proto/proto.h"
#include "services/scheduler/core.h"
#include "services/scheduler/group.h"

#include <stdbool.h>
#include <stdint.h>

struct report {
    struct metrics own;
    struct metrics ranks[GROUP_RANKS_MAX]; /* what workers sent last */
    char names[GROUP_RANKS_MAX][65];       /* "": nothing was sent */
    bool changed;                          /* since the last report_stats */
    struct scheduler_stats counted;        /* what the counters in `own` hold */
    struct scheduler_stats logged;         /* at the last log line */
    int64_t logged_us;
    struct proto_source *sources;
    struct proto_stat *stats;
    uint32_t ranks_count;
};

void report_init(struct report *r, uint32_t ranks, int64_t now_us);
void report_fini(struct report *r);

/* Keeps a worker's STATS. */
void report_worker(struct report *r, uint32_t rank, const char *name, const struct proto_stats *m);

/* The workers will be others. */
void report_ranks_lost(struct report *r);

void report_queue_time(struct report *r, int64_t queue_us);
void report_step(struct report *r, int64_t step_us, uint64_t compute_us);

/* The message to send, false when nothing has changed. It lives until the next call. */
bool report_stats(struct report *r, const struct scheduler_stats *now, const char *name,
                  struct proto_stats *out);

/* A log line about the time since the last one, if there was something to do. */
void report_log(struct report *r, const struct scheduler_stats *now, int64_t now_us);

#endif

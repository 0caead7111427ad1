/* A bar on a terminal's standard error. */
#ifndef PHALANX_BENCH_PROGRESS_H
#define PHALANX_BENCH_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct progress {
    bool on;
    size_t total;
    uint64_t chunks_before; /* at the last painting */
    int64_t painted_us;
};

void progress_init(struct progress *p, bool on, size_t total);
void progress_paint(struct progress *p, size_t finished, size_t failed, size_t running,
                    uint64_t chunks, int64_t now_us);
void progress_end(struct progress *p); /* takes the bar away */

#endif

/* Work ahead: threads fill buffers with the results 0, 1, 2, ... of a function while the caller
 * uses those before, in that order. */
#ifndef PHALANX_WORKER_AHEAD_H
#define PHALANX_WORKER_AHEAD_H

#include "common/err.h"

#include <stddef.h>
#include <stdint.h>

#define AHEAD_THREADS_MAX 8

struct ahead_config {
    uint32_t threads, buffers; /* up to AHEAD_THREADS_MAX; at least one more than threads is good */
    size_t buffer_bytes;
    uint64_t count;
    /* The i'th result; called by any thread, several at once for different i. */
    int (*fill)(void *ctx, uint64_t i, void *buffer, struct err *err);
    void *ctx;
};

struct ahead;

/* ERR_INTERNAL when no thread can be had. */
int ahead_start(const struct ahead_config *config, struct ahead **out, struct err *err);
/* The next result, to be called `count` times at most. The buffer is the caller's until the next
 * call. fill's error: of the first i that has one, when its turn has come. */
int ahead_next(struct ahead *a, void **buffer, struct err *err);
/* Waits for calls of fill that have begun. NULL is fine. */
void ahead_stop(struct ahead **self);

#endif

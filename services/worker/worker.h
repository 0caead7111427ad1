/* The worker process: the bus on this thread, the engine on its own, so that heartbeats are
 * answered while a step or a load takes its time. */
#ifndef PHALANX_WORKER_WORKER_H
#define PHALANX_WORKER_WORKER_H

#include "common/err.h"
#include "proto/bus_key.h"
#include "services/worker/engine.h"

struct worker_config {
    const char *name;     /* "worker-0" */
    const char *endpoint; /* the scheduler's, for workers */
    struct bus_security security;
    uint64_t epoch; /* 0: the scheduler's */
    double heartbeat_timeout_s;
    struct engine_config engine;
};

/* Runs until SIGTERM or SIGINT (0), or until the scheduler refuses us, is gone before all is loaded
 * or with a step that does not end, or the engine fails (1, after one log line). A rank that is
 * loaded outlives its scheduler: it forgets all sequences and waits for the next one. The process
 * must end with that status; when the engine's thread is stuck worker_run does not return but ends
 * it itself. */
int worker_run(const struct worker_config *config);

#endif

/* The scheduler's process: the core between tokenizers and workers. */
#ifndef PHALANX_SCHEDULER_SERVICE_H
#define PHALANX_SCHEDULER_SERVICE_H

#include "common/err.h"
#include "proto/bus_key.h"

#include <stdbool.h>
#include <stdint.h>

struct service_config {
    const char *name;
    const char *scheduler_endpoint; /* bound for tokenizers */
    const char *worker_endpoint;    /* bound for workers */
    const char *control_endpoint;   /* of the launcher; "": there is none */
    struct bus_security security;
    uint32_t tp_size;
    uint32_t slots_max;
    uint32_t queued_max;
    int32_t prefill_tokens_max;
    uint32_t page_size;
    uint32_t num_pages; /* 0: what every rank has room for */
    const char *policy;
    double conservativeness;
    int64_t preempt_above;
    bool prefix_cache;
    double heartbeat_timeout_s;
    double dist_timeout_s; /* for ranks to meet */
    double step_timeout_s; /* upper bound of the deadlines that are learned */
    uint64_t epoch;        /* of the first ranks */
};

/* Serves until SIGTERM or SIGINT (0) or until the start fails, or ranks come that do not fit those
 * before (negative, err says why). Ranks that are lost later are waited for, and so they are from
 * the beginning where there is no launcher. The strings of config must live as long. */
int service_run(const struct service_config *config, struct err *err);

#endif

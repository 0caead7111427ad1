/* The last steps, kept for the log: written when nothing moves though there is work, when a step's
 * deadline has passed, and when somebody asks (SIGUSR1). No I/O but log lines, no allocation. */
#ifndef PHALANX_SCHEDULER_WATCHDOG_H
#define PHALANX_SCHEDULER_WATCHDOG_H

#include "proto/proto.h"
#include "services/scheduler/core.h"

#include <stdbool.h>
#include <stdint.h>

#define WATCHDOG_STEPS 32u
#define WATCHDOG_STALL_US 30000000

struct watchdog_step {
    uint64_t epoch, step;
    uint32_t rows, tokens; /* tokens: of rows that compute more than one, prefill */
    int64_t sent_us;
    int64_t answered_us; /* the last answer so far; 0: none */
    uint64_t answered;   /* bit r: rank r */
};

struct watchdog {
    struct watchdog_step steps[WATCHDOG_STEPS]; /* a ring */
    uint64_t count;                             /* steps ever sent; the next takes count % size */
    uint32_t ranks;
    int64_t moved_us; /* a step was sent or answered, or there was no work */
    bool told;        /* of the present stall */
};

void watchdog_init(struct watchdog *w, uint32_t ranks, int64_t now_us);

void watchdog_sent(struct watchdog *w, uint64_t epoch, const struct proto_step *m, int64_t now_us);
void watchdog_answered(struct watchdog *w, uint64_t epoch, uint64_t number, uint32_t rank,
                       int64_t now_us);

/* Once in a while: writes the steps once for every stall of stall_us. work: somebody waits for a
 * step. */
void watchdog_look(struct watchdog *w, bool work, int64_t stall_us, int64_t now_us);

/* why: for the first line. */
void watchdog_dump(const struct watchdog *w, const char *why, int64_t now_us);

#endif

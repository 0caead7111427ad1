/* The engine's thread: loads, then takes KV_ALLOC and STEP from one mailbox and answers into
 * another: GATHER (while it loads), LOADED, KV_READY, STEP_DONE, or RANK_FAILED as the last word.
 */
#ifndef PHALANX_WORKER_RUNNER_H
#define PHALANX_WORKER_RUNNER_H

#include "kernels/comm.h"
#include "services/worker/engine.h"
#include "services/worker/mailbox.h"

/* A step that the engine has begun and not ended. */
struct begun {
    uint64_t step;
    int64_t start_us;
};

struct runner {
    const struct engine_kind *kind;
    struct engine_config config; /* strings are borrowed */
    struct engine *engine;
    struct mailbox *in, *out;
    /* Meeting the other ranks: by GATHER in `out` and GATHERED in `in`. */
    struct comm_meet meet;
    uint32_t round;
    uint64_t communicator; /* hash of what was gathered; 0: nothing */
    struct buf gathered;   /* of the last round */
    struct proto_arena gathered_arena;
    struct begun begun[ENGINE_STEPS_MAX];
    uint32_t begun_count;
    _Atomic(const char *) doing; /* what the thread is at, for the log of others */
    pthread_t thread;
};

/* kind, config, in and out are set before. */
int runner_start(struct runner *r, struct err *err);

/* Closes `in` and waits; false when the thread is still at work after wait_ms (then nothing it
 * uses may be freed: the process must end by _exit). */
bool runner_stop(struct runner *r, int wait_ms);

#endif

/* Histories of the scheduler's core in simulated time, each drawn from one seed.
 *
 *   clients ──link──> scheduler ──link──> worker
 *           <──link──           <──link──
 *
 * sim.c    the scheduler's side: what the service does with messages, the history
 * faults.c restarts of the scheduler and its clients, loss of the ranks
 * client.c requests, and the ledger of the tokens that each has to get
 * worker.c what a step must look like when it is planned, and what pages hold when it is computed
 * link.c   in order and once, over a wire that loses, repeats and delays
 * audit.c  pages and locks, counted from the core's own state */
#ifndef PHALANX_TESTS_SIM_H
#define PHALANX_TESTS_SIM_H

#include "services/scheduler/core.h"

#include <stdbool.h>
#include <stdint.h>

#define EVENTS 500u
#define REQUESTS 64u
#define SLOTS 8u
#define PAGES 64u
#define CONTEXT 64u
#define FLIGHT 4u
#define OWNERS 3u

/* ---- links ---- */

#define LINK_KEPT 512u /* messages that are not acknowledged; more than a history can have */
#define LINK_WIRE 8u

struct letter {
    int kind;
    uint32_t request;
    struct proto_token token;
    uint64_t step;
    uint32_t resumed, replays; /* of a SUBMIT */
    bool paused;               /* of a PAUSE */
};

struct link {
    struct letter kept[LINK_KEPT];
    uint64_t sent, acked, received; /* sequence numbers */
    uint64_t wire[LINK_WIRE];       /* numbers on their way, in any order, repeats too */
    uint32_t wire_count;
};

/* ---- requests ---- */

enum state {
    UNSENT,
    SENT,
    REFUSED, /* the queue was full: sent again later */
    ENDED,
    ABORTED,
};

struct request {
    enum state state;
    uint32_t owner;
    uint32_t prompt_count;
    uint32_t next; /* index of the token that has to come to the client */
    uint64_t key;  /* what its tokens are made from */
    uint32_t prompt[CONTEXT + 4];
    struct proto_sampling sampling; /* as asked; the seed says which request it is */
    uint32_t stop_id;
    uint32_t replays; /* how often the client has begun it anew */
    bool behind;      /* its reader; the core has been told */
    /* at the scheduler */
    bool admitted, paused;
    uint32_t admissions;
    uint32_t max_tokens;   /* as the core must resolve it; 0: it has to refuse */
    uint32_t applied;      /* tokens that it has had or given out */
    uint32_t resumed;      /* those it has had */
    uint32_t replays_core; /* the client's, and losses of the ranks with a slot taken */
    uint32_t cached;
    bool started;
};

/* ---- the worker, as planned and as computed ---- */

struct planned {
    bool open;
    uint32_t request, admission;
    uint64_t last_step;
    uint32_t known, known_open, computed;
    uint32_t pages[PAGES];
    uint32_t pages_count;
    bool decoding; /* must have a row in the next step */
};

struct opened {
    uint32_t slot, request, tokens_count;
    uint32_t tokens[CONTEXT];
};

struct added {
    uint32_t slot, first, count;
    uint32_t pages[PAGES];
};

/* A copy of a STEP and, once computed, its results. */
struct flight {
    uint64_t step;
    uint32_t closed[SLOTS], closed_count;
    struct opened opened[SLOTS];
    uint32_t opened_count;
    struct added added[SLOTS];
    uint32_t added_count;
    struct proto_row rows[SLOTS];
    uint32_t rows_count;
    struct proto_sampled results[SLOTS];
    uint32_t results_count;
};

struct device_slot {
    bool open;
    uint32_t request;
    uint32_t tokens[CONTEXT + 1];
    uint32_t known, generated;
    uint32_t pages[PAGES];
};

struct sim {
    uint64_t seed, random;
    int64_t now_us;
    struct scheduler_config config;
    uint32_t eos;
    struct scheduler *core;
    struct request requests[REQUESTS];
    uint32_t requests_count;
    uint64_t owner_ids[OWNERS]; /* in the core: another after a restart of the client */
    struct link to_core[OWNERS], to_client[OWNERS], to_worker, from_worker;
    struct planned slots[SLOTS];
    uint64_t page_step[PAGES]; /* newest step that writes the page */
    uint64_t planned, applied;
    struct flight flight[FLIGHT]; /* ring: step % FLIGHT */
    struct device_slot device[SLOTS];
    uint64_t content[PAGES * 8]; /* hash of the tokens up to each position of a page */
    uint64_t computed;
    bool lost; /* there are no ranks */
    /* totals of all histories */
    uint64_t steps, tokens, hits, preemptions, restarts, losses, resumed, failed, dropped, repeated,
        stalls, pauses;
};

_Noreturn void sim_fail(const struct sim *m, const char *file, int line, const char *what);

#define CHECK(sim, condition)                                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            sim_fail(sim, __FILE__, __LINE__, #condition);                                         \
    } while (0)

uint64_t sim_mix(uint64_t x);
uint32_t sim_draw(struct sim *m, uint32_t below);

void link_reset(struct link *l);
void link_send(struct sim *m, struct link *l, const struct letter *letter);
/* Something happens on the wire; true: *out has arrived. */
bool link_turn(struct sim *m, struct link *l, struct letter *out);

enum {
    LETTER_SUBMIT,
    LETTER_ABORT,
    LETTER_TOKEN,
    LETTER_BUSY,
    LETTER_FAILED,
    LETTER_STEP,
    LETTER_PAUSE
};

void client_request(struct sim *m);
void client_abort(struct sim *m);
/* The reader of some request falls behind, or catches up. */
void client_pause(struct sim *m);
/* All readers catch up. */
void client_resume(struct sim *m);
void client_send(struct sim *m, struct request *r);
void client_take(struct sim *m, uint32_t owner, const struct letter *letter);
bool client_waits(const struct sim *m);
uint32_t client_token(const struct sim *m, const struct request *r, uint32_t index);
enum proto_finish client_finish(const struct sim *m, const struct request *r, uint32_t index);
/* The request's fate by the rules alone: most tokens, 0 when it is to be refused. */
uint32_t client_allowed(const struct sim *m, const struct request *r, uint32_t resumed);

void scheduler_start(struct sim *m);
void scheduler_restart(struct sim *m);
void client_restart(struct sim *m);
void group_lost(struct sim *m);
void group_joined(struct sim *m);

void worker_planned(struct sim *m, const struct proto_step *step, bool retracted);
void worker_compute(struct sim *m, uint64_t step);

void audit(struct sim *m);
void audit_idle(struct sim *m);
/* The running request that came first: it must never give way. UINT64_MAX: none runs. */
uint64_t audit_first(const struct sim *m);
void audit_plan(struct sim *m, const struct proto_step *step, uint64_t first);
uint32_t audit_parked(const struct sim *m);
/* Everything that has not ended is paused. */
bool audit_all_paused(const struct sim *m);
bool audit_has_slot(const struct sim *m, uint32_t request);
bool audit_decodes(const struct sim *m, uint32_t request);
uint32_t audit_available(const struct sim *m);

/* Sequences retracted so far. */
uint64_t audit_preemptions(const struct sim *m);

#endif

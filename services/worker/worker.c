#include "services/worker/worker.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/metrics.h"
#include "proto/bus.h"
#include "proto/stats.h"
#include "services/worker/route.h"
#include "services/worker/runner.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <xxhash.h>

#define STATS_PERIOD_MS 2000
#define STALL_US 8000000 /* a step that takes longer is worth a line */
#define STOP_WAIT_MS 300 /* for the engine's thread, which may be in a collective */
/* A step under way when the scheduler dies ends by itself when all ranks got it. */
#define LAST_STEP_MS 5000

struct worker {
    const struct worker_config *config;
    uv_loop_t loop;
    uv_async_t mail; /* something is in `out` */
    uv_signal_t sigterm, sigint;
    uv_timer_t timer;
    struct bus *bus;
    struct bus_peer *peer; /* the scheduler while it is up */
    struct mailbox in, out;
    struct runner runner;
    bool running; /* the engine's thread has been started */
    char interface[IF_NAMESIZE];
    struct metrics metrics;
    struct proto_arena arena;
    struct buf first;  /* the oldest message while there is no peer */
    struct buf loaded; /* LOADED: said again to every scheduler that comes */
    uint64_t steps;    /* with rows, that the engine was given since the ranks met */
    uint32_t asked;    /* messages that the engine has not answered */
    uint64_t step;     /* the last that it was given */
    int64_t moved_us;  /* when it answered last, or was asked while idle; 0: that was told */
    bool between;      /* from a scheduler that is gone to the next: the engine is not idle yet */
    char gone[160];    /* why the one before is, until there is one */
    uv_timer_t between_timer;
    bool stopping;
    int status;
};

static void worker_stop(struct worker *w, int status)
{
    if (w->stopping)
        return;
    w->stopping = true;
    w->status = status;
    mailbox_close(&w->out); /* from here on the engine does not touch the loop */
    uv_close((uv_handle_t *)&w->mail, NULL);
    uv_close((uv_handle_t *)&w->sigterm, NULL);
    uv_close((uv_handle_t *)&w->sigint, NULL);
    uv_close((uv_handle_t *)&w->timer, NULL);
    uv_close((uv_handle_t *)&w->between_timer, NULL);
    if (w->bus)
        bus_close(&w->bus);
}

static void worker_fail(struct worker *w, const struct err *err)
{
    log_error("rank=%u \"%s\"", w->config->engine.rank, err->msg);
    worker_stop(w, 1);
}

/* ---- from the engine to the scheduler ---- */

static void note_metrics(struct worker *w, enum proto_type type, const void *message)
{
    const struct proto_loaded *loaded = message;
    const struct proto_kv_ready *ready = message;

    if (type == PROTO_LOADED)
        metric_set(&w->metrics, METRIC_WEIGHT_BYTES, (double)loaded->weight_bytes);
    if (type == PROTO_KV_READY)
        metric_set(&w->metrics, METRIC_KV_BYTES, (double)ready->kv_bytes);
}

/* The engine is lost: that is said even if nobody listens. */
static void rank_failed(struct worker *w, const struct proto_rank_failed *m)
{
    log_error("rank=%u \"%.*s\"", m->rank, (int)m->reason.len, m->reason.data);
    if (w->peer)
        (void)bus_send(w->peer, PROTO_RANK_FAILED, 0, m, NULL);
    worker_stop(w, 1);
}

/* What tells this rank's communicator from every other, and where it stands in its use. */
static uint64_t communicator(const struct worker *w, uint64_t gathered)
{
    return gathered ? XXH64(&w->steps, sizeof w->steps, gathered) : 0;
}

static void say_loaded(struct worker *w)
{
    struct proto_header header;
    struct err err;
    void *message;
    int rc = proto_decode(w->loaded.data, w->loaded.len, &w->arena, &header, &message, &err);

    if (!rc) {
        struct proto_loaded *m = message;

        m->communicator = communicator(w, m->communicator);
        note_metrics(w, header.type, m);
        rc = bus_send(w->peer, header.type, 0, m, &err);
    }
    proto_arena_clear(&w->arena);
    if (rc)
        worker_fail(w, &err);
}

/* The engine is idle: it may be asked by another scheduler, which perhaps is there already. */
static void join_next(struct worker *w)
{
    w->between = false;
    (void)uv_timer_stop(&w->between_timer);
    if (w->peer)
        say_loaded(w);
}

/* One message of the engine, or *wait: it keeps until there is a peer. */
static int forward_one(struct worker *w, const struct proto_header *header, const void *message,
                       bool *wait, struct err *err)
{
    switch (header->type) {
    case PROTO_RANK_FAILED:
        rank_failed(w, message);
        return 0;
    case PROTO_LOADED:
        buf_fini(&w->loaded);
        w->loaded = w->first;
        w->first = (struct buf){0};
        if (w->peer)
            say_loaded(w);
        return 0;
    case PROTO_GATHER:
        break;
    default:
        w->asked--;
        w->moved_us = clock_mono_us();
        if (w->between)
            return 0; /* for a scheduler that is gone */
    }
    *wait = !w->peer;
    if (*wait)
        return 0;
    note_metrics(w, header->type, message);
    return bus_send(w->peer, header->type, 0, message, err);
}

/* Sends what the engine has said. Without a peer GATHER waits: the engine says nothing more until
 * it is answered. So does LOADED, which is kept anyway. */
static void forward(struct worker *w)
{
    struct proto_header header;
    struct err err;
    void *message;
    bool wait = false;

    while (!w->stopping && !wait && (w->first.len || mailbox_poll(&w->out, &w->first))) {
        int rc = proto_decode(w->first.data, w->first.len, &w->arena, &header, &message, &err);

        if (!rc)
            rc = forward_one(w, &header, message, &wait, &err);
        proto_arena_clear(&w->arena);
        if (!wait)
            buf_fini(&w->first);
        if (rc)
            worker_fail(w, &err);
    }
    if (w->between && !w->asked && !w->stopping)
        join_next(w);
}

static void on_mail(uv_async_t *handle)
{
    forward(handle->data);
}

static void notify(void *ctx)
{
    struct worker *w = ctx;

    (void)uv_async_send(&w->mail);
}

/* This loop turns, the engine's thread does not: a line, once. */
static void check_stall(struct worker *w)
{
    int64_t for_us = clock_mono_us() - w->moved_us;

    if (!w->asked || !w->moved_us || for_us < STALL_US)
        return;
    log_warn(
        "rank=%u unanswered=%u last_step=%llu for_s=%.1f \"the engine has not answered; it is %s\"",
        w->config->engine.rank, w->asked, (unsigned long long)w->step, (double)for_us / 1e6,
        w->runner.doing);
    w->moved_us = 0;
}

static void on_timer(uv_timer_t *handle)
{
    struct worker *w = handle->data;
    struct proto_stat stats[METRICS_COUNT];
    struct proto_source source;
    struct proto_stats message = {.sources = &source, .sources_count = 1};
    struct err err;

    check_stall(w);
    if (!w->peer)
        return;
    metrics_sample_process(&w->metrics);
    source = stats_source(&w->metrics, w->config->name, stats);
    if (bus_send(w->peer, PROTO_STATS, 0, &message, &err))
        worker_fail(w, &err);
}

/* ---- from the scheduler to the engine ---- */

/* The engine's thread. With others to meet it begins when there is a link: how the scheduler is
 * reached then says how they are. */
static int start_engine(struct worker *w, struct err *err)
{
    struct engine_config *engine = &w->runner.config;
    int rc = 0;

    if (engine->tp_size > 1 && !(engine->comm_interface && *engine->comm_interface)) {
        rc = route_interface(w->config->endpoint, w->interface, err);
        engine->comm_interface = w->interface;
    }
    if (!rc)
        rc = runner_start(&w->runner, err);
    w->running = !rc;
    return rc;
}

static void on_up(void *ctx, struct bus_peer *peer)
{
    struct worker *w = ctx;
    struct err err;

    w->peer = peer;
    if (*w->gone)
        log_info("rank=%u \"another scheduler, the one before is gone: %s\"",
                 w->config->engine.rank, w->gone);
    w->gone[0] = '\0';
    if (!w->running && start_engine(w, &err))
        worker_fail(w, &err);
    else if (w->loaded.len && !w->between)
        say_loaded(w);
    forward(w);
}

static void on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                       const void *message)
{
    struct worker *w = ctx;
    const struct proto_step *step = message;
    struct err err;
    int rc = 0;

    (void)peer;
    if (w->stopping)
        return;
    if ((header->type == PROTO_STEP || header->type == PROTO_KV_ALLOC) && !w->asked++)
        w->moved_us = clock_mono_us();
    if (header->type != PROTO_STEP && header->type != PROTO_KV_ALLOC &&
        header->type != PROTO_GATHERED)
        rc = err_set(&err, ERR_PROTOCOL, "%s is not for a worker", proto_type_name(header->type));
    if (header->type == PROTO_STEP) {
        w->steps += step->rows_count > 0;
        w->step = step->step;
    }
    if (!rc)
        rc = mailbox_push(&w->in, header->type, message, &err);
    if (rc)
        worker_fail(w, &err);
}

static void on_between(uv_timer_t *handle)
{
    struct worker *w = handle->data;
    struct err err;

    (void)err_set(
        &err, ERR_PEER,
        "the scheduler is gone (%s), and a step has not ended %d ms later: not every rank "
        "has got it",
        w->gone, LAST_STEP_MS);
    worker_fail(w, &err);
}

/* Sequences and pages are forgotten with the next scheduler's KV_ALLOC; weights and communicator
 * stay. The epoch stays too: who says that it is over refuses us. Ranks that can not go on together
 * are told so as well: LOADED says where each stands. */
static void on_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct worker *w = ctx;
    struct err err;

    (void)peer;
    w->peer = NULL;
    if (w->stopping)
        return;
    if (!w->loaded.len) {
        (void)err_set(&err, ERR_PEER, "the scheduler is gone: %s", reason);
        worker_fail(w, &err);
        return;
    }
    (void)snprintf(w->gone, sizeof w->gone, "%s", reason);
    w->between = w->asked > 0;
    if (w->between)
        (void)uv_timer_start(&w->between_timer, on_between, LAST_STEP_MS, 0);
}

static void on_refused(void *ctx, const char *reason)
{
    struct worker *w = ctx;
    struct err err;

    (void)err_set(&err, ERR_PEER, "the scheduler refuses this worker: %s", reason);
    worker_fail(w, &err);
}

/* ---- the process ---- */

static void on_signal(uv_signal_t *handle, int number)
{
    struct worker *w = handle->data;

    log_debug("signal=%d", number);
    worker_stop(w, 0);
}

static int open_bus(struct worker *w, struct err *err)
{
    const struct worker_config *c = w->config;
    struct bus_config bus = {
        .loop = &w->loop,
        .role = "worker",
        .name = c->name,
        .endpoint = c->endpoint,
        .security = &c->security,
        .epoch = c->epoch,
        .silence_ms_max = (int64_t)(c->heartbeat_timeout_s * 1e3),
        .on = {.on_up = on_up,
               .on_message = on_message,
               .on_down = on_down,
               .on_refused = on_refused},
        .ctx = w,
    };

    return bus_connect(&bus, &w->bus, err);
}

static void open_handles(struct worker *w)
{
    (void)uv_loop_init(&w->loop);
    (void)uv_async_init(&w->loop, &w->mail, on_mail);
    (void)uv_signal_init(&w->loop, &w->sigterm);
    (void)uv_signal_init(&w->loop, &w->sigint);
    (void)uv_timer_init(&w->loop, &w->timer);
    (void)uv_timer_init(&w->loop, &w->between_timer);
    w->mail.data = w->sigterm.data = w->sigint.data = w;
    w->timer.data = w->between_timer.data = w;
    (void)uv_signal_start(&w->sigterm, on_signal, SIGTERM);
    (void)uv_signal_start(&w->sigint, on_signal, SIGINT);
    (void)uv_timer_start(&w->timer, on_timer, STATS_PERIOD_MS, STATS_PERIOD_MS);
}

static void worker_fini(struct worker *w)
{
    (void)uv_loop_close(&w->loop);
    mailbox_fini(&w->in);
    mailbox_fini(&w->out);
    proto_arena_fini(&w->arena);
    buf_fini(&w->first);
    buf_fini(&w->loaded);
}

int worker_run(const struct worker_config *config)
{
    struct worker w = {.config = config};
    struct err err = {0};
    int rc;

    open_handles(&w);
    mailbox_init(&w.in, NULL, NULL);
    mailbox_init(&w.out, notify, &w);
    w.runner = (struct runner){.config = config->engine, .in = &w.in, .out = &w.out};
    w.runner.kind = engine_find(config->engine.device);
    rc = w.runner.kind ? 0
                       : err_set(&err, ERR_UNSUPPORTED, "--device %s is not supported",
                                 config->engine.device);
    if (!rc)
        rc = open_bus(&w, &err);
    if (!rc && config->engine.tp_size == 1)
        rc = start_engine(&w, &err);
    if (rc)
        worker_fail(&w, &err);
    (void)uv_run(&w.loop, UV_RUN_DEFAULT);
    if (w.running && !runner_stop(&w.runner, STOP_WAIT_MS))
        _exit(w.status); /* its memory is still in use */
    worker_fini(&w);
    return w.status;
}

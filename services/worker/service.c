#include "services/worker/service.h"

#include "common/log.h"
#include "common/metrics.h"
#include "proto/bus.h"
#include "proto/stats.h"
#include "services/worker/runner.h"

#include <signal.h>
#include <unistd.h>

#define STATS_PERIOD_MS 2000
#define STOP_WAIT_MS 300 /* for the engine's thread, which may be in a collective */

struct service {
    const struct service_config *config;
    uv_loop_t loop;
    uv_async_t mail; /* something is in `out` */
    uv_signal_t sigterm, sigint;
    uv_timer_t timer;
    struct bus *bus;
    struct bus_peer *peer; /* the scheduler while it is up */
    struct mailbox in, out;
    struct runner runner;
    struct metrics metrics;
    struct proto_arena arena;
    struct buf first; /* the oldest message while there is no peer */
    bool stopping;
    int status;
};

static void service_stop(struct service *s, int status)
{
    if (s->stopping)
        return;
    s->stopping = true;
    s->status = status;
    mailbox_close(&s->out); /* from here on the engine does not touch the loop */
    uv_close((uv_handle_t *)&s->mail, NULL);
    uv_close((uv_handle_t *)&s->sigterm, NULL);
    uv_close((uv_handle_t *)&s->sigint, NULL);
    uv_close((uv_handle_t *)&s->timer, NULL);
    if (s->bus)
        bus_close(&s->bus);
}

static void service_fail(struct service *s, const struct err *err)
{
    log_error("rank=%u \"%s\"", s->config->engine.rank, err->msg);
    service_stop(s, 1);
}

/* ---- from the engine to the scheduler ---- */

static void note_metrics(struct service *s, enum proto_type type, const void *message)
{
    const struct proto_loaded *loaded = message;
    const struct proto_kv_ready *ready = message;

    if (type == PROTO_LOADED)
        metric_set(&s->metrics, METRIC_WEIGHT_BYTES, (double)loaded->weight_bytes);
    if (type == PROTO_KV_READY)
        metric_set(&s->metrics, METRIC_KV_BYTES, (double)ready->kv_bytes);
}

/* The engine is lost: that is said even if nobody listens. */
static void rank_failed(struct service *s, const struct proto_rank_failed *m)
{
    log_error("rank=%u \"%.*s\"", m->rank, (int)m->reason.len, m->reason.data);
    if (s->peer)
        (void)bus_send(s->peer, PROTO_RANK_FAILED, 0, m, NULL);
    service_stop(s, 1);
}

/* Sends what the engine has said. Without a peer the first message waits: it is LOADED or
 * RANK_FAILED, and after LOADED the engine says nothing until it is asked. */
static void forward(struct service *s)
{
    struct proto_header header;
    struct err err;
    void *message;

    while (!s->stopping && (s->first.len || mailbox_poll(&s->out, &s->first))) {
        int rc = proto_decode(s->first.data, s->first.len, &s->arena, &header, &message, &err);

        if (rc) {
            service_fail(s, &err);
        } else if (header.type == PROTO_RANK_FAILED) {
            rank_failed(s, message);
        } else if (!s->peer) {
            proto_arena_clear(&s->arena);
            return;
        } else {
            note_metrics(s, header.type, message);
            if (bus_send(s->peer, header.type, 0, message, &err))
                service_fail(s, &err);
        }
        proto_arena_clear(&s->arena);
        buf_fini(&s->first);
    }
}

static void on_mail(uv_async_t *handle)
{
    forward(handle->data);
}

static void notify(void *ctx)
{
    struct service *s = ctx;

    (void)uv_async_send(&s->mail);
}

static void on_timer(uv_timer_t *handle)
{
    struct service *s = handle->data;
    struct proto_stat stats[METRICS_COUNT];
    struct proto_source source;
    struct proto_stats message = {.sources = &source, .sources_count = 1};
    struct err err;

    if (!s->peer)
        return;
    metrics_sample_process(&s->metrics);
    source = stats_source(&s->metrics, s->config->name, stats);
    if (bus_send(s->peer, PROTO_STATS, 0, &message, &err))
        service_fail(s, &err);
}

/* ---- from the scheduler to the engine ---- */

static void on_up(void *ctx, struct bus_peer *peer)
{
    struct service *s = ctx;

    s->peer = peer;
    forward(s);
}

static void on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                       const void *message)
{
    struct service *s = ctx;
    struct err err;
    int rc;

    (void)peer;
    if (s->stopping)
        return;
    if (header->type == PROTO_KV_ALLOC || header->type == PROTO_STEP)
        rc = mailbox_push(&s->in, header->type, message, &err);
    else
        rc = err_set(&err, ERR_PROTOCOL, "%s is not for a worker", proto_type_name(header->type));
    if (rc)
        service_fail(s, &err);
}

static void on_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct service *s = ctx;
    struct err err;

    (void)peer;
    s->peer = NULL;
    if (s->stopping)
        return;
    (void)err_set(&err, ERR_PEER, "the scheduler is gone: %s", reason);
    service_fail(s, &err);
}

static void on_refused(void *ctx, const char *reason)
{
    struct service *s = ctx;
    struct err err;

    (void)err_set(&err, ERR_PEER, "the scheduler refuses this worker: %s", reason);
    service_fail(s, &err);
}

/* ---- the process ---- */

static void on_signal(uv_signal_t *handle, int number)
{
    struct service *s = handle->data;

    log_debug("signal=%d", number);
    service_stop(s, 0);
}

static int open_bus(struct service *s, struct err *err)
{
    const struct service_config *c = s->config;
    struct bus_config bus = {
        .loop = &s->loop,
        .role = "worker",
        .name = c->name,
        .endpoint = c->endpoint,
        .epoch = c->epoch,
        .silence_ms_max = (int64_t)(c->heartbeat_timeout_s * 1e3),
        .on = {.on_up = on_up,
               .on_message = on_message,
               .on_down = on_down,
               .on_refused = on_refused},
        .ctx = s,
    };

    return bus_connect(&bus, &s->bus, err);
}

static void open_handles(struct service *s)
{
    (void)uv_loop_init(&s->loop);
    (void)uv_async_init(&s->loop, &s->mail, on_mail);
    (void)uv_signal_init(&s->loop, &s->sigterm);
    (void)uv_signal_init(&s->loop, &s->sigint);
    (void)uv_timer_init(&s->loop, &s->timer);
    s->mail.data = s->sigterm.data = s->sigint.data = s->timer.data = s;
    (void)uv_signal_start(&s->sigterm, on_signal, SIGTERM);
    (void)uv_signal_start(&s->sigint, on_signal, SIGINT);
    (void)uv_timer_start(&s->timer, on_timer, STATS_PERIOD_MS, STATS_PERIOD_MS);
}

static void service_fini(struct service *s)
{
    (void)uv_loop_close(&s->loop);
    mailbox_fini(&s->in);
    mailbox_fini(&s->out);
    proto_arena_fini(&s->arena);
    buf_fini(&s->first);
}

int service_run(const struct service_config *config)
{
    struct service s = {.config = config};
    struct err err = {0};
    bool running = false;
    int rc;

    open_handles(&s);
    mailbox_init(&s.in, NULL, NULL);
    mailbox_init(&s.out, notify, &s);
    s.runner = (struct runner){.config = config->engine, .in = &s.in, .out = &s.out};
    s.runner.kind = engine_find(config->engine.device);
    rc = s.runner.kind ? 0
                       : err_set(&err, ERR_UNSUPPORTED, "--device %s is not supported",
                                 config->engine.device);
    if (!rc)
        rc = open_bus(&s, &err);
    if (!rc)
        rc = runner_start(&s.runner, &err);
    if (rc)
        service_fail(&s, &err);
    else
        running = true;
    (void)uv_run(&s.loop, UV_RUN_DEFAULT);
    if (running && !runner_stop(&s.runner, STOP_WAIT_MS))
        _exit(s.status); /* its memory is still in use */
    service_fini(&s);
    return s.status;
}

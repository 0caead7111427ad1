#include "services/tokenizer/state.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "proto/launcher_link.h"
#include "proto/stats.h"

#include <signal.h>
#include <stdlib.h>

#define STATS_PERIOD_MS 1000u

/* ---- gateways ---- */

static void on_gateway_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                               const void *message)
{
    struct service *s = ctx;

    switch (header->type) {
    case PROTO_GENERATE:
        requests_generate(s, peer, header, message);
        break;
    case PROTO_ABORT:
        requests_abort(s, peer, header->id);
        break;
    case PROTO_PAUSE:
        requests_pause(s, peer, header->id, ((const struct proto_pause *)message)->paused);
        break;
    case PROTO_FLUSH:
        replicas_flush(&s->replicas, message);
        break;
    default:
        log_warn("gateway=%s sent %s, which is not for a tokenizer", bus_peer_name(peer),
                 proto_type_name(header->type));
    }
}

static void on_gateway_up(void *ctx, struct bus_peer *peer)
{
    struct service *s = ctx;
    struct proto_state state = replicas_state(&s->replicas);

    (void)bus_send(peer, PROTO_STATE, 0, &state, NULL);
}

static void on_gateway_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    log_info("gateway=%s is gone (%s), requests ended: %u", bus_peer_name(peer), reason,
             requests_drop(ctx, peer));
}

/* ---- the schedulers' links ---- */

static void state_send(struct service *s)
{
    struct proto_state state = replicas_state(&s->replicas);

    for (struct bus_peer *p = bus_next_peer(s->gateways, NULL); p;
         p = bus_next_peer(s->gateways, p))
        (void)bus_send(p, PROTO_STATE, 0, &state, NULL);
}

static void stats_send(struct service *s)
{
    struct proto_stat own[METRICS_COUNT];
    struct proto_source sources[256];
    struct proto_stats stats = {sources, 1};

    metrics_sample_process(&s->metrics);
    sources[0] = stats_source(&s->metrics, s->name, own);
    stats.sources_count = replicas_sources(&s->replicas, sources, 1, 256);
    for (struct bus_peer *p = bus_next_peer(s->gateways, NULL); p;
         p = bus_next_peer(s->gateways, p))
        (void)bus_send(p, PROTO_STATS, 0, &stats, NULL);
}

/* A replica that is ready again gets what waits before gateways hear that they may send more. */
static void on_state(struct service *s, struct replica *from, const struct proto_state *state)
{
    replica_state(from, state);
    s->was_ready = s->was_ready || state->ready;
    if (state->ready)
        requests_resume(s);
    state_send(s);
}

static void on_scheduler_message(void *ctx, struct bus_peer *peer,
                                 const struct proto_header *header, const void *message)
{
    struct replica *from = ctx;
    struct service *s = from->service;

    switch (header->type) {
    case PROTO_TOKENS:
        tokens_take(s, from, message);
        break;
    case PROTO_SCORED:
        tokens_scored(s, from, header->id, message);
        break;
    case PROTO_STATE:
        on_state(s, from, message);
        break;
    case PROTO_STATS:
        replica_stats(from, header, message);
        stats_send(s);
        break;
    case PROTO_FAILED:
        tokens_failed(s, from, header->id, message);
        break;
    default:
        log_warn("scheduler=%s sent %s, which is not for a tokenizer", bus_peer_name(peer),
                 proto_type_name(header->type));
    }
}

static void on_scheduler_up(void *ctx, struct bus_peer *peer)
{
    replica_up(ctx, peer);
}

static void on_scheduler_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct replica *gone = ctx;
    struct service *s = gone->service;

    replica_down(&s->replicas, gone);
    state_send(s);
    log_warn("scheduler=%s is gone (%s), requests begun anew: %u", bus_peer_name(peer), reason,
             requests_move(s, gone));
}

static void on_scheduler_refused(void *ctx, const char *reason)
{
    struct service *s = ((struct replica *)ctx)->service;

    s->status = err_set(&s->err, ERR_PROTOCOL, "the scheduler refused us: %s", reason);
    uv_stop(&s->loop);
}

/* ---- life ---- */

static void on_stats_timer(uv_timer_t *timer)
{
    stats_send(timer->data);
}

static void on_signal(uv_signal_t *handle, int signum)
{
    struct service *s = handle->data;

    log_debug("signal=%d stopping", signum);
    uv_stop(&s->loop);
}

static int open_buses(struct service *s, const struct service_config *config, struct err *err)
{
    struct bus_config in = {.loop = &s->loop,
                            .role = "tokenizer",
                            .name = config->name,
                            .endpoint = config->endpoint,
                            .security = &config->security,
                            .accepts = "gateway",
                            .silence_ms_max = (int64_t)(config->heartbeat_timeout_s * 1e3),
                            .on = {on_gateway_up, on_gateway_message, on_gateway_down, NULL, NULL},
                            .ctx = s};
    struct bus_config out = in;
    int rc = bus_bind(&in, &s->gateways, err);

    if (!rc)
        rc = launcher_link_open(&in, config->control_endpoint, &s->launcher, err);
    if (rc)
        return rc;
    out.accepts = NULL;
    out.on = (struct bus_callbacks){on_scheduler_up, on_scheduler_message, on_scheduler_down,
                                    on_scheduler_refused, NULL};
    return replicas_open(&s->replicas, s, config->scheduler_endpoint, config->dispatch_policy, &out,
                         err);
}

int tokenizer_service_new(const struct service_config *config, struct service **out,
                          struct err *err)
{
    struct service *s = mem_zalloc(sizeof *s);
    int64_t start_us = clock_mono_us();
    int rc;

    *out = s;
    s->name = config->name;
    s->next_sid = 1;
    (void)uv_loop_init(&s->loop);
    if ((rc = tokenizer_load(config->model_dir, &s->tokenizer, err)) ||
        (rc = chat_load(config->model_dir, s->tokenizer, &s->chat, err)) ||
        (rc = open_buses(s, config, err)))
        return rc;
    (void)uv_timer_init(&s->loop, &s->stats_timer);
    s->stats_timer.data = s;
    (void)uv_timer_start(&s->stats_timer, on_stats_timer, STATS_PERIOD_MS, STATS_PERIOD_MS);
    (void)uv_signal_init(&s->loop, &s->sigterm);
    (void)uv_signal_init(&s->loop, &s->sigint);
    s->sigterm.data = s->sigint.data = s;
    (void)uv_signal_start(&s->sigterm, on_signal, SIGTERM);
    (void)uv_signal_start(&s->sigint, on_signal, SIGINT);
    log_info("tokens=%u load_ms=%lld \"tokenizer loaded\"", tokenizer_size(s->tokenizer),
             (long long)(clock_mono_us() - start_us) / 1000);
    return 0;
}

int tokenizer_service_run(struct service *s, struct err *err)
{
    (void)uv_run(&s->loop, UV_RUN_DEFAULT);
    if (s->status)
        *err = s->err;
    return s->status;
}

static void close_handle(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

void tokenizer_service_free(struct service **self)
{
    struct service *s = *self;
    struct request *r, *next;

    if (!s)
        return;
    for (uint32_t i = 0; i < s->replicas.count; i++)
        s->replicas.list[i].peer = NULL; /* they abort what was ours when the link goes down */
    HASH_ITER(hh, s->requests, r, next)
    request_end(s, r, "shutting down");
    if (s->gateways)
        bus_close(&s->gateways);
    if (s->launcher)
        bus_close(&s->launcher);
    replicas_close(&s->replicas);
    while (uv_run(&s->loop, UV_RUN_NOWAIT) && uv_loop_alive(&s->loop))
        uv_walk(&s->loop, close_handle, NULL);
    (void)uv_run(&s->loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&s->loop);
    replicas_fini(&s->replicas);
    chat_free(&s->chat);
    tokenizer_free(&s->tokenizer);
    free(s);
    *self = NULL;
}

#include "services/scheduler/service_private.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>

#define TICK_MS 200u
#define LOG_PERIOD_US 5000000

/* ---- ending ---- */

static void service_end(struct service *s)
{
    if (s->ending)
        return;
    s->ending = true;
    uv_close((uv_handle_t *)&s->timer, NULL);
    uv_close((uv_handle_t *)&s->idle, NULL);
    uv_close((uv_handle_t *)&s->sigterm, NULL);
    uv_close((uv_handle_t *)&s->sigint, NULL);
    uv_close((uv_handle_t *)&s->sigusr1, NULL);
    bus_close(&s->tokenizers);
    bus_close(&s->workers);
    if (s->control)
        bus_close(&s->control);
}

/* Buses are closed from the loop's own turn, not from inside of their callbacks. */
void service_fail(struct service *s)
{
    if (s->status == 0)
        s->status = s->err->code;
    uv_stop(&s->loop);
}

bool service_failed(const struct service *s)
{
    return s->ending || s->status != 0;
}

static void on_signal(uv_signal_t *handle, int signum)
{
    (void)signum;
    uv_stop(handle->loop);
}

static void on_usr1(uv_signal_t *handle, int signum)
{
    const struct service *s = handle->data;

    (void)signum;
    watchdog_dump(&s->watchdog, "asked by SIGUSR1", clock_mono_us());
}

/* ---- steps ---- */

static void on_idle(uv_idle_t *handle)
{
    (void)uv_idle_stop(handle);
    ranks_send_steps(handle->data);
}

void service_plan_soon(struct service *s)
{
    if (s->ready && !service_failed(s))
        (void)uv_idle_start(&s->idle, on_idle);
}

/* ---- tokenizers ---- */

const char *service_reason(const struct service *s)
{
    if (s->ready)
        return "";
    return s->was_ready ? "recovering" : "loading";
}

static struct proto_state state_message(const struct service *s)
{
    const struct group *g = &s->group;

    if (!s->ready)
        return (struct proto_state){.reason = proto_str(service_reason(s)), .tp_size = g->size};
    return (struct proto_state){
        .ready = true,
        .vocab_size = g->vocab_size,
        .context_length = g->context_length,
        .page_size = g->page_size,
        .num_pages = g->pages_max,
        .max_running = s->config->slots_max,
        .tp_size = g->size,
        .device = proto_str(g->device),
    };
}

static void send_state(const struct service *s, struct bus_peer *peer)
{
    struct proto_state state = state_message(s);
    struct err err;

    if (bus_send(peer, PROTO_STATE, 0, &state, &err))
        log_warn("tokenizer=%s %s", bus_peer_name(peer), err.msg);
}

void service_send_states(struct service *s)
{
    struct bus_peer *peer = NULL;

    while ((peer = bus_next_peer(s->tokenizers, peer)))
        send_state(s, peer);
    control_status(s);
}

static void send_failed(struct bus_peer *peer, uint64_t sid, uint32_t status, const char *message,
                        const struct scheduler_refusal *why)
{
    struct proto_failed failed = {status, proto_str(message), proto_str(why->param),
                                  proto_str(why->code)};
    struct err err;

    if (bus_send(peer, PROTO_FAILED, sid, &failed, &err))
        log_warn("tokenizer=%s sid=%" PRIu64 " %s", bus_peer_name(peer), sid, err.msg);
}

void service_send_failures(struct service *s, const struct scheduler_failure *failed,
                           uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct scheduler_refusal why = {"", failed[i].code};
        struct client *client = clients_find(&s->clients, failed[i].owner);

        send_failed(client->peer, failed[i].id, 503, failed[i].message, &why);
    }
}

static uint32_t refusal_status(int rc)
{
    if (rc == ERR_BUSY)
        return 429;
    return rc == ERR_PEER ? 503 : 400;
}

static void on_submit(struct service *s, struct bus_peer *peer, uint64_t sid,
                      const struct proto_submit *m)
{
    const struct client *client = bus_peer_data(peer);
    struct scheduler_refusal why = {"", "unavailable"};
    struct scheduler_request request = {.id = sid,
                                        .prompt = m->prompt,
                                        .prompt_count = m->prompt_count,
                                        .sampling = &m->sampling,
                                        .resumed = m->resumed,
                                        .resumed_count = m->resumed_count,
                                        .replays = m->replays};
    struct err err = {0};
    int rc;

    if (!client || !s->was_ready) {
        send_failed(peer, sid, 503, client ? "the model is loading" : "too many tokenizers", &why);
        return;
    }
    request.owner = client->owner;
    rc = scheduler_admit(s->core, &request, clock_mono_us(), &why, &err);
    if (rc) {
        if (rc == ERR_BUSY)
            why.code = "queue_full";
        log_debug("tokenizer=%s sid=%" PRIu64 " refused: %s", bus_peer_name(peer), sid, err.msg);
        send_failed(peer, sid, refusal_status(rc), err.msg, &why);
        return;
    }
    s->report.changed = true;
    service_plan_soon(s);
}

static void on_abort(struct service *s, struct bus_peer *peer, uint64_t sid)
{
    const struct client *client = bus_peer_data(peer);

    if (!client || !s->core || scheduler_abort(s->core, client->owner, sid))
        return; /* ended already: the abort and the last token have crossed */
    s->report.changed = true;
    service_plan_soon(s); /* what it held may let others start */
}

static void on_pause(struct service *s, struct bus_peer *peer, uint64_t sid,
                     const struct proto_pause *m)
{
    const struct client *client = bus_peer_data(peer);

    if (!client || !s->core || scheduler_pause(s->core, client->owner, sid, m->paused))
        return; /* ended already */
    s->report.changed = true;
    service_plan_soon(s);
}

static void on_tokenizer_up(void *ctx, struct bus_peer *peer)
{
    struct service *s = ctx;
    struct client *client = clients_add(&s->clients, peer);

    bus_peer_set_data(peer, client);
    log_info("tokenizer=%s connected", bus_peer_name(peer));
    send_state(s, peer);
    s->report.changed = true;
}

static void on_tokenizer_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct service *s = ctx;
    struct client *client = bus_peer_data(peer);
    uint32_t aborted = 0;

    if (client && s->core)
        aborted = scheduler_abort_owner(s->core, client->owner);
    if (client)
        client_remove(client);
    log_info("tokenizer=%s is gone (%s), sequences aborted: %u", bus_peer_name(peer), reason,
             aborted);
    s->report.changed = true;
    service_plan_soon(s);
}

static void on_tokenizer_message(void *ctx, struct bus_peer *peer,
                                 const struct proto_header *header, const void *message)
{
    struct service *s = ctx;

    if (service_failed(s))
        return;
    switch (header->type) {
    case PROTO_SUBMIT:
        on_submit(s, peer, header->id, message);
        break;
    case PROTO_ABORT:
        on_abort(s, peer, header->id);
        break;
    case PROTO_PAUSE:
        on_pause(s, peer, header->id, message);
        break;
    case PROTO_FLUSH:
        if (s->core)
            scheduler_flush(s->core);
        break;
    default:
        log_warn("tokenizer=%s sent %s, which is not for a scheduler", bus_peer_name(peer),
                 proto_type_name(header->type));
    }
}

/* ---- time ---- */

static void broadcast_stats(struct service *s, const struct scheduler_stats *now)
{
    struct bus_peer *peer = NULL;
    struct proto_stats m;

    if (!report_stats(&s->report, now, s->config->name, &m))
        return;
    while ((peer = bus_next_peer(s->tokenizers, peer)))
        (void)bus_send(peer, PROTO_STATS, 0, &m, NULL); /* the next one replaces it */
}

static void on_tick(uv_timer_t *timer)
{
    struct service *s = timer->data;
    int64_t now_us = clock_mono_us();
    struct scheduler_stats now;

    if (!service_failed(s))
        ranks_check_meeting(s, now_us);
    if (service_failed(s))
        return;
    control_status(s);
    if (!s->was_ready)
        return;
    if (s->ready)
        ranks_check_deadline(s, now_us);
    scheduler_stats(s->core, &now);
    watchdog_look(&s->watchdog, s->ready && (now.steps_in_flight || now.waiting > now.parked),
                  WATCHDOG_STALL_US, now_us);
    broadcast_stats(s, &now);
    if (now_us - s->report.logged_us >= LOG_PERIOD_US)
        report_log(&s->report, &now, now_us);
}

/* ---- start ---- */

static int start_buses(struct service *s, struct err *err)
{
    const struct service_config *c = s->config;
    struct bus_config bus = {
        .loop = &s->loop,
        .role = "scheduler",
        .name = c->name,
        .security = &c->security,
        .silence_ms_max = (int64_t)(c->heartbeat_timeout_s * 1000),
        .ctx = s,
    };
    struct bus_config shared = bus;
    int rc;

    bus.endpoint = c->scheduler_endpoint;
    bus.accepts = "tokenizer";
    bus.peers_max = CLIENTS_MAX;
    bus.on = (struct bus_callbacks){
        .on_up = on_tokenizer_up, .on_message = on_tokenizer_message, .on_down = on_tokenizer_down};
    rc = bus_bind(&bus, &s->tokenizers, err);
    if (!rc)
        rc = ranks_bind(s, &shared, err);
    if (!rc)
        rc = control_connect(s, &shared, err);
    return rc;
}

static void start_handles(struct service *s)
{
    (void)uv_timer_init(&s->loop, &s->timer);
    (void)uv_idle_init(&s->loop, &s->idle);
    (void)uv_signal_init(&s->loop, &s->sigterm);
    (void)uv_signal_init(&s->loop, &s->sigint);
    (void)uv_signal_init(&s->loop, &s->sigusr1);
    s->timer.data = s;
    s->idle.data = s;
    s->sigusr1.data = s;
    (void)uv_timer_start(&s->timer, on_tick, TICK_MS, TICK_MS);
    (void)uv_signal_start(&s->sigterm, on_signal, SIGTERM);
    (void)uv_signal_start(&s->sigint, on_signal, SIGINT);
    (void)uv_signal_start(&s->sigusr1, on_usr1, SIGUSR1);
}

int service_run(const struct service_config *config, struct err *err)
{
    struct service *s = mem_zalloc(sizeof *s);
    int status;

    s->config = config;
    s->err = err;
    if (uv_loop_init(&s->loop)) {
        free(s);
        return err_set(err, ERR_INTERNAL, "no event loop");
    }
    start_handles(s);
    group_init(&s->group, config->tp_size, config->page_size);
    gather_init(&s->gather, config->tp_size);
    clients_init(&s->clients, config->slots_max);
    report_init(&s->report, config->tp_size, clock_mono_us());
    watchdog_init(&s->watchdog, config->tp_size, clock_mono_us());
    s->status = start_buses(s, err);
    if (s->status == 0) {
        log_say("Initializing tensor parallelism with %u ranks", config->tp_size);
        (void)uv_run(&s->loop, UV_RUN_DEFAULT);
    }
    service_end(s);
    (void)uv_run(&s->loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&s->loop);
    scheduler_free(&s->core);
    report_fini(&s->report);
    clients_fini(&s->clients);
    group_fini(&s->group);
    gather_fini(&s->gather);
    status = s->status;
    free(s);
    return status;
}

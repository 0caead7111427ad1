#include "services/scheduler/service.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "proto/bus.h"
#include "services/scheduler/clients.h"
#include "services/scheduler/core.h"
#include "services/scheduler/group.h"
#include "services/scheduler/report.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/random.h>
#include <uv.h>

/* One computes while the next waits at the ranks: they never wait for a plan. */
#define STEPS_IN_FLIGHT_MAX 2u
#define TICK_MS 200u
#define LOG_PERIOD_US 5000000

struct service {
    const struct service_config *config;
    uv_loop_t loop;
    uv_timer_t timer;
    uv_idle_t idle;
    uv_signal_t sigterm, sigint;
    struct bus *tokenizers;
    struct bus *workers;
    struct bus_peer *ranks[GROUP_RANKS_MAX];
    struct group group;
    struct clients clients;
    struct report report;
    struct scheduler *core; /* NULL until all ranks are loaded */
    bool ready;
    bool ending;
    int status;
    struct err *err;
};

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
    bus_close(&s->tokenizers);
    bus_close(&s->workers);
}

/* s->err says why. Only the first failure counts. Buses are closed from the loop's own turn, not
 * from inside of their callbacks. */
static void service_fail(struct service *s)
{
    if (s->status == 0)
        s->status = s->err->code;
    uv_stop(&s->loop);
}

static bool service_failed(const struct service *s)
{
    return s->ending || s->status != 0;
}

static void on_signal(uv_signal_t *handle, int signum)
{
    (void)signum;
    uv_stop(handle->loop);
}

/* ---- steps ---- */

static void send_step(struct service *s, const struct scheduler_step *step, int64_t now_us)
{
    const struct proto_step *m = &step->message;

    for (uint32_t rank = 0; rank < s->group.size; rank++) {
        if (bus_send(s->ranks[rank], PROTO_STEP, 0, m, s->err)) {
            (void)err_prefix(s->err, "step %" PRIu64 " to rank %u", m->step, rank);
            service_fail(s);
            return;
        }
    }
    group_step_sent(&s->group, m->step, now_us);
    for (uint32_t i = 0; i < m->opened_count; i++)
        report_queue_time(&s->report, step->queue_us[i]);
}

static void send_steps(struct service *s)
{
    const struct scheduler_step *step;
    int64_t now_us = clock_mono_us();

    while (s->ready && !service_failed(s) && (step = scheduler_plan(s->core, now_us)))
        send_step(s, step, now_us);
}

/* Everything that came in the same turn of the loop has been admitted: one step takes it all. */
static void on_idle(uv_idle_t *handle)
{
    struct service *s = handle->data;

    (void)uv_idle_stop(handle);
    send_steps(s);
}

static void plan_soon(struct service *s)
{
    if (s->ready && !service_failed(s))
        (void)uv_idle_start(&s->idle, on_idle);
}

/* The oldest round is complete. The next step leaves before anybody is told of this one. */
static void finish_step(struct service *s, const struct proto_sampled *results, uint32_t count)
{
    const struct round *round = &s->group.rounds[0];
    const struct scheduler_output *out;
    uint32_t out_count;

    if (scheduler_apply(s->core, round->step, results, count, &out, &out_count, s->err)) {
        (void)err_prefix(s->err, "rank 0");
        service_fail(s);
        return;
    }
    report_step(&s->report, clock_mono_us() - round->sent_us, round->compute_us);
    group_step_drop(&s->group);
    send_steps(s);
    clients_send(&s->clients, s->core, out, out_count);
}

static void on_step_done(struct service *s, uint32_t rank, const struct proto_step_done *m)
{
    const struct proto_sampled *results;
    uint32_t count;
    bool complete;

    if (group_step_done(&s->group, rank, m, &complete, &results, &count, s->err)) {
        service_fail(s);
        return;
    }
    if (!complete)
        return;
    finish_step(s, results, count);
    while (!service_failed(s) && group_step_complete(&s->group))
        finish_step(s, s->group.rounds[0].results.sampled, s->group.rounds[0].results.count);
}

/* ---- tokenizers ---- */

static struct proto_state state_message(const struct service *s)
{
    const struct group *g = &s->group;

    if (!s->ready)
        return (struct proto_state){.reason = proto_str("loading"), .tp_size = g->size};
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

static void send_failed(struct bus_peer *peer, uint64_t sid, uint32_t status, const char *message,
                        const struct scheduler_refusal *why)
{
    struct proto_failed failed = {status, proto_str(message), proto_str(why->param),
                                  proto_str(why->code)};
    struct err err;

    if (bus_send(peer, PROTO_FAILED, sid, &failed, &err))
        log_warn("tokenizer=%s sid=%" PRIu64 " %s", bus_peer_name(peer), sid, err.msg);
}

static void on_submit(struct service *s, struct bus_peer *peer, uint64_t sid,
                      const struct proto_submit *m)
{
    const struct client *client = bus_peer_data(peer);
    struct scheduler_refusal why = {"", "unavailable"};
    struct scheduler_request request = {
        .id = sid, .prompt = m->prompt, .prompt_count = m->prompt_count, .sampling = &m->sampling};
    struct err err = {0};
    int rc;

    if (!client || !s->ready) {
        send_failed(peer, sid, 503, client ? "the model is loading" : "too many tokenizers", &why);
        return;
    }
    request.owner = client->owner;
    rc = scheduler_admit(s->core, &request, clock_mono_us(), &why, &err);
    if (rc) {
        if (rc == ERR_BUSY)
            why.code = "queue_full";
        log_debug("tokenizer=%s sid=%" PRIu64 " refused: %s", bus_peer_name(peer), sid, err.msg);
        send_failed(peer, sid, rc == ERR_BUSY ? 429 : 400, err.msg, &why);
        return;
    }
    s->report.changed = true;
    plan_soon(s);
}

static void on_abort(struct service *s, struct bus_peer *peer, uint64_t sid)
{
    const struct client *client = bus_peer_data(peer);

    if (!client || !s->ready || scheduler_abort(s->core, client->owner, sid))
        return; /* ended already: the abort and the last token have crossed */
    s->report.changed = true;
    plan_soon(s); /* what it held may let others start */
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
    plan_soon(s);
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
    case PROTO_FLUSH:
        if (s->core)
            scheduler_flush(s->core);
        break;
    default:
        log_warn("tokenizer=%s sent %s, which is not for a scheduler", bus_peer_name(peer),
                 proto_type_name(header->type));
    }
}

/* ---- workers ---- */

static int core_start(struct service *s, struct err *err)
{
    const struct service_config *c = s->config;
    struct group *g = &s->group;
    struct scheduler_config core = {
        .slots_max = c->slots_max,
        .queued_max = c->queued_max,
        .page_size = c->page_size,
        .prefill_tokens_max = c->prefill_tokens_max,
        .context_length = g->context_length,
        .vocab_size = g->vocab_size,
        .steps_in_flight_max = STEPS_IN_FLIGHT_MAX,
        .policy = c->policy,
        .prefix_cache = c->prefix_cache,
        .conservativeness = c->conservativeness,
        .preempt_above = c->preempt_above,
        .prompt_logprobs = g->prompt_logprobs,
        .eos_ids = g->eos_ids,
        .eos_ids_count = g->eos_ids_count,
    };

    if (c->num_pages > g->pages_max)
        return err_set(err, ERR_LIMIT, "--num-pages %u, but rank %u has room for %u", c->num_pages,
                       g->pages_max_rank, g->pages_max);
    if (c->num_pages)
        g->pages_max = c->num_pages;
    if (g->pages_max > SCHEDULER_PAGES_MAX)
        g->pages_max = SCHEDULER_PAGES_MAX;
    core.num_pages = g->pages_max;
    if (getrandom(&core.hash_seed, sizeof core.hash_seed, 0) != (ssize_t)sizeof core.hash_seed)
        return err_errno(err, ERR_INTERNAL, "getrandom");
    return scheduler_new(&core, &s->core, err);
}

/* The rank with the least room decides for all. */
static void say_uneven(const struct group *g)
{
    double page = (double)g->page_bytes;

    log_warn(
        "rank=%u has %.2f GB left for KV pages, rank %u has %.2f GB: every rank gets the less; "
        "see what else uses the memory of rank %u's device (nvidia-smi), or choose other "
        "devices (CUDA_VISIBLE_DEVICES)",
        g->pages_max_rank, page * g->pages_max / 1e9, g->pages_most_rank,
        page * g->pages_most / 1e9, g->pages_max_rank);
}

/* All ranks are loaded: they get the same pool. */
static void alloc_kv(struct service *s)
{
    const struct group *g = &s->group;
    struct proto_kv_alloc m;

    if (group_uneven(g) && !s->config->num_pages)
        say_uneven(g);
    if (core_start(s, s->err)) {
        service_fail(s);
        return;
    }
    log_say(
        "Memory plan a rank: weights %.1f MiB, KV cache %.1f MiB (%u pages of %u tokens, %" PRIu64
        " tokens)",
        (double)g->weight_bytes / 1048576, (double)g->page_bytes * g->pages_max / 1048576,
        g->pages_max, g->page_size, (uint64_t)g->pages_max * g->page_size);
    m = (struct proto_kv_alloc){g->pages_max, s->config->slots_max, scheduler_tokens_max(s->core)};
    for (uint32_t rank = 0; rank < g->size; rank++) {
        if (bus_send(s->ranks[rank], PROTO_KV_ALLOC, 0, &m, s->err)) {
            (void)err_prefix(s->err, "KV_ALLOC to rank %u", rank);
            service_fail(s);
            return;
        }
    }
}

static void on_loaded(struct service *s, struct bus_peer *peer, const struct proto_loaded *m)
{
    if (bus_peer_data(peer) || group_loaded(&s->group, m, s->err)) {
        if (bus_peer_data(peer))
            (void)err_set(s->err, ERR_PROTOCOL, "rank %u sent LOADED twice", m->rank);
        (void)err_prefix(s->err, "%s", bus_peer_name(peer));
        service_fail(s);
        return;
    }
    s->ranks[m->rank] = peer;
    bus_peer_set_data(peer, &s->ranks[m->rank]);
    if (group_all_loaded(&s->group))
        alloc_kv(s);
}

static void on_kv_ready(struct service *s, const struct proto_kv_ready *m)
{
    struct bus_peer *peer = NULL;

    if (group_kv_ready(&s->group, m, s->err)) {
        service_fail(s);
        return;
    }
    log_say("Rank %u/%u ready", m->rank, s->group.size);
    if (!group_all_ready(&s->group))
        return;
    s->ready = true;
    s->report.changed = true;
    while ((peer = bus_next_peer(s->tokenizers, peer)))
        send_state(s, peer);
}

/* Messages of a worker that has said which rank it is. */
static void on_rank_message(struct service *s, uint32_t rank, const struct proto_header *header,
                            const void *message)
{
    const struct proto_rank_failed *failed = message;

    switch (header->type) {
    case PROTO_KV_READY:
        if (((const struct proto_kv_ready *)message)->rank == rank) {
            on_kv_ready(s, message);
            return;
        }
        break;
    case PROTO_STEP_DONE:
        on_step_done(s, rank, message);
        return;
    case PROTO_STATS:
        report_worker(&s->report, rank, bus_peer_name(s->ranks[rank]), message);
        return;
    case PROTO_RANK_FAILED:
        (void)err_set(s->err, ERR_PEER, "rank %u failed: %.*s", rank, (int)failed->reason.len,
                      failed->reason.data);
        service_fail(s);
        return;
    default:
        break;
    }
    (void)err_set(s->err, ERR_PROTOCOL, "rank %u sent a %s that it must not send", rank,
                  proto_type_name(header->type));
    service_fail(s);
}

static void on_worker_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                              const void *message)
{
    struct service *s = ctx;
    struct bus_peer **rank = bus_peer_data(peer);
    const struct proto_rank_failed *failed = message;

    if (service_failed(s))
        return;
    if (header->type == PROTO_LOADED) {
        on_loaded(s, peer, message);
    } else if (rank) {
        on_rank_message(s, (uint32_t)(rank - s->ranks), header, message);
    } else if (header->type == PROTO_RANK_FAILED) {
        (void)err_set(s->err, ERR_PEER, "rank %u failed: %.*s", failed->rank,
                      (int)failed->reason.len, failed->reason.data);
        service_fail(s);
    } else if (header->type != PROTO_STATS) {
        (void)err_set(s->err, ERR_PROTOCOL, "%s sent %s before LOADED", bus_peer_name(peer),
                      proto_type_name(header->type));
        service_fail(s);
    }
}

static void on_worker_up(void *ctx, struct bus_peer *peer)
{
    (void)ctx;
    log_info("worker=%s connected", bus_peer_name(peer));
}

static void on_worker_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct service *s = ctx;
    struct bus_peer **rank = bus_peer_data(peer);

    if (service_failed(s))
        return;
    if (!rank) {
        /* One who ends because the scheduler before us did looks in here first. */
        log_warn("worker=%s is gone before it has loaded: %s", bus_peer_name(peer), reason);
        return;
    }
    (void)err_set(s->err, ERR_PEER, "rank %u (%s) is gone: %s", (uint32_t)(rank - s->ranks),
                  bus_peer_name(peer), reason);
    service_fail(s);
}

/* ---- time ---- */

static void check_step_timeout(struct service *s, int64_t now_us)
{
    const struct round *round = &s->group.rounds[0];
    char missing[256];

    if (s->group.rounds_count == 0 ||
        now_us - round->sent_us < (int64_t)(s->config->step_timeout_s * 1e6))
        return;
    (void)err_set(s->err, ERR_TIMEOUT,
                  "step %" PRIu64 " is without a result after %g s; missing of rank %s",
                  round->step, s->config->step_timeout_s,
                  group_missing(&s->group, round->done, missing, sizeof missing));
    service_fail(s);
}

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

    if (!s->ready || service_failed(s))
        return;
    check_step_timeout(s, now_us);
    scheduler_stats(s->core, &now);
    broadcast_stats(s, &now);
    if (now_us - s->report.logged_us >= LOG_PERIOD_US)
        report_log(&s->report, &now, now_us);
}

/* ---- start ---- */

static int bind_buses(struct service *s, struct err *err)
{
    const struct service_config *c = s->config;
    struct bus_config bus = {
        .loop = &s->loop,
        .role = "scheduler",
        .name = c->name,
        .endpoint = c->scheduler_endpoint,
        .security = &c->security,
        .accepts = "tokenizer",
        .silence_ms_max = (int64_t)(c->heartbeat_timeout_s * 1000),
        .peers_max = CLIENTS_MAX,
        .on = {.on_up = on_tokenizer_up,
               .on_message = on_tokenizer_message,
               .on_down = on_tokenizer_down},
        .ctx = s,
    };
    int rc = bus_bind(&bus, &s->tokenizers, err);

    if (rc)
        return rc;
    bus.endpoint = c->worker_endpoint;
    bus.accepts = "worker";
    bus.epoch = c->epoch;
    bus.peers_max = GROUP_RANKS_MAX;
    bus.on = (struct bus_callbacks){
        .on_up = on_worker_up, .on_message = on_worker_message, .on_down = on_worker_down};
    return bus_bind(&bus, &s->workers, err);
}

static void start_handles(struct service *s)
{
    (void)uv_timer_init(&s->loop, &s->timer);
    (void)uv_idle_init(&s->loop, &s->idle);
    (void)uv_signal_init(&s->loop, &s->sigterm);
    (void)uv_signal_init(&s->loop, &s->sigint);
    s->timer.data = s;
    s->idle.data = s;
    (void)uv_timer_start(&s->timer, on_tick, TICK_MS, TICK_MS);
    (void)uv_signal_start(&s->sigterm, on_signal, SIGTERM);
    (void)uv_signal_start(&s->sigint, on_signal, SIGINT);
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
    clients_init(&s->clients, config->slots_max);
    report_init(&s->report, config->tp_size, clock_mono_us());
    s->status = bind_buses(s, err);
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
    status = s->status;
    free(s);
    return status;
}

/* The workers: how they come, what they compute, and how they are lost. */
#include "common/clock.h"
#include "common/log.h"
#include "services/scheduler/service_private.h"

#include <inttypes.h>
#include <string.h>
#include <sys/random.h>

/* ---- lost ---- */

void ranks_lost(struct service *s, uint64_t next)
{
    const struct scheduler_failure *failed;
    struct scheduler_stats stats = {0};
    uint32_t count = 0;

    log_warn("epoch=%" PRIu64 " the ranks are lost: %s", bus_epoch(s->workers), s->err->msg);
    s->ready = false;
    (void)uv_idle_stop(&s->idle);
    group_reset(&s->group);
    gather_reset(&s->gather);
    memset(s->ranks, 0, sizeof s->ranks);
    deadline_init(&s->deadline, (int64_t)(s->config->step_timeout_s * 1e6));
    report_ranks_lost(&s->report);
    if (s->core) {
        count = scheduler_group_lost(s->core, &failed);
        service_send_failures(s, failed, count);
        scheduler_stats(s->core, &stats);
    }
    s->lost_us = clock_mono_us();
    log_info("epoch=%" PRIu64 " waiting for %u ranks, sequences waiting: %u, given up: %u", next,
             s->group.size, stats.waiting, count);
    service_send_states(s);
    /* At last: the messages and the peers that callers are in the middle of go with it. */
    bus_set_epoch(s->workers, next, "its rank group is over");
}

/* First seen here; s->err says how. */
static void group_failed(struct service *s)
{
    uint64_t epoch = bus_epoch(s->workers);

    control_group_down(s, epoch, s->err->msg);
    ranks_lost(s, epoch + 1);
}

static void on_epoch(void *ctx, uint64_t epoch)
{
    struct service *s = ctx;

    if (service_failed(s))
        return;
    (void)err_set(s->err, ERR_PEER, "ranks of epoch %" PRIu64 " have come", epoch);
    ranks_lost(s, epoch);
}

/* ---- steps ---- */

static bool step_decodes(const struct proto_step *m)
{
    for (uint32_t i = 0; i < m->rows_count; i++)
        if (m->rows[i].count > 1)
            return false;
    return true;
}

static int send_step(struct service *s, const struct scheduler_step *step, int64_t now_us)
{
    const struct proto_step *m = &step->message;
    struct round *round;

    for (uint32_t rank = 0; rank < s->group.size; rank++) {
        if (bus_send(s->ranks[rank], PROTO_STEP, 0, m, s->err)) {
            return err_prefix(s->err, "step %" PRIu64 " to rank %u", m->step, rank);
        }
    }
    group_step_sent(&s->group, m->step, now_us);
    watchdog_sent(&s->watchdog, bus_epoch(s->workers), m, now_us);
    round = &s->group.rounds[s->group.rounds_count - 1];
    round->shape = deadline_shape(m);
    round->decodes = step_decodes(m);
    if (s->group.rounds_count == 1)
        s->oldest_us = now_us;
    for (uint32_t i = 0; i < m->opened_count; i++)
        report_queue_time(&s->report, step->queue_us[i]);
    return 0;
}

static int send_steps(struct service *s)
{
    const struct scheduler_step *step;
    int64_t now_us = clock_mono_us();
    int rc = 0;

    while (!rc && s->ready && !service_failed(s) && group_step_wanted(&s->group) &&
           (step = scheduler_plan(s->core, now_us)))
        rc = send_step(s, step, now_us);
    return rc;
}

void ranks_send_steps(struct service *s)
{
    if (send_steps(s))
        group_failed(s);
}

/* The oldest round is complete. The next step leaves before anybody is told of this one. */
static void finish_step(struct service *s, const struct proto_sampled *results, uint32_t count)
{
    const struct round *round = &s->group.rounds[0];
    int64_t now_us = clock_mono_us();
    const struct scheduler_output *out;
    uint32_t out_count;
    int rc;

    if (scheduler_apply(s->core, round->step, results, count, &out, &out_count, s->err)) {
        (void)err_prefix(s->err, "rank 0");
        group_failed(s);
        return;
    }
    report_step(&s->report, now_us - round->sent_us, round->compute_us);
    deadline_learn(&s->deadline, round->shape, now_us - s->oldest_us);
    s->oldest_us = now_us;
    group_step_drop(&s->group);
    rc = send_steps(s);
    clients_send(&s->clients, s->core, out, out_count);
    if (rc)
        group_failed(s);
}

static void on_step_done(struct service *s, uint32_t rank, const struct proto_step_done *m)
{
    const struct proto_sampled *results;
    uint32_t count;
    bool complete;

    if (group_step_done(&s->group, rank, m, &complete, &results, &count, s->err)) {
        group_failed(s);
        return;
    }
    watchdog_answered(&s->watchdog, bus_epoch(s->workers), m->step, rank, clock_mono_us());
    if (!complete)
        return;
    finish_step(s, results, count);
    while (group_step_complete(&s->group))
        finish_step(s, s->group.rounds[0].results.sampled, s->group.rounds[0].results.count);
}

/* ---- workers ---- */

/* The pool that all ranks have room for. */
static int num_pages_resolve(struct service *s, struct err *err)
{
    uint32_t asked = s->config->num_pages;
    struct group *g = &s->group;

    if (asked > g->pages_max)
        return err_set(err, ERR_LIMIT, "--num-pages %u, but rank %u has room for %u", asked,
                       g->pages_max_rank, g->pages_max);
    if (asked)
        g->pages_max = asked;
    if (g->pages_max > SCHEDULER_PAGES_MAX)
        g->pages_max = SCHEDULER_PAGES_MAX;
    return 0;
}

static int core_start(struct service *s, struct err *err)
{
    const struct service_config *c = s->config;
    const struct group *g = &s->group;
    struct scheduler_config core = {
        .slots_max = c->slots_max,
        .queued_max = c->queued_max,
        .page_size = c->page_size,
        .num_pages = g->pages_max,
        .prefill_tokens_max = c->prefill_tokens_max,
        .context_length = g->context_length,
        .vocab_size = g->vocab_size,
        .steps_in_flight_max = GROUP_STEPS_MAX,
        .policy = c->policy,
        .prefix_cache = c->prefix_cache,
        .conservativeness = c->conservativeness,
        .preempt_above = c->preempt_above,
        .prompt_logprobs = g->prompt_logprobs,
        .eos_ids = g->eos_ids,
        .eos_ids_count = g->eos_ids_count,
    };

    if (getrandom(&core.hash_seed, sizeof core.hash_seed, 0) != (ssize_t)sizeof core.hash_seed)
        return err_errno(err, ERR_INTERNAL, "getrandom");
    return scheduler_new(&core, &s->core, err);
}

static int core_begin(struct service *s, struct err *err)
{
    const struct scheduler_failure *failed;
    uint32_t count;

    if (!s->core)
        return core_start(s, err);
    count = scheduler_group_joined(s->core, s->group.pages_max, &failed);
    service_send_failures(s, failed, count);
    return 0;
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
    if (num_pages_resolve(s, s->err) || core_begin(s, s->err)) {
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
            group_failed(s);
            return;
        }
    }
}

static void on_gather(struct service *s, struct bus_peer *peer, const struct proto_gather *m)
{
    int rc;

    if (s->group.loaded)
        rc = err_set(s->err, ERR_PEER, "rank %u meets others anew, but some have met already",
                     m->rank);
    else
        rc = gather_take(&s->gather, peer, m, clock_mono_us(), s->err);
    if (rc)
        group_failed(s);
}

static void on_loaded(struct service *s, struct bus_peer *peer, const struct proto_loaded *m)
{
    if (bus_peer_data(peer)) {
        (void)err_set(s->err, ERR_PROTOCOL, "rank %u sent LOADED twice", m->rank);
        group_failed(s);
        return;
    }
    /* One that has outlived an earlier scheduler is here with those of its time, or not at all. */
    if (s->gather.come || !group_together(&s->group, m)) {
        (void)err_set(s->err, ERR_PEER,
                      "rank %u has met other ranks, or done other steps with them, than those here",
                      m->rank);
        group_failed(s);
        return;
    }
    /* Nobody starts it differently the next time. */
    if (group_loaded(&s->group, m, s->err)) {
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
    if (group_kv_ready(&s->group, m, s->err)) {
        group_failed(s);
        return;
    }
    log_say("Rank %u/%u ready", m->rank, s->group.size);
    if (!group_all_ready(&s->group))
        return;
    if (s->was_ready)
        log_say("Ready again after %.2f s (epoch %" PRIu64 ")",
                (double)(clock_mono_us() - s->lost_us) / 1e6, bus_epoch(s->workers));
    s->ready = s->was_ready = true;
    s->report.changed = true;
    service_send_states(s);
    service_plan_soon(s);
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
        group_failed(s);
        return;
    default:
        break;
    }
    (void)err_set(s->err, ERR_PROTOCOL, "rank %u sent a %s that it must not send", rank,
                  proto_type_name(header->type));
    group_failed(s);
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
    } else if (header->type == PROTO_GATHER && !rank) {
        on_gather(s, peer, message);
    } else if (rank) {
        on_rank_message(s, (uint32_t)(rank - s->ranks), header, message);
    } else if (header->type == PROTO_RANK_FAILED) {
        (void)err_set(s->err, ERR_PEER, "rank %u failed: %.*s", failed->rank,
                      (int)failed->reason.len, failed->reason.data);
        group_failed(s);
    } else if (header->type != PROTO_STATS) {
        (void)err_set(s->err, ERR_PROTOCOL, "%s sent %s before LOADED", bus_peer_name(peer),
                      proto_type_name(header->type));
        group_failed(s);
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
    if (rank) {
        (void)err_set(s->err, ERR_PEER, "rank %u (%s) is gone: %s", (uint32_t)(rank - s->ranks),
                      bus_peer_name(peer), reason);
    } else if (!s->was_ready && s->control && !gather_down(&s->gather, peer, reason, s->err)) {
        /* The launcher knows more. */
        log_warn("worker=%s is gone before it has loaded: %s", bus_peer_name(peer), reason);
        return;
    } else {
        (void)err_set(s->err, ERR_PEER, "%s is gone before it has loaded: %s", bus_peer_name(peer),
                      reason);
    }
    group_failed(s);
}

void ranks_check_meeting(struct service *s, int64_t now_us)
{
    if (gather_check(&s->gather, now_us, s->config->dist_timeout_s, s->err))
        group_failed(s);
}

void ranks_check_deadline(struct service *s, int64_t now_us)
{
    const struct round *round = &s->group.rounds[0];
    char missing[256];
    int64_t us;

    if (s->group.rounds_count == 0)
        return;
    us = deadline_us(&s->deadline, round->shape);
    if (now_us - s->oldest_us < us)
        return;
    (void)err_set(s->err, ERR_TIMEOUT,
                  "step %" PRIu64 " is without a result after %.1f s; missing of rank %s",
                  round->step, (double)us / 1e6,
                  group_missing(&s->group, round->done, missing, sizeof missing));
    watchdog_dump(&s->watchdog, s->err->msg, now_us);
    group_failed(s);
}

int ranks_bind(struct service *s, const struct bus_config *shared, struct err *err)
{
    struct bus_config bus = *shared;

    deadline_init(&s->deadline, (int64_t)(s->config->step_timeout_s * 1e6));
    bus.endpoint = s->config->worker_endpoint;
    bus.accepts = "worker";
    bus.epoch = s->config->epoch;
    bus.peers_max = GROUP_RANKS_MAX;
    bus.on = (struct bus_callbacks){.on_up = on_worker_up,
                                    .on_message = on_worker_message,
                                    .on_down = on_worker_down,
                                    .on_epoch = on_epoch};
    return bus_bind(&bus, &s->workers, err);
}

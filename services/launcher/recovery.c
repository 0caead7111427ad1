#include "services/launcher/recovery.h"

#include "common/clock.h"
#include "common/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define HANG_MS 1000 /* who closes its link and means to end has ended by then */
#define REAP_TURNS 30
#define REAP_PAUSE_NS 1000000
#define JOIN_S 10 /* a rank gives the last step of a scheduler that died 5 of them */
#define JOIN_LOOK_MS 200

/* ---- start ---- */

void recovery_init(struct recovery *r, uv_loop_t *loop)
{
    (void)uv_timer_init(loop, &r->hang);
    (void)uv_timer_init(loop, &r->join);
    r->hang.data = r->join.data = r;
}

void recovery_fini(struct recovery *r)
{
    uv_close((uv_handle_t *)&r->hang, NULL);
    uv_close((uv_handle_t *)&r->join, NULL);
}

int recovery_start(struct recovery *r, struct err *err)
{
    int rc = 0;

    r->start_us = clock_mono_us();
    for (int i = 0; i < r->replicas_count && !rc; i++) {
        r->replicas[i].epoch = 1;
        rc = commands_start_scheduler(r->commands, r->children, i,
                                      r->replicas[i].group.config.worker_endpoint, 1, err);
        if (!rc && !r->held)
            rc = group_start(&r->replicas[i].group, 1, err);
    }
    for (int i = 0; i < r->tokenizers && !rc; i++)
        rc = commands_start_tokenizer(r->commands, r->children, i, err);
    for (int i = 0; i < r->gateways && !rc; i++)
        rc = commands_start_gateway(r->commands, r->children, i, err);
    return rc;
}

/* ---- what died ---- */

static void recovery_fatal(struct recovery *r, const char *why)
{
    if (!r->fatal)
        r->on.on_fatal(r->ctx, why);
    r->fatal = true;
}

void recovery_end(struct recovery *r, const char *why)
{
    log_say("phalanx: %s", why);
    recovery_fatal(r, why);
}

static void recovery_lost(struct recovery *r, int64_t now_us)
{
    if (!r->lost_us)
        r->lost_us = now_us;
    r->answered = false;
    r->on.on_lost(r->ctx);
}

/* False, after the line that says so, when the node ends because of it. */
static bool recovery_allowed(struct recovery *r, struct restarts *restarts, const char *how)
{
    int64_t now_us = clock_mono_us();

    if (!r->started) {
        log_say("phalanx: %s", how);
    } else if (!restarts_take(restarts, now_us)) {
        log_say("phalanx: %s: more than %d times within %d s", how, RESTARTS_MAX,
                RESTARTS_US / 1000000);
    } else {
        recovery_lost(r, now_us);
        return true;
    }
    recovery_fatal(r, how);
    return false;
}

static void recovery_check(struct recovery *r, int rc, const struct err *err)
{
    if (!rc)
        return;
    recovery_end(r, err->msg);
}

static size_t gateways_running(struct recovery *r)
{
    const struct child *child = NULL;
    size_t n = 0;

    while ((child = supervisor_next(r->children, child)))
        n += child->role == CHILD_GATEWAY;
    return n;
}

static void gateway_ended(struct recovery *r, const struct child *child, const char *how)
{
    struct err err = {0};

    if (r->draining) {
        if (!gateways_running(r))
            r->on.on_drained(r->ctx);
        return;
    }
    if (!recovery_allowed(r, &r->gateway_restarts[child->index], how))
        return;
    log_say("phalanx: %s; it starts again", how);
    recovery_check(r, commands_start_gateway(r->commands, r->children, child->index, &err), &err);
}

static void tokenizer_ended(struct recovery *r, const struct child *child, const char *how)
{
    struct err err = {0};

    if (!recovery_allowed(r, &r->tokenizer_restarts[child->index], how))
        return;
    log_say("phalanx: %s; it starts again", how);
    recovery_check(r, commands_start_tokenizer(r->commands, r->children, child->index, &err), &err);
}

/* The next epoch of a replica begins. */
static int replica_next(struct recovery *r, int index, uint64_t over, const char *reason,
                        struct err *err)
{
    struct replica *replica = &r->replicas[index];

    replica->epoch = over + 1;
    replica->join_until_us = 0;
    if (r->held) {
        group_kill(&replica->group, over);
        return 0;
    }
    if (r->on.on_epoch)
        r->on.on_epoch(r->ctx, index, replica->epoch, reason);
    return group_start(&replica->group, replica->epoch, err);
}

/* Epoch `over` of the replica is lost: false when the node ends because of it. */
static void group_over(struct recovery *r, int index, uint64_t over, const char *reason)
{
    struct replica *replica = &r->replicas[index];
    struct err err = {0};

    if (!recovery_allowed(r, &replica->group_restarts, reason))
        return;
    log_say("phalanx: %s; the ranks of replica %d start again (epoch %" PRIu64 ")", reason, index,
            over + 1);
    recovery_check(r, replica_next(r, index, over, reason, &err), &err);
}

static void on_join(uv_timer_t *timer)
{
    struct recovery *r = timer->data;
    bool more = false;

    for (int i = 0; i < r->replicas_count && !r->fatal; i++) {
        struct replica *replica = &r->replicas[i];
        char reason[128];

        if (!replica->join_until_us)
            continue;
        if (clock_mono_us() < replica->join_until_us) {
            more = true;
            continue;
        }
        (void)snprintf(reason, sizeof reason,
                       "not all ranks of replica %d have come to its new scheduler within %d s", i,
                       JOIN_S);
        control_say_down(r->control, i, replica->epoch, reason);
        group_over(r, i, replica->epoch, reason);
    }
    if (!more)
        (void)uv_timer_stop(timer);
}

/* The ranks stay when they have been loaded: they wait for another scheduler of their epoch, or end
 * and are lost as any. But it must not be they who make schedulers die. */
static void scheduler_ended(struct recovery *r, const struct child *child, const char *how)
{
    struct replica *replica = &r->replicas[child->replica];
    bool stay = replica->whole == replica->epoch;
    struct err err = {0};
    int rc = 0;

    control_forget(r->control, child->replica);
    if (!recovery_allowed(r, &replica->scheduler_restarts, how))
        return;
    replica->whole = 0;
    if (stay) {
        log_say("phalanx: %s; it starts again, the ranks of replica %d stay (epoch %" PRIu64 ")",
                how, child->replica, replica->epoch);
        replica->join_until_us = clock_mono_us() + JOIN_S * INT64_C(1000000);
        (void)uv_timer_start(&r->join, on_join, JOIN_LOOK_MS, JOIN_LOOK_MS);
    } else {
        log_say("phalanx: %s; it and the ranks of replica %d start again (epoch %" PRIu64 ")", how,
                child->replica, replica->epoch + 1);
        rc = replica_next(r, child->replica, replica->epoch, how, &err);
    }
    if (!rc)
        rc = commands_start_scheduler(r->commands, r->children, child->replica,
                                      replica->group.config.worker_endpoint, replica->epoch, &err);
    recovery_check(r, rc, &err);
}

static void worker_ended(struct recovery *r, const struct child *child, const char *how)
{
    struct replica *replica = &r->replicas[child->replica];
    struct err err = {0};

    if (group_lost(&replica->group, child)) {
        control_say_down(r->control, child->replica, replica->epoch, how);
        group_over(r, child->replica, replica->epoch, how);
    }
    recovery_check(r, group_settle(&replica->group, &err), &err);
}

void recovery_child_ended(struct recovery *r, const struct child *child, const char *how)
{
    if (r->fatal)
        return;
    switch (child->role) {
    case CHILD_GATEWAY:
        gateway_ended(r, child, how);
        break;
    case CHILD_TOKENIZER:
        tokenizer_ended(r, child, how);
        break;
    case CHILD_SCHEDULER:
        scheduler_ended(r, child, how);
        break;
    case CHILD_WORKER:
        worker_ended(r, child, how);
        break;
    }
}

/* How a rank ended says more than that its link is down, but a process that was killed lets go of
 * its sockets a moment before it can be reaped. */
void recovery_group_down(struct recovery *r, int replica, uint64_t epoch, const char *reason)
{
    const struct timespec pause = {.tv_nsec = REAP_PAUSE_NS};

    for (int i = 0; i < REAP_TURNS; i++) {
        supervisor_reap(r->children);
        if (r->fatal || replica >= r->replicas_count || epoch < r->replicas[replica].epoch)
            return;
        (void)nanosleep(&pause, NULL);
    }
    group_over(r, replica, epoch, reason);
}

/* ---- nodes that are missing ---- */

void recovery_hold(struct recovery *r, const char *reason)
{
    if (r->fatal)
        return;
    if (!r->started) {
        recovery_end(r, reason);
        return;
    }
    log_say("phalanx: %s; all ranks end until it is back", reason);
    r->held = true;
    for (int i = 0; i < r->replicas_count; i++) {
        uint64_t over = r->replicas[i].epoch++;

        r->replicas[i].join_until_us = 0;
        control_say_down(r->control, i, over, reason);
        group_kill(&r->replicas[i].group, over);
    }
    recovery_lost(r, clock_mono_us());
}

void recovery_release(struct recovery *r)
{
    struct err err = {0};
    int rc = 0;

    if (r->fatal)
        return;
    r->held = false;
    for (int i = 0; i < r->replicas_count && !rc; i++) {
        struct replica *replica = &r->replicas[i];

        if (r->on.on_epoch)
            r->on.on_epoch(r->ctx, i, replica->epoch, "all nodes are here");
        rc = group_start(&replica->group, replica->epoch, &err);
    }
    recovery_check(r, rc, &err);
}

/* ---- who hangs ---- */

static void on_hang(uv_timer_t *timer)
{
    struct recovery *r = timer->data;
    struct child *child = NULL;

    while (!r->children->stopping && (child = supervisor_next(r->children, child))) {
        if (!child->silent)
            continue;
        log_say("phalanx: %s (pid %d) hangs, killing it", child->name, (int)child->pid);
        child_signal(child, SIGKILL);
    }
}

void recovery_linked(struct recovery *r, const struct bus_peer *peer)
{
    struct child *child = NULL;

    while ((child = supervisor_next(r->children, child))) {
        if (strcmp(child->name, bus_peer_name(peer)) != 0)
            continue;
        child->link = peer;
        child->silent = false;
    }
}

/* Nobody has the link of a child that has ended. */
void recovery_silent(struct recovery *r, const struct bus_peer *peer, const char *reason)
{
    struct child *child = NULL;

    while ((child = supervisor_next(r->children, child))) {
        if (child->link != peer)
            continue;
        if (!child->doomed)
            log_warn("%s pid=%d \"%s\"", child->name, (int)child->pid, reason);
        child->link = NULL;
        child->silent = true;
        (void)uv_timer_start(&r->hang, on_hang, HANG_MS, 0);
    }
}

/* ---- ready ---- */

/* One answer says that there is a way through; of several replicas, each must say so itself. */
static bool recovery_well(const struct recovery *r)
{
    for (int i = 0; i < r->replicas_count; i++)
        if (!control_ready(r->control, i, r->replicas[i].epoch))
            return false;
    return r->answered;
}

void recovery_status(struct recovery *r)
{
    for (int i = 0; i < r->replicas_count; i++) {
        struct replica *replica = &r->replicas[i];

        if (control_ready(r->control, i, replica->epoch))
            replica->whole = replica->epoch;
        if (control_loaded(r->control, i, replica->epoch))
            replica->join_until_us = 0;
    }
    if (!r->lost_us || !recovery_well(r))
        return;
    log_say("phalanx: ready again after %.1f s", (double)(clock_mono_us() - r->lost_us) / 1e6);
    r->lost_us = 0;
}

bool recovery_ready(struct recovery *r)
{
    bool first = !r->started;

    r->started = r->answered = true;
    recovery_status(r);
    return first;
}

/* ---- the end ---- */

bool recovery_drain(struct recovery *r)
{
    struct child *child = NULL;

    r->draining = true;
    while ((child = supervisor_next(r->children, child)))
        if (child->role == CHILD_GATEWAY)
            child_signal(child, SIGTERM);
    return r->started && gateways_running(r) > 0;
}

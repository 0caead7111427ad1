/* The link to the launcher: who is the first to see that ranks are lost tells the other. */
#include "common/log.h"
#include "services/scheduler/service_private.h"

#include <stdlib.h>
#include <string.h>

/* "scheduler-3" is that of replica 3. */
static uint32_t replica_of(const struct service *s)
{
    const char *dash = strrchr(s->config->name, '-');

    return dash ? (uint32_t)strtoul(dash + 1, NULL, 10) : 0;
}

static void status_fill(const struct service *s, struct control_status *out)
{
    struct scheduler_stats stats = {0};

    if (s->core)
        scheduler_stats(s->core, &stats);
    *out = (struct control_status){.epoch = bus_epoch(s->workers),
                                   .ready = s->ready,
                                   .ranks = s->group.loaded,
                                   .pages_total = stats.pages_total,
                                   .pages_free = stats.pages_free,
                                   .running = stats.running,
                                   .waiting = stats.waiting};
}

static bool status_equal(const struct control_status *a, const struct control_status *b)
{
    return a->epoch == b->epoch && a->ready == b->ready && a->ranks == b->ranks &&
           a->pages_total == b->pages_total && a->pages_free == b->pages_free &&
           a->running == b->running && a->waiting == b->waiting;
}

void control_status(struct service *s)
{
    struct control_status now;
    struct proto_status m;
    struct err err;

    if (!s->launcher)
        return;
    status_fill(s, &now);
    if (status_equal(&now, &s->told))
        return;
    m.replica = (struct proto_replica_status){
        .replica = replica_of(s),
        .epoch = now.epoch,
        .ready = now.ready,
        .reason = proto_str(service_reason(s)),
        .tp_size = s->group.size,
        .ranks = now.ranks,
        .pages_total = now.pages_total,
        .pages_free = now.pages_free,
        .running = now.running,
        .waiting = now.waiting,
    };
    if (bus_send(s->launcher, PROTO_STATUS, 0, &m, &err))
        log_warn("launcher=%s %s", bus_peer_name(s->launcher), err.msg);
    else
        s->told = now;
}

static void on_control_up(void *ctx, struct bus_peer *peer)
{
    struct service *s = ctx;

    s->launcher = peer;
    s->told = (struct control_status){0};
    control_status(s);
}

static void on_control_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct service *s = ctx;

    s->launcher = NULL;
    log_warn("launcher=%s is gone: %s", bus_peer_name(peer), reason);
}

static void on_control_refused(void *ctx, const char *reason)
{
    struct service *s = ctx;

    (void)err_set(s->err, ERR_PEER, "the launcher lets nobody in: %s", reason);
    service_fail(s);
}

static void on_control_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                               const void *message)
{
    struct service *s = ctx;
    const struct proto_group_down *down = message;

    if (service_failed(s))
        return;
    if (header->type != PROTO_GROUP_DOWN) {
        log_warn("launcher=%s sent %s, which is not for a scheduler", bus_peer_name(peer),
                 proto_type_name(header->type));
        return;
    }
    if (down->epoch < bus_epoch(s->workers))
        return; /* we know */
    (void)err_set(s->err, ERR_PEER, "%.*s", (int)down->reason.len, down->reason.data);
    ranks_lost(s, down->epoch + 1);
}

int control_connect(struct service *s, const struct bus_config *shared, struct err *err)
{
    struct bus_config bus = *shared;

    if (!s->config->control_endpoint[0])
        return 0;
    bus.endpoint = s->config->control_endpoint;
    bus.on = (struct bus_callbacks){.on_up = on_control_up,
                                    .on_message = on_control_message,
                                    .on_down = on_control_down,
                                    .on_refused = on_control_refused};
    return bus_connect(&bus, &s->control, err);
}

void control_group_down(struct service *s, uint64_t epoch, const char *reason)
{
    struct proto_group_down down = {
        .replica = replica_of(s), .epoch = epoch, .reason = proto_str(reason)};
    struct err err;

    if (s->launcher && bus_send(s->launcher, PROTO_GROUP_DOWN, 0, &down, &err))
        log_warn("launcher=%s %s", bus_peer_name(s->launcher), err.msg);
}

/* The link to the launcher: who is the first to see that ranks are lost tells the other. */
#include "common/log.h"
#include "services/scheduler/service_private.h"

void control_status(struct service *s)
{
    struct scheduler_stats now = {0};
    struct proto_status m = {.replica = {.epoch = bus_epoch(s->workers),
                                         .ready = s->ready,
                                         .reason = proto_str(service_reason(s)),
                                         .tp_size = s->group.size,
                                         .ranks = s->group.loaded}};
    struct err err;

    if (!s->launcher)
        return;
    if (s->core)
        scheduler_stats(s->core, &now);
    m.replica.pages_total = now.pages_total;
    m.replica.pages_free = now.pages_free;
    m.replica.running = now.running;
    m.replica.waiting = now.waiting;
    if (bus_send(s->launcher, PROTO_STATUS, 0, &m, &err))
        log_warn("launcher=%s %s", bus_peer_name(s->launcher), err.msg);
}

static void on_control_up(void *ctx, struct bus_peer *peer)
{
    struct service *s = ctx;

    s->launcher = peer;
    control_status(s);
}

static void on_control_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct service *s = ctx;

    s->launcher = NULL;
    log_line(bus_peer_ended(reason) ? LOG_INFO : LOG_WARN, "launcher=%s is gone: %s",
             bus_peer_name(peer), reason);
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
    struct proto_group_down down = {.epoch = epoch, .reason = proto_str(reason)};
    struct err err;

    if (s->launcher && bus_send(s->launcher, PROTO_GROUP_DOWN, 0, &down, &err))
        log_warn("launcher=%s %s", bus_peer_name(s->launcher), err.msg);
}

#include "services/launcher/control.h"

#include "common/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONTROL_PEERS_MAX 128 /* all kinds together, and those who read */

/* "scheduler-3" is replica 3; -1 when it is none. */
static int replica_of(const struct bus_peer *peer)
{
    static const char prefix[] = "scheduler-";
    const char *name = bus_peer_name(peer);
    char *end;
    long number;

    if (strncmp(name, prefix, sizeof prefix - 1) != 0)
        return -1;
    number = strtol(name + sizeof prefix - 1, &end, 10);
    return *end || number < 0 || number >= GROUPS_MAX ? -1 : (int)number;
}

static void on_up(void *ctx, struct bus_peer *peer)
{
    struct control *c = ctx;
    const char *role = bus_peer_role(peer);
    int replica = replica_of(peer);

    if (strcmp(role, "status") == 0) {
        c->on.on_reader(c->ctx, peer);
        return;
    }
    if (strcmp(role, "scheduler") == 0) {
        if (replica < 0) {
            log_warn("%s is not named scheduler-N: not heard", bus_peer_name(peer));
            return;
        }
        c->links[replica] = (struct control_link){.peer = peer};
        bus_peer_set_data(peer, &c->links[replica]);
    }
    c->on.on_linked(c->ctx, peer);
}

static void take_status(struct control_link *link, const struct proto_status *m)
{
    link->status = m->replica;
    (void)snprintf(link->reason, sizeof link->reason, "%.*s", (int)m->replica.reason.len,
                   m->replica.reason.data);
    link->status.reason = (struct proto_str){0}; /* the message's memory */
}

static void on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                       const void *message)
{
    struct control *c = ctx;
    struct control_link *link = bus_peer_data(peer);

    if (!link || link->peer != peer)
        return;
    if (header->type == PROTO_GROUP_DOWN) {
        const struct proto_group_down *m = message;
        char reason[512];

        (void)snprintf(reason, sizeof reason, "%.*s", (int)m->reason.len, m->reason.data);
        c->on.on_group_down(c->ctx, (int)(link - c->links), m->epoch, reason);
    } else if (header->type == PROTO_STATUS) {
        take_status(link, message);
        c->on.on_status(c->ctx);
    } else {
        log_warn("%s sent %s, which is not for a launcher", bus_peer_name(peer),
                 proto_type_name(header->type));
    }
}

static void on_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct control *c = ctx;
    struct control_link *link = bus_peer_data(peer);

    if (link && link->peer == peer)
        link->peer = NULL;
    c->on.on_silent(c->ctx, peer, reason);
}

int control_open(struct control *c, uv_loop_t *loop, const char *endpoint, int64_t silence_ms_max,
                 const struct control_callbacks *on, void *ctx, struct err *err)
{
    struct bus_config bus = {
        .loop = loop,
        .role = "launcher",
        .name = "launcher",
        .endpoint = endpoint,
        .accepts = "gateway,tokenizer,scheduler,status",
        .peers_max = CONTROL_PEERS_MAX,
        .silence_ms_max = silence_ms_max,
        .on = {.on_up = on_up, .on_message = on_message, .on_down = on_down},
        .ctx = c,
    };

    *c = (struct control){.on = *on, .ctx = ctx};
    return bus_bind(&bus, &c->bus, err);
}

void control_say_down(struct control *c, int replica, uint64_t epoch, const char *reason)
{
    struct proto_group_down m = {(uint32_t)replica, epoch, proto_str(reason)};
    struct err err;

    if (c->links[replica].peer && bus_send(c->links[replica].peer, PROTO_GROUP_DOWN, 0, &m, &err))
        log_warn("replica=%d epoch=%" PRIu64 " %s", replica, epoch, err.msg);
}

void control_forget(struct control *c, int replica)
{
    c->links[replica] = (struct control_link){0};
}

bool control_ready(const struct control *c, int replica, uint64_t epoch)
{
    const struct control_link *link = &c->links[replica];

    return link->peer && link->status.ready && link->status.epoch == epoch;
}

bool control_loaded(const struct control *c, int replica, uint64_t epoch)
{
    const struct control_link *link = &c->links[replica];
    uint32_t there = (uint32_t)__builtin_popcountll(link->status.ranks);

    return link->peer && link->status.epoch == epoch && there && there == link->status.tp_size;
}

void control_close(struct control *c)
{
    if (c->bus)
        bus_close(&c->bus);
}

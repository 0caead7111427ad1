/* Node 0: who is there, and who may be. */
#include "services/launcher/nodes_private.h"

#include "common/clock.h"
#include "common/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static struct node_seat *seats_end(struct nodes *n)
{
    return n->seats + n->config.place->count;
}

/* The one who is reported down takes no more: bus_send says so, and that is all. */
static void send_all(struct nodes *n, enum proto_type type, const void *message)
{
    for (struct node_seat *s = n->seats + 1; s < seats_end(n); s++)
        if (s->peer)
            (void)bus_send(s->peer, type, 0, message, NULL);
}

/* ---- who is missing ---- */

static void missing_text(struct nodes *n, char *text, size_t size)
{
    size_t used = 0;

    *text = '\0';
    for (struct node_seat *s = n->seats + 1; s < seats_end(n) && used < size; s++)
        if (!s->peer)
            used +=
                (size_t)snprintf(text + used, size - used, "%s%td", used ? ", " : "", s - n->seats);
}

static void send_state(struct nodes *n)
{
    struct proto_node_state m = {.ready = n->ready, .reason = proto_str(n->reason)};

    send_all(n, PROTO_NODE_STATE, &m);
}

void nodes_state(struct nodes *n, bool ready, const char *reason)
{
    if (n->ready == ready && strcmp(n->reason, reason) == 0)
        return;
    n->ready = ready;
    (void)snprintf(n->reason, sizeof n->reason, "%s", reason);
    send_state(n);
}

/* Says who is missing, here and to those who are there. */
static void say_missing(struct nodes *n)
{
    const struct node_place *p = n->config.place;
    char missing[256], reason[256];

    n->said_us = clock_mono_us();
    missing_text(n, missing, sizeof missing);
    (void)snprintf(reason, sizeof reason, "waiting for node %.200s", missing);
    log_say("phalanx: %s of --nnodes %u at %s%s", reason, p->count, p->init,
            p->loopback ? " (a loopback address: only this machine reaches it)" : "");
    nodes_state(n, false, reason);
}

/* The end of all nodes. */
static void head_end(struct nodes *n, const char *reason)
{
    struct proto_node_end m = {.failed = true, .reason = proto_str(reason)};

    send_all(n, PROTO_NODE_END, &m);
    nodes_finish(n, true, reason);
}

/* A place is empty: all wait for its node again. */
static void seat_leave(struct nodes *n, struct node_seat *seat, const char *why)
{
    char reason[512];
    bool complete = n->complete;

    seat->peer = NULL;
    n->complete = false;
    if (n->ended)
        return;
    (void)snprintf(reason, sizeof reason, "%.390s %.100s", seat->who, why);
    if (!complete) {
        log_say("phalanx: %s", reason);
        return;
    }
    n->since_us = clock_mono_us();
    say_missing(n);
    n->config.on.on_parted(n->config.ctx, reason);
}

void head_tick(struct nodes *n, int64_t now_us)
{
    char missing[256], reason[400];

    for (struct node_seat *s = n->seats + 1; s < seats_end(n); s++) {
        struct bus_peer *heir = s->heir;

        if (!heir || now_us < s->heir_until_us)
            continue;
        s->heir = NULL;
        (void)snprintf(reason, sizeof reason, "--node-rank %td is taken by %.300s", s - n->seats,
                       s->who);
        log_say("phalanx: refused %.300s: %s", s->heir_who, reason);
        bus_refuse(heir, reason);
    }
    if (n->complete)
        return;
    if (nodes_late(n, now_us)) {
        missing_text(n, missing, sizeof missing);
        (void)snprintf(reason, sizeof reason,
                       "node %.200s did not come to %.100s within %g s (--dist-timeout)", missing,
                       n->config.place->init, n->config.place->timeout_s);
        head_end(n, reason);
    } else if (nodes_due(n, now_us)) {
        say_missing(n);
    }
}

/* ---- who comes ---- */

static void seat_take(struct nodes *n, struct node_seat *seat, struct bus_peer *peer,
                      const char *who)
{
    seat->peer = peer;
    (void)snprintf(seat->who, sizeof seat->who, "%s", who);
    bus_peer_set_data(peer, seat);
    log_say("phalanx: %s is here", who);
    for (struct node_seat *s = n->seats + 1; s < seats_end(n); s++) {
        if (!s->peer) {
            send_state(n);
            return;
        }
    }
    n->complete = n->formed = true;
    n->said_us = 0;
    nodes_state(n, false, "loading");
    n->config.on.on_complete(n->config.ctx);
}

/* Before the nodes have ever been complete they can not become so: all end, each with the line.
 * Later it is the stranger's problem alone. */
static void head_refuse(struct nodes *n, struct bus_peer *peer, const char *reason)
{
    log_say("phalanx: refused: %s", reason);
    bus_refuse(peer, reason);
    if (!n->formed)
        head_end(n, reason);
}

static void head_join(struct nodes *n, struct bus_peer *peer, const struct proto_node_join *m)
{
    char who[NODE_WHO_MAX];
    struct node_seat *seat;
    struct err err;

    if (node_agree(n->config.self, m, &err)) {
        head_refuse(n, peer, err.msg);
        return;
    }
    node_describe(m, who, sizeof who);
    log_info("node=%" PRIu32 " devices=%" PRIu32, m->node, m->devices);
    seat = &n->seats[m->node];
    if (!seat->peer) {
        seat_take(n, seat, peer, who);
    } else if (seat->heir) {
        bus_refuse(peer, "several nodes want the same --node-rank");
    } else {
        seat->heir = peer;
        (void)snprintf(seat->heir_who, sizeof seat->heir_who, "%s", who);
        seat->heir_until_us =
            clock_mono_us() + (int64_t)((n->config.heartbeat_timeout_s + 1.0) * 1e6);
    }
}

/* The one who waited for the place. */
static void seat_inherit(struct nodes *n, struct node_seat *seat)
{
    struct bus_peer *heir = seat->heir;

    if (!heir || n->ended)
        return;
    seat->heir = NULL;
    seat_take(n, seat, heir, seat->heir_who);
}

void head_on_up(void *ctx, struct bus_peer *peer)
{
    (void)ctx;
    log_debug("peer=%s \"connected\"", bus_peer_name(peer));
}

void head_on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                     const void *message)
{
    struct nodes *n = ctx;
    struct node_seat *seat = bus_peer_data(peer);
    const struct proto_node_down *down = message;
    char reason[512]; /* the bound of messages */

    if (n->ended)
        return;
    if (header->type == PROTO_NODE_JOIN && !seat) {
        head_join(n, peer, message);
    } else if (header->type == PROTO_NODE_DOWN && seat) {
        (void)snprintf(reason, sizeof reason, "%.*s on %s", (int)down->reason.len,
                       down->reason.len ? down->reason.data : "", seat->who);
        n->config.on.on_rank_down(n->config.ctx, down->replica, down->epoch, reason);
    } else if (header->type == PROTO_NODE_END && seat) {
        const struct proto_node_end *end = message;

        bus_refuse(peer, "it has ended"); /* the answer it waits for */
        (void)snprintf(reason, sizeof reason, "ended: %.*s", (int)end->reason.len,
                       end->reason.len ? end->reason.data : "");
        seat_leave(n, seat, reason);
        seat_inherit(n, seat);
    }
}

void head_on_down(void *ctx, struct bus_peer *peer, const char *why)
{
    struct nodes *n = ctx;
    struct node_seat *seat = bus_peer_data(peer);
    char reason[200];

    for (struct node_seat *s = n->seats + 1; s < seats_end(n); s++)
        if (s->heir == peer)
            s->heir = NULL;
    if (!seat)
        return;
    (void)snprintf(reason, sizeof reason, "is gone: %s", why);
    seat_leave(n, seat, reason);
    seat_inherit(n, seat);
}

/* ---- what the owner has to say ---- */

bool nodes_complete(const struct nodes *n)
{
    return n->complete;
}

void nodes_start(struct nodes *n, uint32_t replica, uint64_t epoch, const char *endpoint)
{
    const struct node_place *p = n->config.place;

    for (struct node_seat *s = n->seats + 1; s < seats_end(n); s++) {
        struct proto_node_start m = {.replica = replica,
                                     .epoch = epoch,
                                     .first = (uint32_t)(s - n->seats) * p->ranks,
                                     .count = p->ranks,
                                     .endpoint = proto_str(endpoint)};

        if (s->peer)
            (void)bus_send(s->peer, PROTO_NODE_START, 0, &m, NULL);
    }
}

void nodes_kill(struct nodes *n, uint32_t replica, uint64_t epoch)
{
    struct proto_node_kill m = {.replica = replica, .epoch = epoch};

    send_all(n, PROTO_NODE_KILL, &m);
}

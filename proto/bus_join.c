/* Who is let in, and how a link goes on over a new connection. */
#include "proto/bus_private.h"

#include "common/clock.h"
#include "common/log.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define JOIN_ANSWER_MS 1000 /* no WELCOME for so long: try by a new connection */
#define JOIN_SPACING_MS 100 /* between connections */
/* A link whose connections break at once so many times in a row, and nothing gets through, is
 * down: its first message may be one that the other side will never take. */
#define JOINS_IDLE_MAX 10
#define JOIN_SHORT_MS 1000
#define JOIN_ALONE_MS 10000 /* without a link for so long: said in a log line */

#ifndef PHALANX_VERSION
#define PHALANX_VERSION "0.0.0"
#endif

bool bus_word_valid(const char *data, size_t len, size_t len_max)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    if (len < 1 || len > len_max)
        return false;
    for (size_t i = 0; i < len; i++) {
        if (!memchr(letters, data[i], sizeof(letters) - 1))
            return false;
    }
    return true;
}

/* ---- the connecting side ---- */

static void join_enter(struct bus *bus, enum bus_join join)
{
    bus->join = join;
    bus->since_ms = bus_now_ms();
}

static void join_open(struct bus *bus)
{
    struct err err;
    if (socket_open(bus->loop, false, bus->endpoint, &bus->security, bus->message_max, &bus->socket,
                    &err) < 0) {
        bus_complain(bus, "bus=%s can not connect: %s", bus->name, err.msg);
        bus->retry_ms = bus_now_ms() + JOIN_ANSWER_MS;
        join_enter(bus, JOIN_NONE);
        return;
    }
    bus->retry_ms = bus_now_ms() + JOIN_SPACING_MS;
    join_enter(bus, JOIN_CONNECTING);
}

void join_again(struct bus *bus, int64_t delay_ms)
{
    const int64_t now = bus_now_ms();
    socket_close(&bus->socket, 0);
    if (bus->peers)
        bus->peers->attached = false;
    if (bus->retry_ms < now + delay_ms)
        bus->retry_ms = now + delay_ms;
    join_enter(bus, JOIN_NONE);
    if (bus->retry_ms <= now)
        join_open(bus);
}

static void join_hello(struct bus *bus)
{
    const struct bus_peer *peer = bus->peers;
    const struct proto_hello hello = {
        .role = proto_str(bus->role),
        .name = proto_str(bus->name),
        .version = proto_str(PHALANX_VERSION),
        .schema = bus->schema,
        .instance = bus->instance,
        .peer = peer ? peer->instance : 0,
        /* Grows over restarts too, as long as the host stays up. */
        .attempt = (uint64_t)clock_mono_us(),
        .received = peer ? peer->link.received : 0,
    };
    if (bus_send_control(bus, NULL, PROTO_HELLO, &hello) == SOCKET_DONE)
        join_enter(bus, JOIN_HELLO);
}

void join_turn(struct bus *bus)
{
    const bool connected = socket_connected(bus->socket);
    if (bus->join == JOIN_CONNECTING && connected)
        join_hello(bus);
    else if (bus->join != JOIN_CONNECTING && !connected)
        join_again(bus, 0);
}

/* A peer with another key looks like none: ZeroMQ closes the connection without a word. */
static void join_say_alone(struct bus *bus, int64_t now_ms)
{
    if (bus->peers || bus->join == JOIN_REFUSED)
        bus->alone_ms = now_ms;
    if (now_ms - bus->alone_ms < JOIN_ALONE_MS)
        return;
    bus->alone_ms = now_ms;
    bus_complain(bus, "bus=%s endpoint=%s \"no answer yet%s\"", bus->name, bus->endpoint,
                 bus->security.keyed ? ": nobody there, or another cluster key"
                                     : ": nobody there, or one who wants a cluster key");
}

void join_tick(struct bus *bus, int64_t now_ms)
{
    join_say_alone(bus, now_ms);
    if (bus->join == JOIN_NONE && now_ms >= bus->retry_ms)
        join_open(bus);
    else if (bus->join == JOIN_HELLO && now_ms - bus->since_ms > JOIN_ANSWER_MS)
        join_again(bus, 0);
}

/* False: the link goes on in name only. */
static bool join_progress(struct bus_peer *peer, uint64_t received)
{
    const uint64_t progress = received + peer->link.received;
    const int64_t now = bus_now_ms();
    if (progress != peer->progress || now - peer->joined_ms > JOIN_SHORT_MS)
        peer->joins_idle = 0;
    peer->progress = progress;
    peer->joined_ms = now;
    return ++peer->joins_idle <= JOINS_IDLE_MAX;
}

void join_welcome(struct bus *bus, uint64_t epoch, const struct proto_welcome *w)
{
    struct bus_peer *peer = bus->peers;
    if (w->instance == 0) {
        join_again(bus, 0);
        return;
    }
    if (bus->join != JOIN_HELLO)
        return;
    bus->epoch = epoch; /* ours already, or the first that we take part in */
    if (peer && peer->instance != w->instance) {
        /* It knows our end, but its own is new: nothing of the old link is left there. */
        const uint64_t ours = bus->instance;
        peer_down(peer, "restarted");
        bus->instance = ours;
        peer = NULL;
        if (bus->closing)
            return;
    }
    const bool fresh = !peer;
    if (fresh) {
        if (!bus_word_valid(w->name.data, w->name.len, BUS_NAME_MAX) ||
            !bus_word_valid(w->role.data, w->role.len, BUS_ROLE_MAX)) {
            bus_complain(bus, "bus=%s a WELCOME without a proper name", bus->name);
            join_again(bus, JOIN_ANSWER_MS);
            return;
        }
        peer = peer_add(bus, w->name, w->role);
        peer->instance = w->instance;
    }
    join_enter(bus, JOIN_DONE);
    if (!peer_attach(peer, w->received))
        peer_broken(peer, "WELCOME acknowledges what was never sent");
    else if (!join_progress(peer, w->received))
        peer_broken(peer, "connections break and nothing gets through");
    else if (fresh)
        bus->on.on_up(bus->ctx, peer);
}

void join_refuse(struct bus *bus, const struct proto_refuse *r)
{
    char reason[600];
    snprintf(reason, sizeof(reason), "%s: %.*s", bus->endpoint, (int)r->reason.len, r->reason.data);
    socket_close(&bus->socket, 0);
    join_enter(bus, JOIN_REFUSED);
    if (bus->peers)
        peer_down(bus->peers, reason);
    if (!bus->closing && bus->on.on_refused)
        bus->on.on_refused(bus->ctx, reason);
}

/* ---- the binding side ---- */

bool route_equal(const struct bus_route *a, const struct bus_route *b)
{
    return a->len == b->len && memcmp(a->data, b->data, a->len) == 0;
}

bool admit_is_ignored(const struct bus *bus, const struct bus_route *from)
{
    for (unsigned i = 0; i < BUS_IGNORED; i++) {
        if (bus->ignored[i].len > 0 && route_equal(&bus->ignored[i], from))
            return true;
    }
    return false;
}

void admit_ignore(struct bus *bus, const struct bus_route *from)
{
    bus->ignored[bus->ignored_next] = *from;
    bus->ignored_next = (bus->ignored_next + 1) % BUS_IGNORED;
}

void admit_refuse(struct bus *bus, const struct bus_route *to, const char *fmt, ...)
{
    char reason[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(reason, sizeof(reason), fmt, ap);
    va_end(ap);
    const struct proto_refuse refuse = {.reason = proto_str(reason)};
    bus_send_control(bus, to, PROTO_REFUSE, &refuse);
    admit_ignore(bus, to);
    bus->told[bus->told_next].route = *to;
    bus->told[bus->told_next].until_ms = bus_now_ms() + bus->silence_ms_max;
    bus->told_next = (bus->told_next + 1) % BUS_IGNORED;
    bus_complain(bus, "bus=%s refused a peer: %s", bus->name, reason);
}

/* Who reads a REFUSE hangs up: what is sent behind it then finds nobody. */
void admit_tick(struct bus *bus, int64_t now_ms)
{
    const struct proto_ping ping = {0};
    for (unsigned i = 0; i < BUS_IGNORED; i++) {
        struct bus_route *route = &bus->told[i].route;
        if (route->len > 0 && (now_ms > bus->told[i].until_ms ||
                               bus_send_control(bus, route, PROTO_PING, &ping) == SOCKET_GONE))
            route->len = 0;
    }
}

bool bus_settled(const struct bus *bus)
{
    for (unsigned i = 0; i < BUS_IGNORED; i++) {
        if (bus->told[i].route.len > 0)
            return false;
    }
    return true;
}

void admit_again(struct bus *bus, const struct bus_route *to)
{
    const struct proto_welcome again = {0};
    bus_send_control(bus, to, PROTO_WELCOME, &again);
}

void admit_unknown(struct bus *bus, const struct bus_route *from)
{
    admit_again(bus, from);
    admit_ignore(bus, from);
}

static bool is_accepted(const struct bus *bus, struct proto_str role)
{
    for (const char *at = bus->accepts; *at;) {
        const size_t len = strcspn(at, ",");
        if (len == role.len && memcmp(at, role.data, len) == 0)
            return true;
        at += len + (at[len] == ',');
    }
    return false;
}

/* False: refused. */
static bool admit_check(struct bus *bus, const struct bus_route *from, uint64_t epoch,
                        const struct proto_hello *h)
{
    if (!bus_word_valid(h->role.data, h->role.len, BUS_ROLE_MAX) ||
        !bus_word_valid(h->name.data, h->name.len, BUS_NAME_MAX)) {
        admit_refuse(bus, from, "role or name is not a word");
        return false;
    }
    const int role_len = (int)h->role.len, name_len = (int)h->name.len;
    if (h->schema != bus->schema) {
        admit_refuse(bus, from,
                     "%.*s has version %.*s (schema %016" PRIx64 "), %s has version %s (schema "
                     "%016" PRIx64 ")",
                     name_len, h->name.data, (int)h->version.len, h->version.data, h->schema,
                     bus->name, PHALANX_VERSION, bus->schema);
        return false;
    }
    if (!is_accepted(bus, h->role)) {
        admit_refuse(bus, from, "%.*s has role %.*s, %s lets in: %s", name_len, h->name.data,
                     role_len, h->role.data, bus->name, bus->accepts);
        return false;
    }
    if (epoch != 0 && epoch < bus->epoch) {
        admit_refuse(bus, from, "%.*s is of epoch %" PRIu64 ", which is over: %s is at %" PRIu64,
                     name_len, h->name.data, epoch, bus->name, bus->epoch);
        return false;
    }
    for (unsigned i = 0; i < BUS_IGNORED; i++) {
        if (bus->refused[i] != 0 && bus->refused[i] == h->instance) {
            admit_refuse(bus, from, "%.*s was refused before", name_len, h->name.data);
            return false;
        }
    }
    return true;
}

/* A HELLO of a later epoch: true when the owner is ready for it at once. */
static bool admit_later(struct bus *bus, uint64_t epoch)
{
    if (bus->on.on_epoch)
        bus->on.on_epoch(bus->ctx, epoch);
    return !bus->closing && bus->epoch == epoch;
}

static struct bus_peer *peer_find(struct bus *bus, struct proto_str name)
{
    for (struct bus_peer *p = bus->peers; p; p = p->next) {
        if (proto_str_is(name, p->name))
            return p;
    }
    return NULL;
}

static void admit_welcome(struct bus *bus, const struct bus_peer *peer)
{
    const struct proto_welcome welcome = {
        .role = proto_str(bus->role),
        .name = proto_str(bus->name),
        .version = proto_str(PHALANX_VERSION),
        .instance = peer->ours,
        .received = peer->link.received,
    };
    bus_send_control(bus, &peer->route, PROTO_WELCOME, &welcome);
}

void admit_hello(struct bus *bus, const struct bus_route *from, uint64_t epoch,
                 const struct proto_hello *h)
{
    if (!admit_check(bus, from, epoch, h) || (epoch > bus->epoch && !admit_later(bus, epoch)))
        return;

    struct bus_peer *peer = peer_find(bus, h->name);
    if (peer && h->attempt <= peer->attempt)
        return;
    const bool same =
        peer && peer->instance == h->instance && (h->peer == 0 || h->peer == peer->ours);
    if (peer && !same) {
        peer_down(peer, "restarted");
        peer = NULL;
        /* on_down may have begun another epoch. */
        if (bus->closing || !admit_check(bus, from, epoch, h))
            return;
    }
    if (!peer && bus->peers_count >= bus->peers_max) {
        admit_refuse(bus, from, "%s has %" PRIu32 " peers and takes no more", bus->name,
                     bus->peers_max);
        return;
    }
    if (!peer) {
        peer = peer_add(bus, h->name, h->role);
        peer->instance = h->instance;
        peer->ours = bus_random();
    }
    peer->attempt = h->attempt;
    peer->route = *from;
    /* h->received counts only for the link both sides mean. */
    if (!peer_attach(peer, same && h->peer != 0 ? h->received : 0)) {
        peer_broken(peer, "HELLO acknowledges what was never sent");
        return;
    }
    admit_welcome(bus, peer);
    if (!same)
        bus->on.on_up(bus->ctx, peer);
}

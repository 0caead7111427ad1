#include "proto/bus_private.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define SILENCE_MS 3000
#define QUIET_MS 1000 /* several ticks */
#define MESSAGE_MAX ((size_t)64 << 20)
#define KEPT_BYTES_MAX ((size_t)256 << 20)
#define PEERS_MAX 64
#define TURN_MESSAGES 256 /* handled before the loop's other handles get their turn */
#define COMPLAINTS_MAX 5  /* log lines about strangers a tick */
#define BROKEN_DELAY_MS 1000
#define LINGER_MS 200

int64_t bus_now_ms(void)
{
    return clock_mono_us() / 1000;
}

uint64_t bus_random(void)
{
    uint64_t value = 0;
    while (value == 0) {
        if (getrandom(&value, sizeof(value), 0) != (ssize_t)sizeof(value))
            value = (uint64_t)clock_mono_us() ^ (uint64_t)getpid() << 40;
    }
    return value;
}

void bus_complain(struct bus *bus, const char *fmt, ...)
{
    char line[1024];
    va_list ap;
    if (bus->complaints++ >= COMPLAINTS_MAX)
        return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    log_warn("%s", line);
}

/* ---- peers ---- */

struct bus_peer *peer_add(struct bus *bus, struct proto_str name, struct proto_str role)
{
    struct bus_peer *peer = mem_zalloc(sizeof(*peer));
    peer->bus = bus;
    memcpy(peer->name, name.data, name.len);
    memcpy(peer->role, role.data, role.len);
    peer->heard_ms = bus_now_ms();
    peer->next = bus->peers;
    bus->peers = peer;
    bus->peers_count++;
    return peer;
}

static void peer_free(struct bus_peer *peer)
{
    link_fini(&peer->link);
    free(peer);
}

static void peer_unlink(struct bus_peer *peer)
{
    struct bus *bus = peer->bus;
    struct bus_peer **at = &bus->peers;
    while (*at != peer)
        at = &(*at)->next;
    *at = peer->next;
    bus->peers_count--;
    peer->down = true;
}

void peer_down(struct bus_peer *peer, const char *reason)
{
    struct bus *bus = peer->bus;
    peer_unlink(peer);
    if (!bus->router)
        bus->instance = bus_random();
    bus->on.on_down(bus->ctx, peer, reason);
    peer_free(peer);
}

bool peer_attach(struct bus_peer *peer, uint64_t received)
{
    if (!link_acknowledged(&peer->link, received))
        return false;
    link_rewind(&peer->link);
    peer->attached = true;
    peer->heard_ms = bus_now_ms();
    peer->bus->dirty = true;
    return true;
}

void peer_broken(struct bus_peer *peer, const char *reason)
{
    struct bus *bus = peer->bus;
    bus_complain(bus, "bus=%s peer=%s dropped: %s", bus->name, peer->name, reason);
    if (bus->router)
        admit_ignore(bus, &peer->route);
    else
        join_again(bus, BROKEN_DELAY_MS);
    peer_down(peer, reason);
}

void bus_refuse(struct bus_peer *peer, const char *reason)
{
    struct bus *bus = peer->bus;
    assert(bus->router);
    if (peer->down)
        return;
    bus->refused[bus->refused_next] = peer->instance;
    bus->refused_next = (bus->refused_next + 1) % BUS_IGNORED;
    admit_refuse(bus, &peer->route, "%s", reason);
    peer_unlink(peer);
    peer_free(peer);
}

void bus_set_epoch(struct bus *bus, uint64_t epoch, const char *reason)
{
    assert(bus->router && epoch > bus->epoch);
    bus->epoch = epoch;
    while (bus->peers)
        bus_refuse(bus->peers, reason);
}

uint64_t bus_epoch(const struct bus *bus)
{
    return bus->epoch;
}

static struct bus_peer *peer_by_route(struct bus *bus, const struct bus_route *from)
{
    for (struct bus_peer *p = bus->peers; p; p = p->next) {
        if (route_equal(&p->route, from))
            return p;
    }
    return NULL;
}

/* ---- sending ---- */

enum socket_result bus_send_control(struct bus *bus, const struct bus_route *to,
                                    enum proto_type type, const void *message)
{
    const struct proto_header header = {.type = type, .epoch = bus->epoch};
    zmq_msg_t msg;
    buf_clear(&bus->scratch);
    if (proto_encode(&header, message, &bus->scratch, NULL) < 0 ||
        zmq_msg_init_size(&msg, bus->scratch.len) != 0)
        return SOCKET_NOTHING;
    memcpy(zmq_msg_data(&msg), bus->scratch.data, bus->scratch.len);
    const enum socket_result result = socket_send(bus->socket, to, &msg);
    zmq_msg_close(&msg);
    return result;
}

static const struct bus_route *peer_route(const struct bus_peer *peer)
{
    return peer->bus->router ? &peer->route : NULL;
}

static void peer_ping(struct bus_peer *peer)
{
    const struct proto_ping ping = {.received = link_tell(&peer->link)};
    if (bus_send_control(peer->bus, peer_route(peer), PROTO_PING, &ping) == SOCKET_GONE)
        peer->attached = false;
}

static void peer_flush(struct bus_peer *peer)
{
    if (peer->attached && link_ack_due(&peer->link))
        peer_ping(peer);
    zmq_msg_t *msg;
    while (peer->attached && (msg = link_next(&peer->link)) != NULL) {
        const enum socket_result r = socket_send(peer->bus->socket, peer_route(peer), msg);
        if (r == SOCKET_GONE)
            peer->attached = false;
        if (r != SOCKET_DONE)
            break; /* the next tick or HELLO tries again */
        link_advance(&peer->link);
    }
}

static void bus_flush(struct bus *bus)
{
    if (!bus->dirty || !bus->socket)
        return;
    bus->dirty = false;
    for (struct bus_peer *p = bus->peers; p; p = p->next)
        peer_flush(p);
}

int bus_send(struct bus_peer *peer, enum proto_type type, uint64_t id, const void *message,
             struct err *err)
{
    struct bus *bus = peer->bus;
    const struct proto_header header = {
        .type = type, .epoch = bus->epoch, .seq = peer->link.sent + 1, .id = id};
    if (peer->down || bus->closing)
        return err_set(err, ERR_PEER, "%s is down", peer->name);
    if (type <= PROTO_PING)
        return err_set(err, ERR_INVALID, "%s is for the bus itself", proto_type_name(type));

    buf_clear(&bus->scratch);
    int rc = proto_encode(&header, message, &bus->scratch, err);
    if (rc < 0)
        return rc;
    const size_t len = bus->scratch.len;
    if (len > bus->message_max)
        return err_set(err, ERR_LIMIT, "%s of %zu bytes: more than %zu", proto_type_name(type), len,
                       bus->message_max);
    if (peer->link.head && peer->link.kept_bytes + link_cost(len) > bus->kept_bytes_max)
        return err_set(err, ERR_BUSY, "%s: %zu bytes wait to be acknowledged", peer->name,
                       peer->link.kept_bytes);
    if (!link_push(&peer->link, bus->scratch.data, len))
        return err_set(err, ERR_NOMEM, "%s: no memory for %zu bytes", peer->name, len);
    bus->dirty = true;
    bus_uv_wake(&bus->uv);
    return 0;
}

/* ---- receiving ---- */

static void peer_ping_arrived(struct bus_peer *peer, const struct proto_ping *ping)
{
    if (!link_acknowledged(&peer->link, ping->received))
        peer_broken(peer, "PING acknowledges what was never sent");
    else if (peer->link.unsent)
        peer->bus->dirty = true; /* the window has moved */
}

static void peer_bye(struct bus_peer *peer, const struct proto_bye *bye)
{
    char reason[160];
    snprintf(reason, sizeof(reason), "%.*s", (int)bye->reason.len, bye->reason.data);
    if (peer->bus->router)
        admit_ignore(peer->bus, &peer->route);
    else
        join_again(peer->bus, 0);
    peer_down(peer, reason);
}

static void peer_message(struct bus_peer *peer, const struct proto_header *header,
                         const void *message, size_t len)
{
    struct bus *bus = peer->bus;
    char reason[128];
    peer->heard_ms = bus_now_ms();
    if (header->epoch != bus->epoch) {
        peer_broken(peer, "a message of another epoch");
        return;
    }
    if (header->type == PROTO_PING && header->seq == 0) {
        peer_ping_arrived(peer, message);
        return;
    }
    if (header->type == PROTO_BYE && header->seq == 0) {
        peer_bye(peer, message);
        return;
    }
    if (header->type <= PROTO_PING || header->seq == 0) {
        snprintf(reason, sizeof(reason), "%s is out of place", proto_type_name(header->type));
        peer_broken(peer, reason);
        return;
    }
    switch (link_arrived(&peer->link, header->seq, len)) {
    case LINK_REPEAT:
        return;
    case LINK_GAP:
        snprintf(reason, sizeof(reason), "message %llu after %llu", (unsigned long long)header->seq,
                 (unsigned long long)peer->link.received);
        peer_broken(peer, reason);
        return;
    case LINK_NEW:
        if (link_ack_due(&peer->link))
            bus->dirty = true;
        bus->on.on_message(bus->ctx, peer, header, message);
        return;
    }
}

/* What does not decode, from a peer or a stranger. */
static void bus_garbage(struct bus *bus, const struct bus_route *from, struct bus_peer *peer,
                        const char *why)
{
    char reason[600];
    snprintf(reason, sizeof(reason), "bytes that do not decode: %s", why);
    if (peer) {
        peer_broken(peer, reason);
    } else if (bus->router) {
        admit_refuse(bus, from, "%.300s (%s has version %.64s)", reason, bus->name,
                     PHALANX_VERSION);
    } else {
        bus_complain(bus, "bus=%s %s", bus->name, reason);
        join_again(bus, BROKEN_DELAY_MS);
    }
}

static void router_message(struct bus *bus, const struct bus_route *from, struct bus_peer *peer,
                           const struct proto_header *header, const void *message, size_t len)
{
    if (header->type == PROTO_HELLO && !peer)
        admit_hello(bus, from, header->epoch, message);
    else if (peer)
        peer_message(peer, header, message, len);
    else
        admit_unknown(bus, from);
}

static void dealer_message(struct bus *bus, struct bus_peer *peer,
                           const struct proto_header *header, const void *message, size_t len)
{
    if (header->type == PROTO_REFUSE)
        join_refuse(bus, message);
    else if (header->type == PROTO_WELCOME && (bus->epoch == 0 || header->epoch == bus->epoch))
        join_welcome(bus, header->epoch, message);
    else if (peer && bus->join == JOIN_DONE)
        peer_message(peer, header, message, len);
}

static void bus_handle(struct bus *bus, const struct bus_route *from, zmq_msg_t *msg)
{
    struct proto_header header;
    void *message = NULL;
    struct err err;
    const size_t len = zmq_msg_size(msg);
    struct bus_peer *peer = bus->router ? peer_by_route(bus, from) : bus->peers;

    if (bus->router && !peer && admit_is_ignored(bus, from))
        return;
    proto_arena_clear(&bus->arena);
    if (proto_decode(zmq_msg_data(msg), len, &bus->arena, &header, &message, &err) < 0)
        bus_garbage(bus, from, peer, err.msg);
    else if (bus->router)
        router_message(bus, from, peer, &header, message, len);
    else
        dealer_message(bus, peer, &header, message, len);
}

/* True when the budget ended before the socket was empty. */
static bool bus_drain(struct bus *bus)
{
    struct bus_route from = {0};
    zmq_msg_t msg;
    zmq_msg_init(&msg);
    enum socket_result r = SOCKET_DONE;
    int left = TURN_MESSAGES;
    while (r != SOCKET_NOTHING && left > 0 && !bus->closing && bus->socket) {
        r = socket_receive(bus->socket, bus->router ? &from : NULL, &msg);
        if (r == SOCKET_DONE) {
            bus_handle(bus, &from, &msg);
        } else if (r == SOCKET_MALFORMED) {
            struct bus_peer *peer = bus->router ? peer_by_route(bus, &from) : bus->peers;
            if (peer || !bus->router || !admit_is_ignored(bus, &from))
                bus_garbage(bus, &from, peer, "a message of another number of frames");
        }
        left--;
    }
    zmq_msg_close(&msg);
    return r != SOCKET_NOTHING && !bus->closing && bus->socket;
}

static bool bus_turn(void *ctx)
{
    struct bus *bus = ctx;
    if (!bus->socket || (!bus->dirty && !socket_stirred(bus->socket)))
        return false;
    if (!bus->router)
        join_turn(bus);
    bus_flush(bus);
    bool more = bus_drain(bus);
    if (!bus->closing && bus->dirty && !more) {
        bus_flush(bus);
        more = bus_drain(bus);
    }
    return more || bus->dirty;
}

/* Nothing was heard for a while, though both sides send a PING every tick: its connection may carry
 * nothing any more. By a new one the link goes on. */
static bool peer_quiet(const struct bus_peer *peer, int64_t now_ms)
{
    return peer->attached && now_ms - peer->heard_ms > QUIET_MS;
}

static struct bus_peer *peer_silent(const struct bus *bus, int64_t now_ms)
{
    for (struct bus_peer *p = bus->peers; p; p = p->next) {
        if (now_ms - p->heard_ms > bus->silence_ms_max)
            return p;
    }
    return NULL;
}

static void bus_tick(void *ctx)
{
    struct bus *bus = ctx;
    const int64_t now = bus_now_ms();
    /* When we did not run, we could not hear: our own stall is nobody's silence. */
    const int64_t stall = now - bus->tick_ms - 2 * BUS_TICK_MS;
    struct bus_peer *silent;
    char reason[64];
    bus->tick_ms = now;
    bus->complaints = 0;
    snprintf(reason, sizeof(reason), "silent for %lld ms", (long long)bus->silence_ms_max);
    for (struct bus_peer *p = bus->peers; p && stall > 0; p = p->next)
        p->heard_ms += stall;
    /* From the start each time: on_down may have refused any of them. */
    while (!bus->closing && (silent = peer_silent(bus, now)) != NULL) {
        if (!bus->router)
            join_again(bus, 0);
        peer_down(silent, reason);
    }
    for (struct bus_peer *p = bus->peers; p && !bus->closing; p = p->next) {
        if (peer_quiet(p, now)) {
            if (bus->router)
                admit_again(bus, &p->route);
            else
                join_again(bus, 0);
        }
        if (p->attached)
            peer_ping(p);
    }
    if (!bus->closing)
        (bus->router ? admit_tick : join_tick)(bus, now);
    bus->dirty = true;
}

/* ---- life ---- */

static void bus_free(void *ctx)
{
    struct bus *bus = ctx;
    for (struct bus_peer *p = bus->peers, *next; p; p = next) {
        next = p->next;
        peer_free(p);
    }
    proto_arena_fini(&bus->arena);
    buf_fini(&bus->scratch);
    bus_security_fini(&bus->security);
    free(bus->role);
    free(bus->name);
    free(bus->endpoint);
    free(bus->accepts);
    free(bus);
}

static int bus_new(const struct bus_config *config, bool router, struct bus **out, struct err *err)
{
    *out = NULL;
    if (!bus_word_valid(config->name, strlen(config->name), BUS_NAME_MAX))
        return err_set(err, ERR_INVALID, "bus name %.80s: not a word of at most %d letters",
                       config->name, BUS_NAME_MAX);
    if (!bus_word_valid(config->role, strlen(config->role), BUS_ROLE_MAX))
        return err_set(err, ERR_INVALID, "bus role %.80s: not a word of at most %d letters",
                       config->role, BUS_ROLE_MAX);
    struct bus *bus = mem_zalloc(sizeof(*bus));
    bus->loop = config->loop;
    bus->role = mem_strdup(config->role);
    bus->name = mem_strdup(config->name);
    bus->endpoint = mem_strdup(config->endpoint);
    bus->accepts = mem_strdup(config->accepts ? config->accepts : "");
    if (config->security)
        bus->security = *config->security;
    bus->epoch = config->epoch;
    bus->silence_ms_max = config->silence_ms_max ? config->silence_ms_max : SILENCE_MS;
    bus->message_max = config->message_max ? config->message_max : MESSAGE_MAX;
    bus->kept_bytes_max = config->kept_bytes_max ? config->kept_bytes_max : KEPT_BYTES_MAX;
    bus->peers_max = config->peers_max ? config->peers_max : PEERS_MAX;
    bus->on = config->on;
    bus->ctx = config->ctx;
    bus->router = router;
    bus->schema = proto_schema_hash();
    bus->instance = bus_random();
    bus->tick_ms = bus_now_ms();
    bus->since_ms = bus->tick_ms;
    bus->alone_ms = bus->tick_ms;
    bus->join = JOIN_CONNECTING;

    int rc = socket_open(bus->loop, router, bus->endpoint, &bus->security, bus->message_max,
                         &bus->socket, err);
    if (rc < 0) {
        bus_free(bus);
        return rc;
    }
    bus->uv.turn = bus_turn;
    bus->uv.tick = bus_tick;
    bus->uv.closed = bus_free;
    bus->uv.ctx = bus;
    bus_uv_start(&bus->uv, bus->loop, BUS_TICK_MS);
    *out = bus;
    return 0;
}

int bus_bind(const struct bus_config *config, struct bus **out, struct err *err)
{
    return bus_new(config, true, out, err);
}

int bus_connect(const struct bus_config *config, struct bus **out, struct err *err)
{
    return bus_new(config, false, out, err);
}

void bus_close(struct bus **self)
{
    struct bus *bus = *self;
    *self = NULL;
    if (!bus)
        return;
    bus_flush(bus);
    for (struct bus_peer *p = bus->peers; p && bus->socket; p = p->next) {
        const struct proto_bye bye = {.reason = proto_str(BUS_ENDED)};
        if (p->attached && !p->link.unsent)
            bus_send_control(bus, peer_route(p), PROTO_BYE, &bye);
    }
    bus->closing = true;
    socket_close(&bus->socket, LINGER_MS);
    bus_uv_stop(&bus->uv);
}

bool bus_peer_ended(const char *reason)
{
    return strcmp(reason, BUS_ENDED) == 0;
}

const char *bus_peer_name(const struct bus_peer *peer)
{
    return peer->name;
}

const char *bus_peer_role(const struct bus_peer *peer)
{
    return peer->role;
}

void *bus_peer_data(const struct bus_peer *peer)
{
    return peer->data;
}

void bus_peer_set_data(struct bus_peer *peer, void *data)
{
    peer->data = data;
}

struct bus_peer *bus_next_peer(struct bus *bus, struct bus_peer *after)
{
    return after ? after->next : bus->peers;
}

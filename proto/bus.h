/* Links between processes: ZeroMQ ROUTER (the side that binds) and DEALER (the side that
 * connects), run by a libuv loop.
 *
 * A link delivers messages in order, exactly once, for as long as both processes live, across
 * reconnections: messages are numbered, kept until acknowledged and sent again after a new HELLO;
 * repeats are dropped. A peer that comes back with another instance number is a new peer: the old
 * one is reported down first, and what was kept for it is dropped.
 *
 * Limits: at most `kept_bytes_max` not yet acknowledged a peer (bus_send then fails with ERR_BUSY),
 * messages of at most `message_max` bytes (larger ones: the peer is dropped), `peers_max` peers. A
 * peer that sends bytes that do not decode is refused and dropped, with one log line.
 *
 * All functions must be called from the loop's thread. */
#ifndef PHALANX_PROTO_BUS_H
#define PHALANX_PROTO_BUS_H

#include "proto/bus_key.h"
#include "proto/proto.h"

#include <uv.h>

struct bus;
struct bus_peer; /* lives from on_up to the end of on_down, or to bus_refuse or bus_close */

/* on_down's reason where the peer has said that it ends: no cause for a warning by itself. */
#define BUS_ENDED "ended"
bool bus_peer_ended(const char *reason);

struct bus_callbacks {
    /* HELLO or WELCOME was exchanged; the schema's hash is the same. */
    void (*on_up)(void *ctx, struct bus_peer *peer);
    /* A message in order. It lives until the callback returns. */
    void (*on_message)(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                       const void *message);
    /* Gone: ended, silent for too long, restarted, or protocol error (reason says which). On the
     * connecting side the bus goes on trying; on_up may follow. */
    void (*on_down)(void *ctx, struct bus_peer *peer, const char *reason);
    /* Connecting side only, may be NULL: the other refused us (role, version, schema, an epoch that
     * is over, too many peers); the bus tries no more. An on_down comes first if it was up. */
    void (*on_refused)(void *ctx, const char *reason);
    /* Binding side only, may be NULL: a HELLO of a later epoch came. Its sender is let in at once
     * when the owner calls bus_set_epoch here; else it tries again, about once a second. */
    void (*on_epoch)(void *ctx, uint64_t epoch);
};

struct bus_config {
    uv_loop_t *loop;
    const char *role;     /* of this side: "gateway", "tokenizer", "scheduler", "worker" */
    const char *name;     /* of this process: "gateway-0" */
    const char *endpoint; /* ipc:///run/.../scheduler-0 or tcp://127.0.0.1:5000 */
    const char *accepts;  /* binding side: comma-separated roles let in ("tokenizer") */
    /* Of tcp endpoints; copied. NULL: loopback only, not encrypted. */
    const struct bus_security *security;
    uint64_t epoch;         /* put into every message; others' epochs are dropped */
    int64_t silence_ms_max; /* no byte from a peer for so long: down; 0: default (3000) */
    size_t message_max;     /* 0: default (64 MiB) */
    size_t kept_bytes_max;  /* 0: default (256 MiB) */
    uint32_t peers_max;     /* 0: default (64) */
    struct bus_callbacks on;
    void *ctx;
};

/* Binds (ROUTER). ERR_BUSY when the endpoint is in use, ERR_UNSUPPORTED when it is neither ipc nor
 * a tcp address that the security allows. The strings of config are copied. */
int bus_bind(const struct bus_config *config, struct bus **out, struct err *err);

/* Connects (DEALER) and keeps trying; the one peer appears by on_up. */
int bus_connect(const struct bus_config *config, struct bus **out, struct err *err);

/* Queues a message. ERR_BUSY: too much is waiting for this peer; ERR_LIMIT: a field past its
 * bound or the message past message_max; ERR_PEER: the peer is just being reported down. Sending
 * costs no system call by itself when a batch is flushed at the loop's next turn. */
int bus_send(struct bus_peer *peer, enum proto_type type, uint64_t id, const void *message,
             struct err *err);

/* Binding side: the peer is refused with that reason and forgotten, without on_down. It may come
 * back only as a new process (see bus_set_epoch). Nothing happens in the peer's own on_down. */
void bus_refuse(struct bus_peer *peer, const char *reason);

/* Binding side: whether all who were refused have hung up, so have read why, or had the time of a
 * silence for it. Who ends before may cut the reason off. */
bool bus_settled(const struct bus *bus);

/* Binding side: another epoch begins, greater than the one before. All peers are refused as above;
 * a HELLO of an earlier epoch will be. A side that connects with epoch 0 takes part in whatever
 * epoch it is welcomed in, and keeps that one: what it sends later is late or right, never
 * mistaken. */
void bus_set_epoch(struct bus *bus, uint64_t epoch, const char *reason);
uint64_t bus_epoch(const struct bus *bus);

const char *bus_peer_name(const struct bus_peer *peer); /* "gateway-0" */
const char *bus_peer_role(const struct bus_peer *peer);
void *bus_peer_data(const struct bus_peer *peer); /* the user's, NULL at first */
void bus_peer_set_data(struct bus_peer *peer, void *data);

/* Every peer that is up, for broadcasts: NULL ends the walk. */
struct bus_peer *bus_next_peer(struct bus *bus, struct bus_peer *after);

/* Tells the peers, stops the handles and closes the socket (lingering at most 200 ms); frees when
 * the loop has run the close callbacks. No callback of the bus is called any more. May be called
 * inside one. *self = NULL. */
void bus_close(struct bus **self);

#endif

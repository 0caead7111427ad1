/* Insides of a bus, shared by bus.c (life, sending, receiving) and bus_join.c (HELLO, WELCOME,
 * REFUSE). */
#ifndef PHALANX_PROTO_BUS_PRIVATE_H
#define PHALANX_PROTO_BUS_PRIVATE_H

#include "proto/bus.h"
#include "proto/bus_link.h"
#include "proto/bus_socket.h"
#include "proto/bus_uv.h"

#define BUS_TICK_MS 200
#define BUS_NAME_MAX 64
#define BUS_ROLE_MAX 32
#define BUS_IGNORED 64

struct bus_peer {
    struct bus *bus;
    struct bus_peer *next;
    char name[BUS_NAME_MAX + 1];
    char role[BUS_ROLE_MAX + 1];
    void *data; /* the user's */
    struct bus_link link;
    uint64_t instance;      /* the other side's end of the link */
    uint64_t ours;          /* binding side: our end; connecting side: bus->instance */
    uint64_t attempt;       /* binding side: of the last HELLO */
    struct bus_route route; /* binding side: the connection it is reached by */
    bool attached;          /* there is a connection that said HELLO */
    bool down;              /* nothing is sent any more; freed when on_down returns */
    int64_t heard_ms;

    /* Connecting side: joins in a row after which nothing came through in either direction. */
    unsigned joins_idle;
    uint64_t progress;
    int64_t joined_ms;
};

/* Where the connecting side stands with its one connection. */
enum bus_join {
    JOIN_NONE,       /* no socket: wait until retry_ms */
    JOIN_CONNECTING, /* ZeroMQ connects and tries again by itself */
    JOIN_HELLO,      /* HELLO was sent, WELCOME has not come */
    JOIN_DONE,
    JOIN_REFUSED /* for good */
};

struct bus {
    struct bus_uv uv;
    uv_loop_t *loop;
    char *role, *name, *endpoint, *accepts; /* owned */
    struct bus_security security;
    uint64_t epoch;
    int64_t silence_ms_max;
    size_t message_max, kept_bytes_max;
    uint32_t peers_max;
    struct bus_callbacks on;
    void *ctx;

    bool router;
    bool closing;
    bool dirty; /* something may be ready to be sent */
    struct bus_socket *socket;
    struct bus_peer *peers;
    uint32_t peers_count;
    struct proto_arena arena; /* of the message being handled */
    struct buf scratch;       /* of the message being sent */
    uint64_t schema;
    int64_t tick_ms;
    unsigned complaints; /* log lines since the last tick */

    /* connecting side */
    enum bus_join join;
    uint64_t instance; /* our end of the link; another one after every on_down */
    int64_t since_ms;  /* when join was entered */
    int64_t retry_ms;
    int64_t alone_ms; /* since then without a link, or when that was said */

    /* binding side: connections that are not listened to any more */
    struct bus_route ignored[BUS_IGNORED];
    unsigned ignored_next;
    /* those of them that were told why and have not hung up */
    struct {
        struct bus_route route;
        int64_t until_ms;
    } told[BUS_IGNORED];
    unsigned told_next;
    /* instances of peers that were refused while they were up: not let in again */
    uint64_t refused[BUS_IGNORED];
    unsigned refused_next;
};

int64_t bus_now_ms(void);
uint64_t bus_random(void);
/* One log line about a stranger or a broken peer; a flood of them is cut off. */
void bus_complain(struct bus *bus, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Sends a message that is not numbered. to: binding side only. */
enum socket_result bus_send_control(struct bus *bus, const struct bus_route *to,
                                    enum proto_type type, const void *message);

struct bus_peer *peer_add(struct bus *bus, struct proto_str name, struct proto_str role);
/* Reports it down and frees it. */
void peer_down(struct bus_peer *peer, const char *reason);
/* A connection begins: everything kept beyond received goes out again. False: received is not
 * possible. */
bool peer_attach(struct bus_peer *peer, uint64_t received);
/* The peer broke the protocol: one log line, down, and its connection is given up. */
void peer_broken(struct bus_peer *peer, const char *reason);

/* Connecting side. */
void join_turn(struct bus *bus); /* says HELLO on a new connection, notices a lost one */
void join_tick(struct bus *bus, int64_t now_ms);
/* Gives the connection up and makes a new one, at the earliest delay_ms from now. */
void join_again(struct bus *bus, int64_t delay_ms);
void join_welcome(struct bus *bus, uint64_t epoch, const struct proto_welcome *w);
void join_refuse(struct bus *bus, const struct proto_refuse *r);

/* Binding side. */
void admit_hello(struct bus *bus, const struct bus_route *from, uint64_t epoch,
                 const struct proto_hello *h);
/* Asks the connecting side for another connection. */
void admit_again(struct bus *bus, const struct bus_route *to);
/* A message by a connection that never said HELLO, or whose link is gone. */
void admit_unknown(struct bus *bus, const struct bus_route *from);
/* Tells a stranger why, one log line, and listens to that connection no more. */
void admit_refuse(struct bus *bus, const struct bus_route *to, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void admit_tick(struct bus *bus, int64_t now_ms); /* notices who has hung up */
bool admit_is_ignored(const struct bus *bus, const struct bus_route *from);
void admit_ignore(struct bus *bus, const struct bus_route *from);
bool route_equal(const struct bus_route *a, const struct bus_route *b);

/* A name or role that may stand in log lines, file names and metrics. */
bool bus_word_valid(const char *data, size_t len, size_t len_max);

#endif

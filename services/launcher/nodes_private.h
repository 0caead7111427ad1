/* Both ends of the link between launchers: node 0's (nodes_head.c) and another's
 * (nodes_member.c). */
#ifndef PHALANX_LAUNCHER_NODES_PRIVATE_H
#define PHALANX_LAUNCHER_NODES_PRIVATE_H

#include "services/launcher/nodes.h"

#define NODES_SAY_US 5000000 /* who is missing is said so often */
#define NODE_WHO_MAX 400

/* A node's place at node 0. */
struct node_seat {
    struct bus_peer *peer; /* NULL: it is missing */
    char who[NODE_WHO_MAX];
    /* Somebody else who says that this is his place: the node itself, started again before its
     * silence was noticed, or a second one of that rank. Time tells. */
    struct bus_peer *heir;
    char heir_who[NODE_WHO_MAX];
    int64_t heir_until_us;
};

struct nodes {
    struct nodes_config config;
    struct bus *bus;
    uv_timer_t tick;
    bool ended;       /* no callback any more */
    int64_t since_us; /* waits since then */
    int64_t said_us;
    /* node 0 */
    struct node_seat seats[NODES_MAX];
    bool complete;
    bool formed; /* was complete once */
    bool ready;
    char reason[256]; /* why not */
    /* others */
    struct bus_peer *head; /* NULL: node 0 is not there */
};

void head_on_up(void *ctx, struct bus_peer *peer);
void head_on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                     const void *message);
void head_on_down(void *ctx, struct bus_peer *peer, const char *why);
void head_tick(struct nodes *n, int64_t now_us);

void member_on_up(void *ctx, struct bus_peer *peer);
void member_on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                       const void *message);
void member_on_down(void *ctx, struct bus_peer *peer, const char *why);
void member_on_refused(void *ctx, const char *why);
void member_tick(struct nodes *n, int64_t now_us);

bool nodes_late(const struct nodes *n, int64_t now_us); /* waits longer than --dist-timeout */
bool nodes_due(struct nodes *n, int64_t now_us);        /* time to say something again */
void nodes_finish(struct nodes *n, bool failed, const char *reason); /* on_end, once */

#endif

/* Where this node stands among the nodes, from its options and its network. */
#ifndef PHALANX_LAUNCHER_NODE_PLACE_H
#define PHALANX_LAUNCHER_NODE_PLACE_H

#include "common/err.h"
#include "common/options.h"

#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define NODES_MAX 64
#define NODE_ADDRESS_MAX 64

struct node_place {
    uint32_t count, rank;           /* --nnodes, --node-rank */
    uint32_t first_rank, ranks;     /* of every replica: those of this node */
    double timeout_s;               /* --dist-timeout */
    char init[320];                 /* --dist-init-addr as given */
    char host[NODE_ADDRESS_MAX];    /* node 0's address, in brackets when it is IPv6 */
    char endpoint[96];              /* tcp://HOST:PORT of node 0's launcher */
    bool loopback;                  /* node 0 can only be reached from its own machine */
    char interface[IF_NAMESIZE];    /* over which the ranks of this node talk */
    char address[NODE_ADDRESS_MAX]; /* of this node on it */
};

/* Checks what belongs together; with --nnodes 1 the rest stays empty. The interface is
 * --dist-interface, else the one that leads to node 0. */
int node_place_init(struct node_place *p, const struct options *o, struct err *err);

/* An interface of this machine that is up: the one of that name or else the first that it means as
 * a list in NCCL_SOCKET_IFNAME ("eth,ib" prefixes, "=eth0" whole names, "^lo" all but these); or
 * the one that has the address. */
int node_interface_named(const char *name, struct node_place *p, struct err *err);
int node_interface_of(const struct sockaddr *address, struct node_place *p, struct err *err);

/* Whether the address is one of this machine. */
bool node_address_is_ours(const struct sockaddr *address);

/* Address as text, IPv6 without brackets; and whether it is a loopback address. */
void node_address_text(const struct sockaddr *address, char *text, size_t size);
bool node_address_is_loopback(const struct sockaddr *address);

/* A tcp port of that address that nobody uses just now. */
int node_free_port(const char *host, uint16_t *port, struct err *err);

#endif

#include "services/launcher/node_place.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int check_count(struct node_place *p, const struct options *o, struct err *err)
{
    uint32_t tp = (uint32_t)options_int(o, OPT_TP_SIZE);

    if (p->rank >= p->count)
        return err_set(err, ERR_INVALID, "--node-rank %u: with --nnodes %u it is 0 to %u", p->rank,
                       p->count, p->count - 1);
    if (tp % p->count)
        return err_set(err, ERR_INVALID,
                       "--tp-size %u can not be spread evenly over --nnodes %u: it has to be a "
                       "multiple",
                       tp, p->count);
    p->ranks = tp / p->count;
    p->first_rank = p->rank * p->ranks;
    return 0;
}

/* HOST:PORT, [HOST]:PORT for IPv6. */
static int address_split(const char *text, char *host, size_t size, int *port, struct err *err)
{
    const char *colon = strrchr(text, ':');
    size_t len = colon ? (size_t)(colon - text) : 0;
    char *end = NULL;
    long number = colon ? strtol(colon + 1, &end, 10) : 0;

    if (!colon || !len || len >= size || colon[1] < '0' || colon[1] > '9' || *end || number < 1 ||
        number > 65535)
        return err_set(err, ERR_INVALID,
                       "--dist-init-addr %.200s: it is HOST:PORT, with a port from 1 to 65535",
                       text);
    if (*text == '[' && text[len - 1] == ']') {
        text++;
        len -= 2;
    }
    memcpy(host, text, len);
    host[len] = '\0';
    *port = (int)number;
    return 0;
}

static bool is_wildcard(const struct sockaddr *a)
{
    const struct sockaddr_in6 *v6 = (const void *)a;
    const struct sockaddr_in *v4 = (const void *)a;

    return a->sa_family == AF_INET6 ? IN6_IS_ADDR_UNSPECIFIED(&v6->sin6_addr)
                                    : v4->sin_addr.s_addr == htonl(INADDR_ANY);
}

/* The address that a packet to `to` would leave from. */
static int address_towards(const struct sockaddr *to, socklen_t len, struct sockaddr_storage *own,
                           struct err *err)
{
    socklen_t own_len = sizeof *own;
    int fd = socket(to->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int rc = 0;

    if (fd < 0 || connect(fd, to, len) || getsockname(fd, (struct sockaddr *)own, &own_len))
        rc = err_errno(err, ERR_IO, "there is no way from this node to it");
    if (fd >= 0)
        (void)close(fd);
    return rc;
}

static int choose_interface(struct node_place *p, const struct options *o,
                            const struct addrinfo *head, struct err *err)
{
    const char *name = options_str(o, OPT_DIST_INTERFACE);
    struct sockaddr_storage own;
    int rc;

    if (*name)
        return node_interface_named(name, p, err);
    rc = address_towards(head->ai_addr, head->ai_addrlen, &own, err);
    /* 127.0.1.1 is on the same interface as 127.0.0.1, which is the one that it shows. */
    if (!rc && node_address_is_loopback((struct sockaddr *)&own) && own.ss_family == AF_INET)
        ((struct sockaddr_in *)&own)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return rc ? rc : node_interface_of((struct sockaddr *)&own, p, err);
}

/* Of the addresses that the name has: on node 0 one of its own, elsewhere the first. */
static const struct addrinfo *choose_address(const struct node_place *p,
                                             const struct addrinfo *found)
{
    const struct addrinfo *a = found;

    while (p->rank == 0 && a && !node_address_is_ours(a->ai_addr))
        a = a->ai_next;
    return a;
}

static int take_address(struct node_place *p, const struct options *o, const struct addrinfo *found,
                        int port, struct err *err)
{
    const struct addrinfo *a;
    char text[NODE_ADDRESS_MAX - 2];

    if (is_wildcard(found->ai_addr))
        return err_set(err, ERR_INVALID,
                       "--dist-init-addr %s: it is one address of node 0, not all of them",
                       p->init);
    a = choose_address(p, found);
    node_address_text(a ? a->ai_addr : found->ai_addr, text, sizeof text);
    if (!a)
        return err_set(err, ERR_INVALID,
                       "--dist-init-addr %s: %s is no address of this machine, and node 0 binds it "
                       "(--node-rank is 0)",
                       p->init, text);
    p->loopback = node_address_is_loopback(a->ai_addr);
    (void)snprintf(p->host, sizeof p->host, a->ai_family == AF_INET6 ? "[%s]" : "%s", text);
    (void)snprintf(p->endpoint, sizeof p->endpoint, "tcp://%s:%d", p->host, port);
    return choose_interface(p, o, a, err);
}

int node_place_init(struct node_place *p, const struct options *o, struct err *err)
{
    const char *init = options_str(o, OPT_DIST_INIT_ADDR);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    char host[256], service[8];
    int port = 0, rc;

    *p = (struct node_place){.count = (uint32_t)options_int(o, OPT_NNODES),
                             .rank = (uint32_t)options_int(o, OPT_NODE_RANK)};
    rc = check_count(p, o, err);
    p->timeout_s = options_float(o, OPT_DIST_TIMEOUT);
    if (rc || p->count == 1)
        return rc;
    if (!*init)
        return err_set(err, ERR_INVALID,
                       "--dist-init-addr is missing: with --nnodes %u the nodes meet there",
                       p->count);
    (void)snprintf(p->init, sizeof p->init, "%.300s", init);
    rc = address_split(init, host, sizeof host, &port, err);
    if (rc)
        return rc;
    (void)snprintf(service, sizeof service, "%d", port);
    rc = getaddrinfo(host, service, &hints, &found);
    if (rc)
        return err_set(err, ERR_INVALID, "--dist-init-addr %s: %s", p->init, gai_strerror(rc));
    rc = take_address(p, o, found, port, err);
    freeaddrinfo(found);
    return rc;
}

int node_free_port(const char *host, uint16_t *port, struct err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST}, *found = NULL;
    char bare[NODE_ADDRESS_MAX];
    struct sockaddr_storage own;
    socklen_t len = sizeof own;
    int fd, rc = 0;

    (void)snprintf(bare, sizeof bare, "%s", *host == '[' ? host + 1 : host);
    bare[strcspn(bare, "]")] = '\0';
    if (getaddrinfo(bare, "0", &hints, &found))
        return err_set(err, ERR_INVALID, "%s is no address", host);
    fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, found->ai_addr, found->ai_addrlen) ||
        getsockname(fd, (struct sockaddr *)&own, &len))
        rc = err_errno(err, ERR_IO, "no free port at %s", host);
    else
        *port = ntohs(own.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&own)->sin6_port
                                                : ((struct sockaddr_in *)&own)->sin_port);
    if (fd >= 0)
        (void)close(fd);
    freeaddrinfo(found);
    return rc;
}

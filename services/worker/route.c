#include "services/worker/route.h"

#include <errno.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HOST_MAX 256

/* The host of tcp://host:port, without the brackets of an IPv6 address. */
static int split_endpoint(const char *endpoint, char host[HOST_MAX], const char **port,
                          struct err *err)
{
    const char *begin = endpoint + strlen("tcp://");
    const char *end = strrchr(begin, ':');

    if (!end)
        return err_set(err, ERR_INVALID, "endpoint %s: needs a port", endpoint);
    *port = end + 1;
    if (*begin == '[' && end[-1] == ']') {
        begin++;
        end--;
    }
    if (end - begin >= HOST_MAX)
        return err_set(err, ERR_INVALID, "endpoint %s: the host's name is too long", endpoint);
    (void)snprintf(host, HOST_MAX, "%.*s", (int)(end - begin), begin);
    return 0;
}

/* Our own address on the way to another. */
static int own_address(const struct addrinfo *to, struct sockaddr_storage *own)
{
    socklen_t len = sizeof *own;
    int fd = socket(to->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int rc = fd < 0 || connect(fd, to->ai_addr, to->ai_addrlen) ||
             getsockname(fd, (struct sockaddr *)own, &len);

    if (fd >= 0)
        (void)close(fd);
    return rc;
}

static bool same_address(const struct sockaddr *a, const struct sockaddr_storage *b)
{
    if (!a || a->sa_family != b->ss_family)
        return false;
    if (a->sa_family == AF_INET)
        return memcmp(&((const struct sockaddr_in *)(const void *)a)->sin_addr,
                      &((const struct sockaddr_in *)(const void *)b)->sin_addr,
                      sizeof(struct in_addr)) == 0;
    return a->sa_family == AF_INET6 &&
           memcmp(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr,
                  &((const struct sockaddr_in6 *)(const void *)b)->sin6_addr,
                  sizeof(struct in6_addr)) == 0;
}

/* Leaves name "" for loopback. */
static int interface_of(const struct sockaddr_storage *own, char name[IF_NAMESIZE])
{
    struct ifaddrs *all = NULL;
    int rc = -1;

    if (getifaddrs(&all))
        return -1;
    for (const struct ifaddrs *i = all; i && rc; i = i->ifa_next) {
        if (!same_address(i->ifa_addr, own))
            continue;
        rc = 0;
        if (!(i->ifa_flags & IFF_LOOPBACK))
            (void)snprintf(name, IF_NAMESIZE, "%s", i->ifa_name);
    }
    freeifaddrs(all);
    return rc;
}

int route_interface(const char *endpoint, char name[IF_NAMESIZE], struct err *err)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_DGRAM};
    struct addrinfo *found = NULL;
    struct sockaddr_storage own = {0};
    char host[HOST_MAX];
    const char *port = NULL;
    int rc;

    name[0] = '\0';
    if (strncmp(endpoint, "tcp://", 6) != 0)
        return 0;
    rc = split_endpoint(endpoint, host, &port, err);
    if (rc)
        return rc;
    rc = getaddrinfo(host, port, &hints, &found);
    if (rc)
        return err_set(err, ERR_PEER, "endpoint %s: %s", endpoint, gai_strerror(rc));
    if (own_address(found, &own) || interface_of(&own, name))
        rc = err_set(err, ERR_PEER, "endpoint %s: no interface leads there; give --dist-interface",
                     endpoint);
    freeaddrinfo(found);
    return rc;
}

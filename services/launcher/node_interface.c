/* The network interfaces of this machine, and which of them the ranks talk over. */
#include "services/launcher/node_place.h"

#include "common/buf.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

void node_address_text(const struct sockaddr *address, char *text, size_t size)
{
    const void *bytes =
        address->sa_family == AF_INET6
            ? (const void *)&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr
            : (const void *)&((const struct sockaddr_in *)(const void *)address)->sin_addr;

    if (!inet_ntop(address->sa_family, bytes, text, (socklen_t)size))
        *text = '\0';
}

bool node_address_is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(
            &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr);
    return ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr) >> 24 == 127;
}

/* Up, and with an address that ranks can use: no link-local one, which needs more than itself. */
static bool is_usable(const struct ifaddrs *i)
{
    if (!i->ifa_addr || !(i->ifa_flags & IFF_UP))
        return false;
    if (i->ifa_addr->sa_family == AF_INET)
        return true;
    return i->ifa_addr->sa_family == AF_INET6 &&
           !IN6_IS_ADDR_LINKLOCAL(
               &((const struct sockaddr_in6 *)(const void *)i->ifa_addr)->sin6_addr);
}

static bool same_address(const struct sockaddr *a, const struct sockaddr *b)
{
    char one[NODE_ADDRESS_MAX], other[NODE_ADDRESS_MAX];

    if (a->sa_family != b->sa_family)
        return false;
    node_address_text(a, one, sizeof one);
    node_address_text(b, other, sizeof other);
    return strcmp(one, other) == 0;
}

/* "lo 127.0.0.1, eth0 10.0.0.2": what there is, for messages. */
static void interfaces_text(const struct ifaddrs *all, struct buf *out)
{
    buf_puts(out, "");
    for (const struct ifaddrs *i = all; i; i = i->ifa_next) {
        char address[NODE_ADDRESS_MAX];

        if (!is_usable(i) || out->len > 300)
            continue;
        node_address_text(i->ifa_addr, address, sizeof address);
        buf_printf(out, "%s%s %s", out->len ? ", " : "", i->ifa_name, address);
    }
}

/* One word of a list: a prefix or, after '=', a whole name. */
static bool word_means(const char *word, size_t len, bool whole, const char *name)
{
    return strncmp(name, word, len) == 0 && (!whole || name[len] == '\0');
}

static bool list_means(const char *list, const char *name)
{
    bool but = *list == '^';
    bool whole = list[but] == '=';
    const char *at = list + but + whole;

    while (*at) {
        size_t len = strcspn(at, ",");

        if (len && word_means(at, len, whole, name))
            return !but;
        at += len + (at[len] == ',');
    }
    return but;
}

/* What an interface is looked for by: one of the three is given. */
struct wanted {
    const char *name, *list;
    const struct sockaddr *address;
};

static bool is_wanted(const struct wanted *w, const struct ifaddrs *i)
{
    if (!is_usable(i))
        return false;
    if (w->name)
        return strcmp(i->ifa_name, w->name) == 0;
    if (w->list) /* loopback only where it is asked for by name */
        return list_means(w->list, i->ifa_name) &&
               (*w->list != '^' || !(i->ifa_flags & IFF_LOOPBACK));
    return same_address(i->ifa_addr, w->address);
}

/* IPv4 before IPv6; false: none, and `there` says what there is. */
static bool interface_find(const struct wanted *w, struct node_place *p, struct buf *there)
{
    struct ifaddrs *all = NULL;
    const struct ifaddrs *found = NULL;

    if (getifaddrs(&all))
        all = NULL;
    for (const struct ifaddrs *i = all; i; i = i->ifa_next)
        if (is_wanted(w, i) && (!found || (found->ifa_addr->sa_family == AF_INET6 &&
                                           i->ifa_addr->sa_family == AF_INET)))
            found = i;
    if (found) {
        (void)snprintf(p->interface, sizeof p->interface, "%s", found->ifa_name);
        node_address_text(found->ifa_addr, p->address, sizeof p->address);
    }
    interfaces_text(all, there);
    if (all)
        freeifaddrs(all);
    return found != NULL;
}

int node_interface_named(const char *name, struct node_place *p, struct err *err)
{
    struct buf there = {0};
    int rc = 0;

    if (!interface_find(&(struct wanted){.name = name}, p, &there)) {
        buf_clear(&there);
        if (!interface_find(&(struct wanted){.list = name}, p, &there))
            rc = err_set(err, ERR_INVALID,
                         "--dist-interface %.64s: this node has no such interface that is up and "
                         "has an address; it has: %s",
                         name, there.data);
    }
    buf_fini(&there);
    return rc;
}

int node_interface_of(const struct sockaddr *address, struct node_place *p, struct err *err)
{
    struct buf there = {0};
    char text[NODE_ADDRESS_MAX];
    int rc = 0;

    node_address_text(address, text, sizeof text);
    if (!interface_find(&(struct wanted){.address = address}, p, &there))
        rc = err_set(err, ERR_INVALID, "no interface of this node has the address %s; it has: %s",
                     text, there.data);
    buf_fini(&there);
    return rc;
}

bool node_address_is_ours(const struct sockaddr *address)
{
    struct node_place ignored;
    struct buf there = {0};
    bool ours = interface_find(&(struct wanted){.address = address}, &ignored, &there);

    buf_fini(&there);
    /* The whole of 127.0.0.0/8 is this machine, of which interfaces show one address. */
    return ours || node_address_is_loopback(address);
}

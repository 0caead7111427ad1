#include "proto/launcher_link.h"

#include "common/log.h"

static void on_up(void *ctx, struct bus_peer *peer)
{
    (void)ctx;
    log_info("peer=%s \"connected\"", bus_peer_name(peer));
}

static void on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                       const void *message)
{
    (void)ctx;
    (void)message;
    log_warn("peer=%s sent %s, which nobody waits for", bus_peer_name(peer),
             proto_type_name(header->type));
}

static void on_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    (void)ctx;
    log_line(bus_peer_ended(reason) ? LOG_INFO : LOG_WARN, "peer=%s is gone: %s",
             bus_peer_name(peer), reason);
}

static void on_refused(void *ctx, const char *reason)
{
    (void)ctx;
    log_warn("the launcher lets nobody in: %s", reason);
}

int launcher_link_open(const struct bus_config *shared, const char *endpoint, struct bus **out,
                       struct err *err)
{
    struct bus_config bus = {
        .loop = shared->loop,
        .role = shared->role,
        .name = shared->name,
        .endpoint = endpoint,
        .silence_ms_max = shared->silence_ms_max,
        .on = {.on_up = on_up,
               .on_message = on_message,
               .on_down = on_down,
               .on_refused = on_refused},
    };

    return *endpoint ? bus_connect(&bus, out, err) : 0;
}

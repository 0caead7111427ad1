#include "services/launcher/node_health.h"

#include "common/log.h"

#include <stdio.h>
#include <string.h>

static void health_send(const struct node_health *h, struct bus_peer *peer)
{
    struct proto_state m = {.ready = h->ready, .reason = proto_str(h->reason)};

    (void)bus_send(peer, PROTO_STATE, 0, &m, NULL); /* who comes back is told anew */
}

static void on_up(void *ctx, struct bus_peer *peer)
{
    health_send(ctx, peer);
}

static void on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                       const void *message)
{
    (void)ctx;
    (void)message;
    log_debug("peer=%s message=%s \"nothing is served here\"", bus_peer_name(peer),
              proto_type_name(header->type));
}

static void on_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    (void)ctx;
    log_debug("peer=%s \"%s\"", bus_peer_name(peer), reason);
}

int node_health_open(struct node_health *h, uv_loop_t *loop, const char *endpoint, struct err *err)
{
    struct bus_config bus = {
        .loop = loop,
        .role = "tokenizer",
        .name = "launcher",
        .endpoint = endpoint,
        .accepts = "gateway",
        .on = {.on_up = on_up, .on_message = on_message, .on_down = on_down},
        .ctx = h,
    };

    *h = (struct node_health){.reason = "waiting for node 0"};
    return bus_bind(&bus, &h->bus, err);
}

void node_health_set(struct node_health *h, bool ready, const char *reason)
{
    struct bus_peer *peer = NULL;

    if (h->ready == ready && strcmp(h->reason, reason) == 0)
        return;
    h->ready = ready;
    (void)snprintf(h->reason, sizeof h->reason, "%s", reason);
    while (h->bus && (peer = bus_next_peer(h->bus, peer)))
        health_send(h, peer);
}

void node_health_close(struct node_health *h)
{
    if (h->bus)
        bus_close(&h->bus);
}

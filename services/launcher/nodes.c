#include "services/launcher/nodes_private.h"

#include "common/clock.h"
#include "common/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define TICK_MS 200 /* wakes nodes_wait, too */
#define WAIT_US 1000000

bool nodes_late(const struct nodes *n, int64_t now_us)
{
    return (double)(now_us - n->since_us) > n->config.place->timeout_s * 1e6;
}

bool nodes_due(struct nodes *n, int64_t now_us)
{
    if (now_us - n->said_us < NODES_SAY_US)
        return false;
    n->said_us = now_us;
    return true;
}

void nodes_finish(struct nodes *n, bool failed, const char *reason)
{
    if (n->ended)
        return;
    n->ended = true;
    n->config.on.on_end(n->config.ctx, failed, reason);
}

static void on_tick(uv_timer_t *timer)
{
    struct nodes *n = timer->data;
    int64_t now_us = clock_mono_us();

    if (n->ended)
        return;
    if (n->config.place->rank == 0)
        head_tick(n, now_us);
    else
        member_tick(n, now_us);
}

static int open_bus(struct nodes *n, struct err *err)
{
    const struct node_place *place = n->config.place;
    bool head = place->rank == 0;
    unsigned long long number = 0;
    char name[64];
    struct bus_config bus = {
        .loop = n->config.loop,
        .role = "node",
        .name = name,
        .endpoint = place->endpoint,
        .accepts = "node",
        .security = n->config.security,
        .silence_ms_max = (int64_t)(n->config.heartbeat_timeout_s * 1e3),
        .peers_max = 2 * NODES_MAX,
        .on = {.on_up = head ? head_on_up : member_on_up,
               .on_message = head ? head_on_message : member_on_message,
               .on_down = head ? head_on_down : member_on_down,
               .on_refused = head ? NULL : member_on_refused},
        .ctx = n,
    };

    /* Two that were given the same rank must not look like one that came again: each start of a
     * launcher has a name of its own. */
    number = (unsigned long long)clock_wall_us() ^ (unsigned long long)getpid() << 44;
    (void)snprintf(name, sizeof name, "node-%u-%llx", place->rank, number);
    return head ? bus_bind(&bus, &n->bus, err) : bus_connect(&bus, &n->bus, err);
}

int nodes_open(const struct nodes_config *config, struct nodes **out, struct err *err)
{
    struct nodes *n = mem_zalloc(sizeof *n);
    int rc;

    *out = NULL;
    n->config = *config;
    n->since_us = clock_mono_us();
    (void)snprintf(n->reason, sizeof n->reason, "loading");
    rc = open_bus(n, err);
    if (rc) {
        if (rc == ERR_BUSY)
            (void)err_set(err, ERR_BUSY, "--dist-init-addr %s is in use by another program",
                          config->place->init);
        free(n);
        return rc;
    }
    (void)uv_timer_init(config->loop, &n->tick);
    n->tick.data = n;
    (void)uv_timer_start(&n->tick, on_tick, TICK_MS, TICK_MS);
    *out = n;
    return 0;
}

static void on_closed(uv_handle_t *handle)
{
    free(handle->data);
}

void nodes_close(struct nodes **self)
{
    struct nodes *n = *self;

    *self = NULL;
    if (!n)
        return;
    n->ended = true;
    bus_close(&n->bus);
    uv_close((uv_handle_t *)&n->tick, on_closed);
}

void nodes_wait(struct nodes *n)
{
    int64_t end_us = clock_mono_us() + WAIT_US;

    n->ended = true;
    while ((bus_next_peer(n->bus, NULL) || !bus_settled(n->bus)) && clock_mono_us() < end_us)
        (void)uv_run(n->config.loop, UV_RUN_ONCE);
}

void nodes_end(struct nodes *n, bool failed, const char *reason)
{
    struct proto_node_end m = {.failed = failed, .reason = proto_str(reason)};
    struct bus_peer *peer = NULL;

    n->ended = true;
    while ((peer = bus_next_peer(n->bus, peer)))
        (void)bus_send(peer, PROTO_NODE_END, 0, &m, NULL); /* who is not there notices */
}

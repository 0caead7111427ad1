/* Node 0: its recovery decides, the other nodes follow. */
#include "services/launcher/node_serve.h"

#include "common/log.h"

#include <stdio.h>

static void on_complete(void *ctx)
{
    struct node_serve *n = ctx;

    log_say("phalanx: all %u nodes are here, %u ranks each", n->place.count, n->place.ranks);
    recovery_release(n->recovery);
}

static void on_rank_down(void *ctx, uint32_t replica, uint64_t epoch, const char *reason)
{
    struct node_serve *n = ctx;

    if (replica >= (uint32_t)n->recovery->replicas_count)
        return;
    control_say_down(n->recovery->control, (int)replica, epoch, reason);
    recovery_group_down(n->recovery, (int)replica, epoch, reason);
}

static void on_parted(void *ctx, const char *reason)
{
    struct node_serve *n = ctx;
    const struct recovery *r = n->recovery;

    log_say("phalanx: %s; the ranks of all nodes end until it is back", reason);
    for (int i = 0; i < r->replicas_count; i++)
        nodes_kill(n->nodes, (uint32_t)i, r->replicas[i].epoch);
    recovery_hold(n->recovery, reason);
}

static void on_end(void *ctx, bool failed, const char *reason)
{
    struct node_serve *n = ctx;

    (void)failed;
    n->ended = true;
    recovery_end(n->recovery, reason);
}

int node_zero_open(struct node_serve *n, uv_loop_t *loop, const struct options *o,
                   struct recovery *r, struct err *err)
{
    struct nodes_config config = {
        .loop = loop,
        .place = &n->place,
        .self = &n->self,
        .security = &n->security,
        .heartbeat_timeout_s = options_float(o, OPT_HEARTBEAT_TIMEOUT),
        .on = {.on_complete = on_complete,
               .on_rank_down = on_rank_down,
               .on_parted = on_parted,
               .on_end = on_end},
        .ctx = n,
    };

    if (n->place.count == 1)
        return 0;
    n->recovery = r;
    r->held = true;
    return nodes_open(&config, &n->nodes, err);
}

void node_zero_epoch(struct node_serve *n, int replica, uint64_t epoch)
{
    const struct group *group = &n->recovery->replicas[replica].group;

    nodes_start(n->nodes, (uint32_t)replica, epoch, group->config.worker_endpoint);
}

void node_zero_state(struct node_serve *n, bool ready)
{
    if (n->nodes && nodes_complete(n->nodes))
        nodes_state(n->nodes, ready, ready ? "" : "recovering");
}

void node_zero_end(struct node_serve *n, bool failed, const char *reason)
{
    if (n->nodes && !n->ended)
        nodes_end(n->nodes, failed, reason);
}

void node_zero_close(struct node_serve *n)
{
    if (!n->nodes)
        return;
    nodes_wait(n->nodes);
    nodes_close(&n->nodes);
}

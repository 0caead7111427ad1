/* A node other than 0: its ranks, as node 0 says, and /health. */
#include "services/launcher/node_serve.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "services/launcher/node_health.h"
#include "services/launcher/snapshot.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXIT_FAILED = 1 };

struct other {
    struct node_serve *node;
    const struct commands *commands;
    uv_loop_t loop;
    struct supervisor children;
    struct node_health health;
    struct bus *readers;             /* `phalanx status` */
    struct recovery view;            /* what that reads; nothing is decided here */
    struct group groups[GROUPS_MAX]; /* by replica */
    char *endpoints[GROUPS_MAX];     /* of their schedulers */
    int replicas;
    int status;
};

static void other_stop(struct other *o, int status)
{
    o->status = status;
    uv_stop(&o->loop);
}

/* This node can not go on: node 0 waits for it to come again. */
static void other_fail(struct other *o, const char *why)
{
    log_say("phalanx: %s", why);
    nodes_end(o->node->nodes, true, why);
    other_stop(o, EXIT_FAILED);
}

/* ---- what node 0 says ---- */

static void on_start(void *ctx, const struct node_ranks *ranks)
{
    struct other *o = ctx;
    struct group *group;
    struct err err = {0};

    if (ranks->replica >= (uint32_t)o->replicas)
        return;
    group = &o->groups[ranks->replica];
    if (ranks->epoch <= group->epoch)
        return;
    free(o->endpoints[ranks->replica]);
    o->endpoints[ranks->replica] = mem_strdup(ranks->endpoint);
    group->config.worker_endpoint = o->endpoints[ranks->replica];
    log_say("phalanx: node %u starts its ranks %u to %u of replica %u (epoch %" PRIu64 ")",
            o->node->place.rank, ranks->first, ranks->first + ranks->count - 1, ranks->replica,
            ranks->epoch);
    if (group_start(group, ranks->epoch, &err))
        other_fail(o, err.msg);
}

static void on_kill(void *ctx, uint32_t replica, uint64_t epoch)
{
    struct other *o = ctx;

    if (replica < (uint32_t)o->replicas)
        group_kill(&o->groups[replica], epoch);
}

static void on_state(void *ctx, bool ready, const char *reason)
{
    struct other *o = ctx;

    if (!ready && o->health.ready)
        log_say("phalanx: node 0: %s", reason);
    node_health_set(&o->health, ready, reason);
}

/* Node 0 that comes back may be another process, which begins with epoch 1. */
static void on_parted(void *ctx, const char *reason)
{
    struct other *o = ctx;

    log_say("phalanx: %s; the ranks of this node end, it waits for node 0", reason);
    node_health_set(&o->health, false, "node 0 is gone");
    for (int i = 0; i < o->replicas; i++) {
        group_kill(&o->groups[i], UINT64_MAX);
        o->groups[i].epoch = 0;
    }
}

static void on_end(void *ctx, bool failed, const char *reason)
{
    struct other *o = ctx;

    log_say("phalanx: %s", reason);
    nodes_close(&o->node->nodes); /* node 0 waits for that */
    other_stop(o, failed ? EXIT_FAILED : 0);
}

/* ---- children ---- */

static void worker_ended(struct other *o, const struct child *child, const char *how)
{
    struct group *group = &o->groups[child->replica];
    struct err err = {0};

    if (group_lost(group, child)) {
        log_say("phalanx: %s", how);
        node_health_set(&o->health, false, "recovering");
        nodes_rank_down(o->node->nodes, (uint32_t)child->replica, group->epoch, how);
        group_kill(group, group->epoch);
    }
    if (group_settle(group, &err))
        other_fail(o, err.msg);
}

static void gateway_ended(struct other *o, const char *how)
{
    struct err err = {0};

    log_say("phalanx: %s", how);
    if (!restarts_take(&o->view.gateway_restarts[0], clock_mono_us()))
        other_fail(o, "/health can not be answered");
    else if (commands_start_health(o->commands, &o->children, &err))
        other_fail(o, err.msg);
}

static void on_child_end(void *ctx, const struct child *child, const char *how)
{
    struct other *o = ctx;

    if (!o->node->nodes)
        return;
    if (child->role == CHILD_WORKER)
        worker_ended(o, child, how);
    else
        gateway_ended(o, how);
}

static void on_signal(void *ctx, int number)
{
    struct other *o = ctx;
    char reason[64];

    (void)snprintf(reason, sizeof reason, "stopped (SIG%s)", sigabbrev_np(number));
    if (!o->node->nodes)
        return;
    log_say("phalanx: %s", reason);
    nodes_end(o->node->nodes, false, reason);
    other_stop(o, 0);
}

/* ---- phalanx status ---- */

static void on_reader(void *ctx, struct bus_peer *peer)
{
    struct other *o = ctx;
    struct snapshot *now = mem_zalloc(sizeof *now);
    struct err err;

    o->view.started = o->health.ready;
    snapshot_take(now, &o->view);
    if (bus_send(peer, PROTO_NODE_STATUS, 0, &now->message, &err))
        log_warn("%s: %s", bus_peer_name(peer), err.msg);
    free(now);
}

static void on_reader_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                              const void *message)
{
    (void)ctx;
    (void)message;
    log_warn("%s sent %s, which is not for a launcher", bus_peer_name(peer),
             proto_type_name(header->type));
}

static void on_reader_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    (void)ctx;
    log_debug("peer=%s \"%s\"", bus_peer_name(peer), reason);
}

static int open_status(struct other *o, struct err *err)
{
    char *endpoint = rundir_endpoints(o->commands->run, "control", 0, 1);
    struct bus_config bus = {
        .loop = &o->loop,
        .role = "launcher",
        .name = "launcher",
        .endpoint = endpoint,
        .accepts = "status",
        .on = {.on_up = on_reader, .on_message = on_reader_message, .on_down = on_reader_down},
        .ctx = o};
    int rc = bus_bind(&bus, &o->readers, err);

    o->view.commands = o->commands;
    o->view.children = &o->children;
    o->view.start_us = clock_mono_us();
    free(endpoint);
    return rc;
}

/* ---- the process ---- */

static void init_groups(struct other *o)
{
    const struct node_place *place = &o->node->place;
    int ranks = (int)place->ranks, first = (int)place->first_rank;
    int all = ranks * (int)place->count;

    o->replicas = (int)options_int(o->commands->options, OPT_DP_SIZE);
    for (int i = 0; i < o->replicas; i++)
        group_configure(&o->groups[i], &(struct group_config){.commands = o->commands,
                                                              .children = &o->children,
                                                              .replica = i,
                                                              .first_rank = first,
                                                              .last_rank = first + ranks - 1,
                                                              .first_device = i * ranks,
                                                              .first_name = i * all});
}

static int other_open(struct other *o, struct err *err)
{
    struct node_serve *n = o->node;
    struct nodes_config config = {
        .loop = &o->loop,
        .place = &n->place,
        .self = &n->self,
        .security = &n->security,
        .heartbeat_timeout_s = options_float(o->commands->options, OPT_HEARTBEAT_TIMEOUT),
        .on = {.on_start = on_start,
               .on_kill = on_kill,
               .on_state = on_state,
               .on_parted = on_parted,
               .on_end = on_end},
        .ctx = o,
    };
    char *endpoint = rundir_endpoints(o->commands->run, "tokenizer", 0, 1);
    int rc = node_health_open(&o->health, &o->loop, endpoint, err);

    free(endpoint);
    if (!rc)
        rc = open_status(o, err);
    if (!rc)
        rc = nodes_open(&config, &n->nodes, err);
    if (!rc)
        rc = commands_start_health(o->commands, &o->children, err);
    return rc;
}

static int other_serve(struct other *o, struct err *err)
{
    static const struct supervisor_callbacks on = {.on_end = on_child_end, .on_signal = on_signal};
    const struct node_place *p = &o->node->place;

    init_groups(o);
    if (supervisor_init(&o->children, &o->loop, &on, o, err))
        return EXIT_FAILED;
    log_say("Phalanx %s: %s, node %u of %u: ranks %u to %u over %s (%s), node 0 is %s",
            PHALANX_VERSION, commands_served_name(o->commands), p->rank, p->count, p->first_rank,
            p->first_rank + p->ranks - 1, p->interface, p->address, p->init);
    o->status = EXIT_FAILED;
    if (!other_open(o, err))
        (void)uv_run(&o->loop, UV_RUN_DEFAULT);
    supervisor_stop(&o->children, o->status ? FAIL_GRACE_MS : STOP_GRACE_MS);
    return o->status;
}

int node_other_run(struct node_serve *n, const struct commands *commands, struct err *err)
{
    struct other *o = mem_zalloc(sizeof *o);
    int status = EXIT_FAILED;

    o->node = n;
    o->commands = commands;
    o->children.signal_fd = -1;
    if (uv_loop_init(&o->loop)) {
        (void)err_set(err, ERR_INTERNAL, "no event loop");
    } else {
        status = other_serve(o, err);
        if (n->nodes)
            nodes_wait(n->nodes);
        nodes_close(&n->nodes);
        node_health_close(&o->health);
        if (o->readers)
            bus_close(&o->readers);
        supervisor_fini(&o->children);
        (void)uv_run(&o->loop, UV_RUN_DEFAULT);
        (void)uv_loop_close(&o->loop);
    }
    for (int i = 0; i < GROUPS_MAX; i++)
        free(o->endpoints[i]);
    free(o);
    return status;
}

/* A node other than 0: does what node 0 says. */
#include "services/launcher/nodes_private.h"

#include "common/clock.h"
#include "common/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Why there may be no answer. Who has another key gets none: that looks like nobody. */
static void alone_text(const struct nodes *n, char *text, size_t size)
{
    const struct node_place *p = n->config.place;

    (void)snprintf(
        text, size, "no answer from node 0 at %s: nobody is there, or %s%s", p->init,
        n->config.security->keyed ? "its cluster key is another" : "it wants a cluster key",
        p->loopback ? "; it is a loopback address: node 0 would be on this machine" : "");
}

void member_tick(struct nodes *n, int64_t now_us)
{
    const struct node_place *p = n->config.place;
    char text[600], reason[700];

    if (n->head)
        return;
    alone_text(n, text, sizeof text);
    if (nodes_late(n, now_us)) {
        (void)snprintf(reason, sizeof reason, "%s; gave up after %g s (--dist-timeout)", text,
                       p->timeout_s);
        nodes_finish(n, true, reason);
    } else if (nodes_due(n, now_us) && now_us - n->since_us > NODES_SAY_US / 2) {
        log_say("phalanx: node %u waits: %s", p->rank, text);
    }
}

void member_on_up(void *ctx, struct bus_peer *peer)
{
    struct nodes *n = ctx;
    struct err err;

    if (n->ended)
        return;
    n->head = peer;
    if (bus_send(peer, PROTO_NODE_JOIN, 0, &n->config.self->join, &err))
        nodes_finish(n, true, err.msg);
    else
        log_say("phalanx: node %u is connected to node 0 at %s", n->config.place->rank,
                n->config.place->init);
}

/* Only what this node was told at its own start too. */
static int start_check(const struct nodes *n, const struct proto_node_start *m, struct err *err)
{
    const struct node_place *p = n->config.place;

    if (m->first != p->first_rank || m->count != p->ranks)
        return err_set(err, ERR_PROTOCOL,
                       "node 0 gives node %u the ranks %u to %u, its own are %u to %u", p->rank,
                       m->first, m->first + m->count - 1, p->first_rank,
                       p->first_rank + p->ranks - 1);
    if (m->endpoint.len < 6 || memcmp(m->endpoint.data, "tcp://", 6) != 0)
        return err_set(err, ERR_PROTOCOL, "node 0 gives no tcp endpoint for the ranks");
    return 0;
}

static void member_start(struct nodes *n, const struct proto_node_start *m)
{
    char *endpoint;
    struct err err;

    if (start_check(n, m, &err)) {
        nodes_end(n, true, err.msg);
        n->ended = false;
        nodes_finish(n, true, err.msg);
        return;
    }
    endpoint = proto_strdup(m->endpoint);
    n->config.on.on_start(n->config.ctx, &(struct node_ranks){.replica = m->replica,
                                                              .epoch = m->epoch,
                                                              .first = m->first,
                                                              .count = m->count,
                                                              .endpoint = endpoint});
    free(endpoint);
}

static void member_ended(struct nodes *n, const struct proto_node_end *m)
{
    char reason[600];

    (void)snprintf(reason, sizeof reason, "node 0 ends all nodes: %.*s", (int)m->reason.len,
                   m->reason.len ? m->reason.data : "");
    nodes_finish(n, m->failed, reason);
}

static void member_state(struct nodes *n, const struct proto_node_state *m)
{
    char reason[257];

    (void)snprintf(reason, sizeof reason, "%.*s", (int)m->reason.len,
                   m->reason.len ? m->reason.data : "");
    n->config.on.on_state(n->config.ctx, m->ready, reason);
}

void member_on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                       const void *message)
{
    struct nodes *n = ctx;
    const struct proto_node_kill *kill = message;

    (void)peer;
    if (n->ended)
        return;
    switch ((int)header->type) {
    case PROTO_NODE_START:
        member_start(n, message);
        break;
    case PROTO_NODE_KILL:
        n->config.on.on_kill(n->config.ctx, kill->replica, kill->epoch);
        break;
    case PROTO_NODE_STATE:
        member_state(n, message);
        break;
    case PROTO_NODE_END:
        member_ended(n, message);
        break;
    default:
        log_warn("node 0 sent %s, which is not for a node", proto_type_name(header->type));
    }
}

void member_on_down(void *ctx, struct bus_peer *peer, const char *why)
{
    struct nodes *n = ctx;
    char reason[300];

    (void)peer;
    n->head = NULL;
    n->since_us = n->said_us = clock_mono_us();
    if (n->ended)
        return;
    (void)snprintf(reason, sizeof reason, "node 0 is gone: %s", why);
    n->config.on.on_parted(n->config.ctx, reason);
}

void member_on_refused(void *ctx, const char *why)
{
    struct nodes *n = ctx;
    char reason[700];

    (void)snprintf(reason, sizeof reason, "node 0 refuses this node: %s", why);
    nodes_finish(n, true, reason);
}

void nodes_rank_down(struct nodes *n, uint32_t replica, uint64_t epoch, const char *reason)
{
    struct proto_node_down m = {.replica = replica, .epoch = epoch, .reason = proto_str(reason)};

    if (n->head)
        (void)bus_send(n->head, PROTO_NODE_DOWN, 0, &m, NULL);
}

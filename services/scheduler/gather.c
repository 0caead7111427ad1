#include "services/scheduler/gather.h"

#include "common/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SAY_US 5000000 /* who is missing is said so often */

static uint64_t bit(uint32_t rank)
{
    return UINT64_C(1) << rank;
}

void gather_init(struct gather *g, uint32_t size)
{
    *g = (struct gather){.size = size};
}

void gather_fini(struct gather *g)
{
    for (size_t i = 0; i < GROUP_RANKS_MAX; i++)
        buf_fini(&g->blobs[i]);
    *g = (struct gather){0};
}

void gather_reset(struct gather *g)
{
    const uint32_t size = g->size;

    gather_fini(g);
    gather_init(g, size);
}

/* Whoever comes with something that does not fit was started wrongly: the others wait on. */
static bool gather_fits(const struct gather *g, struct bus_peer *peer, const struct proto_gather *m)
{
    char reason[160] = "";

    if (m->rank >= g->size)
        (void)snprintf(reason, sizeof reason, "rank %" PRIu32 " is outside of the group's %" PRIu32,
                       m->rank, g->size);
    else if (g->peers[m->rank] && g->peers[m->rank] != peer)
        (void)snprintf(reason, sizeof reason, "rank %" PRIu32 " is %s already", m->rank,
                       bus_peer_name(g->peers[m->rank]));
    else if (!g->peers[m->rank] && m->round != g->round)
        (void)snprintf(reason, sizeof reason,
                       "rank %" PRIu32 " meets in round %" PRIu32 ", the others in %" PRIu32,
                       m->rank, m->round, g->round);
    if (*reason)
        bus_refuse(peer, reason);
    return !*reason;
}

static bool gather_complete(const struct gather *g)
{
    for (uint32_t r = 0; r < g->size; r++)
        if (!(g->come & bit(r)))
            return false;
    return true;
}

static int gather_answer(struct gather *g, struct err *err)
{
    struct proto_gathered_blob blobs[GROUP_RANKS_MAX];
    const struct proto_gathered all = {.round = g->round, .blobs = blobs, .blobs_count = g->size};

    for (uint32_t r = 0; r < g->size; r++)
        blobs[r].bytes = (struct proto_str){g->blobs[r].data, g->blobs[r].len};
    for (uint32_t r = 0; r < g->size; r++)
        if (bus_send(g->peers[r], PROTO_GATHERED, 0, &all, err))
            return err_prefix(err, "GATHERED to rank %" PRIu32, r);
    g->round++;
    g->come = 0;
    return 0;
}

int gather_take(struct gather *g, struct bus_peer *peer, const struct proto_gather *m,
                int64_t now_us, struct err *err)
{
    if (!gather_fits(g, peer, m))
        return 0;
    if (m->round != g->round || (g->come & bit(m->rank)))
        return err_set(err, ERR_PROTOCOL,
                       "rank %" PRIu32 " sent GATHER of round %" PRIu32 " in round %" PRIu32,
                       m->rank, m->round, g->round);
    if (!g->come)
        g->begin_us = g->said_us = now_us;
    g->come |= bit(m->rank);
    g->peers[m->rank] = peer;
    buf_clear(&g->blobs[m->rank]);
    buf_append(&g->blobs[m->rank], m->blob.data, m->blob.len);
    return gather_complete(g) ? gather_answer(g, err) : 0;
}

int gather_down(struct gather *g, const struct bus_peer *peer, const char *reason, struct err *err)
{
    for (uint32_t r = 0; r < g->size; r++) {
        if (g->peers[r] != peer)
            continue;
        g->peers[r] = NULL;
        g->come &= ~bit(r);
        if (g->round)
            return err_set(err, ERR_PEER,
                           "rank %" PRIu32 " (%s) is gone after the ranks have met: %s", r,
                           bus_peer_name(peer), reason);
    }
    return 0;
}

int gather_check(struct gather *g, int64_t now_us, double timeout_s, struct err *err)
{
    char missing[256] = "";
    size_t used = 0;

    if (!g->come)
        return 0;
    for (uint32_t r = 0; r < g->size && used < sizeof missing; r++)
        if (!(g->come & bit(r)))
            used += (size_t)snprintf(missing + used, sizeof missing - used, "%s%" PRIu32,
                                     used ? ", " : "", r);
    if ((double)(now_us - g->begin_us) > timeout_s * 1e6)
        return err_set(err, ERR_TIMEOUT, "ranks have waited %g s (--dist-timeout) to meet rank %s",
                       timeout_s, missing);
    if (now_us - g->said_us >= SAY_US) {
        g->said_us = now_us;
        log_info("waiting_for_rank=\"%s\"", missing);
    }
    return 0;
}

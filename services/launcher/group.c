#include "services/launcher/group.h"

#include <assert.h>
#include <signal.h>
#include <stdlib.h>

void group_configure(struct group *g, const struct group_config *config)
{
    *g = (struct group){.config = *config};
}

static bool group_has(const struct group *g, const struct child *child)
{
    return child->role == CHILD_WORKER && child->replica == g->config.replica;
}

static bool group_empty(const struct group *g)
{
    const struct child *child = NULL;

    while ((child = supervisor_next(g->config.children, child)))
        if (group_has(g, child))
            return false;
    return true;
}

int group_settle(struct group *g, struct err *err)
{
    const struct group_config *c = &g->config;
    int rc = 0;

    if (!g->waiting || !group_empty(g))
        return 0;
    g->waiting = false;
    for (int rank = c->first_rank; rank <= c->last_rank && !rc; rank++) {
        struct worker_place place = {
            .replica = c->replica,
            .rank = rank,
            .number = c->first_name + rank,
            .first_device = c->first_device - c->first_rank,
            .endpoint = c->worker_endpoint,
            .epoch = g->epoch,
        };

        rc = commands_start_worker(c->commands, c->children, &place, err);
    }
    return rc;
}

int group_start(struct group *g, uint64_t epoch, struct err *err)
{
    assert(epoch > g->epoch);
    group_kill(g, g->epoch);
    g->epoch = epoch;
    g->waiting = true;
    return group_settle(g, err);
}

void group_kill(struct group *g, uint64_t epoch)
{
    struct child *child = NULL;

    if (epoch >= g->epoch)
        g->waiting = false;
    while ((child = supervisor_next(g->config.children, child)))
        if (group_has(g, child) && child->epoch <= epoch)
            child_signal(child, SIGKILL);
}

bool group_lost(const struct group *g, const struct child *child)
{
    return group_has(g, child) && child->epoch == g->epoch && !child->doomed;
}

#include "services/tokenizer/replicas.h"

#include "common/mem.h"
#include "common/metrics.h"

#include <stdlib.h>
#include <string.h>

int replicas_open(struct replicas *r, struct service *service, const char *endpoints,
                  const char *policy, const struct bus_config *config, struct err *err)
{
    struct bus_config bus = *config;
    char *copy, *rest;
    int rc = 0;

    r->policy = dispatch_find(policy);
    if (!r->policy)
        return err_set(err, ERR_INVALID, "dispatch policy '%.64s' is unknown", policy);
    r->policy_state = r->policy->new ();
    copy = rest = mem_strdup(endpoints);
    while (!rc && (bus.endpoint = strsep(&rest, ","))) {
        struct replica *one = &r->list[r->count];

        if (r->count == DISPATCH_REPLICAS_MAX) {
            rc = err_set(err, ERR_LIMIT, "--scheduler-endpoint names more than %d replicas",
                         DISPATCH_REPLICAS_MAX);
            break;
        }
        one->service = service;
        one->index = r->count;
        one->state.reason = proto_str("loading");
        bus.ctx = one;
        rc = bus_connect(&bus, &one->bus, err);
        r->count += !rc;
    }
    free(copy);
    return rc;
}

void replicas_close(struct replicas *r)
{
    for (uint32_t i = 0; i < r->count; i++) {
        r->list[i].peer = NULL;
        if (r->list[i].bus)
            bus_close(&r->list[i].bus);
    }
}

void replicas_fini(struct replicas *r)
{
    for (uint32_t i = 0; i < r->count; i++)
        proto_arena_fini(&r->list[i].arena);
    if (r->policy)
        r->policy->free(r->policy_state);
}

static bool replica_ready(const struct replica *r)
{
    return r->peer && r->state.ready;
}

/* Those that are ready, or that will be; returns how many. */
static uint32_t dispatch_view(const struct replicas *r, bool ready, struct dispatch_replica *view)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < r->count; i++) {
        const struct replica *one = &r->list[i];
        int64_t load = one->reported > one->in_flight ? one->reported : one->in_flight;

        view[i].ready = one->peer && (ready ? one->state.ready : one->was_ready);
        view[i].load = (uint32_t)load;
        count += view[i].ready;
    }
    return count;
}

struct replica *replicas_choose(struct replicas *r, const uint32_t *prompt, size_t prompt_count)
{
    struct dispatch_replica view[DISPATCH_REPLICAS_MAX];

    if (!dispatch_view(r, true, view) && !dispatch_view(r, false, view))
        return NULL;
    if (r->count == 1)
        return r->list;
    return &r->list[r->policy->choose(r->policy_state, view, r->count, prompt, prompt_count)];
}

void replica_began(struct replica *r)
{
    r->in_flight++;
    r->reported++;
}

void replica_ended(struct replica *r)
{
    r->in_flight--;
    r->reported--;
}

void replica_up(struct replica *r, struct bus_peer *peer)
{
    r->peer = peer;
    r->was_ready = false;
    r->state = (struct proto_state){.reason = proto_str("loading")};
}

void replica_down(struct replicas *all, struct replica *r)
{
    r->peer = NULL;
    r->state = (struct proto_state){.reason = proto_str("recovering")};
    r->reported = 0;
    r->stats = NULL;
    all->policy->lost(all->policy_state, r->index);
}

/* A copy in memory of the replica's. */
static struct proto_str keep(struct proto_str text, char *memory, size_t size)
{
    size_t n = text.len < size ? text.len : size;

    if (n)
        memcpy(memory, text.data, n);
    return (struct proto_str){memory, n};
}

void replica_state(struct replica *r, const struct proto_state *state)
{
    r->state = *state;
    r->state.device = keep(state->device, r->device, sizeof r->device);
    r->state.reason = keep(state->reason, r->reason, sizeof r->reason);
    r->was_ready = r->was_ready || state->ready;
}

/* Sequences that run and wait, as the scheduler says; it comes first among its sources. */
static int64_t stats_load(const struct proto_stats *stats)
{
    static const enum metric counted[] = {METRIC_NUM_REQUESTS_RUNNING, METRIC_NUM_REQUESTS_WAITING};
    double load = 0;

    for (uint32_t i = 0; stats->sources_count && i < stats->sources[0].stats_count; i++)
        for (size_t k = 0; k < sizeof counted / sizeof *counted; k++)
            if (proto_str_is(stats->sources[0].stats[i].name, metric_name(counted[k])))
                load += stats->sources[0].stats[i].value;
    return load >= 0 && load < 1e9 ? (int64_t)load : 0;
}

/* Keeps a copy: it is sent on with our own numbers every second. */
void replica_stats(struct replica *r, const struct proto_header *header,
                   const struct proto_stats *stats)
{
    struct proto_header copy_header;
    struct buf copy = {0};
    void *message;

    r->stats = NULL;
    proto_arena_clear(&r->arena);
    if (!proto_encode(header, stats, &copy, NULL) &&
        !proto_decode(copy.data, copy.len, &r->arena, &copy_header, &message, NULL))
        r->stats = message;
    buf_fini(&copy);
    r->reported = stats_load(stats);
}

void replicas_flush(struct replicas *r, const struct proto_flush *message)
{
    for (uint32_t i = 0; i < r->count; i++) {
        if (r->list[i].peer)
            (void)bus_send(r->list[i].peer, PROTO_FLUSH, 0, message, NULL);
        r->policy->lost(r->policy_state, i);
    }
}

struct proto_state replicas_state(const struct replicas *r)
{
    struct proto_state sum = r->list[0].state;
    bool found = false;

    for (uint32_t i = 0; i < r->count; i++) {
        const struct replica *one = &r->list[i];

        if (!replica_ready(one))
            continue;
        if (!found) {
            sum = one->state;
            found = true;
            continue;
        }
        sum.num_pages += one->state.num_pages;
        sum.max_running += one->state.max_running;
        if (one->state.context_length < sum.context_length)
            sum.context_length = one->state.context_length;
    }
    return sum;
}

uint32_t replicas_sources(const struct replicas *r, struct proto_source *sources, uint32_t count,
                          uint32_t max)
{
    for (uint32_t i = 0; i < r->count; i++)
        for (uint32_t k = 0; r->list[i].stats && k < r->list[i].stats->sources_count; k++)
            if (count < max)
                sources[count++] = r->list[i].stats->sources[k];
    return count;
}

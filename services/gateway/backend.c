#include "services/gateway/backend.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "proto/stats.h"
#include "services/gateway/call.h"
#include "services/gateway/gateway.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void text_copy(char *out, size_t size, struct proto_str text)
{
    size_t len = text.len < size - 1 ? text.len : size - 1;

    if (len)
        memcpy(out, text.data, len);
    out[len] = '\0';
}

static void reason_set(struct backend_link *link, const char *reason)
{
    (void)snprintf(link->reason, sizeof link->reason, "%s", reason);
}

static void on_up(void *ctx, struct bus_peer *peer)
{
    struct backend_link *link = ctx;

    link->peer = peer;
    link->ready = false;
    reason_set(link, "loading");
    log_info("peer=%s \"tokenizer is up\"", bus_peer_name(peer));
}

static void on_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct backend_link *link = ctx;

    log_warn("peer=%s prompts=%zu \"tokenizer is down: %s\"", bus_peer_name(peer), link->in_flight,
             reason);
    link->peer = NULL;
    link->ready = false;
    reason_set(link, "recovering");
    for (struct conn *c = link->gw->conns; c; c = c->next)
        if (c->call)
            call_lost(c->call, link);
}

static void on_refused(void *ctx, const char *reason)
{
    struct backend_link *link = ctx;

    log_error("\"a tokenizer refused this gateway: %s\"", reason);
    gateway_stop(link->gw, 1);
}

static void on_state(struct backend_link *link, const struct proto_state *state)
{
    struct gateway *gw = link->gw;

    if (link->ready != state->ready)
        log_info("peer=%s ready=%s reason=\"%.*s\"", bus_peer_name(link->peer),
                 state->ready ? "true" : "false", (int)state->reason.len,
                 state->reason.len ? state->reason.data : "");
    link->ready = state->ready;
    text_copy(link->reason, sizeof link->reason, state->reason);
    if (!link->ready)
        return; /* what it took when it was is what it will take again */
    link->context_length = state->context_length;
    link->max_running = state->max_running;
    if (state->vocab_size)
        gw->context.vocab_size = state->vocab_size;
    if (!gw->announced)
        log_say("API server is ready to serve on %s", gw->address);
    gw->announced = true;
    calls_resume(gw);
}

static void on_stats(struct backend_link *link, const struct proto_stats *stats)
{
    free(link->sources);
    link->sources =
        mem_array(stats->sources_count ? stats->sources_count : 1, sizeof *link->sources);
    link->sources_count = stats->sources_count;
    for (uint32_t i = 0; i < stats->sources_count; i++) {
        text_copy(link->sources[i].name, sizeof link->sources[i].name, stats->sources[i].name);
        stats_read(&stats->sources[i], &link->sources[i].metrics);
    }
}

/* The entry of a request, as long as it is this tokenizer's. */
static const struct pending_entry *entry_find(const struct backend_link *link, uint64_t rid)
{
    const struct pending_entry *entry = pending_find(&link->gw->backend.pending, rid);

    return entry && entry->call->parts[entry->part].link == link ? entry : NULL;
}

static void on_chunks(const struct backend_link *link, const struct proto_chunks *chunks)
{
    int64_t now_us = clock_mono_us();

    for (uint32_t i = 0; i < chunks->chunks_count; i++) {
        const struct proto_chunk *chunk = &chunks->chunks[i];
        const struct pending_entry *entry = entry_find(link, chunk->rid);

        if (entry)
            call_chunk(entry->call, entry->part, chunk, now_us);
    }
}

static void on_failed(const struct backend_link *link, uint64_t rid,
                      const struct proto_failed *failed)
{
    const struct pending_entry *entry = entry_find(link, rid);
    struct problem problem = {0};
    struct call *call;
    uint32_t part;

    if (!entry)
        return;
    call = entry->call;
    part = entry->part;
    problem.status = failed->status >= 400 && failed->status <= 599 ? (int)failed->status : 500;
    text_copy(problem.message, sizeof problem.message, failed->message);
    text_copy(problem.param, sizeof problem.param, failed->param);
    text_copy(problem.code, sizeof problem.code, failed->code);
    call_part_over(call, part); /* this one needs no ABORT */
    call_fail(call, &problem);
}

static void on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                       const void *message)
{
    struct backend_link *link = ctx;

    (void)peer;
    switch (header->type) {
    case PROTO_CHUNKS:
        on_chunks(link, message);
        break;
    case PROTO_FAILED:
        on_failed(link, header->id, message);
        break;
    case PROTO_STATE:
        on_state(link, message);
        break;
    case PROTO_STATS:
        on_stats(link, message);
        break;
    default:
        log_warn("message=%s \"not for a gateway: dropped\"", proto_type_name(header->type));
    }
}

int backend_open(struct gateway *gw, const char *endpoints, const struct bus_security *security,
                 const char *name, int64_t silence_ms_max, struct err *err)
{
    struct backend *b = &gw->backend;
    struct bus_config config = {
        .loop = &gw->loop,
        .role = "gateway",
        .name = name,
        .security = security,
        .silence_ms_max = silence_ms_max,
        .on = {.on_up = on_up,
               .on_message = on_message,
               .on_down = on_down,
               .on_refused = on_refused},
    };
    char *copy = mem_strdup(endpoints), *rest = copy;
    int rc = 0;

    while (!rc && (config.endpoint = strsep(&rest, ","))) {
        struct backend_link *link = &b->links[b->links_count];

        if (b->links_count == BACKEND_LINKS_MAX) {
            rc = err_set(err, ERR_LIMIT, "--tokenizer-endpoint names more than %d tokenizers",
                         BACKEND_LINKS_MAX);
            break;
        }
        link->gw = gw;
        config.ctx = link;
        reason_set(link, "loading");
        rc = bus_connect(&config, &link->bus, err);
        b->links_count += !rc;
    }
    free(copy);
    return rc;
}

void backend_close(struct backend *b)
{
    for (size_t i = 0; i < b->links_count; i++) {
        b->links[i].peer = NULL;
        b->links[i].ready = false;
        if (b->links[i].bus)
            bus_close(&b->links[i].bus);
    }
}

void backend_fini(struct backend *b)
{
    pending_fini(&b->pending);
    for (size_t i = 0; i < b->links_count; i++)
        free(b->links[i].sources);
}

static bool link_ready(const struct backend_link *link)
{
    return link->peer && link->ready;
}

bool backend_ready(const struct backend *b, const char **why)
{
    *why = b->links_count && b->links[0].reason[0] ? b->links[0].reason : "loading";
    for (size_t i = 0; i < b->links_count; i++)
        if (link_ready(&b->links[i]))
            return true;
    return false;
}

struct backend_link *backend_choose(struct backend *b)
{
    struct backend_link *best = NULL;

    for (size_t i = 0; i < b->links_count; i++) {
        struct backend_link *link = &b->links[(b->next + i) % b->links_count];

        if (link_ready(link) && (!best || link->in_flight < best->in_flight))
            best = link;
    }
    if (best)
        b->next = (size_t)(best - b->links) + 1;
    return best;
}

uint32_t backend_context_length(const struct backend *b)
{
    uint32_t found = 0;

    for (size_t i = 0; i < b->links_count && !found; i++)
        found = b->links[i].context_length;
    return found;
}

uint32_t backend_max_running(const struct backend *b)
{
    uint32_t most = 0;

    for (size_t i = 0; i < b->links_count; i++)
        if (b->links[i].max_running > most)
            most = b->links[i].max_running;
    return most;
}

void backend_abort(struct backend_link *link, uint64_t rid, const char *reason)
{
    struct proto_abort message = {.reason = proto_str(reason)};
    struct err err = {0};

    if (message.reason.len > 128)
        message.reason.len = 128;
    if (link->peer && bus_send(link->peer, PROTO_ABORT, rid, &message, &err))
        log_warn("rid=%llu \"ABORT was not sent: %s\"", (unsigned long long)rid, err.msg);
}

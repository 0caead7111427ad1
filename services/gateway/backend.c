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

static void on_up(void *ctx, struct bus_peer *peer)
{
    struct gateway *gw = ctx;

    gw->backend.peer = peer;
    gw->backend.ready = false;
    (void)snprintf(gw->backend.reason, sizeof gw->backend.reason, "loading");
    log_info("peer=%s \"tokenizer is up\"", bus_peer_name(peer));
}

/* Ends all calls: what the tokenizer knew of them is gone. */
static void on_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct gateway *gw = ctx;
    struct problem problem = {0};

    log_warn("peer=%s \"tokenizer is down: %s\"", bus_peer_name(peer), reason);
    gw->backend.peer = NULL;
    gw->backend.ready = false;
    (void)snprintf(gw->backend.reason, sizeof gw->backend.reason, "recovering");
    (void)problem_set(&problem, 503, "backend_lost", NULL,
                      "the server lost the request's state; please try again");
    for (struct conn *c = gw->conns; c; c = c->next)
        if (c->call)
            call_fail(c->call, &problem);
}

static void on_refused(void *ctx, const char *reason)
{
    struct gateway *gw = ctx;

    log_error("\"the tokenizer refused this gateway: %s\"", reason);
    gateway_stop(gw, 1);
}

static void on_state(struct gateway *gw, const struct proto_state *state)
{
    struct backend *b = &gw->backend;

    if (b->ready != state->ready)
        log_info("ready=%s reason=\"%.*s\"", state->ready ? "true" : "false",
                 (int)state->reason.len, state->reason.len ? state->reason.data : "");
    b->ready = state->ready;
    text_copy(b->reason, sizeof b->reason, state->reason);
    b->context_length = state->context_length;
    b->vocab_size = state->vocab_size;
    b->max_running = state->max_running;
    gw->context.vocab_size = state->vocab_size;
    if (b->ready && !gw->announced) {
        gw->announced = true;
        log_say("API server is ready to serve on %s", gw->address);
    }
}

static void on_stats(struct backend *b, const struct proto_stats *stats)
{
    free(b->sources);
    b->sources = mem_array(stats->sources_count ? stats->sources_count : 1, sizeof *b->sources);
    b->sources_count = stats->sources_count;
    for (uint32_t i = 0; i < stats->sources_count; i++) {
        text_copy(b->sources[i].name, sizeof b->sources[i].name, stats->sources[i].name);
        stats_read(&stats->sources[i], &b->sources[i].metrics);
    }
}

static void on_chunks(struct backend *b, const struct proto_chunks *chunks)
{
    int64_t now_us = clock_mono_us();

    for (uint32_t i = 0; i < chunks->chunks_count; i++) {
        const struct proto_chunk *chunk = &chunks->chunks[i];
        const struct pending_entry *entry = pending_find(&b->pending, chunk->rid);

        if (entry)
            call_chunk(entry->call, entry->part, chunk, now_us);
    }
}

static void on_failed(struct backend *b, uint64_t rid, const struct proto_failed *failed)
{
    const struct pending_entry *entry = pending_find(&b->pending, rid);
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
    pending_remove(&b->pending, rid); /* this one needs no ABORT */
    call->parts[part].rid = 0;
    call_fail(call, &problem);
}

static void on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                       const void *message)
{
    struct gateway *gw = ctx;

    (void)peer;
    switch (header->type) {
    case PROTO_CHUNKS:
        on_chunks(&gw->backend, message);
        break;
    case PROTO_FAILED:
        on_failed(&gw->backend, header->id, message);
        break;
    case PROTO_STATE:
        on_state(gw, message);
        break;
    case PROTO_STATS:
        on_stats(&gw->backend, message);
        break;
    default:
        log_warn("message=%s \"not for a gateway: dropped\"", proto_type_name(header->type));
    }
}

int backend_open(struct gateway *gw, const char *endpoint, const struct bus_security *security,
                 const char *name, int64_t silence_ms_max, struct err *err)
{
    struct bus_config config = {
        .loop = &gw->loop,
        .role = "gateway",
        .name = name,
        .endpoint = endpoint,
        .security = security,
        .silence_ms_max = silence_ms_max,
        .on = {.on_up = on_up,
               .on_message = on_message,
               .on_down = on_down,
               .on_refused = on_refused},
        .ctx = gw,
    };

    (void)snprintf(gw->backend.reason, sizeof gw->backend.reason, "loading");
    return bus_connect(&config, &gw->backend.bus, err);
}

void backend_close(struct backend *b)
{
    b->peer = NULL;
    b->ready = false;
    if (b->bus)
        bus_close(&b->bus);
}

void backend_fini(struct backend *b)
{
    pending_fini(&b->pending);
    free(b->sources);
}

bool backend_ready(const struct backend *b, const char **why)
{
    *why = b->reason[0] ? b->reason : "loading";
    return b->peer && b->ready;
}

void backend_abort(struct backend *b, uint64_t rid, const char *reason)
{
    struct proto_abort message = {.reason = proto_str(reason)};
    struct err err = {0};

    pending_remove(&b->pending, rid);
    if (message.reason.len > 128)
        message.reason.len = 128;
    if (b->peer && bus_send(b->peer, PROTO_ABORT, rid, &message, &err))
        log_warn("rid=%llu \"ABORT was not sent: %s\"", (unsigned long long)rid, err.msg);
}

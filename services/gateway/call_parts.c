/* The prompts of a call on the bus: sent to a tokenizer, sent again when it dies, held while none
 * is ready, paused while the reader is behind. */
#include "services/gateway/call.h"

#include "common/log.h"
#include "common/mem.h"
#include "services/gateway/fields.h"

#include <stdlib.h>

/* ---- waiting ---- */

static bool part_waits(const struct call_part *part)
{
    return part->open && !part->rid;
}

static void call_wait(struct call *call)
{
    if (call->waiting)
        return;
    call->waiting = true;
    TAILQ_INSERT_TAIL(&call->gw->waiting, call, waiting_at);
}

void call_wait_end(struct call *call)
{
    if (!call->waiting)
        return;
    call->waiting = false;
    TAILQ_REMOVE(&call->gw->waiting, call, waiting_at);
    call->gw->queued_count -= call->queued;
    call->queued = false;
}

/* ---- sending ---- */

static int part_send(struct call *call, uint32_t index, const struct proto_generate *g,
                     struct problem *problem)
{
    struct backend *b = &call->gw->backend;
    struct backend_link *link = backend_choose(b);
    struct call_part *part = &call->parts[index];
    struct proto_pause pause = {true};
    struct err err = {0};
    uint64_t rid = ++b->rid;

    if (!link) {
        call_wait(call);
        return 0;
    }
    switch (bus_send(link->peer, PROTO_GENERATE, rid, g, &err)) {
    case 0:
        part->rid = rid;
        part->link = link;
        link->in_flight++;
        pending_put(&b->pending, rid, call, index);
        if (call->behind)
            (void)bus_send(link->peer, PROTO_PAUSE, rid, &pause, NULL);
        return 0;
    case ERR_LIMIT:
        return problem_set(problem, 400, "invalid_value", NULL, "%s", err.msg);
    case ERR_BUSY:
        return problem_set(problem, 429, "queue_full", NULL, "too many requests are waiting");
    default:
        return problem_set(problem, 503, NULL, NULL, "the request could not be passed on: %s",
                           err.msg);
    }
}

/* The encoded message is what all is sent from that follows a tokenizer's death. */
static int part_keep(struct call *call, struct call_part *part, const struct proto_generate *g,
                     struct problem *problem)
{
    struct proto_header header = {.type = PROTO_GENERATE};
    struct gateway *gw = call->gw;
    struct err err = {0};

    buf_clear(&gw->scratch);
    if (proto_encode(&header, g, &gw->scratch, &err))
        return problem_set(problem, 400, "invalid_value", NULL, "%s", err.msg);
    if (gw->kept_bytes + gw->scratch.len > HTTP_KEPT_BYTES_MAX)
        return problem_set(problem, 429, "queue_full", NULL,
                           "the requests being answered have more than %d bytes",
                           HTTP_KEPT_BYTES_MAX);
    part->message_len = gw->scratch.len;
    part->message =
        proto_strdup((struct proto_str){.data = gw->scratch.data, .len = gw->scratch.len});
    gw->kept_bytes += part->message_len;
    if (gw->scratch.cap > HTTP_WRITE_PAUSE_BYTES)
        buf_fini(&gw->scratch);
    return 0;
}

static void part_forget(struct gateway *gw, struct call_part *part)
{
    gw->kept_bytes -= part->message_len;
    free(part->message);
    part->message = NULL;
    part->message_len = 0;
}

int call_send(struct call *call, const struct params *params, uint32_t index,
              struct problem *problem)
{
    const struct prompt *prompt = &params->prompts[index];
    struct proto_generate g = params->generate;

    g.kind = params->messages.len ? PROMPT_CHAT : prompt->ids ? PROMPT_IDS : PROMPT_TEXT;
    g.text = prompt->text;
    g.ids = prompt->ids;
    g.ids_count = prompt->ids_count;
    g.trace_id = proto_str(call->conn->trace);
    if (part_keep(call, &call->parts[index], &g, problem))
        return -1;
    return part_send(call, index, &g, problem);
}

/* What the choices of a part have brought so far; choices without anything are left out. The ids
 * are the caller's to free. */
static uint32_t resumed_list(const struct call *call, uint32_t index, struct proto_resumed *list)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < call->n; i++) {
        const struct call_choice *choice = &call->choices[index * call->n + i];

        if (choice->ended)
            list[count++] = (struct proto_resumed){.choice = i, .ended = true};
        else if (choice->seen_count || choice->prompt_seen)
            list[count++] = (struct proto_resumed){.choice = i,
                                                   .ids = call_choice_ids(choice),
                                                   .ids_count = choice->seen_count,
                                                   .text_bytes = choice->text_bytes,
                                                   .prompt_scored = choice->prompt_seen};
    }
    return count;
}

static int part_resend(struct call *call, uint32_t index, struct problem *problem)
{
    struct call_part *part = &call->parts[index];
    struct proto_resumed *resumed = mem_array(call->n, sizeof *resumed);
    struct proto_arena arena = {0};
    struct proto_header header;
    struct proto_generate g;
    struct err err = {0};
    void *message;
    int rc;

    rc = proto_decode(part->message, part->message_len, &arena, &header, &message, &err);
    if (rc) {
        rc = problem_set(problem, 500, NULL, NULL, "%s", err.msg);
    } else {
        g = *(const struct proto_generate *)message;
        g.resumed = resumed;
        g.resumed_count = resumed_list(call, index, resumed);
        g.replays = part->replays;
        rc = part_send(call, index, &g, problem);
    }
    for (uint32_t i = 0; i < call->n; i++)
        free(resumed[i].ids);
    proto_arena_fini(&arena);
    free(resumed);
    return rc;
}

void calls_resume(struct gateway *gw)
{
    struct call *next;

    for (struct call *call = TAILQ_FIRST(&gw->waiting); call; call = next) {
        struct problem problem = {0};

        next = TAILQ_NEXT(call, waiting_at);
        call_wait_end(call);
        for (uint32_t i = 0; i < call->parts_count && !problem.status; i++)
            if (part_waits(&call->parts[i]))
                (void)part_resend(call, i, &problem);
        if (problem.status)
            call_fail(call, &problem);
    }
}

void call_lost(struct call *call, const struct backend_link *link)
{
    struct problem problem = {0};

    for (uint32_t i = 0; i < call->parts_count && !problem.status; i++) {
        struct call_part *part = &call->parts[i];

        if (!part->rid || part->link != link)
            continue;
        call_part_unlink(call, i);
        if (call->dialect->probe)
            (void)problem_set(&problem, 503, "backend_lost", NULL, "a tokenizer died");
        else if (part->replays++ == LIMIT_REPLAYS)
            (void)problem_set(&problem, 503, "replays_exhausted", NULL,
                              "the request was begun anew %d times, and its tokenizer died again",
                              LIMIT_REPLAYS);
        else
            (void)part_resend(call, i, &problem);
    }
    if (problem.status)
        call_fail(call, &problem);
}

/* ---- the end ---- */

void call_part_unlink(struct call *call, uint32_t index)
{
    struct call_part *part = &call->parts[index];

    if (!part->rid)
        return;
    pending_remove(&call->gw->backend.pending, part->rid);
    part->link->in_flight--;
    part->rid = 0;
}

void call_part_over(struct call *call, uint32_t index)
{
    call_part_unlink(call, index);
    part_forget(call->gw, &call->parts[index]);
}

void call_abort_parts(struct call *call, const char *why)
{
    for (uint32_t i = 0; i < call->parts_count; i++) {
        if (call->parts[i].rid)
            backend_abort(call->parts[i].link, call->parts[i].rid, why);
        call_part_over(call, i);
    }
    call_wait_end(call);
}

/* ---- pace ---- */

void call_pace(struct call *call)
{
    size_t unsent = conn_unsent(call->conn);
    bool behind = call->behind ? unsent > 0 : call->conn->writing && unsent >= HTTP_BEHIND_BYTES;
    struct proto_pause m = {behind};

    if (!call->stream || behind == call->behind)
        return;
    call->behind = behind;
    for (uint32_t i = 0; i < call->parts_count; i++) {
        const struct call_part *part = &call->parts[i];

        if (part->rid && part->link->peer)
            (void)bus_send(part->link->peer, PROTO_PAUSE, part->rid, &m, NULL);
    }
}

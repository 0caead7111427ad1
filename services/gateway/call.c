#include "services/gateway/call.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "services/gateway/reply.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEB128_MAX 5 /* bytes of a 32-bit number: seven bits each, the highest last */

/* ---- without sockets ---- */

void call_init(struct call *call, const struct dialect *dialect, const struct params *params,
               const char *id, const char *model, const char *fingerprint)
{
    memset(call, 0, sizeof *call);
    call->dialect = dialect;
    call->stream = params->stream;
    call->include_usage = params->include_usage;
    call->return_ids = params->return_ids || dialect->cumulative;
    call->logprobs = params->generate.sampling.logprobs >= 0;
    call->listed = params->prompts_listed || params->generate.n > 1;
    call->n = params->generate.n;
    call->parts_count = (uint32_t)params->prompts_count;
    call->choices_count = call->n * call->parts_count;
    call->open = call->choices_count;
    call->parts = mem_array(call->parts_count, sizeof *call->parts);
    call->choices = mem_array(call->choices_count, sizeof *call->choices);
    call->created_s = clock_wall_us() / 1000000;
    call->started_us = clock_mono_us();
    for (uint32_t i = 0; i < call->parts_count; i++)
        call->parts[i].open = call->n;
    (void)snprintf(call->id, sizeof call->id, "%s", id);
    if (dialect->open)
        dialect->open(call, model, fingerprint);
}

void call_fini(struct call *call)
{
    for (uint32_t i = 0; i < call->choices_count; i++) {
        struct call_choice *choice = &call->choices[i];

        free(choice->seen);
        buf_fini(&choice->text);
        buf_fini(&choice->ids);
        for (int k = 0; k < CALL_LISTS; k++)
            buf_fini(&choice->lists[k]);
        free(choice->stop_text);
    }
    free(call->choices);
    free(call->parts);
    buf_fini(&call->head);
}

static size_t choice_bytes(const struct call_choice *choice)
{
    size_t bytes = choice->text.len + choice->ids.len;

    for (int k = 0; k < CALL_LISTS; k++)
        bytes += choice->lists[k].len;
    return bytes;
}

static void choice_end(struct call_choice *choice, const struct proto_chunk *chunk)
{
    choice->ended = true;
    choice->finish = chunk->finish;
    choice->stop_id = chunk->stop_id;
    if (chunk->stop_text.len)
        choice->stop_text = proto_strdup(chunk->stop_text);
}

/* What a tokenizer would need to go on from here. Streams are many and long: an id takes two or
 * three bytes, and room grows slowly. */
static void choice_remember(struct call_choice *choice, const struct proto_chunk *chunk)
{
    size_t most = choice->seen_len + (size_t)chunk->ids_count * LEB128_MAX;

    choice->text_bytes += chunk->text.len;
    if (!chunk->ids_count)
        return;
    if (most > choice->seen_cap) {
        choice->seen_cap = (uint32_t)(most + most / 8 + 16);
        choice->seen = mem_resize(choice->seen, choice->seen_cap, 1);
    }
    for (uint32_t i = 0; i < chunk->ids_count; i++) {
        uint32_t id = chunk->ids[i];

        for (; id >= 0x80; id >>= 7)
            choice->seen[choice->seen_len++] = (uint8_t)(id | 0x80);
        choice->seen[choice->seen_len++] = (uint8_t)id;
    }
    choice->seen_count += chunk->ids_count;
}

uint32_t *call_choice_ids(const struct call_choice *choice)
{
    uint32_t *ids = mem_array(choice->seen_count ? choice->seen_count : 1, sizeof *ids);
    const uint8_t *at = choice->seen;

    for (uint32_t i = 0; i < choice->seen_count; i++) {
        unsigned shift = 0;

        ids[i] = 0;
        do
            ids[i] |= (uint32_t)(*at & 0x7f) << shift;
        while (shift += 7, *at++ & 0x80);
    }
    return ids;
}

static void ids_add(struct buf *ids, const struct proto_chunk *chunk)
{
    for (uint32_t i = 0; i < chunk->ids_count; i++) {
        if (ids->len)
            buf_putc(ids, ',');
        buf_uint(ids, chunk->ids[i]);
    }
}

void call_choice_add(struct call *call, uint32_t part, const struct proto_chunk *chunk)
{
    struct call_choice *choice = &call->choices[part * call->n + chunk->choice];

    choice_remember(choice, chunk);
    buf_append(&choice->text, chunk->text.data, chunk->text.len);
    if (call->return_ids)
        ids_add(&choice->ids, chunk);
    if (call->dialect->prompt_logprobs && chunk->prompt_logprobs_count) {
        call->dialect->prompt_logprobs(call, choice, chunk->prompt_logprobs,
                                       chunk->prompt_logprobs_count);
        choice->prompt_seen += chunk->prompt_logprobs_count; /* shown with the first token */
    }
    if (call->logprobs && chunk->logprobs_count)
        call->dialect->logprobs(call, choice, chunk->logprobs, chunk->logprobs_count);
    if (chunk->text.len || chunk->logprobs_count || chunk->finish != FINISH_NONE ||
        (call->return_ids && chunk->ids_count))
        choice->held = true;
    if (!choice->tokens) /* what was computed again later does not count */
        call->parts[part].cached_tokens = chunk->cached_tokens;
    choice->tokens = chunk->completion_tokens;
    call->parts[part].prompt_tokens = chunk->prompt_tokens;
    if (chunk->finish != FINISH_NONE) {
        choice_end(choice, chunk);
        call->parts[part].open--;
        call->open--;
    }
}

/* ---- the end ---- */

static void call_free(struct call *call)
{
    call->gw->calls_count--;
    call->gw->choices_open -= call->open;
    metric_set(&call->gw->metrics, METRIC_REQUESTS_IN_FLIGHT, (double)call->gw->calls_count);
    call->conn->call = NULL;
    call_fini(call);
    free(call);
}

/* One line a request, whatever became of it. */
static void call_log(const struct call *call, int status)
{
    uint64_t prompt = 0, completion = 0;

    for (uint32_t i = 0; i < call->parts_count; i++)
        prompt += call->parts[i].prompt_tokens;
    for (uint32_t i = 0; i < call->choices_count; i++)
        completion += call->choices[i].tokens;
    log_info("id=%s request=%s status=%d prompts=%u n=%u prompt_tokens=%llu "
             "completion_tokens=%llu ms=%lld",
             call->conn->trace, call->id, status, (unsigned)call->parts_count, (unsigned)call->n,
             (unsigned long long)prompt, (unsigned long long)completion,
             (long long)(clock_mono_us() - call->started_us) / 1000);
}

void call_cancel(struct call *call, const char *why)
{
    call_abort_parts(call, why);
    metric_add(&call->gw->metrics, METRIC_DISCONNECTS, 1);
    metric_add(&call->gw->metrics, METRIC_SUCCESS_ABORT, call->open);
    call_log(call, 499);
    call_free(call);
}

void call_fail(struct call *call, const struct problem *problem)
{
    struct conn *c = call->conn;
    struct gateway *gw = call->gw;
    bool begun = call->begun;
    struct problem told = *problem;

    if (call->dialect->probe && told.status != 429)
        told.status = 503;
    call_abort_parts(call, told.message);
    metric_add(&gw->metrics, METRIC_SUCCESS_ERROR, call->open);
    log_warn("id=%s request=%s failed: %s", c->trace, call->id, told.message);
    call_log(call, told.status);
    call_free(call);
    if (!begun) {
        reply_problem(c, &told);
        return;
    }
    buf_clear(&gw->scratch);
    buf_puts(&gw->scratch, "data: ");
    problem_render(&told, &gw->scratch);
    buf_puts(&gw->scratch, "\n\n");
    reply_stream_data(c, &gw->scratch);
    reply_stream_end(c);
}

void call_expire(struct call *call)
{
    struct problem problem = {0};

    (void)problem_set(&problem, 408, "timeout", NULL,
                      "the request took longer than the server allows (--request-timeout)");
    call_fail(call, &problem);
}

static void call_complete(struct call *call)
{
    struct conn *c = call->conn;
    struct gateway *gw = call->gw;
    bool stream = call->stream;

    metric_observe(&gw->metrics, METRIC_E2E, (double)(clock_mono_us() - call->started_us) / 1e6);
    buf_clear(&gw->scratch);
    if (stream)
        call->dialect->tail(call, &gw->scratch);
    else
        call->dialect->result(call, &gw->scratch);
    call_log(call, 200);
    call_free(call);
    if (stream) {
        reply_stream_data(c, &gw->scratch);
        reply_stream_end(c);
    } else {
        reply_json(c, 200, &gw->scratch);
    }
    if (gw->scratch.cap > HTTP_WRITE_PAUSE_BYTES)
        buf_fini(&gw->scratch);
}

/* ---- progress ---- */

static void choice_observe(struct call *call, struct call_choice *choice, uint32_t tokens,
                           int64_t now_us)
{
    static const enum metric reasons[] = {
        [FINISH_NONE] = METRIC_SUCCESS_ERROR,    [FINISH_STOP] = METRIC_SUCCESS_STOP,
        [FINISH_LENGTH] = METRIC_SUCCESS_LENGTH, [FINISH_ABORT] = METRIC_SUCCESS_ABORT,
        [FINISH_ERROR] = METRIC_SUCCESS_ERROR,
    };
    struct metrics *m = &call->gw->metrics;

    if (!call->first_us) {
        call->first_us = now_us;
        metric_observe(m, METRIC_TTFT, (double)(now_us - call->started_us) / 1e6);
    }
    if (choice->last_us && tokens)
        metric_observe(m, METRIC_ITL, (double)(now_us - choice->last_us) / 1e6 / tokens);
    if (tokens)
        choice->last_us = now_us;
    if (choice->ended)
        metric_add(m, reasons[choice->finish], 1);
}

/* Writes what a choice holds as events. */
static void choice_write(struct call *call, uint32_t index)
{
    struct gateway *gw = call->gw;

    if (!call->begun)
        reply_stream_begin(call->conn);
    call->begun = true;
    buf_clear(&gw->scratch);
    call->dialect->event(call, index, &gw->scratch);
    reply_stream_data(call->conn, &gw->scratch);
    call->choices[index].begun = true;
    call->choices[index].held = false;
    if (call->dialect->cumulative)
        return;
    buf_clear(&call->choices[index].text);
    buf_clear(&call->choices[index].ids);
    for (int k = 0; k < CALL_LISTS; k++)
        buf_clear(&call->choices[index].lists[k]);
}

/* Unsent bytes from which on a stream gathers its tokens: its share of what all may have. */
static size_t write_pause(const struct gateway *gw)
{
    size_t share = HTTP_UNSENT_BYTES_MAX / (gw->calls_count + 1);

    if (share > HTTP_WRITE_PAUSE_BYTES)
        return HTTP_WRITE_PAUSE_BYTES;
    return share > HTTP_WRITE_SHARE_MIN ? share : HTTP_WRITE_SHARE_MIN;
}

/* A reader that is behind gets nothing more to leave lying: tokens cost less than events. */
static bool call_may_write(const struct call *call)
{
    return !call->behind && conn_unsent(call->conn) < write_pause(call->gw);
}

void call_resume(struct call *call)
{
    call_pace(call);
    if (!call->paused && call->open)
        return;
    for (uint32_t i = 0; i < call->choices_count && call->stream; i++)
        if (call->choices[i].held && call_may_write(call))
            choice_write(call, i);
    for (uint32_t i = 0; i < call->choices_count && call->stream; i++)
        if (call->choices[i].held)
            return;
    call->held_bytes = 0;
    call->paused = false;
    if (!call->open)
        call_complete(call);
}

void call_chunk(struct call *call, uint32_t part, const struct proto_chunk *chunk, int64_t now_us)
{
    struct problem problem = {0};
    uint32_t index = part * call->n + chunk->choice;
    struct call_choice *choice;
    size_t before;

    if (chunk->choice >= call->n || chunk->finish > FINISH_ERROR || call->choices[index].ended)
        return;
    choice = &call->choices[index];
    if (chunk->finish == FINISH_ERROR) {
        (void)problem_set(&problem, 500, NULL, NULL, "the server failed while generating");
        call_fail(call, &problem);
        return;
    }
    before = choice_bytes(choice);
    call_choice_add(call, part, chunk);
    if (chunk->ids_count || choice->ended)
        choice_observe(call, choice, chunk->ids_count, now_us);
    call->gw->choices_open -= choice->ended;
    if (!call->parts[part].open)
        call_part_over(call, part);
    call_pace(call);
    if (call->stream && choice->held) {
        if (call_may_write(call)) {
            choice_write(call, index);
        } else {
            call->paused = true;
            call->held_bytes += choice_bytes(choice) - before;
        }
    }
    if (call->held_bytes > HTTP_HELD_BYTES_MAX)
        conn_drop(call->conn, "the client reads too slowly");
    else if (!call->open)
        call_resume(call);
}

#include "services/bench/reply.h"

#include "common/json.h"
#include "common/mem.h"
#include "services/bench/event.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BODY_BYTES_MAX 65536

void reply_init(struct reply *r, enum shape shape, struct sample *sample)
{
    memset(r, 0, sizeof *r);
    r->shape = shape;
    r->sample = sample;
    r->prompt_tokens = r->completion_tokens = -1;
}

void reply_fini(struct reply *r)
{
    sse_fini(&r->sse);
    buf_fini(&r->body);
    free(r->gaps_us);
}

/* Text of a stranger in a line for people. */
static void set_reason(struct reply *r, const char *what, const char *text, size_t len)
{
    int n = (int)(len < REASON_BYTES ? len : REASON_BYTES);

    if (r->reason[0])
        return;
    (void)snprintf(r->reason, sizeof r->reason, "%s%s%.*s", what, len ? ": " : "", n, text);
    for (char *c = r->reason; *c; c++)
        if ((unsigned char)*c < 0x20 || (unsigned char)*c >= 0x7f)
            *c = '?';
}

/* ---- events ---- */

static void add_gap(struct reply *r)
{
    int64_t gap_us = r->now_us - r->last_us;

    if (r->gaps_count == r->gaps_cap) {
        r->gaps_cap = r->gaps_cap ? r->gaps_cap * 2 : 64;
        r->gaps_us = mem_resize(r->gaps_us, r->gaps_cap, sizeof *r->gaps_us);
    }
    r->gaps_us[r->gaps_count++] = gap_us < UINT32_MAX ? (uint32_t)gap_us : UINT32_MAX;
}

/* Did this event bring text? /generate repeats all of it each time. */
static bool has_text(struct reply *r, const struct event *e)
{
    bool grew;

    if (r->shape != SHAPE_GENERATE)
        return e->text_len > 0;
    grew = e->text_len > r->text_len || e->completion_tokens > r->completion_tokens;
    r->text_len = e->text_len;
    return grew && (e->text_len || e->completion_tokens > 0);
}

static bool on_text(struct reply *r)
{
    struct sample *s = r->sample;

    if (s->chunks)
        add_gap(r);
    else
        s->first_us = r->now_us;
    r->last_us = r->now_us;
    s->chunks++;
    if (s->chunks / 4 <= s->output_asked + 16)
        return true;
    set_reason(r, "the server sends far more than was asked for", "", 0);
    return false;
}

static bool on_event(void *ctx, const char *name, const char *data, size_t len)
{
    struct reply *r = ctx;
    struct event e;
    bool text;

    if (len == 6 && memcmp(data, "[DONE]", 6) == 0) {
        r->done = true;
        return true;
    }
    if (!event_read(data, len, &e)) {
        set_reason(r, "an event is no JSON object", data, len < 60 ? len : 60);
        return false;
    }
    if (e.failed || strcmp(name, "error") == 0) {
        set_reason(r, "error event", e.message ? e.message : data, e.message ? e.message_len : len);
        return false;
    }
    text = has_text(r, &e);
    if (e.prompt_tokens >= 0)
        r->prompt_tokens = e.prompt_tokens;
    if (e.completion_tokens >= 0)
        r->completion_tokens = e.completion_tokens;
    r->finished = r->finished || e.finished;
    if (e.aborted) {
        set_reason(r, "the server ended the request (finish_reason abort)", "", 0);
        return false;
    }
    return !text || on_text(r);
}

bool reply_feed(struct reply *r, int status, const char *data, size_t len, int64_t now_us)
{
    int rc;

    r->now_us = now_us;
    if (status != 200) {
        if (r->body.len + len <= BODY_BYTES_MAX)
            buf_append(&r->body, data, len);
        return true;
    }
    rc = sse_feed(&r->sse, data, len, on_event, r);
    if (rc == ERR_LIMIT)
        set_reason(r, "an event is larger than 16 MiB", "", 0);
    return rc == 0;
}

/* ---- the end ---- */

/* The message in {"error": {"message"}}, {"error": "..."}, {"message"} or {"detail"}. */
static const char *message_of(const json_t *json)
{
    const json_t *error = json_object_get(json, "error");
    const json_t *places[] = {json_object_get(error, "message"), error,
                              json_object_get(json, "message"), json_object_get(json, "detail")};

    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (json_is_string(places[i]))
            return json_string_value(places[i]);
    return NULL;
}

static void fail_status(struct reply *r, int status)
{
    const char *text = r->body.data ? r->body.data : "";
    const char *message = NULL;
    struct err ignored;
    json_t *json = NULL;
    char what[32];

    (void)snprintf(what, sizeof what, "HTTP %d", status);
    if (json_parse(text, r->body.len, JSON_DEPTH_REQUEST, &json, &ignored) == 0)
        message = message_of(json);
    if (message)
        set_reason(r, what, message, strlen(message));
    else
        set_reason(r, what, text, r->body.len < 120 ? r->body.len : 120);
    json_decref(json);
}

/* Numbers of a complete reply, and whether they fit together. */
static void count_tokens(struct reply *r, struct results *results)
{
    struct sample *s = r->sample;
    bool counted = r->completion_tokens >= 0;

    s->output_tokens = counted ? (uint32_t)r->completion_tokens : s->chunks;
    s->input_tokens = r->prompt_tokens >= 0 ? (uint32_t)r->prompt_tokens : s->input_asked;
    if (!s->chunks) /* tokens without text, or none */
        s->first_us = s->end_us;
    results->without_usage += !counted;
    results->shorter += s->output_tokens < s->output_asked;
    results->more_chunks += s->chunks > s->output_tokens;
    results->other_inputs += s->input_tokens != s->input_asked;
}

void reply_end(struct reply *r, int status, const char *reason, int64_t now_us,
               struct results *results)
{
    struct sample *s = r->sample;

    r->now_us = now_us;
    s->end_us = now_us;
    if (!reason && status == 200) {
        if (sse_end(&r->sse, on_event, r) == 0 && !r->done && !r->finished)
            set_reason(r,
                       s->chunks ? "the stream ended without finish_reason and [DONE]"
                                 : "the reply is no stream of events",
                       "", 0);
    } else if (!reason) {
        fail_status(r, status);
    } else if (*reason) {
        set_reason(r, reason, "", 0);
    }
    if (r->reason[0]) {
        results_fail(results, s, r->reason);
        return;
    }
    s->outcome = OUTCOME_OK;
    count_tokens(r, results);
    results_add_gaps(results, r->gaps_us, r->gaps_count);
}

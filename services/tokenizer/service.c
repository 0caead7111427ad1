#include "services/tokenizer/service.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/metrics.h"
#include "proto/stats.h"
#include "services/tokenizer/request.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define INLINE_BYTES                                                                               \
    2048u /* a prompt this small is encoded at once: cheaper than a thread's turn */
#define STATS_PERIOD_MS 1000u

/* Chunks for one gateway, gathered while one TOKENS message is worked on. */
struct outbox {
    struct bus_peer *gateway;
    struct proto_chunk *chunks;
    uint32_t count, cap;
    struct outbox *next;
};

struct service {
    uv_loop_t loop;
    const char *name;
    struct tokenizer *tokenizer;
    struct chat *chat;
    struct bus *gateways, *schedulers;
    struct bus_peer *scheduler; /* NULL while not connected */
    struct request *requests;   /* by key */
    struct sequence *sequences; /* by sid */
    uint64_t next_sid;
    struct proto_state state;
    char device[16];
    struct metrics metrics;
    uv_timer_t stats_timer;
    uv_signal_t sigterm, sigint;
    struct outbox *outboxes;
    struct proto_arena stats_arena; /* the scheduler's last STATS */
    const struct proto_stats *scheduler_stats;
    int status;
    struct err err;
};

/* ---- answers to gateways ---- */

static void send_failed(struct service *s, struct bus_peer *gateway, uint64_t rid, uint32_t status,
                        struct proto_str message, struct proto_str param, struct proto_str code)
{
    struct proto_failed failed = {status, message, param, code};
    struct err err;

    (void)s;
    if (bus_send(gateway, PROTO_FAILED, rid, &failed, &err))
        log_warn("gateway=%s rid=%llu %s", bus_peer_name(gateway), (unsigned long long)rid,
                 err.msg);
}

/* Ends a request here; the scheduler is told about sequences it still runs. */
static void request_end(struct service *s, struct request *r, const char *reason)
{
    struct proto_abort abort_message = {proto_str(reason)};

    HASH_DEL(s->requests, r);
    for (uint32_t i = 0; r->sequences && i < r->generate.n; i++) {
        struct sequence *q = &r->sequences[i];

        HASH_DEL(s->sequences, q);
        if (q->live && s->scheduler)
            (void)bus_send(s->scheduler, PROTO_ABORT, q->sid, &abort_message, NULL);
    }
    if (r->encoding)
        r->gone = true; /* freed when the thread is done with it */
    else
        request_free(&r);
}

static void request_fail(struct service *s, struct request *r, uint32_t status, const char *message,
                         const char *param, const char *code)
{
    send_failed(s, r->key.gateway, r->key.rid, status, proto_str(message), proto_str(param),
                proto_str(code));
    request_end(s, r, "failed");
}

/* ---- requests from gateways ---- */

static void request_submit(struct service *s, struct request *r)
{
    struct proto_submit submit = {.prompt = r->prompt.data,
                                  .prompt_count = (uint32_t)r->prompt.len,
                                  .sampling = r->generate.sampling,
                                  .trace_id = r->generate.trace_id};

    if (!s->scheduler) {
        request_fail(s, r, 503, "the scheduler is not connected", "", "unavailable");
        return;
    }
    metric_add(&s->metrics, METRIC_TOKENIZER_TOKENS_IN, (double)r->prompt.len);
    request_sequences(r, s->tokenizer, s->next_sid);
    s->next_sid += r->generate.n;
    for (uint32_t i = 0; i < r->generate.n; i++) {
        struct sequence *q = &r->sequences[i];

        HASH_ADD(hh, s->sequences, sid, sizeof q->sid, q);
    }
    for (uint32_t i = 0; i < r->generate.n; i++) {
        struct err err;

        submit.sampling.seed = r->generate.sampling.seed + i;
        if (bus_send(s->scheduler, PROTO_SUBMIT, r->sequences[i].sid, &submit, &err)) {
            request_fail(s, r, 503, err.msg, "", "unavailable");
            return;
        }
    }
}

static void encode_work(uv_work_t *work)
{
    struct request *r = work->data;

    r->status = request_encode(r, r->service->tokenizer, r->service->chat, &r->err);
}

static void encode_finish(struct request *r)
{
    struct service *s = r->service;
    const char *param = r->generate.kind == PROMPT_CHAT ? "messages" : "prompt";

    if (r->gone) {
        request_free(&r);
        return;
    }
    if (r->status)
        request_fail(s, r, 400, r->err.msg, param,
                     r->status == ERR_LIMIT ? "context_length_exceeded" : "invalid_value");
    else
        request_submit(s, r);
}

static void encode_after(uv_work_t *work, int status)
{
    struct request *r = work->data;

    r->encoding = false;
    if (status) {
        r->status = ERR_INTERNAL;
        (void)err_set(&r->err, ERR_INTERNAL, "encoding was cancelled");
    }
    encode_finish(r);
}

static void on_generate(struct service *s, struct bus_peer *peer, const struct proto_header *header,
                        const struct proto_generate *g)
{
    struct request *r, *old;
    struct err err;

    if (!s->state.ready) {
        send_failed(s, peer, header->id, 503, proto_str("the model is not ready"), proto_str(""),
                    proto_str("unavailable"));
        return;
    }
    if (g->n < 1 || g->n > 128) {
        send_failed(s, peer, header->id, 400, proto_str("n is out of range"), proto_str("n"),
                    proto_str("invalid_value"));
        return;
    }
    r = request_new(header, g, &err);
    if (!r) {
        send_failed(s, peer, header->id, 400, proto_str(err.msg), proto_str(""),
                    proto_str("invalid_value"));
        return;
    }
    r->service = s;
    r->key.gateway = peer;
    HASH_FIND(hh, s->requests, &r->key, sizeof r->key, old);
    if (old) {
        log_warn("gateway=%s rid=%llu sent twice, the second is dropped", bus_peer_name(peer),
                 (unsigned long long)header->id);
        request_free(&r);
        return;
    }
    HASH_ADD(hh, s->requests, key, sizeof r->key, r);
    r->work.data = r;
    if (g->text.len <= INLINE_BYTES) {
        encode_work(&r->work);
        encode_finish(r);
        return;
    }
    r->encoding = true;
    if (uv_queue_work(&s->loop, &r->work, encode_work, encode_after)) {
        r->encoding = false;
        request_fail(s, r, 500, "could not queue the encoding", "", "internal_error");
    }
}

static void on_gateway_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                               const void *message)
{
    struct service *s = ctx;
    struct request_key key = {peer, header->id};
    struct request *r;

    switch (header->type) {
    case PROTO_GENERATE:
        on_generate(s, peer, header, message);
        break;
    case PROTO_ABORT:
        HASH_FIND(hh, s->requests, &key, sizeof key, r);
        if (r)
            request_end(s, r, "client went away");
        break;
    case PROTO_FLUSH:
        if (s->scheduler)
            (void)bus_send(s->scheduler, PROTO_FLUSH, 0, message, NULL);
        break;
    default:
        log_warn("gateway=%s sent %s, which is not for a tokenizer", bus_peer_name(peer),
                 proto_type_name(header->type));
    }
}

static void on_gateway_up(void *ctx, struct bus_peer *peer)
{
    struct service *s = ctx;

    (void)bus_send(peer, PROTO_STATE, 0, &s->state, NULL);
}

static void on_gateway_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct service *s = ctx;
    struct request *r, *next;
    unsigned count = 0;

    HASH_ITER(hh, s->requests, r, next)
    {
        if (r->key.gateway != peer)
            continue;
        request_end(s, r, "gateway went away");
        count++;
    }
    log_info("gateway=%s is gone (%s), requests ended: %u", bus_peer_name(peer), reason, count);
}

/* ---- tokens from the scheduler ---- */

static struct proto_chunk *outbox_add(struct service *s, struct bus_peer *gateway)
{
    struct outbox *box = s->outboxes;

    while (box && box->gateway != gateway)
        box = box->next;
    if (!box) {
        box = mem_zalloc(sizeof *box);
        box->gateway = gateway;
        box->next = s->outboxes;
        s->outboxes = box;
    }
    if (box->count == box->cap) {
        box->cap = box->cap ? box->cap * 2 : 64;
        box->chunks = mem_resize(box->chunks, box->cap, sizeof *box->chunks);
    }
    memset(&box->chunks[box->count], 0, sizeof *box->chunks);
    return &box->chunks[box->count++];
}

static struct proto_str text_take(struct buf *b)
{
    struct proto_str text = {b->len ? b->data : "", b->len};

    if (!b->len)
        buf_fini(b);
    memset(b, 0, sizeof *b); /* the chunk owns the bytes until it is sent */
    return text;
}

static void token_text(const struct service *s, uint32_t id, struct proto_str *out)
{
    struct buf b = {0};

    tokenizer_token_bytes(s->tokenizer, id, &b);
    if (b.len > 1024)
        b.len = 1024;
    *out = text_take(&b);
}

/* One of the scheduler's log probabilities with the tokens' bytes. */
static void logprob_take(const struct service *s, const struct proto_logprob *from,
                         struct proto_logprob *to)
{
    *to = (struct proto_logprob){.id = from->id, .logprob = from->logprob};
    token_text(s, from->id, &to->text);
    to->top = mem_array(from->top_count, sizeof *to->top);
    to->top_count = from->top_count;
    for (uint32_t i = 0; i < from->top_count; i++) {
        to->top[i] = from->top[i];
        token_text(s, from->top[i].id, &to->top[i].text);
    }
}

static void free_str(struct proto_str s)
{
    if (s.len)
        free((void *)(uintptr_t)s.data);
}

static void logprobs_free(struct proto_logprob *list, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        free_str(list[i].text);
        for (uint32_t k = 0; k < list[i].top_count; k++)
            free_str(list[i].top[k].text);
        free(list[i].top);
    }
    free(list);
}

static void chunk_fini(struct proto_chunk *c)
{
    free_str(c->text);
    free(c->ids);
    logprobs_free(c->logprobs, c->logprobs_count);
    logprobs_free(c->prompt_logprobs, c->prompt_logprobs_count);
}

static void sequence_end(struct service *s, struct sequence *q)
{
    struct request *r = q->request;

    q->live = false;
    if (--r->live == 0)
        request_end(s, r, "done");
}

/* A chunk of q without text or tokens. */
static struct proto_chunk *chunk_new(struct service *s, const struct sequence *q)
{
    struct proto_chunk *c = outbox_add(s, q->request->key.gateway);

    c->rid = q->request->key.rid;
    c->choice = q->choice;
    c->stop_id = -1;
    c->prompt_tokens = (uint32_t)q->request->prompt.len;
    return c;
}

/* The prompt's tokens from q->scored on, as the scheduler scored them; the first one, which follows
 * nothing, goes before them. */
static void prompt_logprobs_add(struct service *s, struct sequence *q, struct proto_chunk *c,
                                const struct proto_logprob *list, uint32_t count)
{
    const struct proto_logprob first = {.id = q->request->prompt.data[0]};
    uint32_t n = 0;

    c->prompt_logprobs = mem_array((size_t)count + 1, sizeof *c->prompt_logprobs);
    if (q->scored == 0)
        logprob_take(s, &first, &c->prompt_logprobs[n++]);
    for (uint32_t i = 0; i < count; i++)
        logprob_take(s, &list[i], &c->prompt_logprobs[n++]);
    c->prompt_logprobs_count = n;
    q->scored += n;
}

/* The text, and how it ends. */
static void chunk_text(struct sequence *q, const struct proto_token *token, struct proto_chunk *c)
{
    struct request *r = q->request;
    struct buf text = {0};
    int stop = -1;

    if (q->completion_tokens++ == 0)
        buf_append(&text, r->echo.data, r->echo.len);
    c->finish = token->finish;
    if (r->generate.prompt_only)
        c->finish = FINISH_LENGTH;
    else if (token->finish == FINISH_STOP)
        c->stop_id = token->id; /* the end token itself is not text */
    else
        stop = detok_push(&q->detok, &token->id, 1, &text);
    if (stop >= 0) {
        c->finish = FINISH_STOP;
        c->stop_text = (struct proto_str){r->stops[stop].text, r->stops[stop].len};
    } else if (c->finish != FINISH_NONE) {
        detok_finish(&q->detok, &text);
    }
    c->text = text_take(&text);
}

/* One token of one sequence becomes a chunk. */
static void on_token(struct service *s, const struct proto_token *token)
{
    struct sequence *q;
    struct request *r;
    struct proto_chunk *c;

    HASH_FIND(hh, s->sequences, &token->sid, sizeof token->sid, q);
    if (!q || !q->live || token->index < q->completion_tokens)
        return; /* ended or aborted meanwhile, or a repeat */
    r = q->request;
    if (token->index > q->completion_tokens ||
        (r->generate.sampling.prompt_logprobs && r->prompt.len > 1 && q->scored < r->prompt.len)) {
        log_error("sid=%llu token %u of %u scored ones is missing", (unsigned long long)q->sid,
                  q->completion_tokens, q->scored);
        request_fail(s, r, 500, "a token was lost", "", "internal_error");
        return;
    }
    c = chunk_new(s, q);
    if (r->generate.sampling.prompt_logprobs && q->scored == 0)
        prompt_logprobs_add(s, q, c, NULL, 0);
    chunk_text(q, token, c);
    c->cached_tokens = token->cached_tokens;
    metric_add(&s->metrics, METRIC_TOKENIZER_TOKENS_OUT, 1);
    if (r->generate.prompt_only)
        return;
    c->ids = mem_array(1, sizeof *c->ids);
    c->ids[0] = token->id;
    c->ids_count = 1;
    c->completion_tokens = q->completion_tokens;
    if (!token->logprob_count)
        return;
    c->logprobs = mem_array(1, sizeof *c->logprobs);
    c->logprobs_count = 1;
    logprob_take(s, token->logprob, c->logprobs);
}

static void flush_outboxes(struct service *s)
{
    for (struct outbox *box = s->outboxes; box; box = box->next) {
        struct proto_chunks chunks = {box->chunks, box->count};
        struct err err;

        if (box->count && bus_send(box->gateway, PROTO_CHUNKS, 0, &chunks, &err))
            log_warn("gateway=%s %s", bus_peer_name(box->gateway), err.msg);
    }
}

static void end_finished(struct service *s, struct outbox *box)
{
    struct proto_abort abort_message = {proto_str("stop string")};

    for (uint32_t i = 0; i < box->count; i++) {
        const struct proto_chunk *c = &box->chunks[i];
        struct request_key key = {box->gateway, c->rid};
        struct request *r;
        struct sequence *q;

        if (c->finish == FINISH_NONE)
            continue;
        HASH_FIND(hh, s->requests, &key, sizeof key, r);
        if (!r)
            continue;
        q = &r->sequences[c->choice];
        if (c->stop_text.len && s->scheduler)
            (void)bus_send(s->scheduler, PROTO_ABORT, q->sid, &abort_message, NULL);
        sequence_end(s, q);
    }
}

/* Sends what was gathered, and ends what it ended. */
static void empty_outboxes(struct service *s)
{
    flush_outboxes(s);
    while (s->outboxes) { /* chunks borrow stop strings from requests: those end after sending */
        struct outbox *box = s->outboxes;

        end_finished(s, box);
        for (uint32_t i = 0; i < box->count; i++)
            chunk_fini(&box->chunks[i]);
        s->outboxes = box->next;
        free(box->chunks);
        free(box);
    }
}

static void on_tokens(struct service *s, const struct proto_tokens *tokens)
{
    for (uint32_t i = 0; i < tokens->tokens_count; i++)
        on_token(s, &tokens->tokens[i]);
    empty_outboxes(s);
}

static void on_scored(struct service *s, uint64_t sid, const struct proto_scored *m)
{
    struct sequence *q;

    HASH_FIND(hh, s->sequences, &sid, sizeof sid, q);
    if (!q || !q->live)
        return;
    if (m->start != (q->scored ? q->scored : 1) ||
        m->logprobs_count > q->request->prompt.len - m->start) {
        log_error("sid=%llu prompt tokens from %u were scored, %u are known",
                  (unsigned long long)sid, m->start, q->scored);
        request_fail(s, q->request, 500, "log probabilities were lost", "", "internal_error");
        return;
    }
    prompt_logprobs_add(s, q, chunk_new(s, q), m->logprobs, m->logprobs_count);
    empty_outboxes(s);
}

/* ---- the scheduler's link ---- */

static void state_send(struct service *s)
{
    for (struct bus_peer *p = bus_next_peer(s->gateways, NULL); p;
         p = bus_next_peer(s->gateways, p))
        (void)bus_send(p, PROTO_STATE, 0, &s->state, NULL);
}

static void on_state(struct service *s, const struct proto_state *state)
{
    size_t n = state->device.len < sizeof s->device ? state->device.len : sizeof s->device;

    memcpy(s->device, state->device.data, n);
    s->state = *state;
    s->state.device = (struct proto_str){s->device, n};
    s->state.reason = proto_str(state->ready ? "" : "loading");
    state_send(s);
}

static void stats_send(struct service *s)
{
    struct proto_stat own[METRICS_COUNT];
    struct proto_source sources[256];
    struct proto_stats stats = {sources, 1};

    metrics_sample_process(&s->metrics);
    sources[0] = stats_source(&s->metrics, s->name, own);
    for (uint32_t i = 0;
         s->scheduler_stats && i < s->scheduler_stats->sources_count && stats.sources_count < 256;
         i++)
        sources[stats.sources_count++] = s->scheduler_stats->sources[i];
    for (struct bus_peer *p = bus_next_peer(s->gateways, NULL); p;
         p = bus_next_peer(s->gateways, p))
        (void)bus_send(p, PROTO_STATS, 0, &stats, NULL);
}

/* Keeps a copy: it is sent on again with our own numbers every second. */
static void on_stats(struct service *s, const struct proto_header *header,
                     const struct proto_stats *stats)
{
    struct proto_header copy_header;
    struct buf copy = {0};
    void *message;

    s->scheduler_stats = NULL;
    proto_arena_clear(&s->stats_arena);
    if (!proto_encode(header, stats, &copy, NULL) &&
        !proto_decode(copy.data, copy.len, &s->stats_arena, &copy_header, &message, NULL))
        s->scheduler_stats = message;
    buf_fini(&copy);
    stats_send(s);
}

static void on_scheduler_message(void *ctx, struct bus_peer *peer,
                                 const struct proto_header *header, const void *message)
{
    struct service *s = ctx;
    const struct proto_failed *failed = message;
    struct sequence *q;

    switch (header->type) {
    case PROTO_TOKENS:
        on_tokens(s, message);
        break;
    case PROTO_SCORED:
        on_scored(s, header->id, message);
        break;
    case PROTO_STATE:
        on_state(s, message);
        break;
    case PROTO_STATS:
        on_stats(s, header, message);
        break;
    case PROTO_FAILED:
        HASH_FIND(hh, s->sequences, &header->id, sizeof header->id, q);
        if (!q)
            break;
        q->live = false;
        send_failed(s, q->request->key.gateway, q->request->key.rid, failed->status,
                    failed->message, failed->param, failed->code);
        request_end(s, q->request, "another choice failed");
        break;
    default:
        log_warn("scheduler=%s sent %s, which is not for a tokenizer", bus_peer_name(peer),
                 proto_type_name(header->type));
    }
}

static void on_scheduler_up(void *ctx, struct bus_peer *peer)
{
    ((struct service *)ctx)->scheduler = peer;
}

static void on_scheduler_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct service *s = ctx;
    struct request *r, *next;

    log_warn("scheduler=%s is gone (%s), requests ended: %u", bus_peer_name(peer), reason,
             HASH_COUNT(s->requests));
    s->scheduler = NULL;
    s->state.ready = false;
    s->state.reason = proto_str("the scheduler is gone");
    state_send(s);
    HASH_ITER(hh, s->requests, r, next)
    request_fail(s, r, 503, "the scheduler went away", "", "unavailable");
}

static void on_scheduler_refused(void *ctx, const char *reason)
{
    struct service *s = ctx;

    s->status = err_set(&s->err, ERR_PROTOCOL, "the scheduler refused us: %s", reason);
    uv_stop(&s->loop);
}

/* ---- life ---- */

static void on_stats_timer(uv_timer_t *timer)
{
    stats_send(timer->data);
}

static void on_signal(uv_signal_t *handle, int signum)
{
    struct service *s = handle->data;

    log_debug("signal=%d stopping", signum);
    uv_stop(&s->loop);
}

static int open_buses(struct service *s, const struct service_config *config, struct err *err)
{
    struct bus_config in = {.loop = &s->loop,
                            .role = "tokenizer",
                            .name = config->name,
                            .endpoint = config->endpoint,
                            .accepts = "gateway",
                            .silence_ms_max = (int64_t)(config->heartbeat_timeout_s * 1e3),
                            .on = {on_gateway_up, on_gateway_message, on_gateway_down, NULL},
                            .ctx = s};
    struct bus_config out = in;
    int rc = bus_bind(&in, &s->gateways, err);

    if (rc)
        return rc;
    out.endpoint = config->scheduler_endpoint;
    out.accepts = NULL;
    out.on = (struct bus_callbacks){on_scheduler_up, on_scheduler_message, on_scheduler_down,
                                    on_scheduler_refused};
    return bus_connect(&out, &s->schedulers, err);
}

int tokenizer_service_new(const struct service_config *config, struct service **out,
                          struct err *err)
{
    struct service *s = mem_zalloc(sizeof *s);
    int64_t start_us = clock_mono_us();
    int rc;

    *out = s;
    s->name = config->name;
    s->next_sid = 1;
    s->state.reason = proto_str("loading");
    (void)uv_loop_init(&s->loop);
    if ((rc = tokenizer_load(config->model_dir, &s->tokenizer, err)) ||
        (rc = chat_load(config->model_dir, s->tokenizer, &s->chat, err)) ||
        (rc = open_buses(s, config, err)))
        return rc;
    (void)uv_timer_init(&s->loop, &s->stats_timer);
    s->stats_timer.data = s;
    (void)uv_timer_start(&s->stats_timer, on_stats_timer, STATS_PERIOD_MS, STATS_PERIOD_MS);
    (void)uv_signal_init(&s->loop, &s->sigterm);
    (void)uv_signal_init(&s->loop, &s->sigint);
    s->sigterm.data = s->sigint.data = s;
    (void)uv_signal_start(&s->sigterm, on_signal, SIGTERM);
    (void)uv_signal_start(&s->sigint, on_signal, SIGINT);
    log_info("tokens=%u load_ms=%lld \"tokenizer loaded\"", tokenizer_size(s->tokenizer),
             (long long)(clock_mono_us() - start_us) / 1000);
    return 0;
}

int tokenizer_service_run(struct service *s, struct err *err)
{
    (void)uv_run(&s->loop, UV_RUN_DEFAULT);
    if (s->status)
        *err = s->err;
    return s->status;
}

static void close_handle(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

void tokenizer_service_free(struct service **self)
{
    struct service *s = *self;
    struct request *r, *next;

    if (!s)
        return;
    s->scheduler = NULL; /* it aborts what was ours when the link goes down */
    HASH_ITER(hh, s->requests, r, next)
    request_end(s, r, "shutting down");
    if (s->gateways)
        bus_close(&s->gateways);
    if (s->schedulers)
        bus_close(&s->schedulers);
    while (uv_run(&s->loop, UV_RUN_NOWAIT) && uv_loop_alive(&s->loop))
        uv_walk(&s->loop, close_handle, NULL);
    (void)uv_run(&s->loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&s->loop);
    proto_arena_fini(&s->stats_arena);
    chat_free(&s->chat);
    tokenizer_free(&s->tokenizer);
    free(s);
    *self = NULL;
}

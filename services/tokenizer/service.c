#include "services/tokenizer/service.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/metrics.h"
#include "proto/stats.h"
#include "services/tokenizer/chunks.h"
#include "services/tokenizer/request.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define INLINE_BYTES                                                                               \
    2048u /* a prompt this small is encoded at once: cheaper than a thread's turn */
#define STATS_PERIOD_MS 1000u

struct service {
    uv_loop_t loop;
    const char *name;
    struct tokenizer *tokenizer;
    struct chat *chat;
    struct bus *gateways;
    struct replicas replicas;
    struct request *requests;   /* by key */
    struct sequence *sequences; /* by sid */
    uint64_t next_sid;
    struct metrics metrics;
    uv_timer_t stats_timer;
    uv_signal_t sigterm, sigint;
    struct outbox *outboxes;
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

/* The scheduler sends no more of it. */
static void sequence_close(struct sequence *q)
{
    if (q->live)
        replica_ended(q->request->replica);
    q->live = false;
}

/* Ends a request here; the scheduler is told about sequences it still runs. */
static void request_end(struct service *s, struct request *r, const char *reason)
{
    struct proto_abort abort_message = {proto_str(reason)};

    HASH_DEL(s->requests, r);
    for (uint32_t i = 0; r->sequences && i < r->generate.n; i++) {
        struct sequence *q = &r->sequences[i];

        HASH_DEL(s->sequences, q);
        if (q->live && r->replica->peer)
            (void)bus_send(r->replica->peer, PROTO_ABORT, q->sid, &abort_message, NULL);
        sequence_close(q);
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

/* Its prompt is known. */
static void request_open(struct service *s, struct request *r)
{
    metric_add(&s->metrics, METRIC_TOKENIZER_TOKENS_IN, (double)r->prompt.len);
    request_sequences(r, s->tokenizer, s->next_sid);
    s->next_sid += r->generate.n;
    for (uint32_t i = 0; i < r->generate.n; i++) {
        struct sequence *q = &r->sequences[i];

        HASH_ADD(hh, s->sequences, sid, sizeof q->sid, q);
    }
}

/* To the scheduler of choice; again when that one went away. */
static void request_submit(struct service *s, struct request *r)
{
    struct proto_submit submit = {.prompt = r->prompt.data,
                                  .prompt_count = (uint32_t)r->prompt.len,
                                  .sampling = r->generate.sampling,
                                  .trace_id = r->generate.trace_id};

    r->replica = replicas_choose(&s->replicas, r->prompt.data, r->prompt.len);
    if (!r->replica) {
        request_fail(s, r, 503, "no scheduler is ready", "", "unavailable");
        return;
    }
    if (!r->sequences)
        request_open(s, r);
    for (uint32_t i = 0; i < r->generate.n; i++) {
        r->sequences[i].live = true;
        replica_began(r->replica);
    }
    for (uint32_t i = 0; i < r->generate.n; i++) {
        struct err err;

        submit.sampling.seed = r->generate.sampling.seed + i;
        if (bus_send(r->replica->peer, PROTO_SUBMIT, r->sequences[i].sid, &submit, &err)) {
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

    if (!replicas_state(&s->replicas).ready) {
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
        replicas_flush(&s->replicas, message);
        break;
    default:
        log_warn("gateway=%s sent %s, which is not for a tokenizer", bus_peer_name(peer),
                 proto_type_name(header->type));
    }
}

static void on_gateway_up(void *ctx, struct bus_peer *peer)
{
    struct service *s = ctx;
    struct proto_state state = replicas_state(&s->replicas);

    (void)bus_send(peer, PROTO_STATE, 0, &state, NULL);
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

static void sequence_end(struct service *s, struct sequence *q)
{
    struct request *r = q->request;

    sequence_close(q);
    if (--r->live == 0)
        request_end(s, r, "done");
}

/* A chunk of q without text or tokens. */
static struct proto_chunk *chunk_new(struct service *s, const struct sequence *q)
{
    struct proto_chunk *c = outbox_add(&s->outboxes, q->request->key.gateway);

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
    const uint32_t *first = q->scored == 0 ? q->request->prompt.data : NULL;

    chunk_set_prompt_logprobs(c, s->tokenizer, first, list, count);
    q->scored += c->prompt_logprobs_count;
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
    chunk_take_text(c, &text);
}

/* A gateway that takes nothing any more: its requests end here, their pages are wanted. */
static void drop_requests(struct service *s, const struct outbox *box)
{
    for (uint32_t i = 0; i < box->count; i++) {
        struct request_key key = {box->gateway, box->chunks[i].rid};
        struct request *r;

        HASH_FIND(hh, s->requests, &key, sizeof key, r);
        if (r)
            request_end(s, r, "the gateway does not read");
    }
}

static void flush_outboxes(struct service *s)
{
    for (struct outbox *box = s->outboxes; box; box = box->next) {
        struct proto_chunks chunks = {box->chunks, box->count};
        struct err err;

        if (box->count && bus_send(box->gateway, PROTO_CHUNKS, 0, &chunks, &err)) {
            log_warn("gateway=%s %s", bus_peer_name(box->gateway), err.msg);
            drop_requests(s, box);
        }
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
        if (c->stop_text.len && r->replica->peer)
            (void)bus_send(r->replica->peer, PROTO_ABORT, q->sid, &abort_message, NULL);
        sequence_end(s, q);
    }
}

/* Sends what was gathered, and ends what it ended. */
static void empty_outboxes(struct service *s)
{
    flush_outboxes(s);
    while (s->outboxes) { /* chunks borrow stop strings from requests: those end after sending */
        end_finished(s, s->outboxes);
        outbox_drop(&s->outboxes);
    }
}

/* One token of one sequence becomes a chunk. */
static void on_token(struct service *s, const struct replica *from, const struct proto_token *token)
{
    struct sequence *q;
    struct request *r;
    struct proto_chunk *c;

    HASH_FIND(hh, s->sequences, &token->sid, sizeof token->sid, q);
    if (!q || !q->live || q->request->replica != from || token->index < q->completion_tokens)
        return; /* ended or aborted meanwhile, or a repeat */
    r = q->request;
    if (token->index > q->completion_tokens ||
        (r->generate.sampling.prompt_logprobs && r->prompt.len > 1 && q->scored < r->prompt.len)) {
        log_error("sid=%llu token %u of %u scored ones is missing", (unsigned long long)q->sid,
                  q->completion_tokens, q->scored);
        empty_outboxes(s); /* what was gathered borrows this request's stop strings */
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
    chunk_set_logprob(c, s->tokenizer, token);
}

static void on_tokens(struct service *s, const struct replica *from,
                      const struct proto_tokens *tokens)
{
    for (uint32_t i = 0; i < tokens->tokens_count; i++)
        on_token(s, from, &tokens->tokens[i]);
    empty_outboxes(s);
}

/* The prompt's tokens from m->start on were scored. */
static void on_scored(struct service *s, const struct replica *from, uint64_t sid,
                      const struct proto_scored *m)
{
    struct sequence *q;

    HASH_FIND(hh, s->sequences, &sid, sizeof sid, q);
    if (!q || !q->live || q->request->replica != from)
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

/* ---- the schedulers' links ---- */

static void state_send(struct service *s)
{
    struct proto_state state = replicas_state(&s->replicas);

    for (struct bus_peer *p = bus_next_peer(s->gateways, NULL); p;
         p = bus_next_peer(s->gateways, p))
        (void)bus_send(p, PROTO_STATE, 0, &state, NULL);
}

static void stats_send(struct service *s)
{
    struct proto_stat own[METRICS_COUNT];
    struct proto_source sources[256];
    struct proto_stats stats = {sources, 1};

    metrics_sample_process(&s->metrics);
    sources[0] = stats_source(&s->metrics, s->name, own);
    stats.sources_count = replicas_sources(&s->replicas, sources, 1, 256);
    for (struct bus_peer *p = bus_next_peer(s->gateways, NULL); p;
         p = bus_next_peer(s->gateways, p))
        (void)bus_send(p, PROTO_STATS, 0, &stats, NULL);
}

static void on_sequence_failed(struct service *s, const struct replica *from, uint64_t sid,
                               const struct proto_failed *failed)
{
    struct sequence *q;

    HASH_FIND(hh, s->sequences, &sid, sizeof sid, q);
    if (!q || !q->live || q->request->replica != from)
        return;
    sequence_close(q);
    send_failed(s, q->request->key.gateway, q->request->key.rid, failed->status, failed->message,
                failed->param, failed->code);
    request_end(s, q->request, "another choice failed");
}

static void on_scheduler_message(void *ctx, struct bus_peer *peer,
                                 const struct proto_header *header, const void *message)
{
    struct replica *from = ctx;
    struct service *s = from->service;

    switch (header->type) {
    case PROTO_TOKENS:
        on_tokens(s, from, message);
        break;
    case PROTO_SCORED:
        on_scored(s, from, header->id, message);
        break;
    case PROTO_STATE:
        replica_state(from, message);
        state_send(s);
        break;
    case PROTO_STATS:
        replica_stats(from, header, message);
        stats_send(s);
        break;
    case PROTO_FAILED:
        on_sequence_failed(s, from, header->id, message);
        break;
    default:
        log_warn("scheduler=%s sent %s, which is not for a tokenizer", bus_peer_name(peer),
                 proto_type_name(header->type));
    }
}

static void on_scheduler_up(void *ctx, struct bus_peer *peer)
{
    replica_up(ctx, peer);
}

/* Nobody has seen anything of it yet: another replica may take it as it is. */
static bool request_untouched(const struct request *r)
{
    for (uint32_t i = 0; i < r->generate.n; i++)
        if (r->sequences[i].completion_tokens || r->sequences[i].scored)
            return false;
    return true;
}

static void on_scheduler_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct replica *gone = ctx;
    struct service *s = gone->service;
    struct request *r, *next;
    unsigned ended = 0, moved = 0;
    bool others;

    replica_down(&s->replicas, gone);
    others = replicas_state(&s->replicas).ready;
    state_send(s);
    HASH_ITER(hh, s->requests, r, next)
    {
        if (r->replica != gone)
            continue;
        for (uint32_t i = 0; i < r->generate.n; i++)
            sequence_close(&r->sequences[i]);
        if (others && request_untouched(r)) {
            request_submit(s, r);
            moved++;
        } else {
            request_fail(s, r, 503, "the scheduler went away", "", "unavailable");
            ended++;
        }
    }
    log_warn("scheduler=%s is gone (%s), requests ended: %u, moved: %u", bus_peer_name(peer),
             reason, ended, moved);
}

static void on_scheduler_refused(void *ctx, const char *reason)
{
    struct service *s = ((struct replica *)ctx)->service;

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
                            .security = &config->security,
                            .accepts = "gateway",
                            .silence_ms_max = (int64_t)(config->heartbeat_timeout_s * 1e3),
                            .on = {on_gateway_up, on_gateway_message, on_gateway_down, NULL, NULL},
                            .ctx = s};
    struct bus_config out = in;
    int rc = bus_bind(&in, &s->gateways, err);

    if (rc)
        return rc;
    out.accepts = NULL;
    out.on = (struct bus_callbacks){on_scheduler_up, on_scheduler_message, on_scheduler_down,
                                    on_scheduler_refused, NULL};
    return replicas_open(&s->replicas, s, config->scheduler_endpoint, config->dispatch_policy, &out,
                         err);
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
    for (uint32_t i = 0; i < s->replicas.count; i++)
        s->replicas.list[i].peer = NULL; /* they abort what was ours when the link goes down */
    HASH_ITER(hh, s->requests, r, next)
    request_end(s, r, "shutting down");
    if (s->gateways)
        bus_close(&s->gateways);
    replicas_close(&s->replicas);
    while (uv_run(&s->loop, UV_RUN_NOWAIT) && uv_loop_alive(&s->loop))
        uv_walk(&s->loop, close_handle, NULL);
    (void)uv_run(&s->loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&s->loop);
    replicas_fini(&s->replicas);
    chat_free(&s->chat);
    tokenizer_free(&s->tokenizer);
    free(s);
    *self = NULL;
}

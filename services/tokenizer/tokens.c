/* Tokens on their way from schedulers to gateways: each becomes a chunk of its choice, with text.
 */
#include "services/tokenizer/state.h"

#include "common/log.h"
#include "common/mem.h"

static void sequence_end(struct service *s, struct sequence *q)
{
    struct request *r = q->request;

    sequence_close(q);
    q->ended = true;
    if (--r->open == 0)
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

    if (!q->ids.len)
        buf_append(&text, r->echo.data, r->echo.len);
    ids_push(&q->ids, token->id);
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

static void request_lost(struct service *s, struct request *r, const char *message)
{
    struct proto_failed why = {500, proto_str(message), proto_str(""), proto_str("internal_error")};

    request_fail(s, r, &why);
}

/* One token of one sequence becomes a chunk. */
static void on_token(struct service *s, const struct replica *from, const struct proto_token *token)
{
    struct sequence *q;
    struct request *r;
    struct proto_chunk *c;

    HASH_FIND(hh, s->sequences, &token->sid, sizeof token->sid, q);
    if (!q || !q->live || q->request->replica != from || token->index < q->ids.len)
        return; /* ended or aborted meanwhile, or a repeat */
    r = q->request;
    if (token->index > q->ids.len ||
        (r->generate.sampling.prompt_logprobs && r->prompt.len > 1 && q->scored < r->prompt.len)) {
        log_error("sid=%llu token %zu of %u scored ones is missing", (unsigned long long)q->sid,
                  q->ids.len, q->scored);
        empty_outboxes(s); /* what was gathered borrows this request's stop strings */
        request_lost(s, r, "a token was lost");
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
    c->completion_tokens = (uint32_t)q->ids.len;
    chunk_set_logprob(c, s->tokenizer, token);
}

void tokens_take(struct service *s, const struct replica *from, const struct proto_tokens *tokens)
{
    for (uint32_t i = 0; i < tokens->tokens_count; i++)
        on_token(s, from, &tokens->tokens[i]);
    empty_outboxes(s);
}

/* The prompt's tokens from m->start on were scored. A scheduler that computes a prompt again scores
 * it again: what is passed on is left out. */
void tokens_scored(struct service *s, const struct replica *from, uint64_t sid,
                   const struct proto_scored *m)
{
    struct sequence *q;
    uint32_t known, skip;

    HASH_FIND(hh, s->sequences, &sid, sizeof sid, q);
    if (!q || !q->live || q->request->replica != from)
        return;
    known = q->scored ? q->scored : 1;
    if (m->start < 1 || m->start > known || m->logprobs_count > q->request->prompt.len - m->start) {
        log_error("sid=%llu prompt tokens from %u were scored, %u are known",
                  (unsigned long long)sid, m->start, q->scored);
        request_lost(s, q->request, "log probabilities were lost");
        return;
    }
    skip = known - m->start;
    if (skip >= m->logprobs_count)
        return;
    prompt_logprobs_add(s, q, chunk_new(s, q), m->logprobs + skip, m->logprobs_count - skip);
    empty_outboxes(s);
}

void tokens_failed(struct service *s, const struct replica *from, uint64_t sid,
                   const struct proto_failed *failed)
{
    struct sequence *q;

    HASH_FIND(hh, s->sequences, &sid, sizeof sid, q);
    if (!q || !q->live || q->request->replica != from)
        return;
    sequence_close(q); /* it needs no ABORT, the other choices do */
    request_fail(s, q->request, failed);
}

/* Requests on their way from gateways to schedulers: encoded, submitted, and submitted again when
 * a scheduler dies. */
#include "services/tokenizer/state.h"

#include "common/log.h"

/* A prompt this small is encoded at once: cheaper than a thread's turn. */
#define INLINE_BYTES 2048u

static struct proto_failed failure(uint32_t status, const char *message, const char *param,
                                   const char *code)
{
    return (struct proto_failed){status, proto_str(message), proto_str(param), proto_str(code)};
}

static void failed_send(struct bus_peer *gateway, uint64_t rid, const struct proto_failed *failed)
{
    struct err err;

    if (bus_send(gateway, PROTO_FAILED, rid, failed, &err))
        log_warn("gateway=%s rid=%llu %s", bus_peer_name(gateway), (unsigned long long)rid,
                 err.msg);
}

static struct request *request_find(struct service *s, struct bus_peer *gateway, uint64_t rid)
{
    struct request_key key = {gateway, rid};
    struct request *r;

    HASH_FIND(hh, s->requests, &key, sizeof key, r);
    return r;
}

/* ---- the end ---- */

void sequence_close(struct sequence *q)
{
    if (q->live)
        replica_ended(q->request->replica);
    q->live = false;
}

void request_end(struct service *s, struct request *r, const char *reason)
{
    struct proto_abort abort_message = {proto_str(reason)};

    HASH_DEL(s->requests, r);
    for (uint32_t i = 0; r->opened && i < r->generate.n; i++) {
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

void request_fail(struct service *s, struct request *r, const struct proto_failed *why)
{
    failed_send(r->key.gateway, r->key.rid, why);
    request_end(s, r, "failed");
}

/* ---- to the schedulers ---- */

/* Its prompt is known. */
static void request_open(struct service *s, struct request *r)
{
    metric_add(&s->metrics, METRIC_TOKENIZER_TOKENS_IN, (double)r->prompt.len);
    r->opened = true;
    for (uint32_t i = 0; i < r->generate.n; i++) {
        struct sequence *q = &r->sequences[i];

        q->sid = s->next_sid++;
        HASH_ADD(hh, s->sequences, sid, sizeof q->sid, q);
    }
}

static int sequence_submit(const struct sequence *q, struct err *err)
{
    const struct request *r = q->request;
    struct proto_submit submit = {.prompt = r->prompt.data,
                                  .prompt_count = (uint32_t)r->prompt.len,
                                  .sampling = r->generate.sampling,
                                  .trace_id = r->generate.trace_id,
                                  .resumed = q->ids.data,
                                  .resumed_count = (uint32_t)q->ids.len,
                                  .replays = r->generate.replays};
    struct proto_pause pause = {true};
    int rc;

    submit.sampling.seed += q->choice;
    rc = bus_send(r->replica->peer, PROTO_SUBMIT, q->sid, &submit, err);
    if (!rc && r->paused)
        rc = bus_send(r->replica->peer, PROTO_PAUSE, q->sid, &pause, err);
    return rc;
}

/* To the scheduler of choice; where none is, it waits for one. */
static void request_submit(struct service *s, struct request *r)
{
    r->replica = replicas_choose(&s->replicas, r->prompt.data, r->prompt.len);
    if (!r->replica)
        return;
    for (uint32_t i = 0; i < r->generate.n; i++) {
        r->sequences[i].live = !r->sequences[i].ended;
        if (r->sequences[i].live)
            replica_began(r->replica);
    }
    for (uint32_t i = 0; i < r->generate.n; i++) {
        struct proto_failed why;
        struct err err;

        if (!r->sequences[i].live || !sequence_submit(&r->sequences[i], &err))
            continue;
        why = failure(503, err.msg, "", "unavailable");
        request_fail(s, r, &why);
        return;
    }
}

void requests_resume(struct service *s)
{
    struct request *r, *next;

    HASH_ITER(hh, s->requests, r, next)
    {
        if (r->opened && !r->replica)
            request_submit(s, r);
    }
}

uint32_t requests_move(struct service *s, const struct replica *gone)
{
    struct proto_failed why =
        failure(503, "the request was begun anew too often: its scheduler died each time", "",
                "replays_exhausted");
    struct request *r, *next;
    uint32_t count = 0;

    HASH_ITER(hh, s->requests, r, next)
    {
        if (r->replica != gone)
            continue;
        count++;
        for (uint32_t i = 0; i < r->generate.n; i++)
            sequence_close(&r->sequences[i]);
        r->replica = NULL;
        if (r->generate.replays++ < LIMIT_REPLAYS)
            request_submit(s, r);
        else
            request_fail(s, r, &why);
    }
    return count;
}

/* ---- from gateways ---- */

static void encode_work(uv_work_t *work)
{
    struct request *r = work->data;

    r->status = request_encode(r, r->service->tokenizer, r->service->chat, &r->err);
}

static void encode_finish(struct request *r)
{
    struct service *s = r->service;
    struct proto_failed why = failure(
        400, r->err.msg, r->generate.kind == PROMPT_CHAT ? "messages" : "prompt", "invalid_value");

    if (r->gone) {
        request_free(&r);
        return;
    }
    if (!r->status) {
        request_open(s, r);
        request_submit(s, r);
        return;
    }
    if (r->status == ERR_LIMIT)
        why.code = proto_str("context_length_exceeded");
    if (r->status == ERR_INTERNAL)
        why = failure(500, r->err.msg, "", "internal_error");
    request_fail(s, r, &why);
}

static void encode_after(uv_work_t *work, int status)
{
    struct request *r = work->data;

    r->encoding = false;
    if (status)
        r->status = err_set(&r->err, ERR_INTERNAL, "encoding was cancelled");
    encode_finish(r);
}

static struct request *generate_take(struct service *s, struct bus_peer *gateway,
                                     const struct proto_header *header,
                                     const struct proto_generate *g, struct proto_failed *why,
                                     struct err *err)
{
    struct request *r;

    if (!s->was_ready) {
        *why = failure(503, "the model is not ready", "", "unavailable");
        return NULL;
    }
    if (g->n < 1 || g->n > LIMIT_N) {
        *why = failure(400, "n is out of range", "n", "invalid_value");
        return NULL;
    }
    r = request_new(header, g, err);
    if (!r) {
        *why = failure(400, err->msg, "", "invalid_value");
        return NULL;
    }
    r->service = s;
    r->key.gateway = gateway;
    r->work.data = r;
    return r;
}

void requests_generate(struct service *s, struct bus_peer *gateway,
                       const struct proto_header *header, const struct proto_generate *g)
{
    struct proto_failed why;
    struct request *r;
    struct err err;

    if (request_find(s, gateway, header->id)) {
        log_warn("gateway=%s rid=%llu sent twice, the second is dropped", bus_peer_name(gateway),
                 (unsigned long long)header->id);
        return;
    }
    r = generate_take(s, gateway, header, g, &why, &err);
    if (!r) {
        failed_send(gateway, header->id, &why);
        return;
    }
    HASH_ADD(hh, s->requests, key, sizeof r->key, r);
    if (g->text.len <= INLINE_BYTES && !g->resumed_count) {
        encode_work(&r->work);
        encode_finish(r);
        return;
    }
    r->encoding = true;
    if (uv_queue_work(&s->loop, &r->work, encode_work, encode_after)) {
        r->encoding = false;
        why = failure(500, "could not queue the encoding", "", "internal_error");
        request_fail(s, r, &why);
    }
}

void requests_abort(struct service *s, struct bus_peer *gateway, uint64_t rid)
{
    struct request *r = request_find(s, gateway, rid);

    if (r)
        request_end(s, r, "client went away");
}

void requests_pause(struct service *s, struct bus_peer *gateway, uint64_t rid, bool paused)
{
    struct request *r = request_find(s, gateway, rid);
    struct proto_pause m = {paused};

    if (!r)
        return;
    r->paused = paused; /* submitted again, it is so from the start */
    for (uint32_t i = 0; r->opened && i < r->generate.n; i++)
        if (r->sequences[i].live && r->replica->peer)
            (void)bus_send(r->replica->peer, PROTO_PAUSE, r->sequences[i].sid, &m, NULL);
}

uint32_t requests_drop(struct service *s, const struct bus_peer *gateway)
{
    struct request *r, *next;
    uint32_t count = 0;

    HASH_ITER(hh, s->requests, r, next)
    {
        if (r->key.gateway != gateway)
            continue;
        request_end(s, r, "gateway went away");
        count++;
    }
    return count;
}

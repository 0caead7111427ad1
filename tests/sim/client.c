#include "tests/sim/sim.h"

#include <string.h>

static bool is_end(const struct sim *m, const struct proto_sampling *p, uint32_t id)
{
    return (!p->ignore_eos && id == m->eos) ||
           (p->stop_token_ids_count && id == p->stop_token_ids[0]);
}

/* End tokens are masked below min_tokens, as workers do. */
uint32_t client_token(const struct sim *m, const struct request *r, uint32_t index)
{
    uint32_t id = (uint32_t)(sim_mix(r->key * 1000 + index) % m->config.vocab_size);

    while (index < r->sampling.min_tokens && is_end(m, &r->sampling, id))
        id = (id + 1) % m->config.vocab_size;
    return id;
}

enum proto_finish client_finish(const struct sim *m, const struct request *r, uint32_t index)
{
    if (index >= r->sampling.min_tokens && is_end(m, &r->sampling, client_token(m, r, index)))
        return FINISH_STOP;
    return index + 1 == r->max_tokens ? FINISH_LENGTH : FINISH_NONE;
}

uint32_t client_allowed(const struct sim *m, const struct request *r, uint32_t resumed)
{
    uint32_t pool = m->config.num_pages * m->config.page_size;
    uint32_t asked = r->sampling.max_tokens;
    uint32_t most;

    if (r->prompt_count == 0 || r->prompt_count >= m->config.context_length)
        return 0;
    most = m->config.context_length - r->prompt_count;
    if (asked && asked < most)
        most = asked;
    if (!asked && pool > r->prompt_count && most > pool - r->prompt_count)
        most = pool - r->prompt_count;
    return r->prompt_count + most <= pool && resumed < most ? most : 0;
}

/* A conversation that goes on: prompt and answer of an earlier request, and more. */
static void prompt_continue(struct sim *m, struct request *r, const struct request *from)
{
    uint32_t count = from->prompt_count;

    memcpy(r->prompt, from->prompt, sizeof r->prompt);
    for (uint32_t i = 0; i < from->next && count < CONTEXT; i++)
        r->prompt[count++] = client_token(m, from, i);
    if (count > r->prompt_count)
        r->prompt_count = count < CONTEXT ? count + sim_draw(m, 3) : count;
}

static void prompt_draw(struct sim *m, struct request *r)
{
    const struct request *from =
        m->requests_count ? &m->requests[sim_draw(m, m->requests_count)] : NULL;
    uint32_t family = sim_draw(m, 3);
    uint32_t shared = sim_draw(m, CONTEXT);

    r->prompt_count = sim_draw(m, sim_draw(m, 4) ? m->config.context_length / 2 + 2 : CONTEXT + 2);
    for (uint32_t i = 0; i < CONTEXT + 4; i++)
        r->prompt[i] = i < shared
                           ? (uint32_t)(sim_mix(m->seed + family * 99 + i) % m->config.vocab_size)
                           : sim_draw(m, m->config.vocab_size);
    if (from && sim_draw(m, 3) == 0)
        prompt_continue(m, r, from);
    if (from && sim_draw(m, 5) == 0) { /* one more choice of the same prompt */
        memcpy(r->prompt, from->prompt, sizeof r->prompt);
        r->prompt_count = from->prompt_count;
        r->key = sim_draw(m, 2) ? from->key : r->key;
    }
}

static void request_draw(struct sim *m, struct request *r)
{
    *r =
        (struct request){.key = sim_mix(m->seed) + m->requests_count, .owner = sim_draw(m, OWNERS)};
    prompt_draw(m, r);
    r->stop_id = sim_draw(m, m->config.vocab_size);
    r->sampling = (struct proto_sampling){
        .temperature = 1,
        .top_p = 1,
        .top_k = -1,
        .repetition_penalty = 1,
        .max_tokens = sim_draw(m, 3) ? 1 + sim_draw(m, 40) : 0,
        .ignore_eos = sim_draw(m, 2),
        .logprobs = -1,
        .priority = (int64_t)sim_draw(m, 5) - 2,
        .seed = m->requests_count,
        .stop_token_ids = &r->stop_id,
        .stop_token_ids_count = sim_draw(m, 4) == 0,
    };
    if (sim_draw(m, 3) == 0)
        r->sampling.min_tokens =
            sim_draw(m, (r->sampling.max_tokens ? r->sampling.max_tokens : 50) + 1);
}

void client_send(struct sim *m, struct request *r)
{
    struct letter letter = {.kind = LETTER_SUBMIT,
                            .request = (uint32_t)(r - m->requests),
                            .resumed = r->next,
                            .replays = r->replays};

    r->state = SENT;
    link_send(m, &m->to_core[r->owner], &letter);
}

void client_request(struct sim *m)
{
    struct request *r = &m->requests[m->requests_count];

    if (m->requests_count == REQUESTS)
        return;
    request_draw(m, r);
    m->requests_count++;
    client_send(m, r);
}

void client_abort(struct sim *m)
{
    struct letter letter = {.kind = LETTER_ABORT};
    struct request *r;

    if (m->requests_count == 0)
        return;
    letter.request = sim_draw(m, m->requests_count);
    r = &m->requests[letter.request];
    if (r->state != SENT) /* abort of what has ended: must be ignored */
        letter.request = letter.request * (sim_draw(m, 2) == 0);
    r = &m->requests[letter.request];
    link_send(m, &m->to_core[r->owner], &letter);
    if (r->state == SENT || r->state == REFUSED)
        r->state = ABORTED;
}

static void reader_set(struct sim *m, struct request *r, bool behind)
{
    struct letter letter = {
        .kind = LETTER_PAUSE, .request = (uint32_t)(r - m->requests), .paused = behind};

    r->behind = behind;
    link_send(m, &m->to_core[r->owner], &letter);
    m->pauses += behind;
}

void client_pause(struct sim *m)
{
    struct request *r = &m->requests[sim_draw(m, REQUESTS)];

    if (r->state == SENT || (r->state == ENDED && sim_draw(m, 4) == 0)) /* they have crossed */
        reader_set(m, r, sim_draw(m, 8) ? !r->behind : r->behind);
}

void client_resume(struct sim *m)
{
    for (uint32_t i = 0; i < m->requests_count; i++)
        if (m->requests[i].state == SENT && m->requests[i].behind)
            reader_set(m, &m->requests[i], false);
}

void client_take(struct sim *m, uint32_t owner, const struct letter *letter)
{
    struct request *r = &m->requests[letter->request];
    const struct proto_token *t = &letter->token;

    CHECK(m, r->owner == owner);
    if (r->state == ABORTED)
        return; /* they have crossed */
    CHECK(m, r->state == SENT);
    if (letter->kind == LETTER_FAILED) {
        r->state = ENDED;
        return;
    }
    if (letter->kind == LETTER_BUSY) {
        r->state = REFUSED;
        return;
    }
    CHECK(m, t->index == r->next);
    CHECK(m, t->id == client_token(m, r, t->index));
    r->next++;
    m->tokens++;
    if (t->finish != FINISH_NONE)
        r->state = ENDED;
}

bool client_waits(const struct sim *m)
{
    for (uint32_t i = 0; i < m->requests_count; i++)
        if (m->requests[i].state == SENT || m->requests[i].state == REFUSED)
            return true;
    return false;
}

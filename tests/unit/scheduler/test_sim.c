/* Random histories against the scheduler's core.
 *
 * A history is a configuration and a run of arrivals, aborts, plans and results, all drawn from one
 * seed. A model worker follows the steps as a worker must: token i of a sequence is a fixed
 * function of (its seed, i). A ledger knows, from the requests alone, which tokens each has to get,
 * and a model of slots and pages knows from the steps alone what is held. test_sim SEED replays
 * one. */
#include "services/scheduler/core.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define HISTORIES 6000u
#define EVENTS 300u
#define REQUESTS 64u
#define SLOTS 8u
#define PAGES 64u
#define CONTEXT 64u
#define FLIGHT 3u
#define OWNERS 3u
#define IDS 8u

static uint64_t first_seed = 1;
static uint64_t histories = HISTORIES;

enum state { FREE, ADMITTED, ENDED, ABORTED };

struct request {
    enum state state;
    uint32_t prompt_count;
    uint32_t max_tokens; /* as the core must resolve it */
    uint32_t next;       /* index of the token that has to come */
    uint64_t key;        /* what its tokens are made from */
    uint32_t prompt[CONTEXT + 4];
    struct proto_sampling sampling; /* as asked */
    uint32_t stop_id;
};

struct slot {
    bool open;
    int request;
    uint64_t last_step;
    uint64_t key;
    uint32_t known; /* tokens the worker has */
    uint32_t prompt_count;
    uint32_t computed;
    uint32_t pages[PAGES];
    uint32_t pages_count;
    bool decoding; /* must have a row in the next step */
};

struct flight {
    uint64_t step;
    struct proto_sampled results[SLOTS];
    uint32_t results_count;
};

struct sim {
    uint64_t seed, random;
    struct scheduler_config config;
    uint32_t eos;
    struct scheduler *core;
    struct request requests[REQUESTS];
    uint32_t requests_count;
    int live[OWNERS][IDS]; /* request, or -1 */
    struct slot slots[SLOTS];
    uint64_t page_step[PAGES]; /* newest step with a row on a slot that has the page */
    struct flight flight[FLIGHT];
    uint32_t flight_count;
    uint64_t applied;
    uint32_t opened; /* requests up to here have started or were aborted */
    uint64_t steps, tokens;
};

#define CHECK(sim, condition)                                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail_msg("seed %llu: %s", (unsigned long long)(sim)->seed, #condition);                \
    } while (0)

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint32_t draw(struct sim *m, uint32_t below)
{
    m->random += 0x9e3779b97f4a7c15u;
    return (uint32_t)(mix(m->random) % below);
}

static bool is_end(const struct sim *m, const struct proto_sampling *p, uint32_t id)
{
    return (!p->ignore_eos && id == m->eos) ||
           (p->stop_token_ids_count && id == p->stop_token_ids[0]);
}

/* Token `index` of the request: end tokens are masked below min_tokens, as workers do. */
static uint32_t token_of(const struct sim *m, const struct proto_sampling *p, uint64_t key,
                         uint32_t index)
{
    uint32_t id = (uint32_t)(mix(key * 1000 + index) % m->config.vocab_size);

    while (index < p->min_tokens && is_end(m, p, id))
        id = (id + 1) % m->config.vocab_size;
    return id;
}

static void config_draw(struct sim *m)
{
    m->eos = draw(m, 4);
    m->config = (struct scheduler_config){
        .slots_max = 1 + draw(m, SLOTS),
        .queued_max = 1 + draw(m, 6),
        .page_size = 1 + draw(m, 8),
        .num_pages = 1 + draw(m, PAGES),
        .prefill_tokens_max = draw(m, 4) ? 1 + (int32_t)draw(m, 40) : -1,
        .context_length = 2 + draw(m, CONTEXT - 2),
        .vocab_size = 16 + draw(m, 20),
        .steps_in_flight_max = 1 + (uint32_t)(m->seed % 8 == 7 ? 2 : m->seed % 2),
        .policy = "fcfs",
        .eos_ids = &m->eos,
        .eos_ids_count = 1,
    };
}

/* The request's fate by the rules alone: max_tokens > 0, or 0 when it has to be refused. */
static uint32_t tokens_allowed(const struct sim *m, const struct request *r)
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
    return r->prompt_count + most <= pool ? most : 0;
}

static void request_draw(struct sim *m, struct request *r)
{
    *r = (struct request){.key = mix(m->seed) + m->requests_count};
    r->prompt_count = draw(m, draw(m, 4) ? m->config.context_length / 2 + 2 : CONTEXT + 2);
    for (uint32_t i = 0; i < r->prompt_count; i++)
        r->prompt[i] = draw(m, m->config.vocab_size);
    r->stop_id = draw(m, m->config.vocab_size);
    r->sampling = (struct proto_sampling){
        .temperature = 1,
        .top_p = 1,
        .top_k = -1,
        .repetition_penalty = 1,
        .max_tokens = draw(m, 3) ? 1 + draw(m, 20) : 0,
        .ignore_eos = draw(m, 2),
        .logprobs = -1,
        .seed = r->key,
        .stop_token_ids = &r->stop_id,
        .stop_token_ids_count = draw(m, 2),
    };
    if (draw(m, 3) == 0)
        r->sampling.min_tokens =
            draw(m, (r->sampling.max_tokens ? r->sampling.max_tokens : 50) + 1);
}

static void event_admit(struct sim *m)
{
    struct request *r = &m->requests[m->requests_count];
    uint32_t owner = draw(m, OWNERS), id = draw(m, IDS);
    struct scheduler_request request;
    struct scheduler_stats before, after;
    struct err err = {0};
    int rc;

    if (m->requests_count == REQUESTS)
        return;
    request_draw(m, r);
    r->max_tokens = tokens_allowed(m, r);
    request = (struct scheduler_request){owner, id, r->prompt, r->prompt_count, &r->sampling};
    scheduler_stats(m->core, &before);
    rc = scheduler_admit(m->core, &request, 0, NULL, &err);
    scheduler_stats(m->core, &after);
    CHECK(m, after.waiting == before.waiting + (rc == 0));
    if (r->max_tokens == 0) {
        CHECK(m, rc == ERR_LIMIT || (rc == ERR_INVALID && r->prompt_count == 0));
    } else if (m->live[owner][id] >= 0) {
        CHECK(m, rc == ERR_INVALID);
    } else if (before.waiting >= m->config.queued_max + before.slots_free) {
        CHECK(m, rc == ERR_BUSY);
    } else {
        CHECK(m, rc == 0);
        m->live[owner][id] = (int)m->requests_count++;
        r->state = ADMITTED;
    }
}

static void event_abort(struct sim *m)
{
    uint32_t owner = draw(m, OWNERS), id = draw(m, IDS);
    uint32_t count = 0;

    if (draw(m, 20) == 0) {
        for (id = 0; id < IDS; id++) {
            if (m->live[owner][id] >= 0) {
                m->requests[m->live[owner][id]].state = ABORTED;
                count++;
            }
            m->live[owner][id] = -1;
        }
        CHECK(m, scheduler_abort_owner(m->core, owner) == count);
        return;
    }
    if (m->live[owner][id] < 0) {
        CHECK(m, scheduler_abort(m->core, owner, id) == ERR_NOT_FOUND);
        return;
    }
    CHECK(m, scheduler_abort(m->core, owner, id) == 0);
    m->requests[m->live[owner][id]].state = ABORTED;
    m->live[owner][id] = -1;
}

/* A slot is held while its request goes on or a step in flight has a row of it. */
static bool slot_held(const struct sim *m, const struct slot *slot)
{
    return slot->open &&
           (m->requests[slot->request].state == ADMITTED || slot->last_step > m->applied);
}

static void check_conserved(struct sim *m)
{
    struct scheduler_stats stats;
    bool seen[PAGES] = {false};
    uint32_t pages = 0, slots = 0, running = 0;

    for (uint32_t i = 0; i < m->config.slots_max; i++) {
        const struct slot *slot = &m->slots[i];

        if (!slot_held(m, slot))
            continue;
        slots++;
        running += m->requests[slot->request].state == ADMITTED;
        pages += slot->pages_count;
        for (uint32_t k = 0; k < slot->pages_count; k++) {
            CHECK(m, !seen[slot->pages[k]]);
            seen[slot->pages[k]] = true;
        }
    }
    scheduler_stats(m->core, &stats);
    CHECK(m, stats.pages_free == m->config.num_pages - pages);
    CHECK(m, stats.slots_free == m->config.slots_max - slots);
    CHECK(m, stats.running == running);
    CHECK(m, stats.waiting <= m->config.queued_max + m->config.slots_max);
    CHECK(m, stats.steps_in_flight == m->flight_count);
}

static void worker_open(struct sim *m, const struct proto_slot_open *open)
{
    struct slot *slot = &m->slots[open->slot];
    uint64_t index = open->sampling.seed - mix(m->seed);
    const struct request *r;

    CHECK(m, open->slot < m->config.slots_max && !slot->open);
    CHECK(m, slot->last_step <= m->applied && index < m->requests_count);
    CHECK(m, index >= m->opened); /* first come, first served */
    m->opened = (uint32_t)index + 1;
    r = &m->requests[index];
    CHECK(m, r->state == ADMITTED && r->next == 0);
    CHECK(m, open->tokens_count == r->prompt_count && open->generated == 0);
    CHECK(m, memcmp(open->tokens, r->prompt, r->prompt_count * sizeof *r->prompt) == 0);
    CHECK(m, open->sampling.max_tokens == r->max_tokens);
    CHECK(m, open->sampling.min_tokens <= r->max_tokens);
    *slot = (struct slot){.open = true,
                          .request = (int)index,
                          .last_step = slot->last_step,
                          .key = open->sampling.seed,
                          .known = open->tokens_count,
                          .prompt_count = open->tokens_count};
}

static void worker_pages(struct sim *m, const struct proto_slot_pages *pages)
{
    struct slot *slot = &m->slots[pages->slot];

    CHECK(m, pages->slot < m->config.slots_max && slot->open);
    CHECK(m, pages->first == slot->pages_count && pages->pages_count > 0);
    CHECK(m, pages->first + pages->pages_count <= m->config.num_pages);
    for (uint32_t i = 0; i < pages->pages_count; i++) {
        CHECK(m, pages->pages[i] < m->config.num_pages);
        CHECK(m, m->page_step[pages->pages[i]] <= m->applied);
        slot->pages[slot->pages_count++] = pages->pages[i];
    }
}

static void worker_row(struct sim *m, const struct proto_row *row, uint64_t step, struct flight *f)
{
    struct slot *slot = &m->slots[row->slot];
    const struct request *r;

    CHECK(m, row->slot < m->config.slots_max && slot->open && row->count > 0);
    r = &m->requests[slot->request];
    CHECK(m, slot->last_step < step && r->state == ADMITTED);
    CHECK(m, row->start == slot->computed && row->start + row->count <= slot->known);
    CHECK(m, row->sample == (row->start + row->count == slot->known));
    CHECK(m, slot->pages_count == (row->start + row->count - 1) / m->config.page_size + 1);
    CHECK(m, slot->known - slot->prompt_count < r->max_tokens);
    slot->computed += row->count;
    slot->last_step = step;
    slot->decoding = false;
    for (uint32_t i = 0; i < slot->pages_count; i++)
        m->page_step[slot->pages[i]] = step;
    if (!row->sample)
        return;
    f->results[f->results_count++] = (struct proto_sampled){
        .slot = row->slot,
        .id = token_of(m, &r->sampling, slot->key, slot->known - slot->prompt_count)};
    slot->known++;
}

static void worker_step(struct sim *m, const struct proto_step *step)
{
    struct flight *f = &m->flight[m->flight_count++];
    uint32_t tokens = 0, prefill = 0;

    *f = (struct flight){.step = step->step};
    for (uint32_t i = 0; i < m->config.slots_max; i++) {
        struct slot *s = &m->slots[i];

        s->decoding = s->open && m->requests[s->request].state == ADMITTED &&
                      s->known > s->prompt_count &&
                      s->known - s->prompt_count < m->requests[s->request].max_tokens;
    }
    for (uint32_t i = 0; i < step->closed_count; i++) {
        struct slot *slot = &m->slots[step->closed[i]];

        CHECK(m, step->closed[i] < m->config.slots_max && slot->open && !slot_held(m, slot));
        slot->open = false;
        slot->pages_count = 0;
    }
    for (uint32_t i = 0; i < step->opened_count; i++)
        worker_open(m, &step->opened[i]);
    for (uint32_t i = 0; i < step->pages_count; i++)
        worker_pages(m, &step->pages[i]);
    CHECK(m, step->rows_count > 0);
    for (uint32_t i = 0; i < step->rows_count; i++) {
        tokens += step->rows[i].count;
        if (step->rows[i].start < m->slots[step->rows[i].slot].prompt_count)
            prefill += step->rows[i].count;
        worker_row(m, &step->rows[i], step->step, f);
    }
    for (uint32_t i = 0; i < m->config.slots_max; i++)
        CHECK(m, !m->slots[i].decoding); /* every sequence that decodes had its row */
    CHECK(m, tokens <= scheduler_tokens_max(m->core));
    CHECK(m, m->config.prefill_tokens_max < 0 || prefill <= (uint32_t)m->config.prefill_tokens_max);
    m->steps++;
}

/* Returns whether there was a step. */
static bool event_plan(struct sim *m)
{
    const struct scheduler_step *step = scheduler_plan(m->core, 0);
    struct scheduler_stats stats;

    if (step) {
        CHECK(m, m->flight_count < m->config.steps_in_flight_max);
        CHECK(m, step->message.step == m->steps + 1);
        worker_step(m, &step->message);
        return true;
    }
    scheduler_stats(m->core, &stats);
    if (m->flight_count == 0) /* nothing waits for nothing */
        CHECK(m, stats.running == 0 && stats.waiting == 0);
    return false;
}

static void check_output(struct sim *m, const struct scheduler_output *out)
{
    const struct proto_token *t = &out->token;
    enum proto_finish finish = FINISH_NONE;
    struct request *r;

    CHECK(m, out->owner < OWNERS && t->sid < IDS && m->live[out->owner][t->sid] >= 0);
    r = &m->requests[m->live[out->owner][t->sid]];
    CHECK(m, r->state == ADMITTED && t->index == r->next && t->index < r->max_tokens);
    CHECK(m, t->id == token_of(m, &r->sampling, r->key, t->index));
    if (t->index >= r->sampling.min_tokens && is_end(m, &r->sampling, t->id))
        finish = FINISH_STOP;
    else if (t->index + 1 == r->max_tokens)
        finish = FINISH_LENGTH;
    CHECK(m, t->finish == finish);
    r->next++;
    m->tokens++;
    if (finish == FINISH_NONE)
        return;
    r->state = ENDED;
    m->live[out->owner][t->sid] = -1;
}

static void event_apply(struct sim *m)
{
    struct flight *f = &m->flight[0];
    const struct scheduler_output *out;
    struct err err = {0};
    uint32_t count;

    if (m->flight_count == 0)
        return;
    CHECK(m,
          scheduler_apply(m->core, f->step, f->results, f->results_count, &out, &count, &err) == 0);
    CHECK(m, count <= f->results_count);
    m->applied = f->step;
    m->flight_count--;
    memmove(f, f + 1, m->flight_count * sizeof *f);
    for (uint32_t i = 0; i < count; i++)
        check_output(m, &out[i]);
}

static void drain(struct sim *m)
{
    struct scheduler_stats stats;

    for (uint32_t turns = 0;; turns++) {
        bool planned = event_plan(m);

        if (!planned && m->flight_count == 0)
            break;
        event_apply(m);
        check_conserved(m);
        CHECK(m, turns < REQUESTS * 2 * CONTEXT);
    }
    for (uint32_t i = 0; i < m->requests_count; i++)
        CHECK(m, m->requests[i].state == ENDED || m->requests[i].state == ABORTED);
    scheduler_stats(m->core, &stats);
    CHECK(m, stats.pages_free == m->config.num_pages);
    CHECK(m, stats.slots_free == m->config.slots_max);
    CHECK(m, stats.generation_tokens == m->tokens);
    CHECK(m, stats.steps == m->steps);
}

static void history(struct sim *m, uint64_t seed)
{
    struct err err = {0};

    *m = (struct sim){.seed = seed, .random = mix(seed)};
    memset(m->live, 0xff, sizeof m->live); /* -1 */
    config_draw(m);
    CHECK(m, scheduler_new(&m->config, &m->core, &err) == 0);
    for (uint32_t i = 0; i < EVENTS; i++) {
        uint32_t event = draw(m, 100);

        if (event < 25)
            event_admit(m);
        else if (event < 32)
            event_abort(m);
        else if (event < 66)
            (void)event_plan(m);
        else
            event_apply(m);
        check_conserved(m);
    }
    if (draw(m, 4)) /* else freed in the middle of everything */
        drain(m);
    scheduler_free(&m->core);
}

static void test_histories(void **state)
{
    struct sim *m = calloc(1, sizeof *m);
    uint64_t steps = 0, tokens = 0;

    (void)state;
    assert_non_null(m);
    for (uint64_t seed = first_seed; seed < first_seed + histories; seed++) {
        history(m, seed);
        steps += m->steps;
        tokens += m->tokens;
    }
    print_message("%llu histories, %llu steps, %llu tokens\n", (unsigned long long)histories,
                  (unsigned long long)steps, (unsigned long long)tokens);
    /* The histories are only worth something when most of them get somewhere. */
    assert_true(histories == 1 || (steps > histories * 30 && tokens > histories * 30));
    free(m);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_histories)};

    if (argc > 1) {
        first_seed = strtoull(argv[1], NULL, 10);
        histories = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}

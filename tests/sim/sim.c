#include "tests/sim/sim.h"
#include "services/scheduler/admission.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TURNS_MAX 30000u /* more than the longest drain by an order of magnitude */

void sim_fail(const struct sim *m, const char *file, int line, const char *what)
{
    (void)fprintf(stderr, "%s:%d: seed %llu: not so: %s\nreplay: sim %llu\n", file, line,
                  (unsigned long long)m->seed, what, (unsigned long long)m->seed);
    exit(1);
}

uint64_t sim_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint32_t sim_draw(struct sim *m, uint32_t below)
{
    m->random += 0x9e3779b97f4a7c15u;
    return (uint32_t)(sim_mix(m->random) % below);
}

static void config_draw(struct sim *m)
{
    static const char *const policies[] = {"fcfs", "fcfs", "lpm", "priority"};

    m->eos = sim_draw(m, 3);
    m->config = (struct scheduler_config){
        .slots_max = 1 + sim_draw(m, SLOTS),
        .queued_max = 1 + sim_draw(m, 12),
        .page_size = 1 + sim_draw(m, sim_draw(m, 2) ? 4 : 8),
        .num_pages = 1 + sim_draw(m, sim_draw(m, 2) ? PAGES : 20),
        .prefill_tokens_max = sim_draw(m, 5) ? 1 + (int32_t)sim_draw(m, 40) : -1,
        .context_length = 2 + sim_draw(m, CONTEXT - 2),
        .vocab_size = 3 + sim_draw(m, sim_draw(m, 4) ? 30 : 2),
        .steps_in_flight_max = 1 + sim_draw(m, FLIGHT),
        .policy = policies[sim_draw(m, 4)],
        .prefix_cache = sim_draw(m, 5) > 0,
        .hash_seed = m->seed,
        .conservativeness = sim_draw(m, 2) ? 0 : 0.1 * sim_draw(m, 16),
        .preempt_above = sim_draw(m, 3),
        .eos_ids = &m->eos,
        .eos_ids_count = 1,
    };
}

static void on_submit(struct sim *m, uint32_t owner, struct letter *letter)
{
    struct request *r = &m->requests[letter->request];
    uint32_t resumed[CONTEXT];
    struct scheduler_request request = {.owner = m->owner_ids[owner],
                                        .id = letter->request,
                                        .prompt = r->prompt,
                                        .prompt_count = r->prompt_count,
                                        .sampling = &r->sampling,
                                        .resumed = resumed,
                                        .resumed_count = letter->resumed,
                                        .replays = letter->replays};
    struct scheduler_stats before, after;
    struct err err = {0};
    int rc;

    for (uint32_t i = 0; i < letter->resumed; i++)
        resumed[i] = client_token(m, r, i);
    r->max_tokens = client_allowed(m, r, letter->resumed);
    scheduler_stats(m->core, &before);
    rc = scheduler_admit(m->core, &request, m->now_us, NULL, &err);
    scheduler_stats(m->core, &after);
    CHECK(m, after.waiting == before.waiting + (rc == 0));
    if (rc == ERR_BUSY) {
        CHECK(m, before.waiting >= m->config.queued_max + before.slots_free ||
                     audit_parked(m) >= m->config.queued_max);
        letter->kind = LETTER_BUSY;
    } else if (rc) {
        CHECK(m, r->max_tokens == 0 || (rc == ERR_PEER && letter->replays > LIMIT_REPLAYS));
        letter->kind = LETTER_FAILED;
    } else {
        CHECK(m, r->max_tokens > 0 && !r->admitted && letter->replays <= LIMIT_REPLAYS);
        r->admitted = true;
        r->paused = false;
        r->admissions++;
        r->resumed = r->applied = letter->resumed;
        r->replays_core = letter->replays;
        m->resumed += letter->resumed > 0;
        return;
    }
    link_send(m, &m->to_client[owner], letter);
}

static void event_to_core(struct sim *m, uint32_t owner)
{
    struct letter letter;
    struct request *r;

    if (!link_turn(m, &m->to_core[owner], &letter))
        return;
    if (letter.kind == LETTER_SUBMIT) {
        on_submit(m, owner, &letter);
        return;
    }
    r = &m->requests[letter.request];
    if (letter.kind == LETTER_PAUSE) {
        CHECK(m, scheduler_pause(m->core, m->owner_ids[owner], letter.request, letter.paused) ==
                     (r->admitted ? 0 : ERR_NOT_FOUND));
        r->paused = letter.paused;
        return;
    }
    CHECK(m, scheduler_abort(m->core, m->owner_ids[owner], letter.request) ==
                 (r->admitted ? 0 : ERR_NOT_FOUND));
    r->admitted = false;
}

static void event_to_client(struct sim *m, uint32_t owner)
{
    struct letter letter;

    if (link_turn(m, &m->to_client[owner], &letter))
        client_take(m, owner, &letter);
}

static void event_plan(struct sim *m)
{
    uint64_t first = audit_first(m), preemptions = audit_preemptions(m);
    const struct scheduler_step *step = scheduler_plan(m->core, m->now_us);
    struct letter letter = {.kind = LETTER_STEP};

    if (!step) {
        if (m->planned == m->applied && !m->lost) /* nothing waits for nothing */
            CHECK(m, audit_all_paused(m));
        return;
    }
    CHECK(m, !m->lost && m->planned - m->applied < m->config.steps_in_flight_max);
    CHECK(m, step->message.step == m->planned + 1);
    audit_plan(m, &step->message, first);
    worker_planned(m, &step->message, audit_preemptions(m) > preemptions);
    letter.step = ++m->planned;
    link_send(m, &m->to_worker, &letter);
}

static void event_compute(struct sim *m)
{
    struct letter letter;

    if (!link_turn(m, &m->to_worker, &letter))
        return;
    worker_compute(m, letter.step);
    link_send(m, &m->from_worker, &letter);
}

static void on_output(struct sim *m, const struct scheduler_output *out)
{
    struct letter letter = {
        .kind = LETTER_TOKEN, .request = (uint32_t)out->token.sid, .token = out->token};
    struct request *r = &m->requests[letter.request];

    CHECK(m, letter.request < m->requests_count && r->admitted);
    CHECK(m, out->owner == m->owner_ids[r->owner] && out->token.index == r->applied);
    CHECK(m, out->token.finish == client_finish(m, r, out->token.index));
    CHECK(m, out->token.cached_tokens == r->cached);
    CHECK(m, r->cached < r->prompt_count + (r->resumed > 0));
    r->applied++;
    if (out->token.finish != FINISH_NONE)
        r->admitted = false;
    link_send(m, &m->to_client[r->owner], &letter);
}

static void event_apply(struct sim *m)
{
    const struct scheduler_output *out;
    const struct flight *f;
    struct letter letter;
    struct err err = {0};
    uint32_t count;

    if (!link_turn(m, &m->from_worker, &letter))
        return;
    f = &m->flight[letter.step % FLIGHT];
    CHECK(m,
          scheduler_apply(m->core, f->step, f->results, f->results_count, &out, &count, &err) == 0);
    CHECK(m, count <= f->results_count);
    m->applied = f->step;
    for (uint32_t i = 0; i < count; i++)
        on_output(m, &out[i]);
}

static void event_resend(struct sim *m)
{
    struct request *r = &m->requests[sim_draw(m, REQUESTS)];

    if (r->state == REFUSED)
        client_send(m, r);
}

static void event(struct sim *m)
{
    uint32_t kind = sim_draw(m, 1000), owner = sim_draw(m, OWNERS);

    m->now_us += sim_draw(m, 1000);
    if (kind < 120)
        client_request(m);
    else if (kind < 140)
        client_abort(m);
    else if (kind < 142)
        scheduler_restart(m);
    else if (kind < 145)
        client_restart(m);
    else if (kind < 148)
        scheduler_flush(m->core);
    else if (kind < 153)
        group_lost(m);
    else if (kind < 190)
        group_joined(m);
    else if (kind < 215)
        client_pause(m);
    else if (kind < 237)
        event_resend(m);
    else if (kind < 340)
        event_to_core(m, owner);
    else if (kind < 430)
        event_to_client(m, owner);
    else if (kind < 600)
        event_plan(m);
    else if (kind < 800)
        event_compute(m);
    else
        event_apply(m);
}

/* No more requests: all that are under way must come to their end. */
static void drain(struct sim *m)
{
    for (uint32_t turns = 0; client_waits(m) || m->planned != m->applied; turns++) {
        for (uint32_t i = 0; i < OWNERS; i++) {
            event_to_core(m, i);
            event_to_client(m, i);
        }
        event_resend(m);
        group_joined(m);
        client_resume(m);
        event_plan(m);
        event_compute(m);
        event_apply(m);
        audit(m);
        CHECK(m, turns < TURNS_MAX);
    }
    /* Aborts that are still on their way. */
    for (uint32_t i = 0; i < OWNERS; i++)
        while (m->to_core[i].received < m->to_core[i].sent)
            event_to_core(m, i);
    group_joined(m);
    event_plan(m);
    CHECK(m, m->planned == m->applied);
    audit_idle(m);
}

static void history(struct sim *m, uint64_t seed)
{
    struct scheduler_stats stats;

    m->seed = seed;
    m->random = sim_mix(seed + 1);
    m->requests_count = 0;
    memset(m->requests, 0, sizeof m->requests);
    for (uint32_t i = 0; i < OWNERS; i++)
        m->owner_ids[i] = i + 1;
    config_draw(m);
    scheduler_start(m);
    for (uint32_t i = 0; i < EVENTS; i++) {
        event(m);
        audit(m);
    }
    if (sim_draw(m, 8)) /* else freed in the middle of everything */
        drain(m);
    scheduler_stats(m->core, &stats);
    m->preemptions += stats.preemptions;
    scheduler_free(&m->core);
}

int main(int argc, char **argv)
{
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    struct sim *m = calloc(1, sizeof *m);
    bool idle;

    if (!m)
        return 1;
    for (uint64_t seed = first; seed < first + count; seed++)
        history(m, seed);
    printf("%llu histories, 0 violations: %llu steps, %llu tokens, %llu cached, %llu preemptions, "
           "%llu stalled rows, %llu restarts, %llu losses of the ranks, %llu resumed, %llu failed, "
           "%llu pauses, "
           "%llu messages lost, %llu repeated\n",
           (unsigned long long)count, (unsigned long long)m->steps, (unsigned long long)m->tokens,
           (unsigned long long)m->hits, (unsigned long long)m->preemptions,
           (unsigned long long)m->stalls, (unsigned long long)m->restarts,
           (unsigned long long)m->losses, (unsigned long long)m->resumed,
           (unsigned long long)m->failed, (unsigned long long)m->pauses,
           (unsigned long long)m->dropped, (unsigned long long)m->repeated);
    /* Histories are only worth something when they get somewhere. */
    idle = count >= 1000 &&
           (m->steps < count * 50 || m->preemptions < count / 2 || !m->hits || m->losses < count ||
            m->resumed < count / 4 || !m->failed || m->pauses < count);
    free(m);
    return idle;
}

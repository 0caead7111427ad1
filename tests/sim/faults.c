/* What dies and comes back: the scheduler, a client, the ranks. */
#include "services/scheduler/admission.h"
#include "tests/sim/sim.h"

#include <string.h>

/* Ranks that know nothing. */
static void ranks_start(struct sim *m)
{
    m->planned = m->applied = m->computed = 0;
    memset(m->slots, 0, sizeof m->slots);
    memset(m->device, 0, sizeof m->device);
    memset(m->page_step, 0, sizeof m->page_step);
    memset(m->content, 0, sizeof m->content);
    link_reset(&m->to_worker);
    link_reset(&m->from_worker);
}

/* What was in flight comes again: from its first token on, or from where the client is. */
static void request_again(struct sim *m, struct request *r)
{
    r->admitted = r->started = r->behind = false;
    if (r->state != SENT && r->state != REFUSED)
        return;
    if (sim_draw(m, 4) == 0)
        r->next = 0;
    r->replays++;
    client_send(m, r);
}

void scheduler_start(struct sim *m)
{
    struct err err = {0};

    CHECK(m, scheduler_new(&m->config, &m->core, &err) == 0);
    m->lost = false;
    ranks_start(m);
    for (uint32_t i = 0; i < OWNERS; i++) {
        link_reset(&m->to_core[i]);
        link_reset(&m->to_client[i]);
    }
    for (uint32_t i = 0; i < m->requests_count; i++)
        request_again(m, &m->requests[i]);
}

void scheduler_restart(struct sim *m)
{
    scheduler_free(&m->core);
    scheduler_start(m);
    m->restarts++;
}

/* Its requests are given up, or begun anew by the one who comes in its place. */
void client_restart(struct sim *m)
{
    uint32_t owner = sim_draw(m, OWNERS), admitted = 0;
    bool again = sim_draw(m, 2);

    for (uint32_t i = 0; i < m->requests_count; i++)
        if (m->requests[i].owner == owner)
            admitted += m->requests[i].admitted;
    CHECK(m, scheduler_abort_owner(m->core, m->owner_ids[owner]) == admitted);
    m->owner_ids[owner] += OWNERS;
    link_reset(&m->to_core[owner]);
    link_reset(&m->to_client[owner]);
    for (uint32_t i = 0; i < m->requests_count; i++) {
        struct request *r = &m->requests[i];

        if (r->owner != owner)
            continue;
        if (!again && r->state != ENDED)
            r->state = ABORTED;
        request_again(m, r);
    }
    m->restarts++;
}

/* The client of each is told, and of nobody else. */
static void failures_check(struct sim *m, const struct scheduler_failure *failed, uint32_t count,
                           const bool expected[REQUESTS])
{
    uint32_t most = 0;

    for (uint32_t i = 0; i < REQUESTS; i++)
        most += expected[i];
    CHECK(m, count == most);
    for (uint32_t i = 0; i < count; i++) {
        struct letter letter = {.kind = LETTER_FAILED, .request = (uint32_t)failed[i].id};
        struct request *r = &m->requests[letter.request];

        CHECK(m, failed[i].id < m->requests_count && expected[failed[i].id] && r->admitted);
        CHECK(m, failed[i].owner == m->owner_ids[r->owner]);
        CHECK(m, failed[i].code[0] && failed[i].message[0]);
        r->admitted = false;
        link_send(m, &m->to_client[r->owner], &letter);
        m->failed++;
    }
}

void group_lost(struct sim *m)
{
    const struct scheduler_failure *failed;
    bool expected[REQUESTS] = {false};
    uint32_t count;

    if (m->lost)
        return;
    for (uint32_t i = 0; i < m->requests_count; i++)
        if (m->requests[i].admitted && audit_has_slot(m, i))
            expected[i] = ++m->requests[i].replays_core > LIMIT_REPLAYS;
    count = scheduler_group_lost(m->core, &failed);
    failures_check(m, failed, count, expected);
    ranks_start(m);
    m->lost = true;
    m->losses++;
}

/* The same rule as for a request that comes, but for what it has been promised. */
static bool still_fits(const struct sim *m, struct request *r)
{
    uint32_t pool = m->config.num_pages * m->config.page_size;

    if (!r->sampling.max_tokens && r->prompt_count < pool && r->max_tokens > pool - r->prompt_count)
        r->max_tokens = pool - r->prompt_count;
    return r->prompt_count + r->max_tokens <= pool && r->applied < r->max_tokens;
}

void group_joined(struct sim *m)
{
    const struct scheduler_failure *failed;
    bool expected[REQUESTS] = {false};
    uint32_t count;

    if (!m->lost)
        return;
    if (sim_draw(m, 3) == 0)
        m->config.num_pages = 1 + sim_draw(m, PAGES);
    for (uint32_t i = 0; i < m->requests_count; i++)
        if (m->requests[i].admitted)
            expected[i] = !still_fits(m, &m->requests[i]);
    count = scheduler_group_joined(m->core, m->config.num_pages, &failed);
    failures_check(m, failed, count, expected);
    m->lost = false;
}

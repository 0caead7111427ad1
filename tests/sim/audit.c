/* What must hold between any two calls, counted from the core's own state. */
#include "services/scheduler/state.h"
#include "tests/sim/sim.h"

#include <string.h>

struct count {
    uint8_t owners[PAGES]; /* free, in the tree, or in a sequence alone */
    bool kept[PAGES];      /* on the path of a lock */
    uint32_t resting;
    uint32_t slots;
};

static void count_sequence(struct sim *m, struct count *c, const struct sequence *seq)
{
    const struct scheduler *s = m->core;
    uint32_t path[PAGES];

    if (seq->state == SEQUENCE_WAITING) {
        CHECK(m, seq->node == PREFIX_ROOT && seq->pages_count == 0);
        return;
    }
    c->slots++;
    if (seq->state == SEQUENCE_ENDED || seq->state == SEQUENCE_RETRACTED) {
        CHECK(m, seq->last_step > s->applied);
        c->resting += seq->pages_count - seq->pages_shared;
    }
    for (uint32_t i = 0; i < seq->pages_count; i++) {
        CHECK(m, seq->pages[i] < PAGES);
        if (!prefix_holds(&s->tree, seq->pages[i]))
            c->owners[seq->pages[i]]++;
    }
    CHECK(m, seq->node_depth <= seq->pages_count && seq->pages_shared <= seq->node_depth);
    prefix_path(&s->tree, seq->node, seq->node_depth, path);
    for (uint32_t i = 0; i < seq->node_depth; i++)
        c->kept[path[i]] = true;
}

/* Ended sequences are known to their rows alone, each to its newest. */
static void count_retiring(struct sim *m, struct count *c)
{
    struct scheduler *s = m->core;

    for (uint64_t n = s->applied + 1; n <= s->planned; n++) {
        struct step *step = scheduler_step_at(s, n);

        for (uint32_t i = 0; i < step->out.message.rows_count; i++)
            if (step->sequences[i]->state == SEQUENCE_ENDED && step->sequences[i]->last_step == n)
                count_sequence(m, c, step->sequences[i]);
    }
}

static void count_pages(struct sim *m, struct count *c)
{
    const struct scheduler *s = m->core;
    uint32_t tree = 0, kept = 0;

    for (uint32_t i = 0; i < s->pages.freed_count; i++)
        c->owners[s->pages.freed[i]]++;
    for (uint32_t i = 0; i < s->config.num_pages; i++) {
        bool holds = prefix_holds(&s->tree, i);

        c->owners[i] = (uint8_t)(c->owners[i] + holds + (i >= s->pages.fresh));
        CHECK(m, c->owners[i] == 1);
        CHECK(m, holds || !c->kept[i]);
        tree += holds;
        kept += c->kept[i];
    }
    CHECK(m, s->tree.count == tree);
    CHECK(m, s->tree.kept == kept);
}

void audit(struct sim *m)
{
    const struct scheduler *s = m->core;
    struct count c = {{0}, {false}, 0, 0};
    const struct sequence *seq;
    uint32_t queued = 0, parked = 0;

    for (seq = s->by_key; seq; seq = seq->hh.next)
        count_sequence(m, &c, seq);
    count_retiring(m, &c);
    count_pages(m, &c);
    for (seq = s->queue.list; seq; seq = seq->next) {
        CHECK(m, seq->state == SEQUENCE_WAITING && !seq->paused && ++queued <= s->queue.count);
        CHECK(m, !seq->next || sequence_before(seq, seq->next));
    }
    CHECK(m, queued == s->queue.count);
    for (seq = s->parked; seq; seq = seq->next)
        CHECK(m, seq->state == SEQUENCE_WAITING && seq->paused && ++parked <= s->parked_count);
    CHECK(m, parked == s->parked_count);
    CHECK(m, c.resting == s->pages_resting);
    CHECK(m, c.slots + s->slots_count == s->config.slots_max);
    CHECK(m, queued + parked <= 2 * (s->config.queued_max + s->config.slots_max));
    CHECK(m, s->new_token_ratio >= 0 && s->new_token_ratio <= 1);
}

void audit_idle(struct sim *m)
{
    struct scheduler_stats stats;

    scheduler_stats(m->core, &stats);
    CHECK(m, stats.running == 0 && stats.waiting == 0 && stats.steps_in_flight == 0);
    CHECK(m, stats.pages_free == m->config.num_pages);
    CHECK(m, stats.slots_free == m->config.slots_max);
    scheduler_flush(m->core);
    scheduler_stats(m->core, &stats);
    CHECK(m, stats.pages_free == m->config.num_pages && stats.pages_cached == 0);
    audit(m);
}

static const struct sequence *find(const struct sim *m, uint32_t request)
{
    for (const struct sequence *seq = m->core->by_key; seq; seq = seq->hh.next)
        if (seq->key.id == request)
            return seq;
    return NULL;
}

uint64_t audit_first(const struct sim *m)
{
    const struct sequence *lists[] = {m->core->prefill, m->core->decode};
    const struct sequence *first = NULL;

    for (int i = 0; i < 2; i++)
        for (const struct sequence *seq = lists[i]; seq; seq = seq->next)
            if (!seq->paused && (!first || seq->arrival < first->arrival))
                first = seq;
    return first ? first->key.id : UINT64_MAX;
}

/* The earlier it came the earlier it starts, but for those that wait for pages of this step. */
static void order_check(const struct sim *m, const struct sequence *opened)
{
    for (const struct sequence *seq = m->core->by_key; seq; seq = seq->hh.next) {
        struct prefix_place place = seq->place;

        if (seq->state != SEQUENCE_WAITING || seq->paused || seq->arrival > opened->arrival)
            continue;
        prefix_climb_ready(&m->core->tree, m->core->planned, &place);
        CHECK(m, place.depth < seq->place.depth);
    }
}

void audit_plan(struct sim *m, const struct proto_step *step, uint64_t first)
{
    if (strcmp(m->config.policy, "priority") == 0)
        return;
    if (first != UINT64_MAX)
        CHECK(m, find(m, (uint32_t)first)->state == SEQUENCE_PREFILL ||
                     find(m, (uint32_t)first)->state == SEQUENCE_DECODE);
    if (strcmp(m->config.policy, "fcfs") != 0)
        return;
    for (uint32_t i = 0; i < step->opened_count; i++)
        order_check(m, find(m, (uint32_t)step->opened[i].sampling.seed));
}

uint32_t audit_parked(const struct sim *m)
{
    return m->core->parked_count;
}

bool audit_all_paused(const struct sim *m)
{
    for (const struct sequence *seq = m->core->by_key; seq; seq = seq->hh.next)
        if (!m->requests[seq->key.id].paused)
            return false;
    return true;
}

bool audit_has_slot(const struct sim *m, uint32_t request)
{
    return find(m, request)->state != SEQUENCE_WAITING;
}

bool audit_decodes(const struct sim *m, uint32_t request)
{
    for (const struct sequence *seq = m->core->decode; seq; seq = seq->next)
        if (seq->key.id == request)
            return true;
    return false;
}

uint64_t audit_preemptions(const struct sim *m)
{
    return m->core->preemptions;
}

uint32_t audit_available(const struct sim *m)
{
    struct scheduler_stats stats;

    scheduler_stats(m->core, &stats);
    return stats.pages_free;
}

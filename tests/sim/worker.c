#include "tests/sim/sim.h"

#include <string.h>

static bool slot_writes(const struct sim *m, const struct planned *slot)
{
    return slot->open && slot->last_step > m->applied;
}

/* Of the request as it was admitted last; before, its owner was another. */
static bool slot_is(const struct planned *slot, uint32_t request, const struct request *r)
{
    return slot->open && slot->request == request && slot->admission == r->admissions;
}

/* ---- as planned ---- */

static void planned_open(struct sim *m, const struct proto_slot_open *open, struct opened *copy)
{
    struct planned *slot = &m->slots[open->slot];
    struct request *r;

    CHECK(m, open->slot < m->config.slots_max && !slot->open && !slot_writes(m, slot));
    CHECK(m, open->sampling.seed < m->requests_count);
    r = &m->requests[open->sampling.seed];
    for (uint32_t i = 0; i < m->config.slots_max; i++)
        CHECK(m, !slot_is(&m->slots[i], (uint32_t)open->sampling.seed, r));
    CHECK(m, r->admitted && open->generated == r->applied);
    CHECK(m, open->tokens_count == r->prompt_count + r->applied && open->tokens_count < CONTEXT);
    CHECK(m, memcmp(open->tokens, r->prompt, r->prompt_count * sizeof *r->prompt) == 0);
    for (uint32_t i = 0; i < r->applied; i++)
        CHECK(m, open->tokens[r->prompt_count + i] == client_token(m, r, i));
    CHECK(m, open->sampling.max_tokens == r->max_tokens);
    CHECK(m, open->sampling.min_tokens <= r->max_tokens);
    *slot = (struct planned){.open = true,
                             .request = (uint32_t)open->sampling.seed,
                             .admission = r->admissions,
                             .known = open->tokens_count,
                             .known_open = open->tokens_count};
    *copy = (struct opened){open->slot, slot->request, open->tokens_count, {0}};
    memcpy(copy->tokens, open->tokens, open->tokens_count * sizeof *open->tokens);
}

static void planned_pages(struct sim *m, const struct proto_slot_pages *pages, struct added *copy)
{
    struct planned *slot = &m->slots[pages->slot];

    CHECK(m, pages->slot < m->config.slots_max && slot->open);
    CHECK(m, pages->first == slot->pages_count && pages->pages_count > 0);
    CHECK(m, pages->first + pages->pages_count <= m->config.num_pages);
    *copy = (struct added){pages->slot, pages->first, pages->pages_count, {0}};
    for (uint32_t i = 0; i < pages->pages_count; i++) {
        CHECK(m, pages->pages[i] < m->config.num_pages);
        for (uint32_t k = 0; k < slot->pages_count; k++)
            CHECK(m, slot->pages[k] != pages->pages[i]);
        slot->pages[slot->pages_count++] = copy->pages[i] = pages->pages[i];
    }
}

/* A page that is written is in one slot alone, and new there only when no step in flight writes it
 * for its last owner. */
static void planned_write(struct sim *m, const struct planned *slot, uint32_t page, bool first,
                          uint64_t step)
{
    for (uint32_t i = 0; i < m->config.slots_max; i++) {
        const struct planned *other = &m->slots[i];

        if (other == slot || !other->open)
            continue;
        for (uint32_t k = 0; k < other->pages_count; k++)
            CHECK(m, other->pages[k] != page);
    }
    if (first)
        CHECK(m, m->page_step[page] <= m->applied);
    m->page_step[page] = step;
}

static void planned_row(struct sim *m, const struct proto_row *row, uint64_t step)
{
    struct planned *slot = &m->slots[row->slot];
    uint32_t page_size = m->config.page_size, end = row->start + row->count;
    struct request *r;

    CHECK(m, row->slot < m->config.slots_max && slot->open && row->count > 0);
    r = &m->requests[slot->request];
    CHECK(m, slot->last_step < step && r->admitted && slot->admission == r->admissions);
    if (slot->last_step == 0) { /* what is found is whole pages, and never all */
        CHECK(m, row->start % page_size == 0 && row->start < slot->known);
        CHECK(m, row->start == 0 || m->config.prefix_cache);
        if (!r->started)
            r->cached = row->start < r->prompt_count ? row->start : r->prompt_count;
        m->hits += row->start;
        r->started = true;
        slot->computed = row->start;
    }
    CHECK(m, row->start == slot->computed && end <= slot->known);
    CHECK(m, row->sample == (end == slot->known));
    CHECK(m, !r->paused || row->start < slot->known_open);
    CHECK(m, slot->pages_count == (end - 1) / page_size + 1);
    CHECK(m, slot->known - r->prompt_count < r->max_tokens);
    for (uint32_t i = row->start / page_size; i < slot->pages_count; i++)
        planned_write(m, slot, slot->pages[i], i * page_size >= row->start, step);
    slot->computed = end;
    slot->last_step = step;
    slot->decoding = false;
    slot->known += row->sample;
}

static void decoding_mark(struct sim *m)
{
    for (uint32_t i = 0; i < m->config.slots_max; i++) {
        struct planned *s = &m->slots[i];
        const struct request *r = &m->requests[s->request];

        s->decoding = slot_is(s, s->request, r) && r->admitted && !r->paused &&
                      s->known > s->known_open && s->known - r->prompt_count < r->max_tokens;
    }
}

/* Every sequence that decodes had its row, but for those that wait for a page; who gives way to a
 * sequence that starts does so after the decode rows. */
static void decoding_check(struct sim *m, bool retracted)
{
    for (uint32_t i = 0; i < m->config.slots_max; i++) {
        const struct planned *s = &m->slots[i];

        if (!s->decoding || !audit_decodes(m, s->request))
            continue;
        m->stalls++;
        CHECK(m, s->computed % m->config.page_size == 0);
        CHECK(m, audit_available(m) == 0 || retracted);
    }
}

void worker_planned(struct sim *m, const struct proto_step *step, bool retracted)
{
    struct flight *f = &m->flight[step->step % FLIGHT];
    uint32_t tokens = 0, prefill = 0;

    *f = (struct flight){.step = step->step};
    decoding_mark(m);
    for (uint32_t i = 0; i < step->closed_count; i++) {
        struct planned *slot = &m->slots[step->closed[i]];

        CHECK(m, step->closed[i] < m->config.slots_max && slot->open && !slot_writes(m, slot));
        slot->open = slot->decoding = false;
        f->closed[f->closed_count++] = step->closed[i];
    }
    for (uint32_t i = 0; i < step->opened_count; i++)
        planned_open(m, &step->opened[i], &f->opened[f->opened_count++]);
    for (uint32_t i = 0; i < step->pages_count; i++)
        planned_pages(m, &step->pages[i], &f->added[f->added_count++]);
    CHECK(m, step->rows_count > 0);
    for (uint32_t i = 0; i < step->rows_count; i++) {
        const struct proto_row *row = &step->rows[i];

        planned_row(m, row, step->step);
        tokens += row->count;
        prefill += row->start < m->slots[row->slot].known_open ? row->count : 0;
        f->rows[f->rows_count++] = *row;
    }
    decoding_check(m, retracted);
    CHECK(m, tokens <= scheduler_tokens_max(m->core));
    CHECK(m, m->config.prefill_tokens_max < 0 || prefill <= (uint32_t)m->config.prefill_tokens_max);
    m->steps++;
}

/* ---- as computed ---- */

/* What position `at` of a sequence leaves in its page depends on all tokens up to it. */
static uint64_t content_of(uint64_t before, uint32_t token)
{
    return sim_mix(before + token + 1);
}

static uint64_t *content_at(struct sim *m, const struct device_slot *d, uint32_t at)
{
    return &m->content[d->pages[at / m->config.page_size] * 8 + at % m->config.page_size];
}

/* Reads positions 0 .. end - 1 through the page table as attention does. */
static uint64_t content_check(struct sim *m, const struct device_slot *d, uint32_t end)
{
    uint64_t content = 1;

    for (uint32_t i = 0; i < end; i++) {
        content = content_of(content, d->tokens[i]);
        CHECK(m, *content_at(m, d, i) == content);
    }
    return content;
}

static void device_write(struct sim *m, struct device_slot *d, const struct proto_row *row)
{
    uint64_t content = 1;

    for (uint32_t i = 0; i < row->start + row->count; i++) {
        content = content_of(content, d->tokens[i]);
        if (i >= row->start)
            *content_at(m, d, i) = content;
    }
}

static void device_change(struct sim *m, const struct flight *f)
{
    for (uint32_t i = 0; i < f->closed_count; i++)
        m->device[f->closed[i]].open = false;
    for (uint32_t i = 0; i < f->opened_count; i++) {
        const struct opened *o = &f->opened[i];
        struct device_slot *d = &m->device[o->slot];

        CHECK(m, !d->open);
        *d = (struct device_slot){.open = true, .request = o->request, .known = o->tokens_count};
        d->generated = o->tokens_count - m->requests[o->request].prompt_count;
        memcpy(d->tokens, o->tokens, sizeof o->tokens);
    }
    for (uint32_t i = 0; i < f->added_count; i++)
        for (uint32_t k = 0; k < f->added[i].count; k++)
            m->device[f->added[i].slot].pages[f->added[i].first + k] = f->added[i].pages[k];
}

void worker_compute(struct sim *m, uint64_t step)
{
    struct flight *f = &m->flight[step % FLIGHT];

    CHECK(m, f->step == step && step == m->computed + 1);
    m->computed = step;
    device_change(m, f);
    /* Neither order of the rows of a step may matter: all read before any writes, and after. */
    for (uint32_t i = 0; i < f->rows_count; i++)
        (void)content_check(m, &m->device[f->rows[i].slot], f->rows[i].start);
    for (uint32_t i = 0; i < f->rows_count; i++)
        device_write(m, &m->device[f->rows[i].slot], &f->rows[i]);
    for (uint32_t i = 0; i < f->rows_count; i++) {
        const struct proto_row *row = &f->rows[i];
        struct device_slot *d = &m->device[row->slot];

        (void)content_check(m, d, row->start + row->count);
        if (!row->sample)
            continue;
        CHECK(m, row->start + row->count == d->known && d->known <= CONTEXT);
        d->tokens[d->known] = client_token(m, &m->requests[d->request], d->generated++);
        f->results[f->results_count++] =
            (struct proto_sampled){.slot = row->slot, .id = d->tokens[d->known++]};
    }
}

/* What the next step holds. */
#include "services/scheduler/admission.h"
#include "services/scheduler/state.h"

#include <assert.h>
#include <string.h>
#include <utlist.h>

static void step_clear(struct step *step, uint64_t number)
{
    struct proto_step *m = &step->out.message;

    m->step = number;
    m->closed_count = m->opened_count = m->pages_count = m->rows_count = 0;
}

/* Takes pages for the positions below end; the message points into the sequence's own table. */
static void plan_pages(struct scheduler *s, struct proto_step *m, struct sequence *seq,
                       uint32_t end)
{
    uint32_t first = seq->pages_count;
    uint32_t needed = (end - 1) / s->config.page_size + 1;

    assert(needed <= seq->pages_max);
    if (needed <= first)
        return;
    while (seq->pages_count < needed)
        seq->pages[seq->pages_count++] = pages_take(&s->pages);
    m->pages[m->pages_count++] = (struct proto_slot_pages){
        .slot = seq->slot,
        .first = first,
        .pages = seq->pages + first,
        .pages_count = needed - first,
    };
}

/* One row: the next count tokens of seq, with a sample where they are the last known ones. */
static void plan_row(struct scheduler *s, struct step *step, struct sequence *seq, uint32_t count)
{
    struct proto_step *m = &step->out.message;
    bool sample = count == sequence_pending(seq);

    plan_pages(s, m, seq, seq->computed + count);
    step->sequences[m->rows_count] = seq;
    m->rows[m->rows_count++] = (struct proto_row){
        .slot = seq->slot, .start = seq->computed, .count = count, .sample = sample};
    seq->computed += count;
    seq->planned += sample;
    seq->last_step = m->step;
}

/* Returns the tokens planned. */
static uint32_t plan_decode(struct scheduler *s, struct step *step)
{
    struct sequence *seq;
    uint32_t tokens = 0;

    DL_FOREACH(s->decode, seq)
    {
        uint32_t count = sequence_pending(seq);

        if (count == 0)
            continue; /* its last token is in flight */
        plan_row(s, step, seq, count);
        tokens += count;
    }
    return tokens;
}

/* Plans as much of a prompt as is left of the budget. */
static void plan_chunk(struct scheduler *s, struct step *step, struct sequence *seq, uint32_t *left)
{
    uint32_t count = sequence_pending(seq);

    if (count > *left)
        count = *left;
    plan_row(s, step, seq, count);
    *left -= count;
    if (seq->computed >= seq->prompt_count) {
        DL_DELETE(s->prefill, seq);
        DL_APPEND(s->decode, seq);
        seq->state = SEQUENCE_DECODE;
    }
}

/* Whether the first chunk of a waiting sequence fits: none starts without a row, and prompts that
 * must not be cut wait for a step that has room for the whole. */
static bool start_fits(const struct scheduler *s, const struct sequence *seq, uint32_t left)
{
    return s->config.prefill_tokens_max < 0 ? seq->prompt_count <= left : left > 0;
}

static void plan_start(struct scheduler *s, struct step *step, uint32_t *left, int64_t now_us)
{
    struct proto_step *m = &step->out.message;
    struct sequence *seq;

    while (s->slots_count && (seq = s->policy->next(&s->queue)) && start_fits(s, seq, *left)) {
        uint32_t pages = admission_pages(&s->config, seq->prompt_count, &seq->sampling);

        if (!pages_promise(&s->pages, pages))
            return;
        s->policy->remove(&s->queue, seq);
        sequence_start(seq, s->slots[--s->slots_count], pages);
        DL_APPEND(s->prefill, seq);
        s->running++;
        s->prefix_queries += seq->prompt_count;
        s->prefix_hits += seq->cached;
        step->queue_us[m->opened_count] = now_us - seq->arrived_us;
        m->opened[m->opened_count++] = (struct proto_slot_open){
            .slot = seq->slot,
            .tokens = seq->tokens,
            .tokens_count = seq->prompt_count + seq->generated,
            .generated = seq->generated,
            .sampling = seq->sampling,
        };
        plan_chunk(s, step, seq, left);
    }
}

const struct scheduler_step *scheduler_plan(struct scheduler *s, int64_t now_us)
{
    struct step *step = scheduler_step_at(s, s->planned + 1);
    struct proto_step *m = &step->out.message;
    uint32_t left;

    if (s->planned - s->applied >= s->config.steps_in_flight_max)
        return NULL;
    step_clear(step, s->planned + 1);
    left = s->tokens_max - plan_decode(s, step);
    if (left > s->prefill_tokens_max)
        left = s->prefill_tokens_max;
    while (s->prefill && left) /* a prompt that is not done leaves nothing */
        plan_chunk(s, step, s->prefill, &left);
    plan_start(s, step, &left, now_us);
    if (m->rows_count == 0)
        return NULL;
    memcpy(m->closed, s->closed, s->closed_count * sizeof *m->closed);
    m->closed_count = s->closed_count;
    s->closed_count = 0;
    s->planned++;
    return &step->out;
}

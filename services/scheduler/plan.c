/* What the next step holds. */
#include "services/scheduler/admission.h"
#include "services/scheduler/memory.h"
#include "services/scheduler/state.h"

#include <assert.h>
#include <string.h>
#include <utlist.h>

static void step_clear(struct step *step, uint64_t number)
{
    struct proto_step *m = &step->out.message;

    m->step = number;
    m->closed_count = m->opened_count = m->pages_count = m->rows_count = m->scores_count = 0;
    step->scores_left = LIMIT_STEP_SCORES;
}

/* Takes pages for the positions below end; the message points into the sequence's own table. */
static void plan_pages(struct scheduler *s, struct proto_step *m, struct sequence *seq,
                       uint32_t end)
{
    for (uint32_t missing = memory_missing(s, seq, end); missing > 0; missing--)
        seq->pages[seq->pages_count++] = memory_take(s);
    if (seq->pages_told == seq->pages_count)
        return;
    m->pages[m->pages_count++] = (struct proto_slot_pages){
        .slot = seq->slot,
        .first = seq->pages_told,
        .pages = seq->pages + seq->pages_told,
        .pages_count = seq->pages_count - seq->pages_told,
    };
    seq->pages_told = seq->pages_count;
}

/* Most tokens of seq from `start` on that the log probabilities wanted of them leave room for. */
static uint32_t scores_room(const struct step *step, const struct sequence *seq, uint32_t start)
{
    uint32_t first = start > seq->scored ? start : seq->scored;
    uint32_t end = sequence_scores_end(seq);

    if (first >= end || end - first <= step->scores_left)
        return UINT32_MAX;
    return first - start + step->scores_left;
}

/* Each position is scored once, also when a retracted sequence is computed again. */
static void plan_score(struct step *step, const struct sequence *seq, uint32_t count)
{
    struct proto_step *m = &step->out.message;
    uint32_t first = seq->computed > seq->scored ? seq->computed : seq->scored;
    uint32_t end = sequence_scores_end(seq);

    if (end > seq->computed + count)
        end = seq->computed + count;
    if (first >= end)
        return;
    m->scores[m->scores_count++] = (struct proto_score){seq->slot, first, end - first};
    step->scores_left -= end - first;
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
    plan_score(step, seq, count);
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
        if (memory_missing(s, seq, seq->computed + count) > memory_available(s))
            continue; /* until those who gave way for it are out of flight */
        plan_row(s, step, seq, count);
        tokens += count;
    }
    if (tokens)
        memory_learn(s);
    return tokens;
}

/* Most tokens of seq that pages are there for. */
static uint64_t tokens_room(const struct scheduler *s, const struct sequence *seq)
{
    uint64_t pages = (uint64_t)seq->pages_count + memory_available(s);

    return pages * s->config.page_size - seq->computed;
}

/* Tokens of seq that its next chunk holds if there are pages for them. */
static uint32_t chunk_wanted(const struct step *step, const struct sequence *seq, uint32_t left)
{
    uint32_t count = sequence_pending(seq);
    uint32_t scores = scores_room(step, seq, seq->computed);

    if (count > left)
        count = left;
    return count < scores ? count : scores;
}

/* Plans as much of a prompt as is left of the budget, in one row. False: it is not done; nothing of
 * a step goes past it then. */
static bool plan_chunk(struct scheduler *s, struct step *step, struct sequence *seq, uint32_t *left)
{
    uint32_t count = chunk_wanted(step, seq, *left);
    uint64_t room = tokens_room(s, seq);
    bool last;

    if (count > room)
        count = (uint32_t)room;
    if (count == 0)
        return false;
    last = count == sequence_pending(seq);
    plan_row(s, step, seq, count);
    memory_share(s, seq, step->out.message.step);
    *left -= count;
    if (last) {
        s->prefill = NULL;
        DL_APPEND(s->decode, seq);
        seq->state = SEQUENCE_DECODE;
    }
    return last;
}

/* Whether pages that this very step computes for others are worth waiting for: one step of delay
 * against what it would have to compute itself. */
static bool worth_waiting(const struct scheduler *s, const struct sequence *seq, uint32_t depth)
{
    uint64_t page_size = s->config.page_size;
    uint64_t saved = (seq->place.depth - depth) * page_size;

    return saved * 4 >= sequence_known(seq) - depth * page_size;
}

/* Whether the first chunk of a waiting sequence fits: none starts without a row, and prompts that
 * must not be cut wait for a step that has room for the whole. */
static bool start_fits(const struct scheduler *s, const struct sequence *seq, uint32_t left,
                       const struct prefix_place *place)
{
    uint32_t count = sequence_known(seq) - place->depth * s->config.page_size;
    uint32_t loose = prefix_path_loose(&s->tree, place->page);
    uint64_t available = memory_available(s) - loose;

    if (s->config.prefill_tokens_max < 0) {
        if (count > left && left < s->prefill_tokens_max)
            return false;
        if ((uint64_t)count > available * s->config.page_size)
            return false;
    }
    if (s->running == 0)
        return available > 0; /* alone it fits, if need be once all steps are applied */
    return memory_reserved(s) + memory_expected(s, seq, place->depth) <= available;
}

static void plan_open(struct scheduler *s, struct step *step, struct sequence *seq,
                      const struct prefix_place *place, int64_t now_us)
{
    struct proto_step *m = &step->out.message;

    if (s->policy->started)
        s->policy->started(&s->queue, seq);
    queue_remove(&s->queue, seq);
    sequence_start(seq, s->slots[--s->slots_count],
                   admission_pages(&s->config, seq->prompt_count, &seq->sampling));
    seq->next = NULL;
    s->prefill = seq;
    s->running++;
    prefix_lock(&s->tree, place->page);
    prefix_path(&s->tree, place->page, place->depth, seq->pages);
    seq->node = place->page;
    seq->node_depth = seq->pages_count = seq->pages_shared = place->depth;
    seq->computed = place->depth * s->config.page_size;
    if (!seq->retractions) {
        seq->cached = seq->computed < seq->prompt_count ? seq->computed : seq->prompt_count;
        s->prefix_queries += seq->prompt_count;
        s->prefix_hits += seq->cached;
    }
    step->queue_us[m->opened_count] = now_us - seq->arrived_us;
    m->opened[m->opened_count++] = (struct proto_slot_open){
        .slot = seq->slot,
        .tokens = seq->tokens,
        .tokens_count = sequence_known(seq),
        .generated = seq->generated,
        .sampling = seq->sampling,
    };
}

/* Most pages that may come from the tree: tokens that are scored, and the last one that is known,
 * are computed. */
static uint32_t match_max(const struct scheduler *s, const struct sequence *seq)
{
    uint32_t most = sequence_known(seq) - 1;

    if (seq->scored < sequence_scores_end(seq))
        most = seq->scored;
    return most / s->config.page_size;
}

/* Looks up what of seq the tree knows; the last known token is always computed. False: it waits for
 * pages of this step. */
static bool plan_match(struct scheduler *s, struct sequence *seq, uint64_t step,
                       struct prefix_place *place)
{
    *place = (struct prefix_place){.page = PREFIX_ROOT};
    if (!s->config.prefix_cache)
        return true;
    prefix_match(&s->tree, seq->tokens, match_max(s, seq), &seq->place);
    *place = seq->place;
    prefix_climb_ready(&s->tree, step, place);
    return place->depth == seq->place.depth || !worth_waiting(s, seq, place->depth);
}

static void plan_start(struct scheduler *s, struct step *step, uint32_t *left, int64_t now_us)
{
    const struct proto_step *m = &step->out.message;
    struct sequence *seq, *skipped = NULL;
    uint64_t opened = 0;

    if (*left && !s->slots_count && s->queue.count && !s->retracted)
        (void)memory_retract_paused(s);
    while (*left && (s->slots_count || s->policy->priorities) &&
           (seq = s->policy->next(&s->queue, &s->tree))) {
        struct prefix_place place;
        bool starts;

        if (!plan_match(s, seq, m->step, &place)) {
            queue_remove(&s->queue, seq);
            seq->next = skipped;
            skipped = seq;
            continue;
        }
        if (!scores_room(step, seq, place.depth * s->config.page_size))
            break;
        opened += sequence_known(seq);
        if (m->opened_count && opened > LIMIT_PROMPT_IDS)
            break; /* bounds the STEP message, of which cached tokens are a part too */
        starts = s->slots_count && start_fits(s, seq, *left, &place);
        while (!starts && !s->retracted && memory_retract_paused(s))
            starts = s->slots_count && start_fits(s, seq, *left, &place);
        if (!starts && s->policy->priorities && !s->retracted && memory_preempt(s, seq))
            starts = s->slots_count && start_fits(s, seq, *left, &place);
        if (!starts)
            break;
        plan_open(s, step, seq, &place, now_us);
        if (!plan_chunk(s, step, seq, left))
            break;
    }
    while ((seq = skipped)) {
        skipped = seq->next;
        queue_insert(&s->queue, seq);
    }
}

/* The prompt that has begun. Sequences that are paused give way before its row is planned, as there
 * is one row a step: it may be one of them itself. */
static bool plan_prefill(struct scheduler *s, struct step *step, uint32_t *left)
{
    while (s->prefill && !s->retracted &&
           tokens_room(s, s->prefill) < chunk_wanted(step, s->prefill, *left) &&
           memory_retract_paused(s))
        continue;
    return !s->prefill || plan_chunk(s, step, s->prefill, left);
}

static void plan_rows(struct scheduler *s, struct step *step, int64_t now_us)
{
    uint32_t left = s->tokens_max - plan_decode(s, step);

    if (left > s->prefill_tokens_max)
        left = s->prefill_tokens_max;
    if (plan_prefill(s, step, &left))
        plan_start(s, step, &left, now_us);
}

const struct scheduler_step *scheduler_plan(struct scheduler *s, int64_t now_us)
{
    struct step *step = scheduler_step_at(s, s->planned + 1);
    struct proto_step *m = &step->out.message;

    if (s->lost || s->planned - s->applied >= s->config.steps_in_flight_max)
        return NULL;
    step_clear(step, s->planned + 1);
    memory_make_room(s);
    plan_rows(s, step, now_us);
    if (m->rows_count == 0)
        return NULL;
    memcpy(m->closed, s->closed, s->closed_count * sizeof *m->closed);
    m->closed_count = s->closed_count;
    s->closed_count = 0;
    s->planned++;
    return &step->out;
}

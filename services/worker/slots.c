#include "services/worker/slots.h"

#include "common/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

void slots_init(struct slots *s, const struct slots_config *config)
{
    *s = (struct slots){.config = *config};
    s->views = mem_array(config->num_slots, sizeof *s->views);
}

void slots_fini(struct slots *s)
{
    free(s->views);
    *s = (struct slots){0};
}

int slots_again(struct slots *s, const struct slots_config *config, struct err *err)
{
    const struct slots_config *c = &s->config;

    if (memcmp(c, config, sizeof *c) != 0)
        return err_set(err, ERR_PROTOCOL,
                       "the KV pool has %u pages, %u slots and %u tokens a step, the scheduler now "
                       "wants %u, %u and %u: this rank has to be started again",
                       c->num_pages, c->num_slots, c->tokens_max, config->num_pages,
                       config->num_slots, config->tokens_max);
    memset(s->views, 0, c->num_slots * sizeof *s->views);
    s->step = 0;
    return 0;
}

/* The view of a slot that must be open (or must not be). */
static int slots_find(struct slots *s, uint32_t slot, bool open, struct slot_view **out,
                      struct err *err)
{
    if (slot >= s->config.num_slots)
        return err_set(err, ERR_PROTOCOL, "slot %u, there are %u", slot, s->config.num_slots);
    *out = &s->views[slot];
    if ((*out)->open != open)
        return err_set(err, ERR_PROTOCOL, "slot %u is %s", slot, open ? "not open" : "open");
    return 0;
}

static int check_sampling(const struct proto_sampling *p, uint32_t vocab_size, struct err *err)
{
#define SAMPLING(field, low, high, what)                                                           \
    if (!((double)p->field >= (low) && (double)p->field <= (high)))                                \
        return err_set(err, ERR_PROTOCOL, "sampling: " #field " is %g", (double)p->field);
#include "proto/limits.def"
    for (uint32_t i = 0; i < p->stop_token_ids_count; i++)
        if (p->stop_token_ids[i] >= vocab_size)
            return err_set(err, ERR_PROTOCOL, "sampling: stop id %u, the vocabulary has %u",
                           p->stop_token_ids[i], vocab_size);
    for (uint32_t i = 0; i < p->logit_bias_count; i++)
        if (p->logit_bias[i].id >= vocab_size || !isfinite(p->logit_bias[i].value))
            return err_set(err, ERR_PROTOCOL, "sampling: logit_bias of id %u", p->logit_bias[i].id);
    return 0;
}

static int apply_opened(struct slots *s, const struct proto_slot_open *o, struct err *err)
{
    struct slot_view *view;
    int rc = slots_find(s, o->slot, false, &view, err);

    if (rc)
        return rc;
    if (o->tokens_count == 0 || o->tokens_count > s->config.context_max)
        return err_set(err, ERR_PROTOCOL, "slot %u: %u tokens, the range is 1 to %u", o->slot,
                       o->tokens_count, s->config.context_max);
    if (o->generated > o->tokens_count)
        return err_set(err, ERR_PROTOCOL, "slot %u: %u of %u tokens generated", o->slot,
                       o->generated, o->tokens_count);
    for (uint32_t i = 0; i < o->tokens_count; i++)
        if (o->tokens[i] >= s->config.vocab_size)
            return err_set(err, ERR_PROTOCOL, "slot %u: token id %u, the vocabulary has %u",
                           o->slot, o->tokens[i], s->config.vocab_size);
    rc = check_sampling(&o->sampling, s->config.vocab_size, err);
    if (rc)
        return err_prefix(err, "slot %u", o->slot);
    *view = (struct slot_view){.open = true,
                               .known = o->tokens_count,
                               .generated = o->generated,
                               .seed = o->sampling.seed,
                               .logprobs = (int32_t)o->sampling.logprobs};
    return 0;
}

static int apply_pages(struct slots *s, const struct proto_slot_pages *p, struct err *err)
{
    uint32_t page_size = s->config.page_size;
    uint32_t most = s->config.context_max / page_size + (s->config.context_max % page_size != 0);
    struct slot_view *view;
    int rc = slots_find(s, p->slot, true, &view, err);

    if (rc)
        return rc;
    if (p->first > view->pages || p->pages_count > most - p->first)
        return err_set(err, ERR_PROTOCOL, "slot %u: %u pages from entry %u, it has %u of %u",
                       p->slot, p->pages_count, p->first, view->pages, most);
    for (uint32_t i = 0; i < p->pages_count; i++)
        if (p->pages[i] >= s->config.num_pages)
            return err_set(err, ERR_PROTOCOL, "slot %u: page %u, there are %u", p->slot,
                           p->pages[i], s->config.num_pages);
    view->pages = p->first + p->pages_count;
    return 0;
}

static int apply_row(struct slots *s, const struct proto_row *row, uint32_t *tokens,
                     struct err *err)
{
    uint64_t end = (uint64_t)row->start + row->count;
    struct slot_view *view;
    int rc = slots_find(s, row->slot, true, &view, err);

    if (rc)
        return rc;
    if (view->step == s->step)
        return err_set(err, ERR_PROTOCOL, "slot %u has two rows", row->slot);
    if (row->count == 0 || end > view->known)
        return err_set(err, ERR_PROTOCOL, "slot %u: %u tokens from %u, it has %u", row->slot,
                       row->count, row->start, view->known);
    if (end > (uint64_t)view->pages * s->config.page_size)
        return err_set(err, ERR_PROTOCOL, "slot %u: %u tokens from %u, its %u pages hold %llu",
                       row->slot, row->count, row->start, view->pages,
                       (unsigned long long)view->pages * s->config.page_size);
    if (row->count > s->config.tokens_max - *tokens)
        return err_set(err, ERR_PROTOCOL, "more than %u tokens in a step", s->config.tokens_max);
    if (row->sample && (end != view->known || view->known >= s->config.context_max))
        return err_set(err, ERR_PROTOCOL, "slot %u: no token can follow %llu of %u (context %u)",
                       row->slot, (unsigned long long)end, view->known, s->config.context_max);
    *tokens += row->count;
    view->step = s->step;
    if (row->sample) {
        view->known++;
        view->generated++;
    }
    return 0;
}

const struct proto_score *slots_score(const struct proto_step *step, uint32_t i, uint32_t *next)
{
    if (*next == step->scores_count || step->scores[*next].slot != step->rows[i].slot)
        return NULL;
    return &step->scores[(*next)++];
}

/* After the rows: a slot that got a sample knows one token more by now. */
static int check_score(const struct slots *s, const struct proto_row *row,
                       const struct proto_score *score, uint32_t *scores, struct err *err)
{
    const struct slot_view *view = &s->views[row->slot];
    uint64_t end = (uint64_t)score->start + score->count;

    if (view->logprobs < 0)
        return err_set(err, ERR_PROTOCOL, "slot %u: scored without log probabilities", row->slot);
    if (score->count == 0 || score->start < row->start || end > (uint64_t)row->start + row->count ||
        end >= view->known - row->sample)
        return err_set(err, ERR_PROTOCOL, "slot %u: %u scores from %u, its row has %u from %u",
                       row->slot, score->count, score->start, row->count, row->start);
    if (score->count > LIMIT_STEP_SCORES - *scores)
        return err_set(err, ERR_PROTOCOL, "more than %d scores", LIMIT_STEP_SCORES);
    *scores += score->count;
    return 0;
}

static int check_scores(const struct slots *s, const struct proto_step *step, struct err *err)
{
    uint32_t next = 0, scores = 0;
    int rc = 0;

    for (uint32_t i = 0; i < step->rows_count && !rc; i++) {
        const struct proto_score *score = slots_score(step, i, &next);

        if (score)
            rc = check_score(s, &step->rows[i], score, &scores, err);
    }
    if (!rc && next != step->scores_count)
        rc = err_set(err, ERR_PROTOCOL, "the score of slot %u is not of a row",
                     step->scores[next].slot);
    return rc;
}

int slots_apply(struct slots *s, const struct proto_step *step, struct err *err)
{
    uint32_t tokens = 0;
    int rc = 0;

    if (step->step != s->step + 1)
        return err_set(err, ERR_PROTOCOL, "step %llu after step %llu",
                       (unsigned long long)step->step, (unsigned long long)s->step);
    s->step = step->step;
    for (uint32_t i = 0; i < step->closed_count && !rc; i++) {
        struct slot_view *view;

        rc = slots_find(s, step->closed[i], true, &view, err);
        if (!rc)
            view->open = false;
    }
    for (uint32_t i = 0; i < step->opened_count && !rc; i++)
        rc = apply_opened(s, &step->opened[i], err);
    for (uint32_t i = 0; i < step->pages_count && !rc; i++)
        rc = apply_pages(s, &step->pages[i], err);
    for (uint32_t i = 0; i < step->rows_count && !rc; i++)
        rc = apply_row(s, &step->rows[i], &tokens, err);
    if (!rc)
        rc = check_scores(s, step, err);
    return rc ? err_prefix(err, "step %llu", (unsigned long long)step->step) : 0;
}

uint64_t slots_hash_rows(const struct proto_step *step)
{
    uint64_t hash = step->step;

    for (uint32_t i = 0; i < step->rows_count; i++) {
        const struct proto_row *r = &step->rows[i];
        const uint32_t row[4] = {r->slot, r->start, r->count, r->sample};

        hash = XXH64(row, sizeof row, hash);
    }
    return hash;
}

uint64_t slots_hash_results(uint64_t hash, const struct proto_sampled *results, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t result[2] = {results[i].slot, results[i].id};

        hash = XXH64(result, sizeof result, hash);
    }
    return hash;
}

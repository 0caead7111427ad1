/* What the results of a step change. */
#include "services/scheduler/state.h"

#include <inttypes.h>

/* The score of row i, or NULL; *next counts those found. */
static const struct proto_score *step_score(const struct proto_step *m, uint32_t i, uint32_t *next)
{
    if (*next == m->scores_count || m->scores[*next].slot != m->rows[i].slot)
        return NULL;
    return &m->scores[(*next)++];
}

static int results_check(const struct scheduler *s, const struct proto_step *m,
                         const struct proto_sampled *results, uint32_t count, struct err *err)
{
    uint32_t next = 0, scores = 0;

    for (uint32_t i = 0; i < m->rows_count; i++) {
        const struct proto_score *score = step_score(m, i, &scores);
        const struct proto_sampled *r;

        if ((!m->rows[i].sample && !score) || next++ >= count)
            continue;
        r = &results[next - 1];
        if (r->slot != m->rows[i].slot)
            return err_set(err, ERR_PROTOCOL, "step %" PRIu64 ": result %u is for slot %u, not %u",
                           m->step, next - 1, r->slot, m->rows[i].slot);
        if (r->id >= s->config.vocab_size)
            return err_set(err, ERR_PROTOCOL,
                           "step %" PRIu64 ": token id %u is outside of the vocabulary (%u)",
                           m->step, r->id, s->config.vocab_size);
        if (r->prompt_count != (score ? score->count : 0))
            return err_set(err, ERR_PROTOCOL, "step %" PRIu64 ": slot %u has %u scores, not %u",
                           m->step, r->slot, r->prompt_count, score ? score->count : 0);
    }
    if (next != count)
        return err_set(err, ERR_PROTOCOL, "step %" PRIu64 " has %u results, not %u", m->step, count,
                       next);
    return 0;
}

/* A sampled token of a sequence that has not ended; true when it does with it. */
static bool apply_token(struct scheduler *s, struct sequence *seq,
                        const struct proto_sampled *result, struct scheduler_output *out)
{
    enum proto_finish finish =
        sequence_append(seq, result->id, s->config.eos_ids, s->config.eos_ids_count);

    out->chosen = true;
    out->token = (struct proto_token){
        .sid = seq->key.id,
        .index = seq->generated - 1,
        .id = result->id,
        .finish = finish,
        .cached_tokens = seq->cached,
        .logprob = result->logprob,
        .logprob_count = result->logprob_count,
    };
    s->generation_tokens++;
    if (finish == FINISH_NONE)
        return false;
    scheduler_end(s, seq);
    return true;
}

static void apply_score(struct sequence *seq, const struct proto_score *score,
                        const struct proto_sampled *result, struct scheduler_output *out)
{
    out->prompt = (struct proto_scored){score->start + 1, result->prompt, result->prompt_count};
    seq->scored = score->start + score->count;
}

static void apply_rows(struct scheduler *s, struct step *step, const struct proto_sampled *results,
                       uint32_t *out_count)
{
    const struct proto_step *m = &step->out.message;
    uint32_t scores = 0;

    for (uint32_t i = 0; i < m->rows_count; i++) {
        const struct proto_score *score = step_score(m, i, &scores);
        bool sample = m->rows[i].sample;
        const struct proto_sampled *result = sample || score ? results++ : NULL;
        struct sequence *seq = step->sequences[i];
        struct scheduler_output *out = NULL;

        if (m->rows[i].start < seq->prompt_count)
            s->prompt_tokens += m->rows[i].count;
        if (seq->state == SEQUENCE_ENDED) {
            s->surplus_tokens += sample;
            scheduler_release(s, seq);
            continue;
        }
        /* One that gives way keeps the token that it has got on the way out. */
        if (result) {
            out = &s->outputs[(*out_count)++];
            *out = (struct scheduler_output){.owner = seq->key.owner, .token.sid = seq->key.id};
        }
        if (score)
            apply_score(seq, score, result, out);
        if (sample && apply_token(s, seq, result, out))
            continue;
        if (seq->state == SEQUENCE_RETRACTED)
            scheduler_release(s, seq);
    }
}

int scheduler_apply(struct scheduler *s, uint64_t number, const struct proto_sampled *results,
                    uint32_t results_count, const struct scheduler_output **out,
                    uint32_t *out_count, struct err *err)
{
    struct step *step = scheduler_step_at(s, s->applied + 1);
    int rc;

    *out = s->outputs;
    *out_count = 0;
    if (s->applied == s->planned)
        return err_set(err, ERR_PROTOCOL, "result of step %" PRIu64 ", but none is in flight",
                       number);
    if (number != s->applied + 1)
        return err_set(err, ERR_PROTOCOL, "result of step %" PRIu64 " in place of %" PRIu64, number,
                       s->applied + 1);
    rc = results_check(s, &step->out.message, results, results_count, err);
    if (rc)
        return rc;
    s->applied++;
    s->steps_applied++;
    apply_rows(s, step, results, out_count);
    return 0;
}

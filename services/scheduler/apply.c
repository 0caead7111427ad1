/* What the results of a step change. */
#include "services/scheduler/state.h"

#include <inttypes.h>

static int results_check(const struct scheduler *s, const struct proto_step *m,
                         const struct proto_sampled *results, uint32_t count, struct err *err)
{
    uint32_t next = 0;

    for (uint32_t i = 0; i < m->rows_count; i++) {
        const struct proto_sampled *r;

        if (!m->rows[i].sample || next++ >= count)
            continue;
        r = &results[next - 1];
        if (r->slot != m->rows[i].slot)
            return err_set(err, ERR_PROTOCOL, "step %" PRIu64 ": result %u is for slot %u, not %u",
                           m->step, next - 1, r->slot, m->rows[i].slot);
        if (r->id >= s->config.vocab_size)
            return err_set(err, ERR_PROTOCOL,
                           "step %" PRIu64 ": token id %u is outside of the vocabulary (%u)",
                           m->step, r->id, s->config.vocab_size);
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

    *out = (struct scheduler_output){
        .owner = seq->key.owner,
        .token =
            {
                .sid = seq->key.id,
                .index = seq->generated - 1,
                .id = result->id,
                .finish = finish,
                .cached_tokens = seq->cached,
                .logprob = result->logprob,
                .logprob_count = result->logprob_count,
            },
    };
    s->generation_tokens++;
    if (finish == FINISH_NONE)
        return false;
    scheduler_end(s, seq);
    return true;
}

static void apply_rows(struct scheduler *s, struct step *step, const struct proto_sampled *results,
                       uint32_t *out_count)
{
    const struct proto_step *m = &step->out.message;

    for (uint32_t i = 0; i < m->rows_count; i++) {
        const struct proto_sampled *result = m->rows[i].sample ? results++ : NULL;
        struct sequence *seq = step->sequences[i];

        if (m->rows[i].start < seq->prompt_count)
            s->prompt_tokens += m->rows[i].count;
        if (seq->state == SEQUENCE_ENDED) {
            s->surplus_tokens += result != NULL;
            scheduler_release(s, seq);
            continue;
        }
        /* One that gives way keeps the token that it has got on the way out. */
        if (result && apply_token(s, seq, result, &s->outputs[(*out_count)++]))
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
    apply_rows(s, step, results, out_count);
    return 0;
}

/* Log probabilities of tokens that are known already: those of a prompt.
 *
 * Positions go through the LM head in blocks, so that no more than a block of logits is ever there.
 * Each rank sends maximum, sum, the known token's logit and its best candidates of every position
 * of a block; all ranks put them together alike. */
#include "kernels/checks.h"
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

static void score_record(const struct device *d, const float *raw, uint32_t id, uint32_t wanted,
                         struct score_record *r)
{
    uint32_t begin = d->model.vocab_begin, count = d->model.vocab_count;
    double sum = 0.0;

    memset(r, 0, sizeof *r);
    r->raw_max = r->raw = -INFINITY;
    for (uint32_t i = 0; i < count; i++)
        r->raw_max = fmaxf(r->raw_max, raw[i]);
    for (uint32_t i = 0; i < count; i++)
        sum += (double)expf(raw[i] - r->raw_max);
    r->raw_sum = (float)sum;
    for (uint32_t i = 0; wanted && i < count; i++)
        candidate_insert(r->top, &r->top_count, wanted, raw[i], raw[i], begin + i);
    if (id >= begin && id - begin < count)
        r->raw = raw[id - begin];
}

/* From the records of all ranks, `stride` apart. */
static void score_fill(const struct score_record *records, uint32_t ranks, uint32_t stride,
                       uint32_t wanted, struct ops_sampled *out)
{
    struct candidate top[OPS_LOGPROBS_MAX];
    float raw_max = -INFINITY, raw = -INFINITY, norm;
    uint32_t count = 0;
    double sum = 0.0;

    for (uint32_t r = 0; r < ranks; r++)
        raw_max = fmaxf(raw_max, records[(size_t)r * stride].raw_max);
    for (uint32_t r = 0; r < ranks; r++) {
        const struct score_record *rec = &records[(size_t)r * stride];

        sum += (double)rec->raw_sum * (double)expf(rec->raw_max - raw_max);
        raw = fmaxf(raw, rec->raw);
        for (uint32_t i = 0; i < rec->top_count; i++)
            candidate_insert(top, &count, wanted, rec->top[i].z, rec->top[i].raw, rec->top[i].id);
    }
    norm = raw_max + (float)log(sum);
    out->logprob = raw - norm;
    out->top_count = count;
    for (uint32_t i = 0; i < count; i++) {
        out->top_ids[i] = top[i].id;
        out->top_logprobs[i] = top[i].raw - norm;
    }
}

/* `count` positions of one slot from `start` on; x: their rows. */
static int score_block(struct device *d, const float *x, const struct weight *lm_head,
                       uint32_t slot, uint32_t start, uint32_t count, struct ops_sampled *out,
                       struct err *err)
{
    const struct slot *s = &d->slots[slot];
    const struct score_record *records = d->score_records;
    uint32_t wanted = s->sampling.logprobs > 0 ? (uint32_t)s->sampling.logprobs : 0;

    if (d->model.vocab_count)
        gemm(x, count, lm_head, d->score_logits, d->vocab_share);
    for (uint32_t i = 0; i < count; i++) {
        out[i].slot = slot;
        out[i].id = s->tokens[start + i + 1];
        score_record(d, d->score_logits + (size_t)i * d->vocab_share, out[i].id, wanted,
                     &d->score_records[i]);
    }
    if (d->comm) {
        int rc = d->comm_kind->all_gather(
            d->comm, d->score_records, count * sizeof *d->score_records, d->all_score_records, err);
        if (rc)
            return rc;
        records = d->all_score_records;
    }
    for (uint32_t i = 0; i < count; i++)
        score_fill(records + i, d->config.tp_size, count, wanted, &out[i]);
    return 0;
}

static int score_check(const struct device *d, const struct ops_score *score, uint32_t done,
                       struct err *err)
{
    const struct ops_row *row = score->row < d->rows_count ? &d->rows[score->row] : NULL;

    return check_score(score, row, row ? d->slots[row->slot].count : 0, done, err);
}

int cpu_score(struct device *d, const struct act *normed, const struct weight *lm_head,
              const struct ops_score *scores, uint32_t count, const struct ops_sampled **results,
              struct err *err)
{
    uint32_t done = 0, row = 0, token = 0; /* token: of the step, where `row` begins */

    *results = d->scored;
    for (uint32_t i = 0; i < count; i++) {
        const struct ops_score *score = &scores[i];
        int rc = score_check(d, score, done, err);

        if (rc)
            return rc;
        if (score->row < row)
            row = token = 0;
        for (; row < score->row; row++)
            token += d->rows[row].count;
        for (uint32_t k = 0; k < score->count; k += SCORE_BLOCK) {
            uint32_t left = score->count - k, n = left < SCORE_BLOCK ? left : SCORE_BLOCK;
            uint32_t at = token + score->start - d->rows[row].start + k;

            rc = score_block(d, normed->data + (size_t)at * d->model.hidden, lm_head,
                             d->rows[row].slot, score->start + k, n, d->scored + done, err);
            if (rc)
                return rc;
            done += n;
        }
    }
    return 0;
}

/* Choosing tokens.
 *
 * What is allowed is always a prefix of the tokens in falling order of their adjusted logit (ties
 * by rising id): top-k, the top-p nucleus and the min-p threshold each cut that order somewhere.
 * Among the allowed the token is argmax of logit / temperature + Gumbel noise, which draws from the
 * softmax of the allowed (Gumbel 1954; Maddison et al., "A* sampling", 2014). The noise is a
 * function of (seed, position, id), so ranks, replays and other batches give the same token.
 *
 * Each rank looks at its share of the vocabulary and sends a record: maxima, sums, its best
 * candidates. All ranks then take the same decision from all records. Where the records do not
 * decide (a nucleus wider than the candidates), the whole row of logits is gathered. */
#include "common/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/philox.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* -log(-log(u)) of the largest u that philox_uniform gives. */
#define GUMBEL_MAX 17.4f

/* A span of the vocabulary as one rank sees it, or all of it after a full gather. */
struct span {
    const float *raw;
    const float *z;
    uint32_t begin, count;
};

static bool candidate_before(float z, uint32_t id, const struct candidate *b)
{
    return z > b->z || (z == b->z && id < b->id);
}

/* By insertion, since most ids fail the first comparison. */
void candidate_insert(struct candidate *list, uint32_t *count, uint32_t max, float z, float raw,
                      uint32_t id)
{
    uint32_t i;

    if (*count == max && !candidate_before(z, id, &list[max - 1]))
        return;
    if (*count < max)
        (*count)++;
    for (i = *count - 1; i > 0 && candidate_before(z, id, &list[i - 1]); i--)
        list[i] = list[i - 1];
    list[i] = (struct candidate){z, raw, id};
}

static bool sampling_is_plain(const struct ops_sampling *p)
{
    return p->top_k <= 0 && p->top_p >= 1.0f && p->min_p <= 0.0f;
}

/* Penalties look at what the slot holds: repetition at all of it, the others at what was generated
 * (the definitions of Keskar et al. 2019 and of OpenAI's API). */
static void adjust_penalties(struct device *d, const struct slot *s, const struct span *v, float *z)
{
    const struct ops_sampling *p = &s->sampling;
    uint32_t prompt = s->count - s->generated;

    if (p->repetition_penalty == 1.0f && p->presence_penalty == 0.0f &&
        p->frequency_penalty == 0.0f)
        return;
    for (uint32_t i = prompt; i < s->count; i++)
        d->counts[s->tokens[i]]++;
    for (uint32_t i = 0; i < s->count; i++) {
        uint32_t id = s->tokens[i], at = id - v->begin, n = d->counts[id];

        if (n == UINT32_MAX || id < v->begin || at >= v->count)
            continue; /* done already, or another rank's */
        z[at] = z[at] > 0 ? z[at] / p->repetition_penalty : z[at] * p->repetition_penalty;
        if (n)
            z[at] -= p->presence_penalty + p->frequency_penalty * (float)n;
        d->counts[id] = UINT32_MAX;
    }
    for (uint32_t i = 0; i < s->count; i++)
        d->counts[s->tokens[i]] = 0;
}

static void adjust(struct device *d, const struct slot *s, const struct span *v, float *z)
{
    const struct ops_sampling *p = &s->sampling;

    for (uint32_t i = 0; i < v->count; i++)
        z[i] = isnan(v->raw[i]) ? -INFINITY : v->raw[i];
    for (uint32_t i = 0; i < p->bias_count; i++)
        if (p->bias[i].id >= v->begin && p->bias[i].id - v->begin < v->count)
            z[p->bias[i].id - v->begin] += p->bias[i].value;
    adjust_penalties(d, s, v, z);
    for (uint32_t i = 0; s->generated < p->min_tokens && i < p->end_ids_count; i++)
        if (p->end_ids[i] >= v->begin && p->end_ids[i] - v->begin < v->count)
            z[p->end_ids[i] - v->begin] = -INFINITY;
    for (uint32_t i = 0; p->temperature > 0.0f && i < v->count; i++)
        z[i] /= p->temperature;
}

static float noise(const struct slot *s, uint32_t id)
{
    return -logf(-logf(philox_uniform(s->sampling.seed, s->count, id)));
}

static void span_maxima(const struct span *v, const struct ops_sampling *p, struct record *r)
{
    double raw_sum = 0.0, z_sum = 0.0;

    r->raw_max = r->z_max = -INFINITY;
    for (uint32_t i = 0; i < v->count; i++) {
        r->raw_max = fmaxf(r->raw_max, v->raw[i]);
        r->z_max = fmaxf(r->z_max, v->z[i]);
    }
    for (uint32_t i = 0; p->logprobs >= 0 && i < v->count; i++)
        raw_sum += (double)expf(v->raw[i] - r->raw_max);
    for (uint32_t i = 0; p->top_p < 1.0f && p->top_k <= 0 && i < v->count; i++)
        z_sum += (double)expf(v->z[i] - r->z_max);
    r->raw_sum = (float)raw_sum;
    r->z_sum = (float)z_sum;
}

/* What one rank knows of one row. */
static void span_record(const struct slot *s, const struct span *v, struct record *r)
{
    const struct ops_sampling *p = &s->sampling;
    bool greedy = p->temperature <= 0.0f;

    memset(r, 0, sizeof *r);
    r->winner = (struct candidate){-INFINITY, -INFINITY, UINT32_MAX};
    span_maxima(v, p, r);
    for (uint32_t i = 0; i < v->count; i++) {
        uint32_t id = v->begin + i;
        float z = v->z[i];

        if (p->logprobs > 0)
            candidate_insert(r->top, &r->top_count, (uint32_t)p->logprobs, v->raw[i], v->raw[i],
                             id);
        if (!greedy && !sampling_is_plain(p)) {
            candidate_insert(r->best, &r->count, CANDIDATES, z, v->raw[i], id);
            continue;
        }
        if (!greedy) {
            if (z + GUMBEL_MAX < r->winner.z)
                continue;
            z += noise(s, id);
        }
        if (r->winner.id == UINT32_MAX || candidate_before(z, id, &r->winner))
            r->winner = (struct candidate){z, v->raw[i], id};
    }
}

static int candidate_order(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;

    if (x->z != y->z)
        return x->z > y->z ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* The allowed prefix of `list` (all ranks' candidates in order). complete: there are no others.
 * False when the prefix may go on past what the list can tell. */
static bool cut(const struct ops_sampling *p, const struct candidate *list, uint32_t count,
                float frontier, bool complete, double z_sum, uint32_t *allowed)
{
    uint32_t n = count, sure = count;
    double total = z_sum, sum = 0.0;

    /* Only candidates above every rank's last one are known to be in their place. */
    for (uint32_t i = 0; !complete && i < count; i++)
        if (list[i].z <= frontier) {
            sure = i;
            break;
        }
    if (p->top_k > 0 && (uint32_t)p->top_k < n)
        n = (uint32_t)p->top_k;
    if (p->top_k > 0) {
        total = 0.0;
        for (uint32_t i = 0; i < n; i++)
            total += (double)expf(list[i].z - list[0].z);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0 && ((p->top_p < 1.0f && sum >= (double)p->top_p * total) ||
                      (p->min_p > 0.0f && list[i].z < list[0].z + logf(p->min_p)))) {
            n = i;
            break;
        }
        sum += (double)expf(list[i].z - list[0].z);
    }
    *allowed = n;
    if (complete)
        return true;
    if (p->top_k > 0) /* every rank sent its top k: the global top k is among them */
        return (uint32_t)p->top_k <= CANDIDATES;
    return n < sure;
}

/* The row's choice from the records of `ranks` spans. False: the records do not tell. */
static bool decide(const struct slot *s, const struct record *records, uint32_t ranks,
                   size_t stride, struct candidate *list, struct candidate *chosen)
{
    const struct ops_sampling *p = &s->sampling;
    float z_max = -INFINITY, frontier = -INFINITY;
    uint32_t count = 0, allowed;
    double z_sum = 0.0;

    *chosen = (struct candidate){-INFINITY, -INFINITY, UINT32_MAX};
    if (p->temperature <= 0.0f || sampling_is_plain(p)) {
        for (uint32_t r = 0; r < ranks; r++) {
            const struct candidate *w = &records[r * stride].winner;

            if (w->id != UINT32_MAX &&
                (chosen->id == UINT32_MAX || candidate_before(w->z, w->id, chosen)))
                *chosen = *w;
        }
        return true;
    }
    for (uint32_t r = 0; r < ranks; r++)
        z_max = fmaxf(z_max, records[r * stride].z_max);
    for (uint32_t r = 0; r < ranks; r++) {
        const struct record *rec = &records[r * stride];

        z_sum += (double)rec->z_sum * (double)expf(rec->z_max - z_max);
        memcpy(list + count, rec->best, rec->count * sizeof *list);
        count += rec->count;
        if (rec->count == CANDIDATES)
            frontier = fmaxf(frontier, rec->best[CANDIDATES - 1].z);
    }
    qsort(list, count, sizeof *list, candidate_order);
    if (!cut(p, list, count, frontier, frontier == -INFINITY, z_sum, &allowed))
        return false;
    for (uint32_t i = 0; i < allowed; i++) {
        float z = list[i].z + noise(s, list[i].id);

        if (chosen->id == UINT32_MAX || candidate_before(z, list[i].id, chosen))
            *chosen = (struct candidate){z, list[i].raw, list[i].id};
    }
    return true;
}

/* Gathers the whole row and decides from it; every rank sees the same floats. */
static int decide_from_all(struct device *d, const struct slot *s, const float *logits,
                           struct candidate *chosen, struct err *err)
{
    struct span all = {d->row_logits, d->adjusted, 0, d->model.vocab_size};
    const struct ops_sampling *p = &s->sampling;
    struct candidate *list;
    struct record r;
    uint32_t allowed = 0;

    if (d->comm) {
        int rc = d->comm_kind->all_gather(d->comm, logits, d->vocab_share * sizeof(float),
                                          d->row_logits, err);
        if (rc)
            return rc;
    } else {
        all.raw = logits;
    }
    adjust(d, s, &all, d->adjusted);
    span_maxima(&all, p, &r);
    list = d->candidates;
    for (uint32_t i = 0; i < all.count; i++)
        list[i] = (struct candidate){all.z[i], all.raw[i], i};
    qsort(list, all.count, sizeof *list, candidate_order);
    (void)cut(p, list, all.count, -INFINITY, true, (double)r.z_sum, &allowed);
    *chosen = (struct candidate){-INFINITY, -INFINITY, UINT32_MAX};
    for (uint32_t i = 0; i < allowed; i++) {
        float z = list[i].z + noise(s, list[i].id);

        if (chosen->id == UINT32_MAX || candidate_before(z, list[i].id, chosen))
            *chosen = (struct candidate){z, list[i].raw, list[i].id};
    }
    return 0;
}

static void fill_logprobs(const struct slot *s, const struct record *records, uint32_t ranks,
                          size_t stride, const struct candidate *chosen, struct ops_sampled *out)
{
    struct candidate top[OPS_LOGPROBS_MAX];
    float raw_max = -INFINITY, norm;
    uint32_t count = 0;
    double sum = 0.0;

    out->top_count = 0;
    out->logprob = 0.0f;
    if (s->sampling.logprobs < 0)
        return;
    for (uint32_t r = 0; r < ranks; r++)
        raw_max = fmaxf(raw_max, records[r * stride].raw_max);
    for (uint32_t r = 0; r < ranks; r++) {
        const struct record *rec = &records[r * stride];

        sum += (double)rec->raw_sum * (double)expf(rec->raw_max - raw_max);
        for (uint32_t i = 0; i < rec->top_count; i++)
            candidate_insert(top, &count, (uint32_t)s->sampling.logprobs, rec->top[i].z,
                             rec->top[i].raw, rec->top[i].id);
    }
    norm = raw_max + (float)log(sum);
    out->logprob = chosen->raw - norm;
    for (uint32_t i = 0; i < count; i++) {
        out->top_ids[i] = top[i].id;
        out->top_logprobs[i] = top[i].raw - norm;
    }
    out->top_count = count;
}

/* Logits of the rows with sample: (results, vocab_share), one record each. */
static void sample_records(struct device *d, const struct act *normed, const struct weight *lm_head)
{
    const struct ops_model *m = &d->model;
    uint32_t token = 0;

    d->results_count = 0;
    for (uint32_t i = 0; i < d->rows_count; i++) {
        const struct ops_row *row = &d->rows[i];
        uint32_t n = d->results_count;
        float *logits = d->logits + (size_t)n * d->vocab_share;
        struct span v = {logits, d->adjusted, m->vocab_begin, m->vocab_count};

        token += row->count;
        if (!row->sample)
            continue;
        if (m->vocab_count)
            gemm(normed->data + (size_t)(token - 1) * m->hidden, 1, lm_head, logits,
                 d->vocab_share);
        adjust(d, &d->slots[row->slot], &v, d->adjusted);
        span_record(&d->slots[row->slot], &v, &d->records[n]);
        d->results[n].slot = row->slot;
        d->results_count++;
    }
}

int cpu_sample(struct device *d, const struct act *normed, const struct weight *lm_head,
               struct err *err)
{
    const struct record *records = d->records;
    uint32_t ranks = d->config.tp_size;

    sample_records(d, normed, lm_head);
    if (!d->results_count)
        return 0;
    if (d->comm) {
        int rc = d->comm_kind->all_gather(
            d->comm, d->records, d->results_count * sizeof *d->records, d->all_records, err);
        if (rc)
            return rc;
        records = d->all_records;
    }
    for (uint32_t i = 0; i < d->results_count; i++) {
        struct slot *s = &d->slots[d->results[i].slot];
        struct candidate chosen;

        if (!decide(s, records + i, ranks, d->results_count, d->candidates, &chosen)) {
            int rc = decide_from_all(d, s, d->logits + (size_t)i * d->vocab_share, &chosen, err);

            if (rc)
                return rc;
        }
        d->results[i].id = chosen.id;
        fill_logprobs(s, records + i, ranks, d->results_count, &chosen, &d->results[i]);
        s->tokens[s->count++] = chosen.id;
        s->generated++;
    }
    return 0;
}

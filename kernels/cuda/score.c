/* Log probabilities of tokens that are known already: those of a prompt.
 *
 * Positions go through the LM head in blocks, in the buffers of sampling, which comes later in the
 * step. To the kernels of sampling a position is a row of a made-up greedy slot, one for each
 * number of log probabilities that can be asked for, whose token is not chosen but looked up. */
#include "common/mem.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda.h"

#include <stdlib.h>
#include <string.h>

#define SCORE_SLOTS (OPS_LOGPROBS_MAX + 1u)

int score_alloc(struct device *d, struct err *err)
{
    struct sample_args *a = &d->score;
    struct slot_state states[SCORE_SLOTS], *on_device = NULL;
    cudaError_t rc;
    int failed = cuda_alloc(d, sizeof states, &on_device, "scores", err);

    if (!failed)
        failed =
            cuda_alloc(d, OPS_SCORES_MAX * sizeof *d->score_slot, &d->score_slot, "scores", err);
    if (!failed)
        failed =
            cuda_alloc(d, OPS_SCORES_MAX * sizeof *d->score_rows, &d->score_rows, "scores", err);
    if (!failed)
        failed = cuda_alloc(d, OPS_SCORES_MAX * sizeof *d->score_results, &d->score_results,
                            "scores", err);
    if (!failed)
        failed = cuda_alloc_pinned(d, OPS_SCORES_MAX * sizeof *d->score_results,
                                   &d->score_results_host, "scores", err);
    if (failed)
        return failed;
    d->scored = mem_array(OPS_SCORES_MAX, sizeof *d->scored);
    memset(states, 0, sizeof states);
    for (uint32_t i = 0; i < SCORE_SLOTS; i++) {
        states[i].top_p = states[i].repetition = 1.0f;
        states[i].logprobs = (int32_t)i;
    }
    *a = d->sample;
    a->slots = on_device;
    rc = cudaMemcpy(on_device, states, sizeof states, cudaMemcpyHostToDevice);
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "scores", err);
}

/* Which positions, and of each the slot whose row it seems to be. */
static int rows_send(struct device *d, const struct ops_score *scores, uint32_t count,
                     uint32_t *done, struct err *err)
{
    struct score_row *rows = mem_array(OPS_SCORES_MAX, sizeof *rows);
    uint32_t *slot = mem_array(OPS_SCORES_MAX, sizeof *slot), n = 0;
    int rc = 0;

    for (uint32_t i = 0; i < count && !rc; i++) {
        const struct frame_row *f =
            scores[i].row < d->rows_count ? &d->frame_host.rows[scores[i].row] : NULL;
        const struct ops_row row = {f ? f->slot : 0, f ? f->start : 0, f ? f->count : 0, false};

        rc = check_score(&scores[i], f ? &row : NULL, f ? d->slots[f->slot].count : 0, n, err);
        for (uint32_t k = 0; k < scores[i].count && !rc; k++, n++) {
            rows[n] = (struct score_row){f->slot, scores[i].start + k + 1};
            slot[n] = d->slots[f->slot].top;
            d->scored[n].slot = f->slot;
        }
    }
    if (!rc)
        rc = upload_add(d, d->score_rows, rows, 2 * n, err);
    if (!rc)
        rc = upload_add(d, d->score_slot, slot, n, err);
    free(rows);
    free(slot);
    *done = n;
    return rc ? rc : uploads_send(d, err);
}

/* n positions, whose rows are at x; the first is position `at` of the step's scores. */
static int block_score(struct device *d, const char *x, const struct weight *lm_head, uint32_t at,
                       uint32_t n, struct err *err)
{
    struct sample_args *a = &d->score;
    cudaError_t rc;
    int failed = 0;

    a->result_slot = d->score_slot + at;
    a->known = d->score_rows + at;
    a->results = d->score_results + at;
    a->results_count = n;
    if (d->model.vocab_count)
        failed = gemm(d, x, n, lm_head, NULL, (void *)(uintptr_t)a->logits, a->stride, true, err);
    if (failed)
        return failed;
    rc = launch_records(d->stream, a);
    if (rc == cudaSuccess && d->nccl)
        failed = comm_all_gather(d, a->records, n * sizeof *a->records, a->all_records, err);
    if (failed)
        return failed;
    if (rc == cudaSuccess)
        rc = launch_decide(d->stream, a);
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "scores", err);
}

static int results_take(struct device *d, uint32_t count, struct err *err)
{
    cudaError_t rc =
        cudaMemcpyAsync(d->score_results_host, d->score_results, count * sizeof *d->score_results,
                        cudaMemcpyDeviceToHost, d->stream);
    int failed = rc == cudaSuccess ? cuda_wait(d, err) : cuda_fail(d, rc, "scores", err);

    for (uint32_t i = 0; i < count && !failed; i++) {
        const struct sample_result *from = &d->score_results_host[i];
        struct ops_sampled *to = &d->scored[i];

        if (from->undecided || from->top_count > OPS_LOGPROBS_MAX)
            return err_set(err, ERR_INTERNAL, "rank %u, cuda:%u: a token of slot %u has no score",
                           d->config.rank, d->config.device_index, to->slot);
        to->id = from->id;
        to->logprob = from->logprob;
        to->top_count = from->top_count;
        memcpy(to->top_ids, from->top_ids, sizeof to->top_ids);
        memcpy(to->top_logprobs, from->top_logprobs, sizeof to->top_logprobs);
    }
    return failed;
}

int cuda_score(struct device *d, const struct act *normed, const struct weight *lm_head,
               const struct ops_score *scores, uint32_t count, const struct ops_sampled **results,
               struct err *err)
{
    uint32_t done = 0, total = 0;
    int rc = head_check(d, normed, lm_head, err);

    *results = d->scored;
    if (!rc)
        rc = replay_flush(d, err);
    if (!rc)
        rc = acts_ready(d, err);
    if (!rc)
        rc = rows_send(d, scores, count, &total, err);
    for (uint32_t i = 0; i < count && !rc; i++) {
        const struct frame_row *row = &d->frame_host.rows[scores[i].row];
        const char *x = (const char *)normed->data +
                        (size_t)(row->token + scores[i].start - row->start) * normed->width * 2;

        for (uint32_t k = 0, n; k < scores[i].count && !rc; k += n, done += n) {
            n = scores[i].count - k < d->num_slots ? scores[i].count - k : d->num_slots;
            rc = block_score(d, x + (size_t)k * normed->width * 2, lm_head, done, n, err);
        }
    }
    return rc || !total ? rc : results_take(d, total, err);
}

/* Sampling's host side: launches, gathers, results. */
#include "kernels/cuda/cuda.h"

#include <string.h>

static int candidates_gather(struct device *d, struct err *err)
{
    struct sample_args *a = &d->sample;

    if (!d->nccl)
        return 0;
    return comm_all_gather(d, a->records, a->results_count * sizeof *a->records, a->all_records,
                           err);
}

/* What adjust and decide_all look at does not exist on other steps: they are launched when a row
 * asks for them. */
int cuda_sample(struct device *d, const struct act *normed, const struct weight *lm_head,
                struct err *err)
{
    struct sample_args *a = &d->sample;
    cudaError_t launched;
    int rc = 0;

    a->results_count = d->results_count;
    a->result_slot = d->frame.result_slot;
    if (!d->results_count)
        return 0;
    if (normed->width != d->model.hidden || lm_head->cols != d->model.hidden)
        return err_set(err, ERR_INVALID, "cuda: sample: widths %u and %u, not %u", normed->width,
                       lm_head->cols, d->model.hidden);
    launched = launch_gather_rows(d->stream, normed->data, d->frame.result_token, d->last,
                                  d->results_count, d->model.hidden);
    if (launched != cudaSuccess)
        return cuda_fail(d, launched, "sampling", err);
    if (d->model.vocab_count)
        rc = gemm(d, d->last, d->results_count, lm_head, NULL, (void *)(uintptr_t)a->logits,
                  a->stride, true, err);
    if (rc)
        return rc;
    if (d->any_adjusted)
        launched = launch_adjust(d->stream, a);
    if (launched == cudaSuccess)
        launched = launch_records(d->stream, a);
    if (launched == cudaSuccess)
        rc = candidates_gather(d, err);
    if (!rc && launched == cudaSuccess)
        launched = launch_decide(d->stream, a);
    if (!rc && launched == cudaSuccess && d->any_cut && !d->nccl)
        launched = launch_decide_all(d->stream, a);
    if (!rc && launched == cudaSuccess)
        launched =
            cudaMemcpyAsync(d->results_host, a->results, d->results_count * sizeof *a->results,
                            cudaMemcpyDeviceToHost, d->stream);
    for (uint32_t i = 0; i < d->results_count; i++)
        d->slots[d->frame_host.result_slot[i]].count++;
    return rc || launched == cudaSuccess ? rc : cuda_fail(d, launched, "sampling", err);
}

/* Gathers the whole row of result i and decides from it; all ranks hold the same records, so all
 * come here for the same rows. */
static int decide_whole(struct device *d, uint32_t i, struct err *err)
{
    struct sample_args *a = &d->sample, *w = &d->whole;
    cudaError_t rc;
    int failed = comm_all_gather(d, a->logits + (size_t)i * a->stride,
                                 d->vocab_share * sizeof(float), (void *)(uintptr_t)w->logits, err);

    if (failed)
        return failed;
    w->result_slot = d->frame.result_slot + i;
    w->results = a->results + i;
    rc = d->any_adjusted ? launch_adjust(d->stream, w) : cudaSuccess;
    if (rc == cudaSuccess)
        rc = launch_decide_all(d->stream, w);
    if (rc == cudaSuccess)
        rc = cudaMemcpyAsync(d->results_host + i, a->results + i, sizeof *a->results,
                             cudaMemcpyDeviceToHost, d->stream);
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "sampling", err);
}

static int result_take(const struct device *d, const struct sample_result *from,
                       struct ops_sampled *to, struct err *err)
{
    if (from->undecided || from->id >= d->model.vocab_size || from->top_count > OPS_LOGPROBS_MAX)
        return err_set(err, ERR_INTERNAL, "rank %u, cuda:%u: no token was chosen for slot %u",
                       d->config.rank, d->config.device_index, from->slot);
    to->slot = from->slot;
    to->id = from->id;
    to->logprob = from->logprob;
    to->top_count = from->top_count;
    memcpy(to->top_ids, from->top_ids, sizeof to->top_ids);
    memcpy(to->top_logprobs, from->top_logprobs, sizeof to->top_logprobs);
    return 0;
}

int cuda_step_end(struct device *d, const struct ops_sampled **results, uint32_t *count,
                  struct err *err)
{
    int rc = cuda_wait(d, err);
    bool again = false;

    for (uint32_t i = 0; i < d->results_count && !rc; i++)
        if (d->results_host[i].undecided && d->nccl) {
            rc = decide_whole(d, i, err);
            again = true;
        }
    if (again && !rc)
        rc = cuda_wait(d, err);
    for (uint32_t i = 0; i < d->results_count && !rc; i++)
        rc = result_take(d, &d->results_host[i], &d->results[i], err);
    *results = d->results;
    *count = rc ? 0 : d->results_count;
    return rc;
}

const float *cuda_logits(struct device *d, uint32_t i)
{
    if (i >= d->results_count ||
        cudaMemcpy(d->logits_host, d->sample.logits + (size_t)i * d->vocab_share,
                   d->vocab_share * sizeof(float), cudaMemcpyDeviceToHost) != cudaSuccess)
        return NULL;
    return d->logits_host;
}

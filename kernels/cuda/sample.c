/* Sampling's host side: launches, gathers, results. */
#include "kernels/cuda/cuda.h"

static int candidates_gather(struct device *d, struct err *err)
{
    struct sample_args *a = &d->sample;

    if (!d->nccl)
        return 0;
    return comm_all_gather(d, a->records, a->results_count * sizeof *a->records, a->all_records,
                           err);
}

static int logits_run(struct device *d, const struct op *op, struct err *err)
{
    struct sample_args *a = &d->sample;
    bool every = d->results_count == d->tokens_count; /* rows of one token, all with a result */
    const void *last = every ? op->a[0]->data : d->last;
    cudaError_t rc = cudaSuccess;
    int failed = act_ready(d, op->a[0], err);

    if (failed)
        return failed;
    if (!every)
        rc = launch_gather_rows(d->stream, op->a[0]->data, d->frame.result_token, d->last,
                                d->results_count, d->model.hidden);
    if (rc != cudaSuccess)
        return cuda_fail(d, rc, "sampling", err);
    return d->model.vocab_count ? gemm(d, last, d->results_count, op->w[0], NULL,
                                       (void *)(uintptr_t)a->logits, a->stride, true, err)
                                : 0;
}

/* What adjust and decide_all look at does not exist on other steps: they are launched when a row
 * asks for them. */
static int sample_run(struct device *d, const struct op *op, struct err *err)
{
    struct sample_args *a = &d->sample;
    cudaError_t rc = cudaSuccess;
    int failed;

    a->results_count = d->results_count;
    a->result_slot = d->frame.result_slot;
    failed = logits_run(d, op, err);
    if (failed)
        return failed;
    if (d->any_adjusted)
        rc = launch_adjust(d->stream, a);
    if (rc == cudaSuccess)
        rc = launch_records(d->stream, a);
    if (rc == cudaSuccess)
        failed = candidates_gather(d, err);
    if (failed)
        return failed;
    if (rc == cudaSuccess)
        rc = launch_decide(d->stream, a);
    if (rc == cudaSuccess && d->any_cut && !d->nccl)
        rc = launch_decide_all(d->stream, a);
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "sampling", err);
}

int head_check(const struct device *d, const struct act *normed, const struct weight *lm_head,
               struct err *err)
{
    if (normed->width != d->model.hidden || lm_head->cols != d->model.hidden ||
        lm_head->rows < d->model.vocab_count || lm_head->rows > d->vocab_share)
        return err_set(err, ERR_INVALID, "cuda: sample: width %u, LM head %u x %u, not %u x %u",
                       normed->width, lm_head->rows, lm_head->cols, d->model.vocab_count,
                       d->model.hidden);
    return 0;
}

int cuda_sample(struct device *d, const struct act *normed, const struct weight *lm_head,
                struct err *err)
{
    const struct op op = {
        .run = sample_run, .w = {lm_head}, .a = {(struct act *)(uintptr_t)normed}};
    int rc;

    if (!d->results_count)
        return flight_close(d, err);
    rc = head_check(d, normed, lm_head, err);
    if (rc)
        return rc;
    rc = replay_add(d, &op, err);
    if (!rc)
        rc = replay_end(d, err);
    for (uint32_t i = 0; i < d->results_asked; i++)
        d->slots[d->frame_host.result_slot[i]].count++;
    d->sampled = true;
    return rc ? rc : flight_close(d, err);
}

const float *cuda_logits(struct device *d, uint32_t i)
{
    if (!d->sampled || i >= d->results_asked ||
        cudaMemcpy(d->logits_host, d->sample.logits + (size_t)i * d->vocab_share,
                   d->vocab_share * sizeof(float), cudaMemcpyDeviceToHost) != cudaSuccess)
        return NULL;
    return d->logits_host;
}

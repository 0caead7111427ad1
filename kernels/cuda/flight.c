/* Steps that have begun and not ended: results, events, and what only the host can decide. */
#include "common/clock.h"
#include "kernels/cuda/cuda.h"

#include <string.h>

int flights_open(struct device *d, struct err *err)
{
    for (uint32_t i = 0; i < STEPS_AHEAD; i++) {
        struct flight *f = &d->flights[i];
        cudaError_t rc = cudaEventCreate(&f->begun);

        if (rc == cudaSuccess)
            rc = cudaEventCreate(&f->finished);
        if (rc != cudaSuccess)
            return cuda_fail(d, rc, "events", err);
        if (cuda_alloc_pinned(d, d->num_slots * sizeof *f->results, &f->results, "results", err))
            return err ? err->code : ERR_NOMEM;
    }
    return 0;
}

void flights_close(struct device *d)
{
    for (uint32_t i = 0; i < STEPS_AHEAD; i++) {
        if (d->flights[i].begun)
            (void)cudaEventDestroy(d->flights[i].begun);
        if (d->flights[i].finished)
            (void)cudaEventDestroy(d->flights[i].finished);
    }
}

/* The last one begun. */
static struct flight *flight_newest(struct device *d)
{
    return &d->flights[(d->flights_first + d->flights_count - 1) % STEPS_AHEAD];
}

int flight_begin(struct device *d, struct err *err)
{
    struct flight *f;
    cudaError_t rc;

    d->flights_count++;
    f = flight_newest(d);
    f->count = 0;
    f->open = f->closed = f->decided = false;
    rc = cudaEventRecord(f->begun, d->stream);
    f->begun_us = clock_mono_us();
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "step", err);
}

int flight_close(struct device *d, struct err *err)
{
    struct flight *f = flight_newest(d);
    const struct sample_args *a = &d->sample;
    cudaError_t rc = cudaSuccess;
    int failed = acts_leave(d, err);

    if (failed)
        return failed;
    f->count = d->sampled ? d->results_asked : 0;
    f->open = d->nccl && d->any_open;
    if (f->count)
        rc = cudaMemcpyAsync(f->results, a->results, f->count * sizeof *a->results,
                             cudaMemcpyDeviceToHost, d->stream);
    if (rc == cudaSuccess)
        rc = cudaEventRecord(f->finished, d->stream);
    f->closed = true;
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "step", err);
}

/* Gathers the whole row of result i and decides from it; all ranks hold the same records, so all
 * come here for the same rows. */
static int decide_whole(struct device *d, struct flight *f, uint32_t i, struct err *err)
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
        rc = cudaMemcpyAsync(f->results + i, a->results + i, sizeof *a->results,
                             cudaMemcpyDeviceToHost, d->stream);
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "sampling", err);
}

int flight_decide(struct device *d, struct err *err)
{
    struct flight *f = d->flights_count ? flight_newest(d) : NULL;
    bool again = false;
    int rc = 0;

    if (f && !f->closed) /* ended without sample */
        rc = replay_flush(d, err);
    if (f && !f->closed && !rc)
        rc = flight_close(d, err);
    if (!f || !f->open || f->decided || rc)
        return rc;
    rc = cuda_wait_event(d, f->finished, err);
    for (uint32_t i = 0; i < f->count && !rc; i++)
        if (f->results[i].undecided) {
            rc = decide_whole(d, f, i, err);
            again = true;
        }
    f->decided = true;
    if (!again || rc)
        return rc;
    return cudaEventRecord(f->finished, d->stream) == cudaSuccess
               ? cuda_wait_event(d, f->finished, err)
               : cuda_fail(d, cudaGetLastError(), "sampling", err);
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

bool cuda_step_ready(struct device *d)
{
    const struct flight *f = &d->flights[d->flights_first];
    struct err err;

    if (!d->flights_count || !f->closed || cudaEventQuery(f->finished) != cudaErrorNotReady)
        return true;
    if (++d->ready_turns % 1024 || !d->nccl)
        return false;
    return comm_check(d, &err) || cuda_overdue(d, f->begun_us); /* step_end says which */
}

int cuda_step_end(struct device *d, const struct ops_sampled **results, uint32_t *count,
                  struct err *err)
{
    struct flight *f = &d->flights[d->flights_first];
    float ms = 0.0f;
    int rc;

    *count = 0;
    if (!d->flights_count)
        return err_set(err, ERR_INVALID, "cuda: step_end: no step has begun");
    rc = f == flight_newest(d) ? flight_decide(d, err) : 0;
    if (!rc)
        rc = cuda_wait_event(d, f->finished, err);
    for (uint32_t i = 0; i < f->count && !rc; i++)
        rc = result_take(d, &f->results[i], &d->results[i], err);
    if (rc)
        return rc;
    d->step_us =
        cudaEventElapsedTime(&ms, f->begun, f->finished) == cudaSuccess ? (uint64_t)(ms * 1e3f) : 0;
    d->flights_first = (d->flights_first + 1) % STEPS_AHEAD;
    d->flights_count--;
    *results = d->results;
    *count = f->count;
    return 0;
}

uint64_t cuda_step_us(const struct device *d)
{
    return d->step_us;
}

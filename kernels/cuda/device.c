/* The CUDA backend's device: opening, waiting, errors, the table of operations. */
#include "common/clock.h"
#include "common/mem.h"
#include "kernels/cuda/cuda.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

int cuda_fail(const struct device *d, cudaError_t rc, const char *what, struct err *err)
{
    return err_set(err, rc == cudaErrorMemoryAllocation ? ERR_NOMEM : ERR_INTERNAL,
                   "rank %u, cuda:%u: %s: %s (%s)", d->config.rank, d->config.device_index, what,
                   cudaGetErrorString(rc), cudaGetErrorName(rc));
}

bool cuda_overdue(const struct device *d, int64_t since_us)
{
    double limit_s = d->config.comm_timeout_s;

    return limit_s > 0 && 1e-6 * (double)(clock_mono_us() - since_us) > limit_s;
}

/* Polls rather than blocks: a lost rank leaves the collective's kernel spinning for ever. */
int cuda_wait_event(struct device *d, cudaEvent_t event, struct err *err)
{
    int64_t begin_us = clock_mono_us();
    cudaError_t rc;

    for (uint32_t turn = 1;; turn++) {
        rc = cudaEventQuery(event);
        if (rc == cudaSuccess)
            return p2p_check(d, err);
        if (rc != cudaErrorNotReady)
            return cuda_fail(d, rc, "step", err);
        if (!d->nccl || turn % 1024)
            continue;
        if (comm_check(d, err))
            return ERR_PEER;
        if (cuda_overdue(d, begin_us))
            return err_set(err, ERR_TIMEOUT, "rank %u, cuda:%u: a step took more than %g s",
                           d->config.rank, d->config.device_index, d->config.comm_timeout_s);
        (void)sched_yield();
    }
}

int cuda_wait(struct device *d, struct err *err)
{
    cudaError_t rc = cudaEventRecord(d->finished, d->stream);

    return rc == cudaSuccess ? cuda_wait_event(d, d->finished, err) : cuda_fail(d, rc, "step", err);
}

static int model_check(const struct ops_config *config, const struct ops_model *m, struct err *err)
{
    if (config->tp_size > RANKS_MAX)
        return err_set(err, ERR_UNSUPPORTED, "cuda: %u ranks, at most %u", config->tp_size,
                       RANKS_MAX);
    if (m->head_dim > 256 || m->head_dim % 2)
        return err_set(err, ERR_UNSUPPORTED, "cuda: head_dim %u, must be even and at most 256",
                       m->head_dim);
    if (!m->kv_heads || m->heads % m->kv_heads)
        return err_set(err, ERR_UNSUPPORTED, "cuda: %u heads over %u KV heads", m->heads,
                       m->kv_heads);
    if (m->vocab_size > SPAN_PARTS * SPAN_PART_MAX)
        return err_set(err, ERR_UNSUPPORTED, "cuda: vocabulary of %u, at most %u", m->vocab_size,
                       SPAN_PARTS * SPAN_PART_MAX);
    return 0;
}

/* There is a GPU of that index, and it is one that the kernels were built for. */
static int gpu_check(const struct ops_config *config, int *multiprocessors, struct err *err)
{
    struct cudaDeviceProp p;
    int count = 0;
    cudaError_t rc = cudaGetDeviceCount(&count);

    if (rc != cudaSuccess || !count)
        return err_set(err, ERR_UNSUPPORTED, "cuda: no GPU can be used: %s",
                       rc == cudaSuccess ? "the driver knows of none" : cudaGetErrorString(rc));
    if (config->device_index >= (uint32_t)count)
        return err_set(err, ERR_UNSUPPORTED, "cuda: no device %u, there are %d",
                       config->device_index, count);
    rc = cudaGetDeviceProperties(&p, (int)config->device_index);
    if (rc != cudaSuccess)
        return err_set(err, ERR_UNSUPPORTED, "cuda: device %u: %s", config->device_index,
                       cudaGetErrorString(rc));
    if (p.major < 8)
        return err_set(err, ERR_UNSUPPORTED,
                       "cuda: device %u (%s) has compute capability %d.%d, needed is 8.0",
                       config->device_index, p.name, p.major, p.minor);
    *multiprocessors = p.multiProcessorCount;
    return 0;
}

static void cuda_device_close(struct device **self)
{
    struct device *d = *self;

    if (!d)
        return;
    replay_close(d); /* NCCL waits for the end of graphs that hold its operations */
    comm_close(d);
    if (d->stream)
        (void)cudaStreamSynchronize(d->stream);
    p2p_close(d);
    gemm_close(d);
    for (int i = 0; i < 2; i++)
        if (d->load_done[i])
            (void)cudaEventDestroy(d->load_done[i]);
    for (uint32_t i = 0; i < UPLOADS; i++) {
        free(d->uploads[i].patches);
        if (d->uploads[i].done)
            (void)cudaEventDestroy(d->uploads[i].done);
    }
    while (d->weights) {
        struct weight *w = d->weights;

        d->weights = w->next;
        free(w);
    }
    while (d->acts) {
        struct act *a = d->acts;

        d->acts = a->next;
        free(a);
    }
    flights_close(d);
    cuda_free_all(d);
    free(d->slots);
    free(d->results);
    free(d->logits_host);
    free(d->scored);
    free(d->frame_host.rows);
    free(d->frame_host.token_slot);
    free(d->frame_host.token_position);
    free(d->frame_host.tiles);
    free(d->frame_host.decode_rows);
    free(d->frame_host.result_slot);
    free(d->frame_host.result_token);
    if (d->finished)
        (void)cudaEventDestroy(d->finished);
    if (d->stream)
        (void)cudaStreamDestroy(d->stream);
    free(d);
    *self = NULL;
}

static int device_start(struct device *d, const float *inv_freq, struct err *err)
{
    size_t bytes = d->model.head_dim / 2 * sizeof(float);
    cudaError_t rc = cudaSetDevice((int)d->config.device_index);

    if (rc == cudaSuccess)
        rc = cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking);
    if (rc == cudaSuccess)
        rc = cudaEventCreateWithFlags(&d->finished, cudaEventDisableTiming);
    if (rc == cudaSuccess)
        rc = attention_setup();
    if (rc != cudaSuccess)
        return cuda_fail(d, rc, "open", err);
    if (cuda_alloc(d, bytes, &d->inv_freq, "rotary frequencies", err) || gemm_open(d, err))
        return err ? err->code : ERR_INTERNAL;
    rc = cudaMemcpy(d->inv_freq, inv_freq, bytes, cudaMemcpyHostToDevice);
    if (rc != cudaSuccess)
        return cuda_fail(d, rc, "open", err);
    return d->config.tp_size > 1 ? comm_open(d, err) : 0;
}

static int cuda_probe(struct err *err)
{
    const struct ops_config first = {.tp_size = 1};
    int multiprocessors;

    return gpu_check(&first, &multiprocessors, err);
}

static int cuda_device_open(const struct ops_config *config, const struct ops_model *model,
                            struct device **out, struct err *err)
{
    struct device *d;
    int multiprocessors = 0, rc = model_check(config, model, err);

    *out = NULL;
    if (!rc)
        rc = gpu_check(config, &multiprocessors, err);
    if (rc)
        return rc;
    d = mem_zalloc(sizeof *d);
    d->config = *config;
    d->model = *model;
    d->model.rope_inv_freq = NULL;
    d->multiprocessors = multiprocessors;
    d->vocab_share = (model->vocab_size + config->tp_size - 1) / config->tp_size;
    rc = device_start(d, model->rope_inv_freq, err);
    d->config.comm_meet = NULL;
    d->config.comm_interface = NULL;
    if (rc)
        cuda_device_close(&d);
    *out = d;
    return rc;
}

static uint64_t cuda_weight_bytes(const struct device *d)
{
    return d->weight_bytes;
}

static uint64_t cuda_kv_bytes(const struct device *d)
{
    return d->kv_bytes;
}

const struct ops *phalanx_backend(void)
{
    static const struct ops cuda = {
        .abi = OPS_ABI,
        .name = "cuda",
        .batch_invariant = false,
        .probe = cuda_probe,
        .device_open = cuda_device_open,
        .device_close = cuda_device_close,
        .weight_new = cuda_weight_new,
        .weight_write = cuda_weight_write,
        .weight_done = cuda_weight_done,
        .page_bytes = cuda_page_bytes,
        .pages_max = cuda_pages_max,
        .prepare = cuda_prepare,
        .warm = cuda_warm,
        .pool_alloc = cuda_pool_alloc,
        .act_new = cuda_act_new,
        .slot_open = cuda_slot_open,
        .slot_pages = cuda_slot_pages,
        .slot_close = cuda_slot_close,
        .step_begin = cuda_step_begin,
        .embed = cuda_embed,
        .linear = cuda_linear,
        .qk_norm_rope_kv = cuda_qk_norm_rope_kv,
        .attention = cuda_attention,
        .linear_reduce_norm = cuda_linear_reduce_norm,
        .gate_up_silu = cuda_gate_up_silu,
        .score = cuda_score,
        .sample = cuda_sample,
        .step_end = cuda_step_end,
        .steps_ahead = STEPS_AHEAD,
        .step_ready = cuda_step_ready,
        .step_us = cuda_step_us,
        .act_read = cuda_act_read,
        .act_write = cuda_act_write,
        .logits = cuda_logits,
        .weight_bytes = cuda_weight_bytes,
        .kv_bytes = cuda_kv_bytes,
        .memory = cuda_memory,
    };

    return &cuda;
}

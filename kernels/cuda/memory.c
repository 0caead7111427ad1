/* Device memory: allocations, weights, activations. */
#include "common/bf16.h"
#include "common/mem.h"
#include "kernels/cuda/cuda.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LOAD_BYTES ((size_t)16 << 20)

enum place { ON_DEVICE, PINNED, REGISTERED };

struct allocation {
    void *data;
    size_t bytes; /* of the device, 0 when pinned */
    enum place place;
    struct allocation *next;
};

/* What to do depends on what was there already: weights, then a step's buffers, then KV. */
static int allocate_fail(const struct device *d, cudaError_t rc, size_t bytes, const char *what,
                         struct err *err)
{
    size_t unused = 0, total = 0;
    double others;
    int code = rc == cudaErrorMemoryAllocation ? ERR_NOMEM : ERR_INTERNAL;

    (void)cudaGetLastError();
    (void)cudaMemGetInfo(&unused, &total);
    others = (double)total - (double)unused - (double)d->device_bytes;
    return err_set(
        err, code,
        "rank %u, cuda:%u: %.3f GB for %s: %s; of %.2f GB %.2f are free, %.2f are weights, %.2f KV "
        "pages, %.2f workspace, %.2f libraries and other programs; %s",
        d->config.rank, d->config.device_index, (double)bytes / 1e9, what, cudaGetErrorString(rc),
        (double)total / 1e9, (double)unused / 1e9, (double)d->weight_bytes / 1e9,
        (double)d->kv_bytes / 1e9, (double)(d->device_bytes - d->weight_bytes - d->kv_bytes) / 1e9,
        others > 0 ? others / 1e9 : 0.0,
        d->pooled  ? "lower --mem-fraction-static"
        : d->slots ? "lower --max-running-requests or --chunked-prefill-size, or use more ranks "
                     "(--tp-size)"
                   : "use more ranks (--tp-size), or another GPU (CUDA_VISIBLE_DEVICES)");
}

static int allocate(struct device *d, size_t bytes, enum place place, void *out, const char *what,
                    struct err *err)
{
    size_t some = bytes ? bytes : 1;
    struct allocation *a;
    void *data = NULL;
    cudaError_t rc = cudaSuccess;
    int failed = 0;

    if (place == REGISTERED)
        failed = symmetric_alloc(d, some, &data, err);
    else
        rc = place == PINNED ? cudaMallocHost(&data, some) : cudaMalloc(&data, some);
    if (failed)
        return failed;
    if (rc != cudaSuccess)
        return allocate_fail(d, rc, bytes, what, err);
    a = mem_zalloc(sizeof *a);
    a->data = data;
    a->place = place;
    a->bytes = place == PINNED ? 0 : bytes;
    d->device_bytes += a->bytes;
    a->next = d->allocations;
    d->allocations = a;
    memcpy(out, &data, sizeof data);
    return 0;
}

/* out: a pointer to a pointer of any type. */
int cuda_alloc(struct device *d, size_t bytes, void *out, const char *what, struct err *err)
{
    return allocate(d, bytes, ON_DEVICE, out, what, err);
}

int cuda_alloc_pinned(struct device *d, size_t bytes, void *out, const char *what, struct err *err)
{
    return allocate(d, bytes, PINNED, out, what, err);
}

int cuda_alloc_summed(struct device *d, size_t bytes, void *out, const char *what, struct err *err)
{
    return allocate(d, bytes, d->config.symmetric && d->nccl ? REGISTERED : ON_DEVICE, out, what,
                    err);
}

static void allocation_drop(struct device *d, struct allocation **at)
{
    struct allocation *a = *at;

    *at = a->next;
    d->device_bytes -= a->bytes;
    if (a->place == REGISTERED)
        symmetric_free(a->data);
    else
        (void)(a->place == PINNED ? cudaFreeHost(a->data) : cudaFree(a->data));
    free(a);
}

void cuda_free(struct device *d, const void *data)
{
    for (struct allocation **at = &d->allocations; *at; at = &(*at)->next)
        if ((*at)->data == data) {
            allocation_drop(d, at);
            return;
        }
}

void cuda_free_all(struct device *d)
{
    while (d->allocations)
        allocation_drop(d, &d->allocations);
}

/* The first matrix decides the type of everything. */
static int type_check(struct device *d, enum dtype dtype, struct err *err)
{
    enum half_type type = dtype == DTYPE_BF16 ? HALF_BF16 : HALF_F16;

    if (dtype == DTYPE_F32)
        return err_set(err, ERR_UNSUPPORTED,
                       "cuda: float32 weights; choose --dtype bfloat16 or float16");
    if (d->typed && d->type != type)
        return err_set(err, ERR_UNSUPPORTED,
                       "cuda: weights of both bfloat16 and float16; choose one with --dtype");
    d->typed = true;
    d->type = type;
    return 0;
}

int cuda_weight_new(struct device *d, enum weight_kind kind, enum dtype dtype, uint32_t rows,
                    uint32_t cols, struct weight **out, struct err *err)
{
    size_t bytes = (size_t)rows * cols * 2;
    struct weight *w;
    int rc = kind == WEIGHT_VECTOR ? 0 : type_check(d, dtype, err);

    if (rc)
        return rc;
    w = mem_zalloc(sizeof *w);
    w->kind = kind;
    w->rows = rows;
    w->cols = cols;
    w->next = d->weights;
    d->weights = w;
    rc = cuda_alloc(d, bytes, &w->data, "a weight", err);
    if (!rc && kind == WEIGHT_VECTOR) {
        bytes += (size_t)rows * cols * sizeof(float);
        rc = cuda_alloc(d, (size_t)rows * cols * sizeof(float), &w->wide, "a vector", err);
    }
    if (!rc)
        d->weight_bytes += bytes;
    *out = w;
    return rc;
}

static float f16_widen(uint16_t h)
{
    int exponent = h >> 10 & 0x1f, mantissa = h & 0x3ff;
    float f;

    if (exponent == 31)
        f = mantissa ? NAN : INFINITY;
    else if (exponent == 0)
        f = ldexpf((float)mantissa, -24);
    else
        f = ldexpf((float)(mantissa | 0x400), exponent - 25);
    return h & 0x8000u ? -f : f;
}

/* Round to nearest, ties to even. */
static uint16_t f16_narrow(float f)
{
    uint16_t sign = signbit(f) ? 0x8000u : 0u;
    float a = fabsf(f);
    int exponent;
    uint32_t units;

    if (isnan(f))
        return (uint16_t)(sign | 0x7e00u);
    if (a >= 65520.0f)
        return (uint16_t)(sign | 0x7c00u);
    if (a < 6.103515625e-05f) /* subnormal: units of 2^-24 */
        return (uint16_t)(sign | (uint32_t)lrintf(ldexpf(a, 24)));
    (void)frexpf(a, &exponent);
    units = (uint32_t)lrintf(ldexpf(a, 11 - exponent)); /* 1024 .. 2048 */
    return (uint16_t)(sign | (((uint32_t)(exponent + 13) << 10) + units));
}

static float value_read(const void *src, enum dtype type, size_t i)
{
    uint16_t h;
    float f;

    if (type == DTYPE_F32) {
        memcpy(&f, (const char *)src + 4 * i, 4);
        return f;
    }
    memcpy(&h, (const char *)src + 2 * i, 2);
    return type == DTYPE_BF16 ? bf16_widen(h) : f16_widen(h);
}

static enum dtype dtype_of(enum half_type type)
{
    return type == HALF_BF16 ? DTYPE_BF16 : DTYPE_F16;
}

/* n values to the activation type. A finite value that float16 cannot hold is an error. */
static int convert(const struct device *d, const void *src, size_t first, enum dtype src_dtype,
                   size_t n, uint16_t *out, struct err *err)
{
    if (src_dtype == dtype_of(d->type)) {
        memcpy(out, (const char *)src + 2 * first, 2 * n);
        return 0;
    }
    if (src_dtype == DTYPE_F32 && d->type == HALF_BF16) {
        const float *values = (const float *)src + first;

        for (size_t i = 0; i < n; i++)
            out[i] = bf16_narrow(values[i]);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        float f = value_read(src, src_dtype, first + i);

        out[i] = d->type == HALF_BF16 ? bf16_narrow(f) : f16_narrow(f);
        if (d->type == HALF_F16 && fabsf(f) >= 65520.0f && isfinite(f))
            return err_set(err, ERR_UNSUPPORTED,
                           "cuda: a weight of %g is out of float16's range; use --dtype bfloat16",
                           (double)f);
    }
    return 0;
}

static int load_buffers(struct device *d, struct err *err)
{
    for (int i = 0; i < 2 && !d->load_host[1]; i++) {
        int rc = cuda_alloc_pinned(d, LOAD_BYTES, &d->load_host[i], "staging of weights", err);
        cudaError_t made;

        if (rc)
            return rc;
        made = cudaEventCreateWithFlags(&d->load_done[i], cudaEventDisableTiming);
        if (made != cudaSuccess)
            return cuda_fail(d, made, "staging of weights", err);
    }
    return 0;
}

static int vector_write(struct device *d, struct weight *w, const void *src, enum dtype src_dtype,
                        struct err *err)
{
    size_t n = (size_t)w->rows * w->cols;
    float *wide = mem_array(n, sizeof *wide);
    cudaError_t rc;

    for (size_t i = 0; i < n; i++)
        wide[i] = value_read(src, src_dtype, i);
    rc = cudaMemcpy(w->wide, wide, n * sizeof *wide, cudaMemcpyHostToDevice);
    free(wide);
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "a vector's copy", err);
}

int cuda_weight_write(struct device *d, struct weight *w, uint32_t row, uint32_t rows,
                      const void *src, enum dtype src_dtype, struct err *err)
{
    size_t n = (size_t)rows * w->cols, chunk = LOAD_BYTES / 2;
    char *dst = (char *)w->data + (size_t)row * w->cols * 2;
    int rc;

    if (row > w->rows || rows > w->rows - row)
        return err_set(err, ERR_INVALID, "rows %u..%u of a weight of %u rows", row, row + rows,
                       w->rows);
    if (w->kind == WEIGHT_VECTOR)
        return vector_write(d, w, src, src_dtype, err);
    rc = load_buffers(d, err);
    for (size_t at = 0; at < n && !rc; at += chunk) {
        uint32_t turn = d->load_turn++ % 2;
        size_t part = n - at < chunk ? n - at : chunk;
        cudaError_t copied = cudaEventSynchronize(d->load_done[turn]);

        rc = convert(d, src, at, src_dtype, part, d->load_host[turn], err);
        if (rc)
            return rc;
        if (copied == cudaSuccess)
            copied = cudaMemcpyAsync(dst + 2 * at, d->load_host[turn], 2 * part,
                                     cudaMemcpyHostToDevice, d->stream);
        if (copied == cudaSuccess)
            copied = cudaEventRecord(d->load_done[turn], d->stream);
        if (copied != cudaSuccess)
            rc = cuda_fail(d, copied, "a weight's copy", err);
    }
    return rc;
}

/* Biases are added in the activation type: a vector's second form is made when the type is known,
 * at its first use as one. */
int cuda_weight_done(struct device *d, struct weight *w, struct err *err)
{
    cudaError_t rc;

    if (w->kind != WEIGHT_VECTOR || !d->typed)
        return 0;
    rc = launch_narrow(d->stream, d->type, w->wide, w->data, (size_t)w->rows * w->cols);
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "a vector's conversion", err);
}

int cuda_act_new(struct device *d, uint32_t width, struct act **out, struct err *err)
{
    struct act *a = mem_zalloc(sizeof *a);
    size_t n = (size_t)d->tokens_max * width;
    int rc;

    a->width = width;
    a->next = d->acts;
    d->acts = a;
    rc = cuda_alloc(d, n * 2, &a->data, "activations", err);
    if (!rc && width == d->model.hidden)
        rc = cuda_alloc(d, n * sizeof(float), &a->wide, "the residual stream", err);
    *out = a;
    return rc;
}

/* What is asked for so far is queued; tokens are within bounds. */
static int act_settle(struct device *d, uint32_t tokens, struct err *err)
{
    if (tokens > d->tokens_max)
        return err_set(err, ERR_INVALID, "%u tokens of activations of %u", tokens, d->tokens_max);
    return replay_flush(d, err);
}

int cuda_act_read(struct device *d, const struct act *a, uint32_t tokens, float *out,
                  struct err *err)
{
    size_t n = (size_t)tokens * a->width;
    uint16_t *half;
    cudaError_t copied;
    int rc = act_settle(d, tokens, err);

    if (!rc)
        rc = act_ready(d, (struct act *)(uintptr_t)a, err);
    if (!rc)
        rc = cuda_wait(d, err);
    if (rc)
        return rc;
    if (a->is_wide) {
        copied = cudaMemcpy(out, a->wide, n * sizeof *out, cudaMemcpyDeviceToHost);
        return copied == cudaSuccess ? 0 : cuda_fail(d, copied, "reading activations", err);
    }
    half = mem_array(n, sizeof *half);
    copied = cudaMemcpy(half, a->data, n * sizeof *half, cudaMemcpyDeviceToHost);
    for (size_t i = 0; i < n && copied == cudaSuccess; i++)
        out[i] = value_read(half, dtype_of(d->type), i);
    free(half);
    return copied == cudaSuccess ? 0 : cuda_fail(d, copied, "reading activations", err);
}

/* Writes both forms: the caller does not say which one it means. */
int cuda_act_write(struct device *d, struct act *a, uint32_t tokens, const float *in,
                   struct err *err)
{
    size_t n = (size_t)tokens * a->width;
    uint16_t *half;
    cudaError_t copied = cudaSuccess;
    int rc = act_settle(d, tokens, err);

    if (!rc)
        rc = residual_changes(d, a, a, err);
    if (!rc)
        rc = cuda_wait(d, err);
    if (rc)
        return rc;
    half = mem_array(n, sizeof *half);
    for (size_t i = 0; i < n; i++)
        half[i] = d->type == HALF_BF16 ? bf16_narrow(in[i]) : f16_narrow(in[i]);
    /* On the stream: a copy that is not may return before it has reached the device. */
    copied = cudaMemcpyAsync(a->data, half, n * sizeof *half, cudaMemcpyHostToDevice, d->stream);
    if (copied == cudaSuccess && a->wide)
        copied = cudaMemcpyAsync(a->wide, in, n * sizeof *in, cudaMemcpyHostToDevice, d->stream);
    if (copied == cudaSuccess)
        copied = cudaStreamSynchronize(d->stream);
    free(half);
    a->is_wide = false;
    return copied == cudaSuccess ? 0 : cuda_fail(d, copied, "writing activations", err);
}

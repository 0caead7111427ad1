/* Norms, projections and the sums over ranks. */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

void rms_norm(const float *x, const float *weight, uint32_t n, float eps, float *out)
{
    float sum = 0.0f, scale;

    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    scale = 1.0f / sqrtf(sum / (float)n + eps);
    for (uint32_t i = 0; i < n; i++)
        out[i] = x[i] * scale * weight[i];
}

/* residual += the ranks' partial sums, added in rank order so that all get the same bits. */
static int reduce_into(struct device *d, float *residual, struct err *err)
{
    size_t n = (size_t)d->tokens_count * d->model.hidden;
    const float *parts = d->scratch;
    int rc;

    if (d->comm) {
        rc = d->comm_kind->all_gather(d->comm, d->scratch, n * sizeof(float), d->gathered, err);
        if (rc)
            return rc;
        parts = d->gathered;
    }
    for (size_t i = 0; i < n; i++) {
        float sum = parts[i];

        for (uint32_t r = 1; r < d->config.tp_size; r++)
            sum += parts[r * n + i];
        residual[i] += sum;
    }
    return 0;
}

static void norm_all(const struct device *d, const struct weight *norm, const struct act *residual,
                     struct act *normed)
{
    uint32_t h = d->model.hidden;

    for (uint32_t t = 0; t < d->tokens_count; t++)
        rms_norm(residual->data + (size_t)t * h, norm->data, h, d->model.norm_eps,
                 normed->data + (size_t)t * h);
}

int cpu_embed(struct device *d, const struct weight *embedding, const struct weight *norm,
              struct act *residual, struct act *normed, struct err *err)
{
    const struct ops_model *m = &d->model;
    int rc;

    for (uint32_t t = 0; t < d->tokens_count; t++) {
        float *row = d->scratch + (size_t)t * m->hidden;
        uint32_t id = d->token_id[t];

        if (id >= m->vocab_begin && id - m->vocab_begin < m->vocab_count)
            weight_row(embedding, id - m->vocab_begin, row);
        else
            memset(row, 0, m->hidden * sizeof *row);
    }
    memset(residual->data, 0, (size_t)d->tokens_count * m->hidden * sizeof(float));
    rc = reduce_into(d, residual->data, err);
    if (rc)
        return rc;
    norm_all(d, norm, residual, normed);
    return 0;
}

int cpu_linear(struct device *d, const struct act *x, const struct weight *w,
               const struct weight *bias, struct act *out, struct err *err)
{
    (void)err;
    gemm(x->data, d->tokens_count, w, out->data, out->width);
    if (bias)
        for (uint32_t t = 0; t < d->tokens_count; t++) {
            float *y = out->data + (size_t)t * out->width;
            const float *b = bias->data;

            for (uint32_t i = 0; i < w->rows; i++)
                y[i] += b[i];
        }
    return 0;
}

int cpu_linear_reduce_norm(struct device *d, const struct act *x, const struct weight *w,
                           const struct weight *norm, struct act *residual, struct act *normed,
                           struct err *err)
{
    int rc;

    gemm(x->data, d->tokens_count, w, d->scratch, d->model.hidden);
    rc = reduce_into(d, residual->data, err);
    if (rc)
        return rc;
    norm_all(d, norm, residual, normed);
    return 0;
}

int cpu_gate_up_silu(struct device *d, const struct act *x, const struct weight *w, struct act *out,
                     struct err *err)
{
    uint32_t n = w->rows / 2;

    (void)err;
    /* By blocks of rows: gate and up of a whole step would be the largest buffer of all. */
    for (uint32_t t = 0; t < d->tokens_count; t += GATE_UP_ROWS) {
        uint32_t rows = d->tokens_count - t < GATE_UP_ROWS ? d->tokens_count - t : GATE_UP_ROWS;

        gemm(x->data + (size_t)t * x->width, rows, w, d->gate_up, w->rows);
        for (uint32_t r = 0; r < rows; r++) {
            const float *gate = d->gate_up + (size_t)r * w->rows, *up = gate + n;
            float *y = out->data + (size_t)(t + r) * out->width;

            for (uint32_t i = 0; i < n; i++)
                y[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
        }
    }
    return 0;
}

/* The operations of a layer. */
#include "kernels/cuda/cuda.h"

/* [scratch (T, H): this rank's part] to residual and normed. */
static int reduce_norm(struct device *d, const struct weight *norm, struct act *residual,
                       struct act *normed, bool fresh, struct err *err)
{
    const struct ops_model *m = &d->model;
    cudaError_t launched;

    if (d->nccl) {
        int rc = comm_all_reduce(d, d->scratch, (size_t)d->tokens_count * m->hidden, err);

        if (rc)
            return rc;
    }
    residual->is_wide = true;
    normed->is_wide = false;
    launched = launch_add_norm(d->stream, d->type, d->scratch, residual->wide, norm->wide,
                               normed->data, d->tokens_count, m->hidden, m->norm_eps, fresh);
    return launched == cudaSuccess ? 0 : cuda_fail(d, launched, "norm", err);
}

static int width_check(const char *what, const struct act *a, uint64_t width, struct err *err)
{
    return a->width == width ? 0
                             : err_set(err, ERR_INVALID, "cuda: %s: width %u, not %llu", what,
                                       a->width, (unsigned long long)width);
}

int cuda_embed(struct device *d, const struct weight *embedding, const struct weight *norm,
               struct act *residual, struct act *normed, struct err *err)
{
    const struct ops_model *m = &d->model;
    cudaError_t launched;
    int rc = width_check("embed", residual, m->hidden, err);

    if (!rc)
        rc = width_check("embed", normed, m->hidden, err);
    if (rc || !d->tokens_count)
        return rc;
    launched = launch_embed(d->stream, embedding->data, d->token_id, d->scratch, d->tokens_count,
                            m->hidden, m->vocab_begin, m->vocab_count);
    if (launched != cudaSuccess)
        return cuda_fail(d, launched, "embed", err);
    return reduce_norm(d, norm, residual, normed, true, err);
}

int cuda_linear(struct device *d, const struct act *x, const struct weight *w,
                const struct weight *bias, struct act *out, struct err *err)
{
    int rc = width_check("linear's x", x, w->cols, err);

    if (rc || !d->tokens_count)
        return rc;
    if (w->rows > out->width)
        return err_set(err, ERR_INVALID, "cuda: linear: %u rows into a width of %u", w->rows,
                       out->width);
    out->is_wide = false;
    return gemm(d, x->data, d->tokens_count, w, bias, out->data, out->width, false, err);
}

static char *kv_at(const struct device *d, uint32_t layer, uint32_t which)
{
    const struct ops_model *m = &d->model;
    size_t pool = (size_t)d->num_pages * m->kv_heads * d->page_size * m->head_dim * 2;

    return d->kv + ((size_t)layer * 2 + which) * pool;
}

int cuda_qk_norm_rope_kv(struct device *d, uint32_t layer, struct act *qkv,
                         const struct weight *q_norm, const struct weight *k_norm, struct err *err)
{
    const struct ops_model *m = &d->model;
    struct kv_args a = {
        .qkv = qkv->data,
        .q_norm = q_norm ? q_norm->wide : NULL,
        .k_norm = k_norm ? k_norm->wide : NULL,
        .rope = d->rope,
        .k = kv_at(d, layer, 0),
        .v = kv_at(d, layer, 1),
        .token_slot = d->frame.token_slot,
        .token_position = d->frame.token_position,
        .slot_pages = d->slot_pages,
        .tokens = d->tokens_count,
        .stride = qkv->width,
        .heads = m->heads,
        .kv_heads = m->kv_heads,
        .head_dim = m->head_dim,
        .page_size = d->page_size,
        .pages_per_slot = d->pages_per_slot,
        .eps = m->norm_eps,
    };
    cudaError_t launched;

    if (!d->tokens_count)
        return 0;
    qkv->is_wide = false;
    launched = launch_qk_norm_rope_kv(d->stream, d->type, &a);
    return launched == cudaSuccess ? 0 : cuda_fail(d, launched, "rotary embedding", err);
}

/* Blocks that share a sequence: enough to fill the GPU a few times over with the rows there are. */
static uint32_t decode_splits(const struct device *d, uint32_t units)
{
    uint32_t wanted = 4u * (uint32_t)d->multiprocessors, splits = wanted / units;

    return splits < 1 ? 1 : splits > 64 ? 64 : splits;
}

int cuda_attention(struct device *d, uint32_t layer, const struct act *qkv, uint32_t window,
                   struct act *out, struct err *err)
{
    const struct ops_model *m = &d->model;
    uint32_t tiles = (m->heads / m->kv_heads + DECODE_ROWS - 1) / DECODE_ROWS;
    struct attention_args a = {
        .qkv = qkv->data,
        .out = out->data,
        .k = kv_at(d, layer, 0),
        .v = kv_at(d, layer, 1),
        .rows = d->frame.rows,
        .slot_pages = d->slot_pages,
        .tiles = d->frame.tiles,
        .decode_rows = d->frame.decode_rows,
        .token_slot = d->frame.token_slot,
        .token_position = d->frame.token_position,
        .partials = d->partials,
        .arrivals = d->arrivals,
        .tokens = d->tokens_count,
        .tile_count = d->tiles_count,
        .decode_count = d->decode_count,
        .qkv_stride = qkv->width,
        .out_stride = out->width,
        .heads = m->heads,
        .kv_heads = m->kv_heads,
        .head_dim = m->head_dim,
        .page_size = d->page_size,
        .pages_per_slot = d->pages_per_slot,
        .window = window,
        .scale = m->attention_scale,
    };
    cudaError_t rc = cudaSuccess;

    if (!d->tokens_count)
        return 0;
    out->is_wide = false;
    if (!attention_has_tiles(m->head_dim)) {
        rc = launch_attention_any(d->stream, d->type, &a);
        return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "attention", err);
    }
    if (d->decode_count) {
        a.splits = decode_splits(d, d->decode_count * m->kv_heads * tiles);
        rc = launch_attention_decode(d->stream, d->type, &a);
    }
    if (d->tiles_count && rc == cudaSuccess)
        rc = launch_attention_prefill(d->stream, d->type, &a);
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "attention", err);
}

int cuda_linear_reduce_norm(struct device *d, const struct act *x, const struct weight *w,
                            const struct weight *norm, struct act *residual, struct act *normed,
                            struct err *err)
{
    int rc = width_check("linear_reduce_norm's x", x, w->cols, err);

    if (!rc)
        rc = width_check("residual", residual, d->model.hidden, err);
    if (rc || !d->tokens_count)
        return rc;
    rc = gemm(d, x->data, d->tokens_count, w, NULL, d->scratch, d->model.hidden, false, err);
    return rc ? rc : reduce_norm(d, norm, residual, normed, false, err);
}

int cuda_gate_up_silu(struct device *d, const struct act *x, const struct weight *w,
                      struct act *out, struct err *err)
{
    uint32_t n = w->rows / 2, most = GATE_UP_TOKENS;
    cudaError_t rc;

    if (n > d->model.intermediate || w->cols != x->width || n > out->width)
        return err_set(err, ERR_INVALID, "cuda: gate_up_silu: %u x %u, width %u to %u", w->rows,
                       w->cols, x->width, out->width);
    out->is_wide = false;
    if (d->tokens_count && d->tokens_count <= GEMV_ROWS && w->cols % 8 == 0) {
        rc = launch_gemv(d->stream, d->type, GEMV_SILU, x->data, w->data, NULL, out->data,
                         d->tokens_count, n, w->cols, out->width);
        return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "gate and up", err);
    }
    for (uint32_t t = 0; t < d->tokens_count; t += most) {
        uint32_t rows = d->tokens_count - t < most ? d->tokens_count - t : most;
        int failed = gemm(d, (const char *)x->data + (size_t)t * x->width * 2, rows, w, NULL,
                          d->scratch, w->rows, false, err);

        if (failed)
            return failed;
        rc = launch_silu(d->stream, d->type, d->scratch,
                         (char *)out->data + (size_t)t * out->width * 2, rows, n, out->width);
        if (rc != cudaSuccess)
            return cuda_fail(d, rc, "gate and up", err);
    }
    return 0;
}

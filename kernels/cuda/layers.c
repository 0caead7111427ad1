/* The operations of a layer. Each is checked and noted by the function of ops.h, and launched by
 * the one named _run: at once, or when a list of them is run (replay.c). */
#include "kernels/cuda/cuda.h"

/* [scratch (T, H): this rank's part] to residual and normed. */
static int reduce_norm(struct device *d, const struct weight *norm, struct act *residual,
                       struct act *normed, bool fresh, struct err *err)
{
    return comm_reduce_norm(d, d->scratch, d->tokens_count, residual->wide, norm->wide,
                            normed->data, fresh, err);
}

static int width_check(const char *what, const struct act *a, uint64_t width, struct err *err)
{
    return a->width == width ? 0
                             : err_set(err, ERR_INVALID, "cuda: %s: width %u, not %llu", what,
                                       a->width, (unsigned long long)width);
}

static int embed_run(struct device *d, const struct op *op, struct err *err)
{
    const struct ops_model *m = &d->model;
    cudaError_t rc = launch_embed(d->stream, op->w[0]->data, d->token_id, d->scratch,
                                  d->tokens_count, m->hidden, m->vocab_begin, m->vocab_count);
    int failed;

    if (rc != cudaSuccess)
        return cuda_fail(d, rc, "embed", err);
    failed = residual_changes(d, op->a[0], op->a[1], err);
    return failed ? failed : reduce_norm(d, op->w[1], op->a[0], op->a[1], true, err);
}

int cuda_embed(struct device *d, const struct weight *embedding, const struct weight *norm,
               struct act *residual, struct act *normed, struct err *err)
{
    const struct op op = {.run = embed_run, .w = {embedding, norm}, .a = {residual, normed}};
    int rc = width_check("embed", residual, d->model.hidden, err);

    if (!rc)
        rc = width_check("embed", normed, d->model.hidden, err);
    if (rc || !d->tokens_count)
        return rc;
    residual->is_wide = true;
    normed->is_wide = false;
    return replay_add(d, &op, err);
}

static int linear_run(struct device *d, const struct op *op, struct err *err)
{
    const struct weight *w = op->w[0], *bias = op->w[1];
    struct act *x = op->a[0], *out = op->a[1];
    uint32_t m = d->tokens_count;
    bool norm = x->pending.kind == PENDING_NORM && gemv_suits(w, m);
    int rc = norm ? 0 : act_ready(d, x, err);

    if (!rc)
        rc = act_overwrite(d, out, err);
    if (rc)
        return rc;
    return norm ? gemv(d, GEMV_HALF, x, w, bias, out->data, out->width, err)
                : gemm(d, x->data, m, w, bias, out->data, out->width, false, err);
}

int cuda_linear(struct device *d, const struct act *x, const struct weight *w,
                const struct weight *bias, struct act *out, struct err *err)
{
    const struct op op = {
        .run = linear_run, .w = {w, bias}, .a = {(struct act *)(uintptr_t)x, out}};
    int rc = width_check("linear's x", x, w->cols, err);

    if (rc || !d->tokens_count)
        return rc;
    if (w->rows > out->width)
        return err_set(err, ERR_INVALID, "cuda: linear: %u rows into a width of %u", w->rows,
                       out->width);
    out->is_wide = false;
    return replay_add(d, &op, err);
}

static int qkv_check(const struct device *d, uint32_t layer, const struct act *qkv, struct err *err)
{
    const struct ops_model *m = &d->model;

    if (layer >= m->layers)
        return err_set(err, ERR_INVALID, "cuda: layer %u of %u", layer, m->layers);
    return width_check("qkv", qkv, ((uint64_t)m->heads + 2 * m->kv_heads) * m->head_dim, err);
}

static int qk_norm_rope_kv_run(struct device *d, const struct op *op, struct err *err)
{
    struct act *qkv = op->a[0];
    int rc = act_ready(d, qkv, err);

    if (rc)
        return rc;
    qkv->pending = (struct pending){.kind = PENDING_ROPE,
                                    .rows = d->tokens_count,
                                    .norm = {op->w[0], op->w[1]},
                                    .layer = (uint32_t)op->layer};
    return rope_pends(d) ? 0 : act_ready(d, qkv, err);
}

int cuda_qk_norm_rope_kv(struct device *d, uint32_t layer, struct act *qkv,
                         const struct weight *q_norm, const struct weight *k_norm, struct err *err)
{
    const struct op op = {
        .run = qk_norm_rope_kv_run, .w = {q_norm, k_norm}, .a = {qkv}, .layer = layer};
    int rc = qkv_check(d, layer, qkv, err);

    if (rc || !d->tokens_count)
        return rc;
    qkv->is_wide = false;
    return replay_add(d, &op, err);
}

/* With the rotation that is left to decode attention, if it is. */
static void attention_rotate(const struct device *d, const struct pending *p,
                             struct attention_args *a)
{
    a->rope = d->rope;
    a->q_norm = p->norm[0] ? p->norm[0]->wide : NULL;
    a->k_norm = p->norm[1] ? p->norm[1]->wide : NULL;
    a->eps = d->model.norm_eps;
}

static int attention_run(struct device *d, const struct op *op, struct err *err)
{
    const struct ops_model *m = &d->model;
    struct act *qkv = op->a[0];
    bool rotates = qkv->pending.kind == PENDING_ROPE && qkv->pending.layer == op->layer;
    struct attention_args a = {
        .qkv = qkv->data,
        .out = op->a[1]->data,
        .k = kv_at(d, (uint32_t)op->layer, 0),
        .v = kv_at(d, (uint32_t)op->layer, 1),
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
        .multiprocessors = (uint32_t)d->multiprocessors,
        .qkv_stride = qkv->width,
        .out_stride = op->a[1]->width,
        .heads = m->heads,
        .kv_heads = m->kv_heads,
        .head_dim = m->head_dim,
        .page_size = d->page_size,
        .pages_per_slot = d->pages_per_slot,
        .pages = d->num_pages + 1,
        .tile_rows = d->tile_rows,
        .window = (uint32_t)op->window,
        .scale = m->attention_scale,
        .balanced = d->balanced,
    };
    cudaError_t rc = cudaSuccess;
    int failed = rotates ? 0 : act_ready(d, qkv, err);

    if (!failed)
        failed = act_overwrite(d, op->a[1], err);
    if (failed)
        return failed;
    if (rotates)
        attention_rotate(d, &qkv->pending, &a);
    (void)weights_ahead(d, op, a.ahead, AHEAD_MAX, AHEAD_BYTES);
    if (!attention_has_tiles(m->head_dim)) {
        rc = launch_attention_any(d->stream, d->type, &a);
        return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "attention", err);
    }
    if (d->decode_count)
        rc = launch_attention_decode(d->stream, d->type, &a);
    if (d->tiles_count && rc == cudaSuccess)
        rc = launch_attention_prefill(d->stream, d->type, &a);
    qkv->pending.stored = rotates;
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "attention", err);
}

int cuda_attention(struct device *d, uint32_t layer, const struct act *qkv, uint32_t window,
                   struct act *out, struct err *err)
{
    const struct op op = {.run = attention_run,
                          .a = {(struct act *)(uintptr_t)qkv, out},
                          .layer = layer,
                          .window = window};
    int rc = qkv_check(d, layer, qkv, err);

    if (!rc)
        rc = width_check("attention's out", out, (uint64_t)d->model.heads * d->model.head_dim, err);
    if (rc || !d->tokens_count)
        return rc;
    out->is_wide = false;
    return replay_add(d, &op, err);
}

static int linear_reduce_norm_run(struct device *d, const struct op *op, struct err *err)
{
    const struct weight *w = op->w[0], *norm = op->w[1];
    struct act *x = op->a[0], *residual = op->a[1], *normed = op->a[2];
    int rc = act_ready(d, x, err);

    if (!rc)
        rc = residual_changes(d, residual, normed, err);
    if (rc)
        return rc;
    if (norm_pends(d, w)) {
        normed->pending = (struct pending){
            .kind = PENDING_NORM, .rows = d->tokens_count, .residual = residual, .norm = {norm}};
        return gemv(d, GEMV_RESIDUAL, x, w, NULL, residual->wide, residual->width, err);
    }
    rc = gemm(d, x->data, d->tokens_count, w, NULL, d->scratch, d->model.hidden, false, err);
    return rc ? rc : reduce_norm(d, norm, residual, normed, false, err);
}

int cuda_linear_reduce_norm(struct device *d, const struct act *x, const struct weight *w,
                            const struct weight *norm, struct act *residual, struct act *normed,
                            struct err *err)
{
    const struct op op = {.run = linear_reduce_norm_run,
                          .w = {w, norm},
                          .a = {(struct act *)(uintptr_t)x, residual, normed}};
    int rc = width_check("linear_reduce_norm's x", x, w->cols, err);

    if (!rc)
        rc = width_check("residual", residual, d->model.hidden, err);
    if (!rc)
        rc = width_check("normed", normed, w->rows, err);
    if (rc || !d->tokens_count)
        return rc;
    residual->is_wide = true;
    normed->is_wide = false;
    return replay_add(d, &op, err);
}

static int gate_up_silu_run(struct device *d, const struct op *op, struct err *err)
{
    const struct weight *w = op->w[0];
    struct act *x = op->a[0], *out = op->a[1];
    uint32_t n = w->rows / 2, most = GATE_UP_TOKENS;
    bool suits = gemv_suits(w, d->tokens_count);
    int failed = suits && x->pending.kind == PENDING_NORM ? 0 : act_ready(d, x, err);
    cudaError_t rc;

    if (!failed)
        failed = act_overwrite(d, out, err);
    if (failed)
        return failed;
    if (suits)
        return gemv(d, GEMV_SILU, x, w, NULL, out->data, out->width, err);
    if (skinny_suits(w, d->tokens_count, out->width))
        return gemm_silu(d, x, w, out, err);
    for (uint32_t t = 0; t < d->tokens_count; t += most) {
        uint32_t rows = d->tokens_count - t < most ? d->tokens_count - t : most;

        failed = gemm(d, (const char *)x->data + (size_t)t * x->width * 2, rows, w, NULL,
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

int cuda_gate_up_silu(struct device *d, const struct act *x, const struct weight *w,
                      struct act *out, struct err *err)
{
    const struct op op = {
        .run = gate_up_silu_run, .w = {w}, .a = {(struct act *)(uintptr_t)x, out}};
    uint32_t n = w->rows / 2;

    if (n > d->model.intermediate || w->cols != x->width || n > out->width)
        return err_set(err, ERR_INVALID, "cuda: gate_up_silu: %u x %u, width %u to %u", w->rows,
                       w->cols, x->width, out->width);
    if (!d->tokens_count)
        return 0;
    out->is_wide = false;
    return replay_add(d, &op, err);
}

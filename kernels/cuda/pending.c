/* Work on an activation that is left to the operations that read it.
 *
 * The norm of the residual stream: made when the stream is added to, or, with few rows of a small
 * hidden size, left to the products that read it, each of which makes it for itself.
 *
 * The norm and rotation of q and k, and the writing of k and v: in steps of single tokens left to
 * decode attention, where that has a kernel for it. The kernel writes k and v but not q: `stored`
 * then says that q alone is missing.
 *
 * An activation with such work is pending. An operation that cannot take it so has the work done by
 * act_ready. All is settled when the last operation of a step is queued and when a graph ends: what
 * is pending is known from the operations of a list alone, and a graph of them leaves nothing
 * behind. */
#include "kernels/cuda/cuda.h"

static cudaError_t norm_make(struct device *d, struct act *a)
{
    return launch_add_norm(d->stream, d->type, NULL, a->pending.residual->wide,
                           a->pending.norm[0]->wide, a->data, a->pending.rows, a->width,
                           d->model.norm_eps, false);
}

static cudaError_t rope_make(struct device *d, struct act *qkv)
{
    const struct ops_model *m = &d->model;
    const struct pending *p = &qkv->pending;
    const struct kv_args a = {
        .qkv = qkv->data,
        .q_norm = p->norm[0] ? p->norm[0]->wide : NULL,
        .k_norm = p->norm[1] ? p->norm[1]->wide : NULL,
        .rope = d->rope,
        .k = kv_at(d, p->layer, 0),
        .v = kv_at(d, p->layer, 1),
        .token_slot = d->frame.token_slot,
        .token_position = d->frame.token_position,
        .slot_pages = d->slot_pages,
        .tokens = p->rows,
        .stride = qkv->width,
        .heads = m->heads,
        .kv_heads = m->kv_heads,
        .head_dim = m->head_dim,
        .page_size = d->page_size,
        .pages_per_slot = d->pages_per_slot,
        .eps = m->norm_eps,
    };

    return launch_qk_norm_rope_kv(d->stream, d->type, &a);
}

int act_ready(struct device *d, struct act *a, struct err *err)
{
    bool norm = a->pending.kind == PENDING_NORM;
    cudaError_t rc;

    if (a->pending.kind == PENDING_NOTHING)
        return 0;
    rc = norm ? norm_make(d, a) : rope_make(d, a);
    a->pending.kind = PENDING_NOTHING;
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, norm ? "norm" : "rotary embedding", err);
}

int acts_ready(struct device *d, struct err *err)
{
    int rc = 0;

    for (struct act *a = d->acts; a && !rc; a = a->next)
        rc = act_ready(d, a, err);
    return rc;
}

/* A q that attention has rotated for itself is of no use after its step. */
int acts_leave(struct device *d, struct err *err)
{
    for (struct act *a = d->acts; a; a = a->next)
        if (a->pending.kind == PENDING_ROPE && a->pending.stored)
            a->pending.kind = PENDING_NOTHING;
    return acts_ready(d, err);
}

/* Pages are read by later steps, whatever becomes of qkv. */
int act_overwrite(struct device *d, struct act *a, struct err *err)
{
    if (a->pending.kind == PENDING_ROPE && !a->pending.stored)
        return act_ready(d, a, err);
    a->pending.kind = PENDING_NOTHING;
    return 0;
}

int residual_changes(struct device *d, const struct act *residual, struct act *normed,
                     struct err *err)
{
    int rc = act_overwrite(d, normed, err);

    for (struct act *a = d->acts; a && !rc; a = a->next)
        if (a->pending.kind == PENDING_NORM && a->pending.residual == residual)
            rc = act_ready(d, a, err);
    return rc;
}

/* Measured on H200: a norm's kernel takes 2 us however small it is. With a larger hidden size the
 * blocks of the products would read more for the norm than it takes. */
bool norm_pends(const struct device *d, const struct weight *w)
{
    uint32_t hidden = d->model.hidden;

    return d->config.tp_size == 1 && hidden % 8 == 0 && hidden <= GEMV_NORM_MAX &&
           w->rows == hidden && d->tokens_count <= GEMV_ROWS && gemv_suits(w, d->tokens_count);
}

bool rope_pends(const struct device *d)
{
    return d->decode_count == d->tokens_count && attention_rotates(d->model.head_dim, d->page_size);
}

/* The norm of the residual stream: made when the stream is added to, or, with few rows of a small
 * hidden size, left to the products that read it, each of which makes it for itself.
 *
 * An activation whose norm is left so is pending: its data is not there. An operation that cannot
 * take it so has it made by act_ready. All is settled when a list of operations ends (replay.c) and
 * when a step begins: what is pending is known from the operations of a list alone, and a graph of
 * them leaves nothing behind. */
#include "kernels/cuda/cuda.h"

int act_ready(struct device *d, struct act *a, struct err *err)
{
    cudaError_t rc;

    if (!a->pending)
        return 0;
    rc = launch_add_norm(d->stream, d->type, NULL, a->pending->wide, a->pending_norm->wide, a->data,
                         a->pending_rows, a->width, d->model.norm_eps, false);
    a->pending = NULL;
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "norm", err);
}

int acts_ready(struct device *d, struct err *err)
{
    int rc = 0;

    for (struct act *a = d->acts; a && !rc; a = a->next)
        rc = act_ready(d, a, err);
    return rc;
}

int residual_changes(struct device *d, const struct act *residual, struct act *normed,
                     struct err *err)
{
    int rc = 0;

    normed->pending = NULL;
    for (struct act *a = d->acts; a && !rc; a = a->next)
        if (a->pending == residual)
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

#include "services/worker/decoder.h"

int decoder_alloc(struct decoder *d, const struct shard *shard, struct err *err)
{
    const struct model_config *c = d->config;
    const struct width {
        struct act **act;
        uint32_t width;
    } widths[] = {
        {&d->residual, c->hidden},
        {&d->normed, c->hidden},
        {&d->qkv, (shard->heads + 2 * shard->kv_heads) * c->head_dim},
        {&d->attention, shard->heads * c->head_dim},
        {&d->mlp, shard->intermediate},
    };
    int rc = 0;

    for (size_t i = 0; i < sizeof widths / sizeof *widths && !rc; i++)
        rc = d->ops->act_new(d->device, widths[i].width, widths[i].act, err);
    return rc;
}

/* next_norm: of what follows the layer. */
static int decoder_layer(struct decoder *d, uint32_t layer, const struct weight *next_norm,
                         struct err *err)
{
    const struct ops *ops = d->ops;
    const struct layer_weights *w = &d->weights->layers[layer];
    int rc = ops->linear(d->device, d->normed, w->qkv, w->qkv_bias, d->qkv, err);

    if (!rc)
        rc = ops->qk_norm_rope_kv(d->device, layer, d->qkv, w->q_norm, w->k_norm, err);
    if (!rc)
        rc = ops->attention(d->device, layer, d->qkv, d->config->window[layer], d->attention, err);
    if (!rc)
        rc = ops->linear_reduce_norm(d->device, d->attention, w->o, w->post_norm, d->residual,
                                     d->normed, err);
    if (!rc)
        rc = ops->gate_up_silu(d->device, d->normed, w->gate_up, d->mlp, err);
    if (!rc)
        rc = ops->linear_reduce_norm(d->device, d->mlp, w->down, next_norm, d->residual, d->normed,
                                     err);
    return rc;
}

int decoder_forward(struct decoder *d, struct decoder_scores *scores, struct err *err)
{
    const struct weights *w = d->weights;
    uint32_t layers = d->config->layers;
    int rc =
        d->ops->embed(d->device, w->embed, w->layers[0].input_norm, d->residual, d->normed, err);

    for (uint32_t i = 0; i < layers && !rc; i++)
        rc = decoder_layer(d, i, i + 1 < layers ? w->layers[i + 1].input_norm : w->norm, err);
    if (!rc && scores && scores->count)
        rc = d->ops->score
                 ? d->ops->score(d->device, d->normed, w->lm_head, scores->list, scores->count,
                                 &scores->results, err)
                 : err_set(err, ERR_UNSUPPORTED,
                           "%s does not compute log probabilities of prompt tokens", d->ops->name);
    return rc ? rc : d->ops->sample(d->device, d->normed, w->lm_head, err);
}

int decoder_begin(struct decoder *d, const struct ops_row *rows, uint32_t count,
                  struct decoder_scores *scores, struct err *err)
{
    int rc = d->ops->step_begin(d->device, rows, count, err);

    return rc ? rc : decoder_forward(d, scores, err);
}

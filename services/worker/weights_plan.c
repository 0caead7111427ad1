#include "services/worker/weights_plan.h"

#include "common/mem.h"

#include <stdio.h>
#include <stdlib.h>

static struct item *plan_item(struct plan *p, struct weight **out, enum weight_kind kind)
{
    struct item *item = &p->items[p->count++];

    *item = (struct item){.out = out, .kind = kind};
    return item;
}

/* The next part: rows of a (full_rows, cols) matrix. */
static struct part *part_rows(struct item *item, uint64_t full_rows, uint64_t cols, uint64_t row,
                              uint64_t rows)
{
    struct part *p = &item->parts[item->part_count++];

    *p = (struct part){.full_rows = full_rows,
                       .full_cols = cols,
                       .row = row,
                       .rows = rows,
                       .cols = cols,
                       .pad_rows = rows,
                       .pad_cols = cols};
    return p;
}

/* The next part: columns of a (rows, full_cols) matrix; rows == 0: elements of a vector. */
static struct part *part_cols(struct item *item, uint64_t rows, uint64_t full_cols, uint64_t col,
                              uint64_t cols)
{
    struct part *p = &item->parts[item->part_count++];

    *p = (struct part){.full_rows = rows,
                       .full_cols = full_cols,
                       .rows = rows ? rows : 1,
                       .col = col,
                       .cols = cols,
                       .pad_rows = rows ? rows : 1,
                       .pad_cols = cols};
    return p;
}

static void part_name(struct part *p, uint32_t layer, const char *suffix)
{
    (void)snprintf(p->name, sizeof p->name, "model.layers.%u.%s", layer, suffix);
}

static void plan_vector(struct plan *p, struct weight **out, uint32_t layer, const char *suffix,
                        uint32_t cols)
{
    part_name(part_cols(plan_item(p, out, WEIGHT_VECTOR), 0, cols, 0, cols), layer, suffix);
}

static void plan_qkv(struct plan *p, struct layer_weights *w, uint32_t layer,
                     const struct model_config *c, const struct shard *s)
{
    static const char *const names[] = {"q_proj", "k_proj", "v_proj"};
    struct item *qkv = plan_item(p, &w->qkv, WEIGHT_MATRIX);
    struct item *bias = c->qkv_bias ? plan_item(p, &w->qkv_bias, WEIGHT_VECTOR) : NULL;
    char suffix[64];

    for (int i = 0; i < 3; i++) {
        uint64_t d = c->head_dim;
        uint64_t full = d * (i ? c->kv_heads : c->heads);
        uint64_t row = d * (i ? s->kv_head_begin : s->head_begin);
        uint64_t rows = d * (i ? s->kv_heads : s->heads);

        (void)snprintf(suffix, sizeof suffix, "self_attn.%s.weight", names[i]);
        part_name(part_rows(qkv, full, c->hidden, row, rows), layer, suffix);
        if (!bias)
            continue;
        (void)snprintf(suffix, sizeof suffix, "self_attn.%s.bias", names[i]);
        part_name(part_cols(bias, 0, full, row, rows), layer, suffix);
    }
}

static void plan_mlp(struct plan *p, struct layer_weights *w, uint32_t layer,
                     const struct model_config *c, const struct shard *s)
{
    struct item *gate_up = plan_item(p, &w->gate_up, WEIGHT_GATE_UP);
    struct item *down = plan_item(p, &w->down, WEIGHT_MATRIX);
    struct part *part;

    for (int i = 0; i < 2; i++) {
        part = part_rows(gate_up, c->intermediate, c->hidden, s->intermediate_begin,
                         s->intermediate_real);
        part->pad_rows = s->intermediate;
        part_name(part, layer, i ? "mlp.up_proj.weight" : "mlp.gate_proj.weight");
    }
    part = part_cols(down, c->hidden, c->intermediate, s->intermediate_begin, s->intermediate_real);
    part->pad_cols = s->intermediate;
    part_name(part, layer, "mlp.down_proj.weight");
}

static void plan_layer(struct plan *p, struct layer_weights *w, uint32_t layer,
                       const struct model_config *c, const struct shard *s)
{
    struct item *o;

    plan_vector(p, &w->input_norm, layer, "input_layernorm.weight", c->hidden);
    plan_qkv(p, w, layer, c, s);
    if (c->kind->qk_norm) {
        plan_vector(p, &w->q_norm, layer, "self_attn.q_norm.weight", c->head_dim);
        plan_vector(p, &w->k_norm, layer, "self_attn.k_norm.weight", c->head_dim);
    }
    o = plan_item(p, &w->o, WEIGHT_MATRIX);
    part_name(part_cols(o, c->hidden, (uint64_t)c->heads * c->head_dim,
                        (uint64_t)s->head_begin * c->head_dim, (uint64_t)s->heads * c->head_dim),
              layer, "self_attn.o_proj.weight");
    plan_vector(p, &w->post_norm, layer, "post_attention_layernorm.weight", c->hidden);
    plan_mlp(p, w, layer, c, s);
}

#define ITEMS_PER_LAYER 9
#define ITEMS_BESIDE_LAYERS 3

void plan_init(struct plan *p, struct weights *w, const struct model_config *c,
               const struct shard *s)
{
    struct part *part;

    p->items =
        mem_array((size_t)c->layers * ITEMS_PER_LAYER + ITEMS_BESIDE_LAYERS, sizeof *p->items);
    part = part_rows(plan_item(p, &w->embed, WEIGHT_EMBED), c->vocab_size, c->hidden,
                     s->vocab_begin, s->vocab_count);
    (void)snprintf(part->name, sizeof part->name, "model.embed_tokens.weight");
    for (uint32_t i = 0; i < c->layers; i++)
        plan_layer(p, &w->layers[i], i, c, s);
    part = part_cols(plan_item(p, &w->norm, WEIGHT_VECTOR), 0, c->hidden, 0, c->hidden);
    (void)snprintf(part->name, sizeof part->name, "model.norm.weight");
    if (c->tied)
        return;
    part = part_rows(plan_item(p, &w->lm_head, WEIGHT_MATRIX), c->vocab_size, c->hidden,
                     s->vocab_begin, s->vocab_count);
    (void)snprintf(part->name, sizeof part->name, "lm_head.weight");
}

void plan_fini(struct plan *p)
{
    free(p->items);
    *p = (struct plan){0};
}

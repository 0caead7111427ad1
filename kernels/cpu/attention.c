/* Rotary embedding, KV pages and attention. */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

/* k (which 0) or v (1) of one position and KV head in a layer's pages. */
static float *kv_at(const struct device *d, uint32_t layer, int which, uint32_t page, uint32_t head,
                    uint32_t offset)
{
    const struct ops_model *m = &d->model;
    size_t page_floats = (size_t)m->kv_heads * d->page_size * m->head_dim;
    size_t pool = (size_t)d->num_pages * page_floats;

    return d->kv + ((size_t)layer * 2 + (size_t)which) * pool + page * page_floats +
           ((size_t)head * d->page_size + offset) * m->head_dim;
}

/* Cosines and sines of the step's positions: one row (D) a token, cosines first. */
void rope_fill(struct device *d)
{
    uint32_t half = d->model.head_dim / 2;

    for (uint32_t t = 0; t < d->tokens_count; t++) {
        float *row = d->rope + (size_t)t * d->model.head_dim;

        for (uint32_t i = 0; i < half; i++) {
            float angle = (float)d->token_position[t] * d->inv_freq[i];

            row[i] = cosf(angle) * d->model.rope_scale;
            row[half + i] = sinf(angle) * d->model.rope_scale;
        }
    }
}

/* Pairs (i, i + D/2), as in the Hugging Face layout of Llama's weights. */
static void rope(const float *cos_sin, uint32_t half, float *x)
{
    for (uint32_t i = 0; i < half; i++) {
        float c = cos_sin[i], s = cos_sin[half + i];
        float a = x[i], b = x[i + half];

        x[i] = a * c - b * s;
        x[i + half] = b * c + a * s;
    }
}

int cpu_qk_norm_rope_kv(struct device *d, uint32_t layer, struct act *qkv,
                        const struct weight *q_norm, const struct weight *k_norm, struct err *err)
{
    const struct ops_model *m = &d->model;
    uint32_t dim = m->head_dim;

    (void)err;
    for (uint32_t t = 0; t < d->tokens_count; t++) {
        const struct slot *s = &d->slots[d->token_slot[t]];
        uint32_t position = d->token_position[t];
        uint32_t page = s->pages[position / d->page_size], offset = position % d->page_size;
        float *x = qkv->data + (size_t)t * qkv->width;

        for (uint32_t h = 0; h < m->heads + m->kv_heads; h++, x += dim) {
            const struct weight *norm = h < m->heads ? q_norm : k_norm;

            if (norm)
                rms_norm(x, norm->data, dim, m->norm_eps, x);
            rope(d->rope + (size_t)t * dim, dim / 2, x);
            if (h >= m->heads)
                memcpy(kv_at(d, layer, 0, page, h - m->heads, offset), x, dim * sizeof *x);
        }
        for (uint32_t h = 0; h < m->kv_heads; h++, x += dim)
            memcpy(kv_at(d, layer, 1, page, h, offset), x, dim * sizeof *x);
    }
    return 0;
}

CPU_CLONES static float dot(const float *a, const float *b, uint32_t n)
{
    v16 sum = {0};
    float total = 0.0f;
    uint32_t i = 0;

    for (; i + LANES <= n; i += LANES)
        sum += *(const v16 *)(a + i) * *(const v16 *)(b + i);
    for (; i < n; i++)
        total += a[i] * b[i];
    for (int l = 0; l < LANES; l++)
        total += sum[l];
    return total;
}

static void attend(const struct device *d, uint32_t layer, const struct slot *s, uint32_t kv_head,
                   const float *q, uint32_t first, uint32_t last, float *out)
{
    uint32_t dim = d->model.head_dim;
    float top = -INFINITY, sum = 0.0f;
    float *scores = d->scores;

    for (uint32_t p = first; p <= last; p++) {
        const float *k = kv_at(d, layer, 0, s->pages[p / d->page_size], kv_head, p % d->page_size);

        scores[p - first] = dot(q, k, dim) * d->model.attention_scale;
        top = fmaxf(top, scores[p - first]);
    }
    memset(out, 0, dim * sizeof *out);
    for (uint32_t p = first; p <= last; p++) {
        const float *v = kv_at(d, layer, 1, s->pages[p / d->page_size], kv_head, p % d->page_size);
        float weight = expf(scores[p - first] - top);

        sum += weight;
        for (uint32_t i = 0; i < dim; i++)
            out[i] += weight * v[i];
    }
    for (uint32_t i = 0; i < dim; i++)
        out[i] /= sum;
}

int cpu_attention(struct device *d, uint32_t layer, const struct act *qkv, uint32_t window,
                  struct act *out, struct err *err)
{
    const struct ops_model *m = &d->model;
    uint32_t group = m->heads / m->kv_heads;

    (void)err;
    for (uint32_t t = 0; t < d->tokens_count; t++) {
        const struct slot *s = &d->slots[d->token_slot[t]];
        uint32_t last = d->token_position[t];
        uint32_t first = window && last + 1 > window ? last + 1 - window : 0;

        for (uint32_t h = 0; h < m->heads; h++)
            attend(d, layer, s, h / group,
                   qkv->data + (size_t)t * qkv->width + (size_t)h * m->head_dim, first, last,
                   out->data + (size_t)t * out->width + (size_t)h * m->head_dim);
    }
    return 0;
}

/* Whole steps of a small model, CUDA against CPU: prompts in chunks, then decode with batches that
 * grow and shrink, so that steps are launched, captured and replayed for other slots and lengths.
 * A bias says which token is chosen, so that both go on from the same; logits are compared. */
#include "tests/kernels/pair.h"

#include "common/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define LAYERS 2u
#define LIMIT 2e-2

struct layer {
    struct both_weights norm, qkv, bias, q_norm, k_norm, o, post_norm, gate_up, down;
};

struct model {
    struct pair p;
    struct both_weights embedding, norm, lm_head;
    struct layer layers[LAYERS];
    struct both_acts residual, normed, qkv, attended, mid;
    uint32_t length[SLOTS]; /* of each slot, 0: closed */
    struct worst worst;
};

static void model_make(struct model *m)
{
    struct pair *p = &m->p;
    const struct shape *s = &p->shape;
    uint32_t n = (s->heads + 2 * s->kv_heads) * s->head_dim, q = s->heads * s->head_dim;

    m->embedding = weight_make(p, WEIGHT_EMBED, s->vocab, s->hidden, 1.0f, 0.0f);
    m->lm_head = weight_make(p, WEIGHT_MATRIX, s->vocab, s->hidden, 0.25f, 0.0f);
    m->norm = weight_make(p, WEIGHT_VECTOR, 1, s->hidden, 0.25f, 1.0f);
    for (uint32_t i = 0; i < LAYERS; i++) {
        struct layer *l = &m->layers[i];

        l->norm = weight_make(p, WEIGHT_VECTOR, 1, s->hidden, 0.25f, 1.0f);
        l->post_norm = weight_make(p, WEIGHT_VECTOR, 1, s->hidden, 0.25f, 1.0f);
        l->q_norm = weight_make(p, WEIGHT_VECTOR, 1, s->head_dim, 0.25f, 1.0f);
        l->k_norm = weight_make(p, WEIGHT_VECTOR, 1, s->head_dim, 0.25f, 1.0f);
        l->qkv = weight_make(p, WEIGHT_MATRIX, n, s->hidden, 0.125f, 0.0f);
        l->bias = weight_make(p, WEIGHT_VECTOR, 1, n, 0.5f, 0.0f);
        l->o = weight_make(p, WEIGHT_MATRIX, s->hidden, q, 0.125f, 0.0f);
        l->gate_up = weight_make(p, WEIGHT_GATE_UP, 2 * s->intermediate, s->hidden, 0.125f, 0.0f);
        l->down = weight_make(p, WEIGHT_MATRIX, s->hidden, s->intermediate, 0.125f, 0.0f);
    }
    pair_pool(p, 256, 400);
    m->residual = act_make(p, s->hidden);
    m->normed = act_make(p, s->hidden);
    m->qkv = act_make(p, n);
    m->attended = act_make(p, q);
    m->mid = act_make(p, s->intermediate);
}

static void model_step(struct model *m, int b, const struct ops_row *rows, uint32_t count,
                       uint32_t window)
{
    const struct ops *o = m->p.ops[b];
    struct device *d = m->p.device[b];

    must(o->step_begin(d, rows, count, &err));
    must(o->embed(d, m->embedding.w[b], m->layers[0].norm.w[b], m->residual.a[b], m->normed.a[b],
                  &err));
    for (uint32_t i = 0; i < LAYERS; i++) {
        struct layer *l = &m->layers[i];
        struct weight *next = i + 1 < LAYERS ? l[1].norm.w[b] : m->norm.w[b];

        must(o->linear(d, m->normed.a[b], l->qkv.w[b], l->bias.w[b], m->qkv.a[b], &err));
        must(o->qk_norm_rope_kv(d, i, m->qkv.a[b], l->q_norm.w[b], l->k_norm.w[b], &err));
        must(o->attention(d, i, m->qkv.a[b], i ? window : 0, m->attended.a[b], &err));
        must(o->linear_reduce_norm(d, m->attended.a[b], l->o.w[b], l->post_norm.w[b],
                                   m->residual.a[b], m->normed.a[b], &err));
        must(o->gate_up_silu(d, m->normed.a[b], l->gate_up.w[b], m->mid.a[b], &err));
        must(o->linear_reduce_norm(d, m->mid.a[b], l->down.w[b], next, m->residual.a[b],
                                   m->normed.a[b], &err));
    }
    must(o->sample(d, m->normed.a[b], m->lm_head.w[b], &err));
}

static void both_step(struct model *m, const struct ops_row *rows, uint32_t count, uint32_t window)
{
    const struct ops_sampled *results[2];
    uint32_t found[2], asked = 0;

    for (uint32_t i = 0; i < count; i++)
        asked += rows[i].sample;
    for (int b = 0; b < 2; b++) {
        model_step(m, b, rows, count, window);
        must(m->p.ops[b]->step_end(m->p.device[b], &results[b], &found[b], &err));
        assert_int_equal(found[b], asked);
    }
    for (uint32_t i = 0; i < asked; i++) {
        const float *x = m->p.ops[1]->logits(m->p.device[1], i);
        const float *y = m->p.ops[0]->logits(m->p.device[0], i);
        double error = relative_error(x, y, m->p.shape.vocab);

        assert_int_equal(results[1][i].slot, results[0][i].slot);
        assert_int_equal(results[1][i].id, results[0][i].id);
        if (!(error < LIMIT)) {
            print_error("result %u of %u: error %g\n", i, asked, error);
            fail();
        }
        m->worst.error = error > m->worst.error ? error : m->worst.error;
    }
    assert_null(m->p.ops[1]->logits(m->p.device[1], asked));
}

/* Opens slots [from, to) with prompts, in one ragged step with what runs already. */
static void slots_join(struct model *m, uint32_t from, uint32_t to, uint32_t window)
{
    struct ops_row rows[SLOTS];
    uint32_t count = 0;

    for (uint32_t i = from; i < to; i++) {
        struct ops_bias bias = {random_below(&m->p.random, m->p.shape.vocab), 1e6f};
        struct ops_sampling sampling = greedy;

        sampling.bias = &bias;
        sampling.bias_count = 1;
        m->length[i] = 1 + random_below(&m->p.random, 14);
        slot_fill(&m->p, i, m->length[i], 0, &sampling);
    }
    for (uint32_t i = 0; i < SLOTS; i++)
        if (m->length[i]) {
            bool joins = i >= from && i < to;

            rows[count++] =
                (struct ops_row){i, joins ? 0 : m->length[i] - 1, joins ? m->length[i] : 1, true};
            m->length[i]++;
        }
    both_step(m, rows, count, window);
}

static void slots_decode(struct model *m, uint32_t steps, uint32_t window)
{
    for (uint32_t s = 0; s < steps; s++) {
        struct ops_row rows[SLOTS];
        uint32_t count = 0;

        for (uint32_t i = SLOTS; i-- > 0;) /* not in the order of slots */
            if (m->length[i])
                rows[count++] = (struct ops_row){i, m->length[i]++ - 1, 1, true};
        both_step(m, rows, count, window);
    }
}

static void slots_leave(struct model *m, uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++) {
        for (int b = 0; b < 2; b++)
            m->p.ops[b]->slot_close(m->p.device[b], i);
        m->length[i] = 0;
    }
}

static void model_run(const struct shape *s, uint32_t window, const char **skipped)
{
    struct model *m = mem_zalloc(sizeof *m);

    *skipped = NULL;
    m->worst.op = "logits";
    if (!pair_open(&m->p, s, 77)) {
        free(m);
        *skipped = "no GPU";
        return;
    }
    model_make(m);
    slots_join(m, 2, 3, window);
    slots_decode(m, 4, window);
    slots_join(m, 5, 8, window);
    slots_decode(m, 3, window);
    slots_join(m, 9, 15, window); /* ten rows: replayed as sixteen */
    slots_decode(m, 4, window);
    slots_leave(m, 5, 6);
    slots_decode(m, 3, window);
    slots_leave(m, 0, SLOTS);
    m->p.pages_used = 0;
    slots_join(m, 11, 12, window);
    slots_decode(m, 2, window);
    print_message("largest error of logits: %.1e\n", m->worst.error);
    pair_close(&m->p);
    free(m);
}

static void test_steps(void **state)
{
    static const struct shape shapes[] = {
        {256, 8, 2, 64, 384, 1003, 16, DTYPE_BF16},
        {256, 4, 1, 128, 384, 1003, 1, DTYPE_F16},
        {64, 4, 2, 16, 96, 331, 4, DTYPE_BF16},
    };
    const char *skipped = NULL;
    (void)state;

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && !skipped; i++)
        model_run(&shapes[i], i == 1 ? 9 : 0, &skipped);
    if (skipped)
        skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_steps)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Log probabilities of known tokens, CUDA against CPU: values are such that logits are exact, so
 * ids are the same to the last. */
#include "tests/kernels/pair.h"

#include "common/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TOKENS (49u + 30u + 4u)
#define SCORED (49u + 20u + 4u)

static const struct ops_row rows[] = {{3, 0, 49, false}, {7, 0, 30, true}, {0, 3, 4, false}};
static const struct ops_score scores[] = {{0, 0, 49}, {1, 5, 20}, {2, 3, 4}};

struct outcome {
    struct ops_sampled scored[SCORED], sampled;
};

static void backend_step(struct pair *p, int b, const struct both_weights *head,
                         struct both_acts *normed, const float *x, struct outcome *out)
{
    const struct ops *o = p->ops[b];
    struct device *d = p->device[b];
    const struct ops_sampled *scored, *sampled;
    uint32_t count;

    must(o->step_begin(d, rows, 3, &err));
    must(o->act_write(d, normed->a[b], TOKENS, x, &err));
    must(o->score(d, normed->a[b], head->w[b], scores, 3, &scored, &err));
    must(o->sample(d, normed->a[b], head->w[b], &err));
    must(o->step_end(d, &sampled, &count, &err));
    assert_int_equal(count, 1);
    memcpy(out->scored, scored, sizeof out->scored);
    out->sampled = *sampled;
}

static void same(const struct ops_sampled *x, const struct ops_sampled *y)
{
    assert_int_equal(x->slot, y->slot);
    assert_int_equal(x->id, y->id);
    assert_int_equal(x->top_count, y->top_count);
    assert_true(fabsf(x->logprob - y->logprob) <= 1e-4f * (1.0f + fabsf(y->logprob)));
    for (uint32_t k = 0; k < x->top_count; k++) {
        float a = x->top_logprobs[k], b = y->top_logprobs[k];

        assert_int_equal(x->top_ids[k], y->top_ids[k]);
        assert_true(fabsf(a - b) <= 1e-4f * (1.0f + fabsf(b)));
    }
}

static void refused(struct pair *p, struct both_weights *head, struct both_acts *normed)
{
    static const struct ops_score bad[] = {
        {3, 0, 1},          /* no such row */
        {0, 0, 50},         /* past the row */
        {2, 2, 1},          /* before it */
        {1, 29, 1},         /* nothing follows */
        {0, 0, UINT32_MAX}, /* far past it */
    };
    const struct ops_sampled *scored;

    for (int b = 0; b < 2; b++)
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
            const struct ops_sampled *sampled;
            struct err wrong = {0};
            uint32_t count;

            must(p->ops[b]->step_begin(p->device[b], rows, 3, &err));
            assert_int_equal(p->ops[b]->score(p->device[b], normed->a[b], head->w[b], &bad[i], 1,
                                              &scored, &wrong),
                             ERR_INVALID);
            must(p->ops[b]->step_end(p->device[b], &sampled, &count, &err));
        }
}

static void score_run(const struct shape *s, const char **skipped)
{
    struct ops_sampling wanted[3] = {greedy, greedy, greedy};
    struct outcome *out = mem_array(2, sizeof *out);
    struct both_weights head;
    struct both_acts normed;
    struct pair p;
    float *x;

    if (!pair_open(&p, s, 91)) {
        *skipped = "no GPU";
        free(out);
        return;
    }
    head = weight_make(&p, WEIGHT_MATRIX, s->vocab, s->hidden, 1.0f, 0.0f);
    pair_pool(&p, 128, 96);
    normed = act_make(&p, s->hidden);
    x = random_array(&p.random, (size_t)TOKENS * s->hidden, 0.25f);
    wanted[0].logprobs = 5;
    wanted[1].logprobs = 0;
    wanted[0].temperature = 0.9f; /* not a score's business */
    wanted[2].logprobs = 20;
    slot_fill(&p, 3, 50, 0, &wanted[0]);
    slot_fill(&p, 7, 30, 0, &wanted[1]);
    slot_fill(&p, 0, 9, 2, &wanted[2]);
    refused(&p, &head, &normed);
    for (int b = 0; b < 2; b++)
        backend_step(&p, b, &head, &normed, x, &out[b]);
    for (uint32_t i = 0; i < SCORED; i++) {
        same(&out[1].scored[i], &out[0].scored[i]);
        assert_int_equal(out[1].scored[i].top_count, i < 49 ? 5 : i < 69 ? 0 : 20);
    }
    same(&out[1].sampled, &out[0].sampled);
    free(x);
    free(out);
    pair_close(&p);
}

static void test_score(void **state)
{
    static const struct shape shapes[] = {
        {128, 2, 1, 64, 64, 1003, 16, DTYPE_BF16},
        {64, 2, 1, 64, 64, 20011, 16, DTYPE_F16},
    };
    const char *skipped = NULL;
    (void)state;

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && !skipped; i++)
        score_run(&shapes[i], &skipped);
    if (skipped)
        skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_score)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Every operation of the CUDA backend but attention against the CPU backend, on the same random
 * numbers, outputs poisoned before. Skips where there is no GPU. */
#include "tests/kernels/pair.h"

#include "common/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define LIMIT 1e-2

static const uint32_t token_counts[] = {1, 2, 3, 4, 5, 7, 16, 17, 64, 129, 300};

/* One slot of 300 tokens; steps of its first T tokens. */
static void test_layers(void **state)
{
    struct worst w_linear = {"linear", 0}, w_bias = {"linear with bias", 0},
                 w_gate = {"gate_up_silu", 0}, w_embed = {"embed", 0},
                 w_embed_norm = {"embed: normed", 0}, w_reduce = {"linear_reduce_norm", 0},
                 w_reduce_norm = {"linear_reduce_norm: normed", 0};
    (void)state;

    for (size_t i = 0; i < PAIR_SHAPES; i += slow() ? 2 : 1) {
        const struct shape *s = &pair_shapes[i];
        uint32_t n = (s->heads + 2 * s->kv_heads) * s->head_dim;
        struct both_weights embedding, norm, w, bias, gate_up, down;
        struct both_acts residual, normed, qkv, mid;
        struct pair p;

        if (!pair_open(&p, s, 1 + i))
            skip();
        embedding = weight_make(&p, WEIGHT_EMBED, s->vocab, s->hidden, 1.0f, 0.0f);
        norm = weight_make(&p, WEIGHT_VECTOR, 1, s->hidden, 0.5f, 1.0f);
        w = weight_make(&p, WEIGHT_MATRIX, n, s->hidden, 0.25f, 0.0f);
        bias = weight_make(&p, WEIGHT_VECTOR, 1, n, 2.0f, 0.0f);
        gate_up = weight_make(&p, WEIGHT_GATE_UP, 2 * s->intermediate, s->hidden, 0.125f, 0.0f);
        down = weight_make(&p, WEIGHT_MATRIX, s->hidden, s->intermediate, 0.125f, 0.0f);
        pair_pool(&p, 512, 400);
        residual = act_make(&p, s->hidden);
        normed = act_make(&p, s->hidden);
        qkv = act_make(&p, n);
        mid = act_make(&p, s->intermediate);
        slot_fill(&p, 3, 300, 0, &greedy);
        for (size_t t = 0; t < sizeof token_counts / sizeof *token_counts; t++) {
            uint32_t tokens = token_counts[t];
            struct ops_row row = {.slot = 3, .count = tokens};

            if (slow() && tokens > 64)
                break;
            step_begin(&p, &row, 1);
            act_poison(&p, &residual, tokens);
            act_poison(&p, &normed, tokens);
            for (int b = 0; b < 2; b++)
                must(p.ops[b]->embed(p.device[b], embedding.w[b], norm.w[b], residual.a[b],
                                     normed.a[b], &err));
            act_compare(&p, &residual, tokens, &w_embed, 0.0);
            act_compare(&p, &normed, tokens, &w_embed_norm, LIMIT);

            act_fill(&p, &normed, tokens, 2.0f);
            act_poison(&p, &qkv, tokens);
            for (int b = 0; b < 2; b++)
                must(p.ops[b]->linear(p.device[b], normed.a[b], w.w[b], NULL, qkv.a[b], &err));
            act_compare(&p, &qkv, tokens, &w_linear, LIMIT);
            act_poison(&p, &qkv, tokens);
            for (int b = 0; b < 2; b++)
                must(p.ops[b]->linear(p.device[b], normed.a[b], w.w[b], bias.w[b], qkv.a[b], &err));
            act_compare(&p, &qkv, tokens, &w_bias, LIMIT);
            act_poison(&p, &mid, tokens);
            for (int b = 0; b < 2; b++)
                must(
                    p.ops[b]->gate_up_silu(p.device[b], normed.a[b], gate_up.w[b], mid.a[b], &err));
            act_compare(&p, &mid, tokens, &w_gate, LIMIT);

            act_fill(&p, &mid, tokens, 1.0f);
            act_fill(&p, &residual, tokens, 4.0f);
            act_poison(&p, &normed, tokens);
            for (int b = 0; b < 2; b++)
                must(p.ops[b]->linear_reduce_norm(p.device[b], mid.a[b], down.w[b], norm.w[b],
                                                  residual.a[b], normed.a[b], &err));
            act_compare(&p, &residual, tokens, &w_reduce, LIMIT);
            act_compare(&p, &normed, tokens, &w_reduce_norm, LIMIT);
            step_end(&p);
        }
        pair_close(&p);
    }
    print_message("errors: embed %.1e normed %.1e linear %.1e bias %.1e gate_up %.1e reduce %.1e "
                  "normed %.1e\n",
                  w_embed.error, w_embed_norm.error, w_linear.error, w_bias.error, w_gate.error,
                  w_reduce.error, w_reduce_norm.error);
}

/* Hidden sizes that the matrix-vector kernel does not take, whose norm it makes, and too large for
 * that; each number of warps that share a row. */
static const struct shape chained[] = {
    {64, 4, 2, 16, 96, 331, 16, DTYPE_BF16},     {100, 4, 4, 26, 54, 131, 3, DTYPE_BF16},
    {896, 14, 2, 64, 616, 257, 16, DTYPE_F16},   {1024, 16, 8, 128, 3072, 999, 16, DTYPE_BF16},
    {2048, 8, 2, 128, 1032, 257, 16, DTYPE_F16}, {2048, 24, 8, 128, 5000, 257, 16, DTYPE_BF16},
    {2304, 4, 4, 64, 264, 131, 16, DTYPE_BF16},
};
#define CHAIN_ROWS 5u
#define CHAIN_LIMIT 2e-2
#define ODD 37u

struct chain {
    struct pair p;
    struct both_weights embedding, norm[2], qkv, bias, odd, o, gate_up, down;
    struct both_acts residual, normed, other, heads, few, mid;
    struct worst w_residual, w_normed, w_out;
};

static void chain_make(struct chain *c)
{
    struct pair *p = &c->p;
    const struct shape *s = &p->shape;
    uint32_t n = (s->heads + 2 * s->kv_heads) * s->head_dim;

    c->embedding = weight_make(p, WEIGHT_EMBED, s->vocab, s->hidden, 1.0f, 0.0f);
    for (int i = 0; i < 2; i++)
        c->norm[i] = weight_make(p, WEIGHT_VECTOR, 1, s->hidden, 0.5f, 1.0f);
    c->qkv = weight_make(p, WEIGHT_MATRIX, n, s->hidden, 0.125f, 0.0f);
    c->bias = weight_make(p, WEIGHT_VECTOR, 1, n, 2.0f, 0.0f);
    c->odd = weight_make(p, WEIGHT_MATRIX, ODD, s->hidden, 0.125f, 0.0f);
    c->o = weight_make(p, WEIGHT_MATRIX, s->hidden, n, 0.125f, 0.0f);
    c->gate_up = weight_make(p, WEIGHT_GATE_UP, 2 * s->intermediate, s->hidden, 0.0625f, 0.0f);
    c->down = weight_make(p, WEIGHT_MATRIX, s->hidden, s->intermediate, 0.125f, 0.0f);
    pair_pool(p, 64, 64);
    c->residual = act_make(p, s->hidden);
    c->normed = act_make(p, s->hidden);
    c->other = act_make(p, s->hidden);
    c->heads = act_make(p, n);
    c->few = act_make(p, ODD);
    c->mid = act_make(p, s->intermediate);
}

/* A layer and the products behind it, of which nothing is read before the end. */
static void chain_run(struct chain *c, int b)
{
    const struct ops *o = c->p.ops[b];
    struct device *d = c->p.device[b];
    struct act *residual = c->residual.a[b], *normed = c->normed.a[b], *heads = c->heads.a[b];
    struct act *mid = c->mid.a[b];

    must(o->embed(d, c->embedding.w[b], c->norm[0].w[b], residual, normed, &err));
    must(o->linear(d, normed, c->qkv.w[b], c->bias.w[b], heads, &err));
    must(o->linear_reduce_norm(d, heads, c->o.w[b], c->norm[1].w[b], residual, normed, &err));
    must(o->gate_up_silu(d, normed, c->gate_up.w[b], mid, &err));
    must(o->linear_reduce_norm(d, mid, c->down.w[b], c->norm[0].w[b], residual, normed, &err));
    must(o->linear(d, normed, c->odd.w[b], NULL, c->few.a[b], &err));
    must(o->linear(d, normed, c->qkv.w[b], c->bias.w[b], heads, &err));
}

/* A norm of what the residual stream was before it changed again; one that nothing reads; a product
 * that is written over one. */
static void chain_return(struct chain *c, int b)
{
    const struct ops *o = c->p.ops[b];
    struct device *d = c->p.device[b];
    struct act *residual = c->residual.a[b], *normed = c->normed.a[b], *other = c->other.a[b];
    struct act *heads = c->heads.a[b], *mid = c->mid.a[b];

    must(o->linear_reduce_norm(d, heads, c->o.w[b], c->norm[1].w[b], residual, other, &err));
    must(o->linear_reduce_norm(d, mid, c->down.w[b], c->norm[0].w[b], residual, normed, &err));
    must(o->linear_reduce_norm(d, mid, c->down.w[b], c->norm[1].w[b], residual, normed, &err));
    must(o->gate_up_silu(d, other, c->gate_up.w[b], mid, &err));
    must(o->linear(d, mid, c->down.w[b], NULL, normed, &err));
    must(o->linear(d, normed, c->odd.w[b], NULL, c->few.a[b], &err));
}

static void chain_step(struct chain *c, uint32_t tokens, bool noted)
{
    struct both_acts *acts[] = {&c->residual, &c->normed, &c->other, &c->heads, &c->few, &c->mid};
    struct pair *p = &c->p;
    struct ops_row rows[CHAIN_ROWS];

    for (uint32_t i = 0; i < tokens; i++) {
        slot_fill(p, i, 1, 0, &greedy);
        rows[i] = (struct ops_row){.slot = i, .count = 1, .sample = noted};
    }
    for (size_t i = 0; i < sizeof acts / sizeof *acts; i++)
        act_poison(p, acts[i], tokens);
    step_begin(p, rows, tokens);
    for (int b = 0; b < 2; b++)
        chain_run(c, b);
    act_compare(p, &c->heads, tokens, &c->w_out, CHAIN_LIMIT);
    act_compare(p, &c->few, tokens, &c->w_out, CHAIN_LIMIT);
    act_compare(p, &c->residual, tokens, &c->w_residual, CHAIN_LIMIT);
    act_compare(p, &c->normed, tokens, &c->w_normed, CHAIN_LIMIT);
    for (int b = 0; b < 2; b++)
        chain_return(c, b);
    act_compare(p, &c->few, tokens, &c->w_out, CHAIN_LIMIT);
    act_compare(p, &c->residual, tokens, &c->w_residual, CHAIN_LIMIT);
    act_compare(p, &c->normed, tokens, &c->w_normed, CHAIN_LIMIT);
    step_end(p);
    slots_clear(p, tokens);
}

/* Operations that leave something to the next ones, called one by one and noted. */
static void test_chain(void **state)
{
    struct chain c = {.w_residual = {"chain: residual", 0},
                      .w_normed = {"chain: normed", 0},
                      .w_out = {"chain: products", 0}};
    (void)state;

    for (size_t i = 0; i < sizeof chained / sizeof *chained; i++) {
        if (slow() && chained[i].intermediate > 1024)
            continue;
        if (!pair_open(&c.p, &chained[i], 200 + i))
            skip();
        chain_make(&c);
        for (uint32_t tokens = 1; tokens <= CHAIN_ROWS; tokens++) {
            chain_step(&c, tokens, false);
            chain_step(&c, tokens, true);
        }
        pair_close(&c.p);
    }
    print_message("errors: chain residual %.1e normed %.1e products %.1e\n", c.w_residual.error,
                  c.w_normed.error, c.w_out.error);
}

struct choice {
    struct ops_sampling sampling;
    uint32_t prompt, generated;
};

static const uint32_t end_ids[] = {5, 17, 300};
static const struct ops_bias biases[] = {{3, 2.5f}, {250, -100.0f}, {3, 0.25f}, {77, 4.0f}};

#define BASE .top_p = 1.0f, .repetition_penalty = 1.0f
static const struct choice choices[] = {
    {{BASE, .logprobs = -1}, 5, 0},
    {{BASE, .logprobs = 0}, 5, 0},
    {{BASE, .logprobs = 20}, 5, 0},
    {{BASE, .temperature = 1.0f, .logprobs = 5}, 9, 3},
    {{BASE, .temperature = 0.7f, .logprobs = -1}, 9, 0},
    {{BASE, .temperature = 3.0f, .top_k = 1, .logprobs = -1}, 9, 0},
    {{BASE, .temperature = 3.0f, .top_k = 5, .logprobs = 3}, 9, 0},
    {{BASE, .temperature = 3.0f, .top_k = 64, .logprobs = -1}, 9, 0},
    {{BASE, .temperature = 3.0f, .top_k = 65, .logprobs = -1}, 9, 0},
    {{BASE, .temperature = 5.0f, .top_k = 200, .logprobs = 2}, 9, 0},
    {{.top_p = 0.1f, .repetition_penalty = 1.0f, .temperature = 0.2f, .logprobs = -1}, 9, 0},
    {{.top_p = 0.5f, .repetition_penalty = 1.0f, .temperature = 1.0f, .logprobs = 1}, 9, 0},
    {{.top_p = 0.95f, .repetition_penalty = 1.0f, .temperature = 1.0f, .logprobs = -1}, 9, 0},
    {{.top_p = 0.999f, .repetition_penalty = 1.0f, .temperature = 9.0f, .logprobs = 20}, 9, 0},
    {{BASE, .temperature = 2.0f, .min_p = 0.05f, .logprobs = -1}, 9, 0},
    {{BASE, .temperature = 0.5f, .min_p = 0.5f, .logprobs = -1}, 9, 0},
    {{.top_p = 0.9f,
      .repetition_penalty = 1.0f,
      .temperature = 2.0f,
      .top_k = 40,
      .min_p = 0.01f,
      .logprobs = 4},
     9,
     0},
    {{.top_p = 0.9f,
      .repetition_penalty = 1.0f,
      .temperature = 4.0f,
      .top_k = 100,
      .min_p = 0.01f,
      .logprobs = 4},
     9,
     0},
    {{.top_p = 1.0f, .repetition_penalty = 1.3f, .logprobs = 2}, 60, 30},
    {{.top_p = 0.8f,
      .repetition_penalty = 1.1f,
      .presence_penalty = 0.5f,
      .frequency_penalty = 0.25f,
      .temperature = 1.5f,
      .logprobs = 2},
     60,
     40},
    {{.top_p = 1.0f,
      .repetition_penalty = 1.0f,
      .presence_penalty = -1.0f,
      .frequency_penalty = 1.0f,
      .temperature = 1.0f,
      .logprobs = -1},
     60,
     40},
    {{BASE, .bias = biases, .bias_count = 4, .logprobs = 3}, 9, 0},
    {{BASE, .temperature = 1.0f, .bias = biases, .bias_count = 4, .logprobs = -1}, 9, 0},
    {{BASE, .min_tokens = 4, .end_ids = end_ids, .end_ids_count = 3, .logprobs = -1}, 9, 2},
    {{BASE, .min_tokens = 2, .end_ids = end_ids, .end_ids_count = 3, .logprobs = -1}, 9, 2},
};
#define CHOICES (sizeof choices / sizeof *choices)

/* Rows of x with two entries each: logits are exact sums of two of lm_head's numbers, the same bits
 * on any backend, with a few equal ones among them. */
static void normed_prescribe(struct pair *p, struct both_acts *normed, uint32_t tokens)
{
    uint32_t h = normed->width;
    float *x = mem_array((size_t)tokens * h, sizeof *x);

    for (uint32_t t = 0; t < tokens; t++) {
        uint32_t a = random_below(&p->random, h);

        x[(size_t)t * h + a] = 8.0f;
        x[(size_t)t * h + (a + 1 + random_below(&p->random, h - 1)) % h] = 1.0f / 64.0f;
    }
    for (int b = 0; b < 2; b++)
        must(p->ops[b]->act_write(p->device[b], normed->a[b], tokens, x, &err));
    free(x);
}

static void sampled_compare(const struct pair *p, const struct ops_sampled *a,
                            const struct ops_sampled *b, uint32_t choice)
{
    if (a->id != b->id || a->slot != b->slot || a->top_count != b->top_count) {
        print_error("choice %u, vocabulary %u: %u of slot %u, %u tops; reference %u of %u, %u\n",
                    choice, p->shape.vocab, a->id, a->slot, a->top_count, b->id, b->slot,
                    b->top_count);
        fail();
    }
    assert_true(fabsf(a->logprob - b->logprob) <= 1e-4f * (1.0f + fabsf(b->logprob)));
    for (uint32_t i = 0; i < a->top_count; i++) {
        assert_int_equal(a->top_ids[i], b->top_ids[i]);
        assert_true(fabsf(a->top_logprobs[i] - b->top_logprobs[i]) <=
                    1e-4f * (1.0f + fabsf(b->top_logprobs[i])));
    }
}

/* A few steps in a row: tokens chosen are read back through embed and counted by penalties. */
static void choice_run(struct pair *p, const uint32_t *which, uint32_t rows_count,
                       struct both_weights *lm_head, struct both_weights *norm,
                       struct both_acts *residual, struct both_acts *normed)
{
    struct worst w_embed = {"embed of sampled tokens", 0};
    struct ops_row rows[SLOTS];

    for (uint32_t i = 0; i < rows_count; i++) {
        const struct choice *c = &choices[which[i]];
        struct ops_sampling sampling = c->sampling;

        sampling.seed = (uint64_t)which[i] << 33 | random_below(&p->random, 1000000);
        slot_fill(p, i, c->prompt + c->generated, c->generated, &sampling);
        rows[i] = (struct ops_row){.slot = i, .count = c->prompt + c->generated, .sample = true};
    }
    for (uint32_t step = 0; step < 3; step++) {
        const struct ops_sampled *results[2];
        uint32_t count[2], tokens = 0;

        for (uint32_t i = 0; i < rows_count; i++)
            tokens += rows[i].count;
        step_begin(p, rows, rows_count);
        for (int b = 0; b < 2; b++)
            must(p->ops[b]->embed(p->device[b], lm_head->w[b], norm->w[b], residual->a[b],
                                  normed->a[b], &err));
        act_compare(p, residual, tokens, &w_embed, 0.0);
        normed_prescribe(p, normed, tokens);
        for (int b = 0; b < 2; b++) {
            must(p->ops[b]->sample(p->device[b], normed->a[b], lm_head->w[b], &err));
            must(p->ops[b]->step_end(p->device[b], &results[b], &count[b], &err));
            assert_int_equal(count[b], rows_count);
        }
        for (uint32_t i = 0; i < rows_count; i++) {
            const float *x = p->ops[0]->logits(p->device[0], i);
            const float *y = p->ops[1]->logits(p->device[1], i);

            assert_memory_equal(x, y, p->shape.vocab * sizeof *x);
            sampled_compare(p, &results[1][i], &results[0][i], which[i]);
            rows[i].start += rows[i].count;
            rows[i].count = 1;
        }
    }
    slots_clear(p, rows_count);
}

static void test_sample(void **state)
{
    static const uint32_t vocabs[] = {40, 1000, 4097, 33000, 152064};
    (void)state;

    for (size_t v = 0; v < sizeof vocabs / sizeof *vocabs; v++) {
        struct shape s = {64, 1, 1, 64, 64, vocabs[v], 16, v % 2 ? DTYPE_F16 : DTYPE_BF16};
        struct both_weights lm_head, norm;
        struct both_acts residual, normed;
        uint32_t first = 0;
        struct pair p;

        if (slow() && s.vocab > 5000)
            break;
        if (!pair_open(&p, &s, 1000 + v))
            skip();
        lm_head = weight_make(&p, WEIGHT_EMBED, s.vocab, s.hidden, 1.0f, 0.0f);
        norm = weight_make(&p, WEIGHT_VECTOR, 1, s.hidden, 0.5f, 1.0f);
        pair_pool(&p, 2048, 256);
        residual = act_make(&p, s.hidden);
        normed = act_make(&p, s.hidden);
        for (uint32_t round = 0; first < CHOICES * (v < 3 ? 4 : 1); round++) {
            uint32_t which[SLOTS], n = round % 3 == 0 ? 1 : round % 3 == 1 ? 7 : SLOTS;

            for (uint32_t i = 0; i < n; i++)
                which[i] = (first + i) % CHOICES;
            choice_run(&p, which, n, &lm_head, &norm, &residual, &normed);
            first += n;
        }
        pair_close(&p);
    }
}

static void refused(int rc, int expected, const struct err *err, const char *word)
{
    assert_int_equal(rc, expected);
    if (!strstr(err->msg, word)) {
        print_error("no '%s' in: %s\n", word, err->msg);
        fail();
    }
}

static void test_refusals(void **state)
{
    struct shape s = {64, 4, 2, 64, 64, 100, 16, DTYPE_BF16};
    struct ops_config config = {.tp_size = 1, .device_index = 4000};
    float inv_freq[256] = {0}, huge[64] = {1e6f};
    struct ops_sampling many = greedy;
    struct ops_row row = {.slot = 0, .count = 3};
    struct ops_model model = model_of(&s, inv_freq);
    struct device *none = NULL, *d;
    const struct ops *ops;
    struct weight *w;
    struct pair p;
    struct err e = {0};
    uint32_t tokens[3] = {1, 2, 100}, page = 4;
    (void)state;

    if (!pair_open(&p, &s, 7))
        skip();
    ops = p.ops[1];
    d = p.device[1];
    refused(ops->device_open(&config, &model, &none, &e), ERR_UNSUPPORTED, &e, "4000");
    config.device_index = 0;
    model.head_dim = 512;
    refused(ops->device_open(&config, &model, &none, &e), ERR_UNSUPPORTED, &e, "head_dim");
    refused(ops->weight_new(d, WEIGHT_MATRIX, DTYPE_F32, 8, 64, &w, &e), ERR_UNSUPPORTED, &e,
            "float32");
    must(ops->weight_new(d, WEIGHT_MATRIX, DTYPE_F16, 1, 64, &w, &err));
    refused(ops->weight_write(d, w, 0, 1, huge, DTYPE_F32, &e), ERR_UNSUPPORTED, &e, "range");
    refused(ops->weight_write(d, w, 1, 1, huge, DTYPE_F32, &e), ERR_INVALID, &e, "rows");
    refused(ops->weight_new(d, WEIGHT_MATRIX, DTYPE_BF16, 8, 64, &w, &e), ERR_UNSUPPORTED, &e,
            "both");
    must(ops->pool_alloc(d, 4, 16, 2, 8, 32, &err));
    refused(ops->slot_open(d, 0, tokens, 3, 0, &greedy, &e), ERR_INVALID, &e, "token id 100");
    tokens[2] = 3;
    many.bias_count = 100000;
    refused(ops->slot_open(d, 0, tokens, 3, 0, &many, &e), ERR_LIMIT, &e, "biases");
    must(ops->slot_open(d, 0, tokens, 3, 0, &greedy, &err));
    refused(ops->slot_open(d, 0, tokens, 3, 0, &greedy, &e), ERR_INVALID, &e, "open");
    refused(ops->slot_pages(d, 0, 0, &page, 1, &e), ERR_INVALID, &e, "page 4");
    refused(ops->step_begin(d, &row, 1, &e), ERR_INVALID, &e, "past");
    refused(ops->slot_open(d, 2, tokens, 3, 0, &greedy, &e), ERR_INVALID, &e, "slot 2");
    pair_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_layers),
        cmocka_unit_test(test_chain),
        cmocka_unit_test(test_sample),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

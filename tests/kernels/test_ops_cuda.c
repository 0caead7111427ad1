/* Every operation of the CUDA backend against the CPU backend, on the same random numbers, outputs
 * poisoned before. Skips where there is no GPU. */
#include "tests/kernels/pair.h"

#include "common/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define LIMIT 1e-2

/* Under compute-sanitizer: what is smaller does. */
static bool slow(void)
{
    return getenv("SANITIZE") != NULL;
}

static const struct shape shapes[] = {
    {64, 4, 2, 16, 96, 331, 16, DTYPE_BF16},       {256, 4, 1, 64, 320, 1000, 16, DTYPE_BF16},
    {256, 8, 8, 64, 256, 257, 1, DTYPE_F16},       {512, 6, 2, 128, 704, 1537, 16, DTYPE_BF16},
    {1024, 16, 8, 128, 3072, 4099, 1, DTYPE_BF16}, {384, 24, 1, 64, 200, 999, 5, DTYPE_F16},
    {128, 32, 1, 128, 136, 640, 32, DTYPE_F16},    {100, 4, 4, 26, 54, 131, 3, DTYPE_BF16},
};
#define SHAPES (sizeof shapes / sizeof *shapes)

static const uint32_t token_counts[] = {1, 2, 3, 4, 5, 7, 16, 17, 64, 129, 300};

/* One slot of 300 tokens; steps of its first T tokens. */
static void test_layers(void **state)
{
    struct worst w_linear = {"linear", 0}, w_bias = {"linear with bias", 0},
                 w_gate = {"gate_up_silu", 0}, w_embed = {"embed", 0},
                 w_embed_norm = {"embed: normed", 0}, w_reduce = {"linear_reduce_norm", 0},
                 w_reduce_norm = {"linear_reduce_norm: normed", 0};
    (void)state;

    for (size_t i = 0; i < SHAPES; i++) {
        const struct shape *s = &shapes[i];
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

/* Rows of a step: what is in the pages already, and what is computed. */
struct lengths {
    uint32_t start, count;
};
static const struct lengths scenes[][8] = {
    {{0, 1}},   {{63, 1}, {64, 1}, {15, 1}, {300, 1}, {0, 1}, {129, 1}},
    {{0, 300}}, {{17, 1}, {0, 33}, {100, 70}, {250, 1}, {5, 2}, {640, 1}},
    {{900, 1}}, {{513, 64}, {1, 1}},
};
/* Prompts: of whole tiles and a row more or less, behind prefixes that end within a page. */
static const struct lengths prompts[][8] = {
    {{0, 300}},
    {{0, 128}, {0, 129}, {0, 127}},
    {{399, 400}},
    {{130, 2}, {511, 130}, {1, 5}, {0, 257}},
    {{77, 64}, {600, 100}, {0, 2}, {900, 3}, {8, 1}, {255, 2}, {256, 17}},
};
static const struct shape prompt_shapes[] = {
    {64, 2, 2, 64, 64, 100, 16, DTYPE_BF16},  {64, 4, 2, 128, 64, 100, 16, DTYPE_F16},
    {64, 4, 1, 64, 64, 100, 32, DTYPE_F16},   {64, 10, 2, 128, 64, 100, 8, DTYPE_BF16},
    {64, 8, 1, 128, 64, 100, 16, DTYPE_BF16}, {64, 24, 1, 64, 64, 100, 24, DTYPE_BF16},
    {64, 5, 1, 128, 64, 100, 48, DTYPE_F16},  {64, 2, 1, 128, 64, 100, 256, DTYPE_BF16},
    {64, 3, 1, 64, 64, 100, 128, DTYPE_BF16}, {64, 5, 1, 128, 64, 100, 12, DTYPE_BF16},
};
#define PROMPT_SHAPES (sizeof prompt_shapes / sizeof *prompt_shapes)

static const uint32_t windows[] = {0, 7, 64, 100, 128, 300};

/* The pages that a scene is about to use hold what a kernel must not read. */
static void pages_poison(struct pair *p, const struct lengths *scene, struct both_acts *qkv)
{
    uint32_t size = p->shape.page_size, each = size < 256 ? 256 / size : 1, pages = 0;
    uint32_t tokens[512] = {0};

    for (uint32_t i = 0; i < 8 && scene[i].count; i++)
        pages += (scene[i].start + scene[i].count + 40 + size - 1) / size;
    for (uint32_t at = 0; at < pages; at += each) {
        uint32_t n = pages - at < each ? pages - at : each;
        struct ops_row row = {.slot = 0, .count = n * size};

        for (int b = 0; b < 2; b++) {
            must(p->ops[b]->slot_open(p->device[b], 0, tokens, row.count, 0, &greedy, &err));
            must(p->ops[b]->slot_pages(p->device[b], 0, 0, p->page_list + at, n, &err));
        }
        step_begin(p, &row, 1);
        act_poison(p, qkv, row.count);
        for (int b = 0; b < 2; b++)
            must(p->ops[b]->qk_norm_rope_kv(p->device[b], 1, qkv->a[b], NULL, NULL, &err));
        step_end(p);
        slots_clear(p, 1);
    }
}

static uint32_t scene_open(struct pair *p, const struct lengths *scene, struct both_acts *qkv,
                           const struct both_weights *q_norm, const struct both_weights *k_norm,
                           struct ops_row *rows)
{
    uint32_t count = 0;

    pages_poison(p, scene, qkv);
    for (; count < 8 && scene[count].count; count++)
        slot_fill(p, count, scene[count].start + scene[count].count, 0, &greedy);
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t at = 0; at < scene[i].start;) {
            uint32_t n = scene[i].start - at < 256 ? scene[i].start - at : 256;
            struct ops_row row = {.slot = i, .start = at, .count = n};

            step_begin(p, &row, 1);
            act_fill(p, qkv, n, 2.0f);
            for (int b = 0; b < 2; b++)
                must(p->ops[b]->qk_norm_rope_kv(p->device[b], 1, qkv->a[b],
                                                q_norm ? q_norm->w[b] : NULL,
                                                k_norm ? k_norm->w[b] : NULL, &err));
            step_end(p);
            at += n;
        }
        rows[i] = (struct ops_row){.slot = i, .start = scene[i].start, .count = scene[i].count};
    }
    return count;
}

static void attention_compare(struct pair *p, const struct both_acts *qkv, struct both_acts *out,
                              uint32_t tokens, struct worst *worst)
{
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++) {
        act_poison(p, out, tokens);
        for (int b = 0; b < 2; b++)
            must(p->ops[b]->attention(p->device[b], 1, qkv->a[b], windows[i], out->a[b], &err));
        act_compare(p, out, tokens, worst, LIMIT);
    }
}

static void scene_compare(struct pair *p, const struct lengths *scene, struct both_acts *qkv,
                          struct both_acts *out, const struct both_weights *q_norm,
                          const struct both_weights *k_norm, struct worst worst[2])
{
    struct ops_row rows[8];
    uint32_t tokens = 0, count = scene_open(p, scene, qkv, q_norm, k_norm, rows);

    for (uint32_t r = 0; r < count; r++)
        tokens += rows[r].count;
    step_begin(p, rows, count);
    act_fill(p, qkv, tokens, 2.0f);
    for (int b = 0; b < 2; b++)
        must(p->ops[b]->qk_norm_rope_kv(p->device[b], 1, qkv->a[b], q_norm ? q_norm->w[b] : NULL,
                                        k_norm ? k_norm->w[b] : NULL, &err));
    /* q alone stays in qkv; k and v are seen through attention. */
    cols_compare(p, qkv, tokens, p->shape.heads * p->shape.head_dim, &worst[0], LIMIT);
    attention_compare(p, qkv, out, tokens, &worst[1]);
    step_end(p);
    slots_clear(p, count);
}

/* False where there is no GPU. */
static bool scenes_compare(const struct shape *s, uint64_t seed, const struct lengths (*list)[8],
                           size_t scenes_count, struct worst worst[2])
{
    struct both_weights q_norm, k_norm;
    struct both_acts qkv, out;
    struct pair p;

    if (!pair_open(&p, s, seed))
        return false;
    (void)weight_make(&p, WEIGHT_MATRIX, 8, s->hidden, 1.0f, 0.0f); /* tells the type */
    q_norm = weight_make(&p, WEIGHT_VECTOR, 1, s->head_dim, 0.5f, 1.0f);
    k_norm = weight_make(&p, WEIGHT_VECTOR, 1, s->head_dim, 0.5f, 1.0f);
    pair_pool(&p, 512, 1000);
    qkv = act_make(&p, (s->heads + 2 * s->kv_heads) * s->head_dim);
    out = act_make(&p, s->heads * s->head_dim);
    for (size_t k = 0; k < scenes_count; k++) {
        bool norms = (seed + k) % 2 == 0;

        scene_compare(&p, list[k], &qkv, &out, norms ? &q_norm : NULL, norms ? &k_norm : NULL,
                      worst);
    }
    pair_close(&p);
    return true;
}

static void test_attention(void **state)
{
    struct worst worst[] = {{"qk_norm_rope_kv", 0}, {"attention", 0}};
    (void)state;

    for (size_t i = 0; i < SHAPES; i++)
        if (!scenes_compare(&shapes[i], 100 + i, scenes, sizeof scenes / sizeof *scenes, worst))
            skip();
    print_message("errors: qk_norm_rope_kv %.1e attention %.1e\n", worst[0].error, worst[1].error);
}

/* Page sizes and groups that the faster kernel for prompts takes, and one that it does not. */
static void test_prompts(void **state)
{
    struct worst worst[] = {{"qk_norm_rope_kv", 0}, {"attention over prompts", 0}};
    (void)state;

    for (size_t i = 0; i < PROMPT_SHAPES; i += slow() ? 3 : 1)
        if (!scenes_compare(&prompt_shapes[i], 200 + i, prompts, sizeof prompts / sizeof *prompts,
                            worst))
            skip();
    print_message("errors: attention over prompts %.1e\n", worst[1].error);
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
        cmocka_unit_test(test_refusals),  cmocka_unit_test(test_layers),
        cmocka_unit_test(test_attention), cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_sample),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

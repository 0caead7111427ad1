/* Attention of the CUDA backend, with what writes its pages, against the CPU backend: on the same
 * random numbers, outputs and pages poisoned before. Skips where there is no GPU. */
#include "tests/kernels/pair.h"

#include "common/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define LIMIT 1e-2

/* Rows of a step: what is in the pages already, and what is computed. */
struct lengths {
    uint32_t start, count;
};
static const struct lengths scenes[][SLOTS] = {
    {{0, 1}},   {{63, 1}, {64, 1}, {15, 1}, {300, 1}, {0, 1}, {129, 1}},
    {{0, 300}}, {{17, 1}, {0, 33}, {100, 70}, {250, 1}, {5, 2}, {640, 1}},
    {{900, 1}}, {{513, 64}, {1, 1}},
};

/* Rows of one token, so that blocks share a sequence: lengths around what a tile, a block and a
 * cluster take, alone and together. */
/* clang-format off */
static const struct lengths singles[][SLOTS] = {
    {{0, 1}}, {{1, 1}}, {{62, 1}}, {{63, 1}}, {{64, 1}}, {{128, 1}}, {{510, 1}}, {{511, 1}}, {{512, 1}},
    {{0, 1}, {1, 1}, {15, 1}},
    {{16, 1}, {700, 1}, {5, 1}, {64, 1}, {513, 1}, {127, 1}},
    {{0, 1}, {1, 1}, {2, 1}, {14, 1}, {15, 1}, {16, 1}, {62, 1}, {63, 1},
     {64, 1}, {65, 1}, {127, 1}, {128, 1}, {129, 1}, {300, 1}, {511, 1}, {512, 1}},
};
/* clang-format on */

/* Likewise where several clusters share a sequence. */
static const struct lengths long_singles[][SLOTS] = {
    {{3070, 1}},
    {{3071, 1}},
    {{5000, 1}},
    {{3500, 1}, {40, 1}, {5000, 1}, {0, 1}},
    {{5000, 1}, {4097, 1}, {0, 1}, {3080, 1}, {1700, 1}},
};

/* Prompts: of whole tiles and a row more or less, behind prefixes that end within a page. */
static const struct lengths prompts[][SLOTS] = {
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

static const uint32_t windows[] = {0, 1, 7, 16, 64, 100, 128, 300, 600, 4000};
#define WINDOWS (sizeof windows / sizeof *windows)

/* The pages that a scene is about to use hold what a kernel must not read. */
static void pages_poison(struct pair *p, const struct lengths *scene, struct both_acts *qkv)
{
    uint32_t size = p->shape.page_size, each = size < 256 ? 256 / size : 1, pages = 0;
    uint32_t tokens[512] = {0};

    for (uint32_t i = 0; i < SLOTS && scene[i].count; i++)
        pages += (scene[i].start + scene[i].count + 1 + 40 + size - 1) / size;
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

/* Slots as long as the scene's rows and a token more, and what is before the rows. */
static uint32_t scene_open(struct pair *p, const struct lengths *scene, struct both_acts *qkv,
                           const struct both_weights *q_norm, const struct both_weights *k_norm,
                           struct ops_row *rows)
{
    uint32_t count = 0;

    pages_poison(p, scene, qkv);
    for (; count < SLOTS && scene[count].count; count++)
        slot_fill(p, count, scene[count].start + scene[count].count + 1, 0, &greedy);
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

/* Every window, each twice: the second time to the same bits. seen (windows, tokens, width), or
 * NULL: what CUDA made of them. */
static void attention_compare(struct pair *p, const struct both_acts *qkv, struct both_acts *out,
                              uint32_t tokens, struct worst *worst, float *seen)
{
    size_t n = (size_t)tokens * out->width;
    float *first = mem_array(2 * n, sizeof *first), *again = first + n;

    for (size_t i = 0; i < WINDOWS; i += slow() ? 4 : 1) {
        act_poison(p, out, tokens);
        for (int b = 0; b < 2; b++)
            must(p->ops[b]->attention(p->device[b], 1, qkv->a[b], windows[i], out->a[b], &err));
        act_compare(p, out, tokens, worst, LIMIT);
        must(p->ops[1]->act_read(p->device[1], out->a[1], tokens, first, &err));
        act_poison(p, out, tokens);
        must(p->ops[1]->attention(p->device[1], 1, qkv->a[1], windows[i], out->a[1], &err));
        must(p->ops[1]->act_read(p->device[1], out->a[1], tokens, again, &err));
        assert_memory_equal(first, again, n * sizeof *first);
        if (seen)
            memcpy(seen + i * n, first, n * sizeof *first);
    }
    free(first);
}

/* One step of the rows of each scene. */
static void scenes_compare(struct pair *p, const struct lengths (*scene)[SLOTS], size_t count,
                           struct worst *w_rope, struct worst *w_attention)
{
    const struct shape *s = &p->shape;
    struct both_weights q_norm = weight_make(p, WEIGHT_VECTOR, 1, s->head_dim, 0.5f, 1.0f);
    struct both_weights k_norm = weight_make(p, WEIGHT_VECTOR, 1, s->head_dim, 0.5f, 1.0f);
    struct both_acts qkv = act_make(p, (s->heads + 2 * s->kv_heads) * s->head_dim);
    struct both_acts out = act_make(p, s->heads * s->head_dim);

    for (size_t k = 0; k < count; k++) {
        bool norms = (s->heads + k) % 2 == 0;
        struct ops_row rows[SLOTS];
        uint32_t tokens = 0, n = scene_open(p, scene[k], &qkv, norms ? &q_norm : NULL,
                                            norms ? &k_norm : NULL, rows);

        for (uint32_t r = 0; r < n; r++)
            tokens += rows[r].count;
        step_begin(p, rows, n);
        act_fill(p, &qkv, tokens, 2.0f);
        for (int b = 0; b < 2; b++)
            must(p->ops[b]->qk_norm_rope_kv(p->device[b], 1, qkv.a[b], norms ? q_norm.w[b] : NULL,
                                            norms ? k_norm.w[b] : NULL, &err));
        /* q alone stays in qkv; k and v are seen through attention. */
        cols_compare(p, &qkv, tokens, s->heads * s->head_dim, w_rope, LIMIT);
        attention_compare(p, &qkv, &out, tokens, w_attention, NULL);
        step_end(p);
        slots_clear(p, n);
    }
}

static void test_attention(void **state)
{
    struct worst w_rope = {"qk_norm_rope_kv", 0}, w_attention = {"attention", 0};
    (void)state;

    for (size_t i = 0; i < PAIR_SHAPES; i += slow() ? 2 : 1) {
        struct pair p;

        if (!pair_open(&p, &pair_shapes[i], 100 + i))
            skip();
        (void)weight_make(&p, WEIGHT_MATRIX, 8, pair_shapes[i].hidden, 1.0f,
                          0.0f); /* tells the type */
        pair_pool(&p, 512, 1000);
        scenes_compare(&p, scenes, sizeof scenes / sizeof *scenes, &w_rope, &w_attention);
        pair_close(&p);
    }
    print_message("errors: qk_norm_rope_kv %.1e attention %.1e\n", w_rope.error, w_attention.error);
}

/* Page sizes and groups that the faster kernel for prompts takes, and one that it does not. */
static void test_prompts(void **state)
{
    struct worst w_rope = {"qk_norm_rope_kv", 0}, w_attention = {"attention over prompts", 0};
    (void)state;

    for (size_t i = 0; i < PROMPT_SHAPES; i += slow() ? 3 : 1) {
        struct pair p;

        if (!pair_open(&p, &prompt_shapes[i], 300 + i))
            skip();
        (void)weight_make(&p, WEIGHT_MATRIX, 8, 64, 1.0f, 0.0f); /* tells the type */
        pair_pool(&p, 512, 1000);
        scenes_compare(&p, prompts, sizeof prompts / sizeof *prompts, &w_rope, &w_attention);
        pair_close(&p);
    }
    print_message("errors: attention over prompts %.1e\n", w_attention.error);
}

/* When q is looked at: what is left to attention is then done by the kernel of its own. */
enum look { LOOK_NOT, LOOK_BEFORE, LOOK_BEHIND };

struct rope {
    struct both_weights q_norm, k_norm;
    bool norms;
    struct worst *w_rope, *w_attention;
};

/* A step of single tokens with the numbers x. */
static void single_step(struct pair *p, const struct ops_row *rows, uint32_t n,
                        const struct rope *rope, const struct both_acts *qkv, struct both_acts *out,
                        const float *x, enum look look, float *seen)
{
    step_begin(p, rows, n);
    for (int b = 0; b < 2; b++) {
        must(p->ops[b]->act_write(p->device[b], qkv->a[b], n, x, &err));
        must(p->ops[b]->qk_norm_rope_kv(p->device[b], 1, qkv->a[b],
                                        rope->norms ? rope->q_norm.w[b] : NULL,
                                        rope->norms ? rope->k_norm.w[b] : NULL, &err));
    }
    if (look == LOOK_BEFORE)
        cols_compare(p, qkv, n, out->width, rope->w_rope, LIMIT);
    attention_compare(p, qkv, out, n, rope->w_attention, seen);
    if (look == LOOK_BEHIND)
        cols_compare(p, qkv, n, out->width, rope->w_rope, LIMIT);
    step_end(p);
}

/* Each scene of single tokens and the tokens that follow, which see what the first left in the
 * pages; once with norm and rotation left to attention, once not, to the same bits. */
static void singles_compare(struct pair *p, const struct lengths (*scene)[SLOTS], size_t count,
                            struct worst *w_rope, struct worst *w_attention)
{
    const enum look looks[4] = {LOOK_NOT, LOOK_BEHIND, LOOK_BEFORE, LOOK_BEFORE};
    const struct shape *s = &p->shape;
    struct rope rope = {.q_norm = weight_make(p, WEIGHT_VECTOR, 1, s->head_dim, 0.5f, 1.0f),
                        .k_norm = weight_make(p, WEIGHT_VECTOR, 1, s->head_dim, 0.5f, 1.0f),
                        .w_rope = w_rope,
                        .w_attention = w_attention};
    struct both_acts qkv = act_make(p, (s->heads + 2 * s->kv_heads) * s->head_dim);
    struct both_acts out = act_make(p, s->heads * s->head_dim);

    for (size_t k = 0; k < count; k++) {
        struct ops_row rows[SLOTS];
        uint32_t n;
        size_t in, outs;
        float *x, *seen;

        rope.norms = (s->heads + k) % 2 == 0;
        n = scene_open(p, scene[k], &qkv, rope.norms ? &rope.q_norm : NULL,
                       rope.norms ? &rope.k_norm : NULL, rows);
        in = (size_t)n * qkv.width;
        outs = WINDOWS * n * out.width;
        x = random_array(&p->random, 2 * in, 2.0f);
        seen = mem_array(4 * outs, sizeof *seen);
        for (uint32_t i = 0; i < 4; i++) {
            for (uint32_t r = 0; r < n; r++)
                rows[r].start = scene[k][r].start + i % 2;
            single_step(p, rows, n, &rope, &qkv, &out, x + i % 2 * in, looks[i], seen + i * outs);
        }
        assert_memory_equal(seen, seen + 2 * outs, 2 * outs * sizeof *seen);
        free(x);
        free(seen);
        slots_clear(p, n);
    }
}

/* Heads a KV head from 1 to 32, units from 1 to more than the GPU takes at once. */
static const struct shape decode_shapes[] = {
    {64, 8, 8, 64, 64, 64, 16, DTYPE_BF16},  {64, 16, 8, 128, 64, 64, 16, DTYPE_BF16},
    {64, 20, 20, 64, 64, 64, 5, DTYPE_F16},  {64, 4, 1, 64, 64, 64, 3, DTYPE_F16},
    {64, 5, 1, 128, 64, 64, 16, DTYPE_BF16}, {64, 16, 2, 128, 64, 64, 16, DTYPE_BF16},
    {64, 24, 1, 64, 64, 64, 1, DTYPE_BF16},  {64, 32, 1, 128, 64, 64, 32, DTYPE_F16},
};

static void test_decode(void **state)
{
    const size_t count = sizeof decode_shapes / sizeof *decode_shapes;
    struct worst w_rope = {"qk_norm_rope_kv", 0}, w_attention = {"attention of single tokens", 0};
    (void)state;

    for (size_t k = 0; k < 2 * count; k += slow() ? 3 : 1) {
        size_t i = k / 2;
        const struct shape *s = &decode_shapes[i];
        bool far = s->kv_heads <= 2 && !slow();
        struct pair p;

        if (!pair_open_decode(&p, s, 200 + i, k % 2 ? OPS_DECODE_EVEN : OPS_DECODE_EACH))
            skip();
        (void)weight_make(&p, WEIGHT_MATRIX, 8, s->hidden, 1.0f, 0.0f); /* tells the type */
        pair_pool(&p, 256, far ? 5100 : 800);
        singles_compare(&p, singles, sizeof singles / sizeof *singles, &w_rope, &w_attention);
        if (far)
            singles_compare(&p, long_singles, sizeof long_singles / sizeof *long_singles, &w_rope,
                            &w_attention);
        pair_close(&p);
    }
    print_message("errors: qk_norm_rope_kv %.1e attention of single tokens %.1e\n", w_rope.error,
                  w_attention.error);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_decode),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "tests/kernels/pair.h"

#include "common/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct ops *const *backends(void)
{
    static const struct ops *both[2];

    if (!both[0]) {
        both[0] = backend_open("cpu");
        both[1] = backend_open("cuda");
    }
    return both;
}

struct ops_model model_of(const struct shape *s, const float *inv_freq)
{
    return (struct ops_model){
        .layers = 2,
        .hidden = s->hidden,
        .heads = s->heads,
        .kv_heads = s->kv_heads,
        .head_dim = s->head_dim,
        .intermediate = s->intermediate,
        .vocab_size = s->vocab,
        .vocab_count = s->vocab,
        .norm_eps = 1e-6f,
        .attention_scale = 1.0f / sqrtf((float)s->head_dim),
        .rope_inv_freq = inv_freq,
        .rope_scale = 1.0f,
    };
}

bool pair_open(struct pair *p, const struct shape *s, uint64_t seed)
{
    return pair_open_decode(p, s, seed, OPS_DECODE_AUTO);
}

bool pair_open_decode(struct pair *p, const struct shape *s, uint64_t seed, enum ops_decode decode)
{
    float inv_freq[128] = {0};
    struct ops_model model = model_of(s, inv_freq);
    struct ops_config config = {.tp_size = 1, .decode = decode};

    memset(p, 0, sizeof *p);
    p->shape = *s;
    p->random = seed;
    for (uint32_t i = 0; i < s->head_dim / 2; i++)
        inv_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)s->head_dim);
    for (int b = 0; b < 2; b++) {
        struct err err = {0};
        int rc;

        p->ops[b] = backends()[b];
        assert_non_null(p->ops[b]);
        rc = p->ops[b]->device_open(&config, &model, &p->device[b], &err);
        if (rc && b == 1) {
            assert_int_equal(rc, ERR_UNSUPPORTED);
            assert_null(p->device[b]);
            print_message("skipped: %s\n", err.msg);
            p->ops[0]->device_close(&p->device[0]);
            return false;
        }
        assert_int_equal(rc, 0);
    }
    return true;
}

static void pages_list(struct pair *p, uint32_t tokens_max, uint32_t context_max)
{
    p->tokens_max = tokens_max;
    p->context_max = context_max;
    p->pages = SLOTS * ((context_max + p->shape.page_size - 1) / p->shape.page_size);
    p->page_list = mem_array(p->pages, sizeof *p->page_list);
    for (uint32_t i = 0; i < p->pages; i++)
        p->page_list[i] = i;
    for (uint32_t i = p->pages; i > 1; i--) { /* shuffled */
        uint32_t j = random_below(&p->random, i), t = p->page_list[i - 1];

        p->page_list[i - 1] = p->page_list[j];
        p->page_list[j] = t;
    }
}

static void pool_alloc(struct pair *p, int b)
{
    must(p->ops[b]->pool_alloc(p->device[b], p->pages, p->shape.page_size, SLOTS, p->tokens_max,
                               p->context_max, &err));
}

void pair_pool(struct pair *p, uint32_t tokens_max, uint32_t context_max)
{
    pages_list(p, tokens_max, context_max);
    pool_alloc(p, 0);
    pool_alloc(p, 1);
}

void pair_prepare(struct pair *p, uint32_t tokens_max, uint32_t context_max)
{
    pages_list(p, tokens_max, context_max);
    pool_alloc(p, 0);
    must(
        p->ops[1]->prepare(p->device[1], p->shape.page_size, SLOTS, tokens_max, context_max, &err));
}

void pair_pages(struct pair *p)
{
    pool_alloc(p, 1);
}

void pair_close(struct pair *p)
{
    for (int b = 0; b < 2; b++) {
        p->ops[b]->device_close(&p->device[b]);
        assert_null(p->device[b]);
    }
    free(p->page_list);
}

struct both_weights weight_make(struct pair *p, enum weight_kind kind, uint32_t rows, uint32_t cols,
                                float scale, float offset)
{
    struct both_weights w;
    float *x = random_array(&p->random, (size_t)rows * cols, scale);

    for (size_t i = 0; i < (size_t)rows * cols; i++)
        x[i] += offset;
    for (int b = 0; b < 2; b++) {
        uint32_t half = rows / 2;

        must(p->ops[b]->weight_new(p->device[b], kind, p->shape.dtype, rows, cols, &w.w[b], &err));
        if (half)
            must(p->ops[b]->weight_write(p->device[b], w.w[b], 0, half, x, DTYPE_F32, &err));
        must(p->ops[b]->weight_write(p->device[b], w.w[b], half, rows - half,
                                     x + (size_t)half * cols, DTYPE_F32, &err));
        must(p->ops[b]->weight_done(p->device[b], w.w[b], &err));
    }
    free(x);
    return w;
}

struct both_acts act_make(struct pair *p, uint32_t width)
{
    struct both_acts a = {.width = width};

    for (int b = 0; b < 2; b++)
        must(p->ops[b]->act_new(p->device[b], width, &a.a[b], &err));
    return a;
}

void act_fill(struct pair *p, struct both_acts *a, uint32_t tokens, float scale)
{
    float *x = random_array(&p->random, (size_t)tokens * a->width, scale);

    for (int b = 0; b < 2; b++)
        must(p->ops[b]->act_write(p->device[b], a->a[b], tokens, x, &err));
    free(x);
}

void act_poison(struct pair *p, struct both_acts *a, uint32_t tokens)
{
    size_t n = (size_t)tokens * a->width;
    float *x = mem_array(n, sizeof *x);

    for (size_t i = 0; i < n; i++)
        x[i] = NAN;
    for (int b = 0; b < 2; b++)
        must(p->ops[b]->act_write(p->device[b], a->a[b], tokens, x, &err));
    free(x);
}

/* The first `cols` of each row. */
void cols_compare(struct pair *p, const struct both_acts *a, uint32_t tokens, uint32_t cols,
                  struct worst *worst, double limit)
{
    size_t n = (size_t)tokens * a->width;
    float *x[2];
    double error;

    for (int b = 0; b < 2; b++) {
        x[b] = mem_array(n, sizeof *x[b]);
        must(p->ops[b]->act_read(p->device[b], a->a[b], tokens, x[b], &err));
        for (uint32_t t = 0; t < tokens; t++)
            memset(x[b] + (size_t)t * a->width + cols, 0, (a->width - cols) * sizeof *x[b]);
    }
    error = relative_error(x[1], x[0], n);
    if (!(error <= limit)) {
        print_error("%s: error %g, limit %g; %u tokens, hidden %u, heads %u/%u of %u, page %u\n",
                    worst->op, error, limit, tokens, p->shape.hidden, p->shape.heads,
                    p->shape.kv_heads, p->shape.head_dim, p->shape.page_size);
        fail();
    }
    worst->error = error > worst->error ? error : worst->error;
    free(x[0]);
    free(x[1]);
}

void act_compare(struct pair *p, const struct both_acts *a, uint32_t tokens, struct worst *worst,
                 double limit)
{
    cols_compare(p, a, tokens, a->width, worst, limit);
}

const struct shape pair_shapes[PAIR_SHAPES] = {
    {64, 4, 2, 16, 96, 331, 16, DTYPE_BF16},       {256, 4, 1, 64, 320, 1000, 16, DTYPE_BF16},
    {256, 8, 8, 64, 256, 257, 1, DTYPE_F16},       {512, 6, 2, 128, 704, 1537, 16, DTYPE_BF16},
    {1024, 16, 8, 128, 3072, 4099, 1, DTYPE_BF16}, {384, 24, 1, 64, 200, 999, 5, DTYPE_F16},
    {128, 32, 1, 128, 136, 640, 32, DTYPE_F16},    {100, 4, 4, 26, 54, 131, 3, DTYPE_BF16},
};

const struct ops_sampling greedy = {.top_p = 1.0f, .repetition_penalty = 1.0f, .logprobs = -1};

/* A slot of `count` random tokens, with pages for them and a few more. */
void slot_fill(struct pair *p, uint32_t slot, uint32_t count, uint32_t generated,
               const struct ops_sampling *sampling)
{
    uint32_t *tokens = mem_array(count, sizeof *tokens);
    uint32_t pages = (count + 40 + p->shape.page_size - 1) / p->shape.page_size;

    for (uint32_t i = 0; i < count; i++)
        tokens[i] = random_below(&p->random, p->shape.vocab);
    for (int b = 0; b < 2; b++) {
        must(p->ops[b]->slot_open(p->device[b], slot, tokens, count, generated, sampling, &err));
        must(p->ops[b]->slot_pages(p->device[b], slot, 0, p->page_list + p->pages_used, pages / 2,
                                   &err));
        must(p->ops[b]->slot_pages(p->device[b], slot, pages / 2,
                                   p->page_list + p->pages_used + pages / 2, pages - pages / 2,
                                   &err));
    }
    p->pages_used += pages;
    free(tokens);
}

void slots_clear(struct pair *p, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        for (int b = 0; b < 2; b++)
            p->ops[b]->slot_close(p->device[b], i);
    p->pages_used = 0;
}

void step_begin(struct pair *p, const struct ops_row *rows, uint32_t count)
{
    for (int b = 0; b < 2; b++)
        must(p->ops[b]->step_begin(p->device[b], rows, count, &err));
}

void step_end(struct pair *p)
{
    const struct ops_sampled *results;
    uint32_t count;

    for (int b = 0; b < 2; b++)
        must(p->ops[b]->step_end(p->device[b], &results, &count, &err));
}

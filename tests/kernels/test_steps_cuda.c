/* Whole steps of a small model, CUDA against CPU: prompts in chunks, then decode with batches that
 * grow and shrink, so that steps are launched, captured and replayed for other slots and lengths.
 * A bias says which token is chosen, so that both go on from the same; logits are compared. Also
 * in the order of a start: products tuned and steps captured before there are pages. */
#include "tests/kernels/pair.h"

#include "common/mem.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
    uint32_t window;
    bool plain; /* nothing says which token is chosen: steps run from what was captured at start */
    uint32_t tuned, captured, lines; /* what getting ready told */
};

static void model_make(struct model *m, bool warmed)
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
    if (warmed)
        pair_prepare(p, 256, 400);
    else
        pair_pool(p, 256, 400);
    m->residual = act_make(p, s->hidden);
    m->normed = act_make(p, s->hidden);
    m->qkv = act_make(p, n);
    m->attended = act_make(p, q);
    m->mid = act_make(p, s->intermediate);
}

static void model_ops(struct model *m, int b, uint32_t window)
{
    const struct ops *o = m->p.ops[b];
    struct device *d = m->p.device[b];

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

static int warm_forward(void *ctx, struct err *err)
{
    struct model *m = ctx;

    (void)err;
    model_ops(m, 1, m->window);
    return 0;
}

static void warm_progress(void *ctx, const char *what, uint32_t done, uint32_t total)
{
    struct model *m = ctx;

    assert_true(done <= total);
    if (done == total && !strncmp(what, "Tuning", 6))
        m->tuned += total;
    if (done == total && !strncmp(what, "Capturing", 9))
        m->captured += total;
}

static void warm_say(void *ctx, const char *line)
{
    ((struct model *)ctx)->lines++;
    print_message("%s\n", line);
}

static void model_warm(struct model *m)
{
    const struct ops_warm warm = {warm_forward, warm_progress, warm_say, m};
    const struct ops *o = m->p.ops[1];
    struct ops_memory memory;

    must(o->warm(m->p.device[1], &warm, &err));
    must(o->memory(m->p.device[1], &memory, &err));
    assert_true(memory.workspace > 0);
    assert_true(memory.total > memory.workspace + memory.graphs);
}

static void slots_leave(struct model *m, uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++) {
        for (int b = 0; b < 2; b++)
            m->p.ops[b]->slot_close(m->p.device[b], i);
        m->length[i] = 0;
    }
}

/* Where the logits say nearly the same of both tokens either may be chosen; the slot ends there. */
static void tie_check(struct model *m, uint32_t slot, const float *reference, uint32_t id,
                      uint32_t other)
{
    float scale = 0.0f;

    for (uint32_t i = 0; i < m->p.shape.vocab; i++)
        scale = fmaxf(scale, fabsf(reference[i]));
    assert_true(m->plain);
    assert_true(fabsf(reference[id] - reference[other]) < (float)LIMIT * scale);
    slots_leave(m, slot, slot + 1);
}

static void both_step(struct model *m, const struct ops_row *rows, uint32_t count, uint32_t window)
{
    const struct ops_sampled *results[2];
    uint32_t found[2], asked = 0;

    for (uint32_t i = 0; i < count; i++)
        asked += rows[i].sample;
    for (int b = 0; b < 2; b++) {
        must(m->p.ops[b]->step_begin(m->p.device[b], rows, count, &err));
        model_ops(m, b, window);
        must(m->p.ops[b]->step_end(m->p.device[b], &results[b], &found[b], &err));
        assert_int_equal(found[b], asked);
    }
    for (uint32_t i = 0; i < asked; i++) {
        const float *x = m->p.ops[1]->logits(m->p.device[1], i);
        const float *y = m->p.ops[0]->logits(m->p.device[0], i);
        double error = relative_error(x, y, m->p.shape.vocab);

        assert_int_equal(results[1][i].slot, results[0][i].slot);
        if (!(error < LIMIT)) {
            print_error("result %u of %u: error %g\n", i, asked, error);
            fail();
        }
        m->worst.error = error > m->worst.error ? error : m->worst.error;
        if (results[1][i].id != results[0][i].id)
            tie_check(m, results[0][i].slot, y, results[1][i].id, results[0][i].id);
    }
    assert_null(m->p.ops[1]->logits(m->p.device[1], asked));
}

/* Opens slots [from, to) with prompts of at least `least` tokens, in one ragged step with what runs
 * already. */
static void slots_join(struct model *m, uint32_t from, uint32_t to, uint32_t least, uint32_t window)
{
    struct ops_row rows[SLOTS];
    uint32_t count = 0;

    for (uint32_t i = from; i < to; i++) {
        struct ops_bias bias = {random_below(&m->p.random, m->p.shape.vocab), 1e6f};
        struct ops_sampling sampling = greedy;

        sampling.bias = &bias;
        sampling.bias_count = m->plain ? 0 : 1;
        m->length[i] = least + random_below(&m->p.random, 14);
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

#define AHEAD_ROWS 6u
#define AHEAD_STEPS 20u

/* Ends the CUDA device's oldest step and keeps what it chose. */
static void ahead_end(struct model *m, struct ops_sampled *out)
{
    const struct ops_sampled *results;
    uint32_t count;

    must(m->p.ops[1]->step_end(m->p.device[1], &results, &count, &err));
    assert_int_equal(count, AHEAD_ROWS);
    memcpy(out, results, count * sizeof *out);
}

/* Random choices of the CUDA device alone, with at most `ahead` steps begun and not ended. */
static void ahead_run(struct model *m, uint32_t ahead, struct ops_sampled *out)
{
    uint32_t ended = 0;

    m->p.pages_used = 0;
    for (uint32_t i = 0; i < AHEAD_ROWS; i++) {
        struct ops_sampling sampling = greedy;

        sampling.temperature = 0.8f;
        sampling.top_k = i % 2 ? 5 : 0;
        sampling.seed = 100 + i;
        m->length[i] = 3 + i;
        slot_fill(&m->p, i, m->length[i], 0, &sampling);
    }
    for (uint32_t s = 0; s < AHEAD_STEPS; s++) {
        struct ops_row rows[AHEAD_ROWS];

        for (uint32_t i = 0; i < AHEAD_ROWS; i++) {
            uint32_t count = s ? 1 : m->length[i];

            rows[i] = (struct ops_row){i, m->length[i] - count, count, true};
            m->length[i]++;
        }
        must(m->p.ops[1]->step_begin(m->p.device[1], rows, AHEAD_ROWS, &err));
        model_ops(m, 1, 0);
        if (s - ended + 1 == ahead)
            ahead_end(m, out + AHEAD_ROWS * ended++);
    }
    while (ended < AHEAD_STEPS)
        ahead_end(m, out + AHEAD_ROWS * ended++);
    slots_leave(m, 0, SLOTS);
}

/* A step that begins before the tokens of the one before are known goes on from them. */
static void test_steps_ahead(void **state)
{
    static const struct shape shape = {256, 8, 2, 64, 384, 1003, 16, DTYPE_BF16};
    static struct ops_sampled one[AHEAD_STEPS * AHEAD_ROWS], two[AHEAD_STEPS * AHEAD_ROWS];
    struct model *m = mem_zalloc(sizeof *m);
    struct ops_row row = {0, 0, 1, false};
    struct err e;
    uint64_t random;
    (void)state;

    if (!pair_open(&m->p, &shape, 78)) {
        free(m);
        skip();
    }
    model_make(m, false);
    random = m->p.random;
    ahead_run(m, 1, one);
    m->p.random = random;
    ahead_run(m, m->p.ops[1]->steps_ahead, two);
    for (uint32_t i = 0; i < AHEAD_STEPS * AHEAD_ROWS; i++) {
        assert_int_equal(one[i].slot, two[i].slot);
        assert_int_equal(one[i].id, two[i].id);
        assert_memory_equal(&one[i].logprob, &two[i].logprob, sizeof one[i].logprob);
    }
    m->p.random = random;
    slot_fill(&m->p, 0, 1, 0, &greedy);
    for (uint32_t i = 0; i < m->p.ops[1]->steps_ahead; i++)
        must(m->p.ops[1]->step_begin(m->p.device[1], &row, 1, &err));
    assert_int_equal(m->p.ops[1]->step_begin(m->p.device[1], &row, 1, &e), ERR_INVALID);
    pair_close(&m->p);
    free(m);
}

/* A pool for other steps than were prepared for. */
static void pages_refused(struct model *m)
{
    const struct ops *o = m->p.ops[1];
    struct device *d = m->p.device[1];
    uint32_t page = m->p.shape.page_size;
    struct err e = {0};

    assert_int_equal(o->pool_alloc(d, 1, page, SLOTS + 1, 256, 400, &e), ERR_INVALID);
    assert_non_null(strstr(e.msg, "--max-running-requests"));
    assert_int_equal(o->pool_alloc(d, 1, page, SLOTS, 257, 400, &e), ERR_INVALID);
    assert_int_equal(o->pool_alloc(d, 1, 2 * page, SLOTS, 256, 400, &e), ERR_INVALID);
    assert_int_equal(o->prepare(d, page, SLOTS, 256, 400, &e), ERR_INVALID);
}

/* warmed: counts, or NULL. */
static void model_run(const struct shape *s, uint32_t window, enum ops_decode decode,
                      struct model *warmed, const char **skipped)
{
    struct model *m = mem_zalloc(sizeof *m);

    *skipped = NULL;
    m->worst.op = "logits";
    if (!pair_open_decode(&m->p, s, 77, decode)) {
        free(m);
        *skipped = "no GPU";
        return;
    }
    m->window = window;
    model_make(m, warmed != NULL);
    if (warmed) {
        model_warm(m);
        pages_refused(m);
        pair_pages(&m->p);
        model_warm(m);
        m->plain = true;
        *warmed = *m;
    }
    slots_join(m, 2, 3, 1, window);
    slots_decode(m, 4, window);
    slots_join(m, 5, 8, 1, window);
    slots_decode(m, 3, window);
    slots_join(m, 9, 15, 1, window); /* ten rows: replayed as sixteen */
    slots_decode(m, 4, window);
    slots_leave(m, 5, 6);
    slots_decode(m, 3, window);
    slots_leave(m, 0, SLOTS);
    m->p.pages_used = 0;
    slots_join(m, 11, 12, 1, window);
    slots_decode(m, 2, window);
    slots_leave(m, 0, SLOTS);
    m->p.pages_used = 0;
    slots_join(m, 3, 4, 200, window); /* its keys are in many blocks' hands */
    slots_decode(m, 20, window);
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
        model_run(&shapes[i], i == 1 ? 9 : 0, OPS_DECODE_AUTO, NULL, &skipped);
    if (!skipped)
        model_run(&shapes[0], 50, OPS_DECODE_EVEN, NULL, &skipped);
    if (skipped)
        skip();
}

/* The one file of tuned products in the cache. */
static void products_path(const char *base, char *path, size_t size)
{
    char folder[128];
    struct dirent *entry;
    DIR *dir;

    (void)snprintf(folder, sizeof folder, "%s/phalanx", base);
    dir = opendir(folder);
    assert_non_null(dir);
    path[0] = '\0';
    while ((entry = readdir(dir)))
        if (!strncmp(entry->d_name, "products-", 9) && !strstr(entry->d_name, ".lock"))
            (void)snprintf(path, size, "%s/%s", folder, entry->d_name);
    (void)closedir(dir);
    assert_true(path[0]);
}

static void file_damage(const char *path)
{
    FILE *f = fopen(path, "r+b");

    assert_non_null(f);
    assert_int_equal(fseek(f, -20, SEEK_END), 0);
    assert_int_equal(fputc('x', f), 'x');
    assert_int_equal(fputc('y', f), 'y');
    assert_int_equal(fclose(f), 0);
}

/* The first start tunes and keeps it, the second finds it; a file that is damaged or cut short is
 * replaced with a line. Steps are right whichever it was, and run from what was captured. */
static void test_start(void **state)
{
    static const struct shape shape = {256, 8, 2, 64, 384, 1003, 16, DTYPE_BF16};
    char base[] = "/tmp/phalanx-warm-XXXXXX", path[512], lock[520];
    const char *skipped = NULL;
    struct model *seen = mem_zalloc(sizeof *seen);
    uint32_t tuned;
    (void)state;

    assert_non_null(mkdtemp(base));
    assert_int_equal(setenv("XDG_CACHE_HOME", base, 1), 0);
    model_run(&shape, 0, OPS_DECODE_AUTO, seen, &skipped);
    if (skipped) {
        (void)rmdir(base);
        free(seen);
        skip();
    }
    tuned = seen->tuned;
    assert_true(tuned > 0);
    assert_true(seen->captured > 0);
    assert_int_equal(seen->lines, 0);
    model_run(&shape, 0, OPS_DECODE_EVEN, seen, &skipped);
    assert_int_equal(seen->tuned, 0);
    assert_int_equal(seen->lines, 0);
    products_path(base, path, sizeof path);
    file_damage(path);
    model_run(&shape, 0, OPS_DECODE_AUTO, seen, &skipped);
    assert_int_equal(seen->tuned, tuned);
    assert_int_equal(seen->lines, 1);
    assert_int_equal(truncate(path, 100), 0);
    model_run(&shape, 0, OPS_DECODE_AUTO, seen, &skipped);
    assert_int_equal(seen->tuned, tuned);
    assert_int_equal(seen->lines, 1);
    model_run(&shape, 0, OPS_DECODE_AUTO, seen, &skipped);
    assert_int_equal(seen->tuned, 0);
    (void)snprintf(lock, sizeof lock, "%s.lock", path);
    (void)unlink(lock);
    (void)unlink(path);
    (void)snprintf(path, sizeof path, "%s/phalanx", base);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(rmdir(base), 0);
    free(seen);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_steps),
                                       cmocka_unit_test(test_steps_ahead),
                                       cmocka_unit_test(test_start)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Two and four GPUs as ranks, one thread each, against the CPU backend as one rank: sums over
 * ranks, the embedding and the LM head in shares, sampling from candidates and from whole rows.
 * Skips where there are not two GPUs. */
#include "tests/kernels/support.h"

#include "common/mem.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define RANKS_TESTED 4u /* and two; as many as there are GPUs */
#define HIDDEN 128u
#define INNER 512u
#define VOCAB 4001u /* does not divide */
#define PROMPT 40u
#define ROWS 8u
#define STEPS 3u
#define TOKENS (ROWS * PROMPT)
#define SCORED 30u /* positions of each prompt */

struct outcome {
    float *embedded, *residual, *normed; /* (TOKENS, HIDDEN) */
    struct ops_sampled sampled[STEPS][ROWS];
    struct ops_sampled scored[ROWS * SCORED];
    int rc;
    struct err err;
};

struct rank {
    const struct ops *ops;
    struct ops_config config;
    struct device *device;
    struct weight *embedding, *norm, *down;
    struct act *residual, *normed, *x;
    struct outcome out;
};

static int rank_open(struct rank *r)
{
    uint32_t share = (VOCAB + r->config.tp_size - 1) / r->config.tp_size;
    uint32_t begin = r->config.rank * share;
    float inv_freq[32] = {1.0f};
    struct ops_model model = {
        .layers = 1,
        .hidden = HIDDEN,
        .heads = 1,
        .kv_heads = 1,
        .head_dim = 64,
        .intermediate = INNER / r->config.tp_size,
        .vocab_size = VOCAB,
        .vocab_begin = begin,
        .vocab_count = VOCAB - begin < share ? VOCAB - begin : share,
        .norm_eps = 1e-6f,
        .attention_scale = 0.125f,
        .rope_inv_freq = inv_freq,
        .rope_scale = 1.0f,
    };

    return r->ops->device_open(&r->config, &model, &r->device, &r->out.err);
}

/* Rows and columns of a matrix that is the same on all ranks. */
static int weight_make(struct rank *r, enum weight_kind kind, const float *all, uint32_t row,
                       uint32_t rows, uint32_t cols_all, uint32_t col, uint32_t cols,
                       struct weight **out)
{
    float *part = mem_array((size_t)rows * cols, sizeof *part);
    int rc = r->ops->weight_new(r->device, kind, DTYPE_BF16, rows, cols, out, &r->out.err);

    for (uint32_t i = 0; i < rows; i++)
        memcpy(part + (size_t)i * cols, all + (size_t)(row + i) * cols_all + col,
               cols * sizeof *part);
    if (!rc)
        rc = r->ops->weight_write(r->device, *out, 0, rows, part, DTYPE_F32, &r->out.err);
    if (!rc)
        rc = r->ops->weight_done(r->device, *out, &r->out.err);
    free(part);
    return rc;
}

static int rank_load(struct rank *r)
{
    uint32_t tp = r->config.tp_size, share = (VOCAB + tp - 1) / tp, begin = r->config.rank * share;
    uint32_t count = VOCAB - begin < share ? VOCAB - begin : share, inner = INNER / tp;
    uint64_t random = 11;
    float *embedding = random_array(&random, (size_t)VOCAB * HIDDEN, 1.0f);
    float *norm = random_array(&random, HIDDEN, 1.0f);
    float *down = random_array(&random, (size_t)HIDDEN * INNER, 0.125f);
    int rc =
        weight_make(r, WEIGHT_EMBED, embedding, begin, count, HIDDEN, 0, HIDDEN, &r->embedding);

    if (!rc)
        rc = weight_make(r, WEIGHT_VECTOR, norm, 0, 1, HIDDEN, 0, HIDDEN, &r->norm);
    if (!rc)
        rc = weight_make(r, WEIGHT_MATRIX, down, 0, HIDDEN, INNER, r->config.rank * inner, inner,
                         &r->down);
    if (!rc)
        rc = r->ops->pool_alloc(r->device, 64, 16, ROWS, TOKENS, 64, &r->out.err);
    if (!rc)
        rc = r->ops->act_new(r->device, HIDDEN, &r->residual, &r->out.err);
    if (!rc)
        rc = r->ops->act_new(r->device, HIDDEN, &r->normed, &r->out.err);
    if (!rc)
        rc = r->ops->act_new(r->device, inner, &r->x, &r->out.err);
    free(embedding);
    free(norm);
    free(down);
    return rc;
}

/* Choices that winners, candidates and only whole rows decide. */
static const struct ops_sampling choices[ROWS] = {
    {.top_p = 1.0f, .repetition_penalty = 1.0f, .logprobs = 5},
    {.temperature = 1.0f, .top_p = 1.0f, .repetition_penalty = 1.0f, .logprobs = 20, .seed = 5},
    {.temperature = 0.3f, .top_p = 0.5f, .repetition_penalty = 1.0f, .logprobs = 0, .seed = 6},
    {.temperature = 9.0f, .top_p = 0.999f, .repetition_penalty = 1.0f, .logprobs = 2, .seed = 7},
    {.temperature = 4.0f, .top_p = 1.0f, .top_k = 300, .repetition_penalty = 1.0f, .logprobs = 1},
    {.temperature = 5.0f,
     .top_p = 0.99f,
     .repetition_penalty = 1.2f,
     .presence_penalty = 0.5f,
     .logprobs = -1,
     .seed = 9},
    {.temperature = 2.0f, .top_p = 0.9f, .top_k = 30, .repetition_penalty = 1.0f, .logprobs = -1},
    {.temperature = 5.0f,
     .top_p = 1.0f,
     .min_p = 0.01f,
     .repetition_penalty = 1.0f,
     .logprobs = -1,
     .seed = 3},
};

static int slots_open(struct rank *r)
{
    uint64_t random = 21;
    uint32_t tokens[PROMPT], pages[4];
    int rc = 0;

    for (uint32_t i = 0; i < ROWS && !rc; i++) {
        for (uint32_t k = 0; k < PROMPT; k++)
            tokens[k] = random_below(&random, VOCAB);
        for (uint32_t k = 0; k < 4; k++)
            pages[k] = 4 * i + k;
        rc = r->ops->slot_open(r->device, i, tokens, PROMPT, PROMPT / 2, &choices[i], &r->out.err);
        if (!rc)
            rc = r->ops->slot_pages(r->device, i, 0, pages, 4, &r->out.err);
    }
    return rc;
}

static int sums_run(struct rank *r, uint32_t tokens)
{
    uint32_t inner = INNER / r->config.tp_size;
    uint64_t random = 31;
    float *x = random_array(&random, (size_t)tokens * INNER, 1.0f);
    float *part = mem_array((size_t)tokens * inner, sizeof *part);
    struct outcome *o = &r->out;
    int rc = r->ops->act_read(r->device, r->residual, tokens, o->embedded, &o->err);

    for (uint32_t t = 0; t < tokens; t++)
        memcpy(part + (size_t)t * inner, x + (size_t)t * INNER + r->config.rank * inner,
               inner * sizeof *part);
    if (!rc)
        rc = r->ops->act_write(r->device, r->x, tokens, part, &o->err);
    if (!rc)
        rc = r->ops->linear_reduce_norm(r->device, r->x, r->down, r->norm, r->residual, r->normed,
                                        &o->err);
    if (!rc)
        rc = r->ops->act_read(r->device, r->residual, tokens, o->residual, &o->err);
    if (!rc)
        rc = r->ops->act_read(r->device, r->normed, tokens, o->normed, &o->err);
    free(x);
    free(part);
    return rc;
}

static int scores_run(struct rank *r)
{
    struct ops_score scores[ROWS];
    const struct ops_sampled *results = NULL;
    int rc;

    for (uint32_t i = 0; i < ROWS; i++)
        scores[i] = (struct ops_score){i, 3, SCORED};
    rc = r->ops->score(r->device, r->normed, r->embedding, scores, ROWS, &results, &r->out.err);
    if (!rc)
        memcpy(r->out.scored, results, sizeof r->out.scored);
    return rc;
}

/* Logits are exact: two entries a row. */
static int choices_run(struct rank *r, uint32_t step, uint32_t tokens)
{
    uint64_t random = 41 + step;
    float *x = mem_array((size_t)tokens * HIDDEN, sizeof *x);
    const struct ops_sampled *results;
    uint32_t count = 0;
    int rc;

    for (uint32_t t = 0; t < tokens; t++) {
        x[(size_t)t * HIDDEN + random_below(&random, HIDDEN / 2)] = 8.0f;
        x[(size_t)t * HIDDEN + HIDDEN / 2 + random_below(&random, HIDDEN / 2)] = 1.0f / 64.0f;
    }
    rc = r->ops->act_write(r->device, r->normed, tokens, x, &r->out.err);
    if (!rc && step == 0)
        rc = scores_run(r);
    if (!rc)
        rc = r->ops->sample(r->device, r->normed, r->embedding, &r->out.err);
    if (!rc)
        rc = r->ops->step_end(r->device, &results, &count, &r->out.err);
    if (!rc && count == ROWS)
        memcpy(r->out.sampled[step], results, ROWS * sizeof *results);
    free(x);
    return rc;
}

static int rank_steps(struct rank *r)
{
    struct ops_row rows[ROWS];
    int rc = 0;

    for (uint32_t step = 0; step < STEPS && !rc; step++) {
        uint32_t tokens = 0;

        for (uint32_t i = 0; i < ROWS; i++) {
            rows[i] = (struct ops_row){i, step ? PROMPT + step - 1 : 0, step ? 1 : PROMPT, true};
            tokens += rows[i].count;
        }
        rc = r->ops->step_begin(r->device, rows, ROWS, &r->out.err);
        if (!rc)
            rc = r->ops->embed(r->device, r->embedding, r->norm, r->residual, r->normed,
                               &r->out.err);
        if (!rc)
            rc = sums_run(r, tokens);
        if (!rc)
            rc = choices_run(r, step, tokens);
    }
    return rc;
}

static void *rank_run(void *arg)
{
    struct rank *r = arg;
    int rc = rank_open(r);

    if (!rc)
        rc = rank_load(r);
    if (!rc)
        rc = slots_open(r);
    if (!rc)
        rc = rank_steps(r);
    r->ops->device_close(&r->device);
    r->out.rc = rc;
    return NULL;
}

static void outcome_alloc(struct outcome *o)
{
    o->embedded = mem_array((size_t)TOKENS * HIDDEN, sizeof(float));
    o->residual = mem_array((size_t)TOKENS * HIDDEN, sizeof(float));
    o->normed = mem_array((size_t)TOKENS * HIDDEN, sizeof(float));
}

static void one_compare(const struct ops_sampled *x, const struct ops_sampled *y)
{
    assert_int_equal(x->slot, y->slot);
    assert_int_equal(x->id, y->id);
    assert_int_equal(x->top_count, y->top_count);
    assert_true(fabsf(x->logprob - y->logprob) <= 1e-4f * (1.0f + fabsf(y->logprob)));
    for (uint32_t k = 0; k < x->top_count; k++)
        assert_int_equal(x->top_ids[k], y->top_ids[k]);
}

static void sampled_compare(const struct outcome *a, const struct outcome *b)
{
    for (uint32_t s = 0; s < STEPS; s++)
        for (uint32_t i = 0; i < ROWS; i++)
            one_compare(&a->sampled[s][i], &b->sampled[s][i]);
    for (uint32_t i = 0; i < ROWS * SCORED; i++)
        one_compare(&a->scored[i], &b->scored[i]);
}

static bool gpus_found(const struct ops *cuda, uint32_t count)
{
    struct rank r = {.ops = cuda, .config = {.tp_size = 1, .device_index = count - 1}};
    int rc = rank_open(&r);

    if (rc)
        print_message("skipped: %s\n", r.out.err.msg);
    cuda->device_close(&r.device);
    return rc == 0;
}

static void ranks_compare(uint32_t count, bool library, bool symmetric)
{
    const struct ops *cuda = backend_open("cuda");
    char store[] = "/tmp/phalanx-tp-XXXXXX", path[64];
    struct rank cpu = {.ops = backend_open("cpu"), .config = {.tp_size = 1}}, ranks[RANKS_TESTED];
    size_t n = (size_t)ROWS * HIDDEN; /* what the last step left */
    pthread_t threads[RANKS_TESTED];

    assert_non_null(cuda);
    assert_non_null(cpu.ops);
    if (!gpus_found(cuda, count))
        skip();
    assert_non_null(mkdtemp(store));
    outcome_alloc(&cpu.out);
    for (uint32_t i = 0; i < count; i++) {
        ranks[i] = (struct rank){.ops = cuda,
                                 .config = {.rank = i,
                                            .tp_size = count,
                                            .device_index = i,
                                            .comm_store = store,
                                            .comm_timeout_s = 60,
                                            .library_all_reduce = library,
                                            .symmetric = symmetric}};
        outcome_alloc(&ranks[i].out);
        assert_int_equal(pthread_create(&threads[i], NULL, rank_run, &ranks[i]), 0);
    }
    (void)rank_run(&cpu);
    for (uint32_t i = 0; i < count; i++)
        (void)pthread_join(threads[i], NULL);
    (void)snprintf(path, sizeof path, "%s/nccl-id", store);
    (void)unlink(path);
    (void)rmdir(store);
    assert_int_equal(cpu.out.rc, 0);
    for (uint32_t i = 0; i < count; i++) {
        const struct outcome *o = &ranks[i].out;

        if (o->rc)
            print_error("rank %u: %s\n", i, o->err.msg);
        assert_int_equal(o->rc, 0);
        assert_memory_equal(o->embedded, cpu.out.embedded, n * sizeof(float));
        print_message("rank %u: errors: residual %.1e normed %.1e\n", i,
                      relative_error(o->residual, cpu.out.residual, n),
                      relative_error(o->normed, cpu.out.normed, n));
        assert_true(relative_error(o->residual, cpu.out.residual, n) < 1e-2);
        assert_true(relative_error(o->normed, cpu.out.normed, n) < 1e-2);
        assert_memory_equal(o->residual, ranks[0].out.residual, n * sizeof(float));
        assert_memory_equal(o->normed, ranks[0].out.normed, n * sizeof(float));
        sampled_compare(o, &cpu.out);
        for (uint32_t s = 0; s < STEPS; s++)
            for (uint32_t k = 0; k < ROWS; k++) {
                assert_int_equal(o->sampled[s][k].id, ranks[0].out.sampled[s][k].id);
                assert_memory_equal(&o->sampled[s][k].logprob, &ranks[0].out.sampled[s][k].logprob,
                                    sizeof(float));
            }
    }
    for (uint32_t i = 0; i < count; i++) {
        free(ranks[i].out.embedded);
        free(ranks[i].out.residual);
        free(ranks[i].out.normed);
    }
    free(cpu.out.embedded);
    free(cpu.out.residual);
    free(cpu.out.normed);
}

static void test_two_ranks(void **state)
{
    (void)state;
    ranks_compare(2, false, false);
}

static void test_four_ranks(void **state)
{
    (void)state;
    ranks_compare(4, false, false);
}

/* Without sums over peer memory. */
static void test_library(void **state)
{
    (void)state;
    ranks_compare(2, true, false);
}

static void test_symmetric(void **state)
{
    (void)state;
    ranks_compare(2, true, true);
}

/* A rank alone gives up in time, and says who is missing. */
static void test_alone(void **state)
{
    const struct ops *cuda = backend_open("cuda");
    char store[] = "/tmp/phalanx-tp-XXXXXX";
    struct rank r = {.ops = cuda, .config = {.rank = 1, .tp_size = 2, .comm_timeout_s = 0.3}};
    struct err err = {0};
    struct rank probe = {.ops = cuda, .config = {.tp_size = 1}};
    int rc;
    (void)state;

    assert_non_null(cuda);
    rc = rank_open(&probe);
    cuda->device_close(&probe.device);
    if (rc) {
        print_message("skipped: %s\n", probe.out.err.msg);
        skip();
    }
    assert_non_null(mkdtemp(store));
    r.config.comm_store = store;
    rc = rank_open(&r);
    err = r.out.err;
    (void)rmdir(store);
    assert_null(r.device);
    assert_int_equal(rc, ERR_TIMEOUT);
    assert_non_null(strstr(err.msg, "rank 0"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alone),      cmocka_unit_test(test_two_ranks),
        cmocka_unit_test(test_four_ranks), cmocka_unit_test(test_library),
        cmocka_unit_test(test_symmetric),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

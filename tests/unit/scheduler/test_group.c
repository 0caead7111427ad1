/* What ranks must agree on, and the rounds of steps in flight. */
#include "services/scheduler/group.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static uint32_t eos[] = {2, 3};

static struct proto_loaded loaded(uint32_t rank)
{
    return (struct proto_loaded){
        .rank = rank,
        .tp_size = 2,
        .vocab_size = 100,
        .context_length = 64,
        .pages_max = 50 - rank * 10,
        .page_size = 16,
        .page_bytes = 1000,
        .weight_bytes = 5000 + rank,
        .fingerprint = 77,
        .eos_ids = eos,
        .eos_ids_count = 2,
        .device = {"cpu", 3},
    };
}

static void test_agree(void **state)
{
    struct proto_loaded a = loaded(1), b = loaded(0);
    struct proto_kv_ready r0 = {.rank = 0}, r1 = {.rank = 1}, r2 = {.rank = 2};
    struct err err = {0};
    struct group g;

    (void)state;
    group_init(&g, 2, 16);
    assert_int_equal(group_kv_ready(&g, &r0, &err), ERR_PROTOCOL); /* before it was asked for */
    assert_int_equal(group_loaded(&g, &a, &err), 0);
    assert_false(group_all_loaded(&g));
    assert_int_equal(group_loaded(&g, &b, &err), 0);
    assert_true(group_all_loaded(&g));
    assert_int_equal(g.pages_max, 40);
    assert_int_equal(g.pages_max_rank, 1);
    assert_int_equal(g.pages_most, 50);
    assert_int_equal(g.pages_most_rank, 0);
    assert_true(group_uneven(&g));
    g.pages_max = 45;
    assert_false(group_uneven(&g));
    assert_int_equal(g.weight_bytes, 5001);
    assert_int_equal(g.eos_ids_count, 2);
    assert_int_equal(g.eos_ids[1], 3);
    assert_string_equal(g.device, "cpu");
    assert_int_equal(group_kv_ready(&g, &r2, &err), ERR_PROTOCOL);
    assert_int_equal(group_kv_ready(&g, &r1, &err), 0);
    assert_int_equal(group_kv_ready(&g, &r1, &err), ERR_PROTOCOL);
    assert_false(group_all_ready(&g));
    assert_int_equal(group_kv_ready(&g, &r0, &err), 0);
    assert_true(group_all_ready(&g));
    group_fini(&g);
}

static void test_disagree(void **state)
{
    struct proto_loaded first = loaded(0), m;
    uint32_t other[] = {2, 4};
    struct err err = {0};
    struct group g;

    (void)state;
#define BAD(field, value, text)                                                                    \
    group_init(&g, 2, 16);                                                                         \
    assert_int_equal(group_loaded(&g, &first, &err), 0);                                           \
    m = loaded(1);                                                                                 \
    m.field = value;                                                                               \
    assert_int_equal(group_loaded(&g, &m, &err), ERR_PROTOCOL);                                    \
    assert_non_null(strstr(err.msg, text));                                                        \
    assert_false(group_all_loaded(&g));                                                            \
    group_fini(&g)
    BAD(rank, 0, "rank 0 has come twice");
    BAD(rank, 2, "rank 2 is outside");
    BAD(rank, 64, "rank 64 is outside");
    BAD(rank, UINT32_MAX, "is outside");
    BAD(tp_size, 4, "rank 1 was started with --tp-size 4");
    BAD(page_size, 32, "rank 1 was started with --page-size 32");
    BAD(vocab_size, 101, "rank 1 has a vocabulary of 101, rank 0 of 100");
    BAD(vocab_size, 0, "rank 1");
    BAD(context_length, 65, "rank 1 has a context of 65");
    BAD(context_length, 1, "rank 1");
    BAD(pages_max, 0, "rank 1 has no memory");
    BAD(fingerprint, 78, "rank 1 has loaded another model");
    BAD(eos_ids_count, 1, "rank 1 has loaded another model");
    BAD(eos_ids, other, "rank 1 has loaded another model");
#undef BAD
}

static int done(struct group *g, uint32_t rank, struct proto_step_done *m, bool *complete,
                const struct proto_sampled **results, uint32_t *count, struct err *err)
{
    m->rank = rank;
    return group_step_done(g, rank, m, complete, results, count, err);
}

static void test_rounds(void **state)
{
    struct proto_alternative top[2] = {{.id = 8, .logprob = -1}, {.id = 9, .logprob = -2}};
    struct proto_logprob logprob = {.id = 8, .logprob = -1, .top = top, .top_count = 2};
    struct proto_sampled sampled[2] = {
        {.slot = 0, .id = 7}, {.slot = 3, .id = 8, .logprob = &logprob, .logprob_count = 1}};
    struct proto_step_done one = {
        .step = 1, .hash = 5, .elapsed_us = 10, .results = sampled, .results_count = 2};
    struct proto_step_done two = {.step = 2, .hash = 6, .results = sampled, .results_count = 1};
    const struct proto_sampled *results;
    struct err err = {0};
    struct group g;
    uint32_t count;
    bool complete;
    char text[256];

    (void)state;
    group_init(&g, 3, 16);
    group_step_sent(&g, 1, 100);
    group_step_sent(&g, 2, 200);
    assert_int_equal(done(&g, 0, &one, &complete, &results, &count, &err), 0);
    assert_false(complete);
    memset(&sampled[1], 0xff, sizeof sampled[1]); /* the message ends with the callback */
    memset(&logprob, 0xff, sizeof logprob);
    memset(top, 0xff, sizeof top);
    for (uint32_t rank = 0; rank < 3; rank++) { /* the second is complete before the first */
        assert_int_equal(done(&g, rank, &two, &complete, &results, &count, &err), 0);
        assert_false(complete);
    }
    assert_string_equal(group_missing(&g, g.rounds[0].done, text, sizeof text), "1, 2");
    one.results_count = 0;
    one.elapsed_us = 30;
    assert_int_equal(done(&g, 2, &one, &complete, &results, &count, &err), 0);
    assert_false(complete);
    assert_false(group_step_complete(&g));
    one.elapsed_us = 20;
    assert_int_equal(done(&g, 1, &one, &complete, &results, &count, &err), 0);
    assert_true(complete);
    assert_int_equal(g.rounds[0].compute_us, 30);
    assert_int_equal(count, 2);
    assert_int_equal(results[0].id, 7);
    assert_int_equal(results[0].logprob_count, 0);
    assert_int_equal(results[1].slot, 3);
    assert_int_equal(results[1].logprob_count, 1);
    assert_int_equal(results[1].logprob[0].id, 8);
    assert_int_equal(results[1].logprob[0].top_count, 2);
    assert_int_equal(results[1].logprob[0].top[1].id, 9);
    assert_true(results[1].logprob[0].top[1].logprob == -2);
    group_step_drop(&g);
    assert_true(group_step_complete(&g));
    assert_int_equal(g.rounds[0].step, 2);
    assert_int_equal(g.rounds[0].results.count, 1);
    assert_int_equal(g.rounds[0].results.sampled[0].id, 7);
    group_step_drop(&g);
    assert_false(group_step_complete(&g));
    group_fini(&g);
}

static void test_rounds_refused(void **state)
{
    struct proto_step_done m = {.step = 1, .hash = 5};
    const struct proto_sampled *results;
    struct err err = {0};
    struct group g;
    uint32_t count;
    bool complete;

    (void)state;
    group_init(&g, 2, 16);
    assert_int_equal(done(&g, 0, &m, &complete, &results, &count, &err), ERR_PROTOCOL);
    group_step_sent(&g, 1, 100);
    m.step = 2;
    assert_int_equal(done(&g, 0, &m, &complete, &results, &count, &err), ERR_PROTOCOL);
    m.step = 1;
    m.rank = 1;
    assert_int_equal(group_step_done(&g, 0, &m, &complete, &results, &count, &err), ERR_PROTOCOL);
    assert_int_equal(done(&g, 1, &m, &complete, &results, &count, &err), 0);
    assert_int_equal(done(&g, 1, &m, &complete, &results, &count, &err), ERR_PROTOCOL);
    m.hash = 6;
    assert_int_equal(done(&g, 0, &m, &complete, &results, &count, &err), ERR_PROTOCOL);
    assert_non_null(strstr(err.msg, "ranks 1 and 0 have come apart in step 1"));
    group_fini(&g);
}

static void test_64_ranks(void **state)
{
    struct proto_loaded m = loaded(0);
    struct err err = {0};
    struct group g;
    char text[256];

    (void)state;
    group_init(&g, 64, 16);
    m.tp_size = 64;
    for (m.rank = 0; m.rank < 64; m.rank++) {
        assert_false(group_all_loaded(&g));
        assert_int_equal(group_loaded(&g, &m, &err), 0);
    }
    assert_true(group_all_loaded(&g));
    assert_true(strlen(group_missing(&g, 0, text, sizeof text)) < sizeof text);
    group_fini(&g);
}

/* The oldest of g's two ranks' rounds ends; the device spent so long on it. */
static void round_ends(struct group *g, uint64_t elapsed_us)
{
    struct proto_step_done m = {.step = g->rounds[0].step, .elapsed_us = elapsed_us};
    const struct proto_sampled *results;
    struct err err = {0};
    uint32_t count;
    bool complete;

    for (uint32_t rank = 0; rank < 2; rank++)
        assert_int_equal(done(g, rank, &m, &complete, &results, &count, &err), 0);
    assert_true(complete);
    group_step_drop(g);
}

/* Sends steps until no more are wanted; returns how many are in flight then. */
static uint32_t rounds_fill(struct group *g, bool decodes)
{
    static uint64_t step;

    while (group_step_wanted(g)) {
        group_step_sent(g, ++step, 0);
        g->rounds[g->rounds_count - 1].decodes = decodes;
    }
    return g->rounds_count;
}

static void test_short_steps(void **state)
{
    struct proto_loaded a = loaded(0), b = loaded(1);
    struct err err = {0};
    struct group g;

    (void)state;
    a.steps_ahead = 3;
    b.steps_ahead = GROUP_STEPS_MAX + 1;
    group_init(&g, 2, 16);
    assert_int_equal(group_loaded(&g, &b, &err), 0);
    assert_int_equal(group_loaded(&g, &a, &err), 0);
    assert_int_equal(g.steps_ahead, 3);
    g.steps_ahead = b.steps_ahead;
    assert_int_equal(rounds_fill(&g, true), 2); /* nobody knows yet how long they take */
    round_ends(&g, 1500);
    assert_int_equal(rounds_fill(&g, true), 2);
    round_ends(&g, 800);
    assert_int_equal(rounds_fill(&g, true), 3);
    round_ends(&g, 100);
    assert_int_equal(rounds_fill(&g, true), GROUP_STEPS_MAX);
    round_ends(&g, 2000); /* those that are in flight stay */
    assert_int_equal(rounds_fill(&g, true), 3);
    round_ends(&g, 2000);
    round_ends(&g, 100);
    assert_int_equal(rounds_fill(&g, false), 2);
    round_ends(&g, 100);
    assert_int_equal(rounds_fill(&g, true), 2); /* the older one is a prompt's */
    round_ends(&g, 100);
    g.steps_ahead = 3;
    assert_int_equal(rounds_fill(&g, true), 3);
    g.steps_ahead = 1;
    round_ends(&g, 100);
    round_ends(&g, 100);
    assert_int_equal(rounds_fill(&g, true), 2);
    group_reset(&g);
    assert_int_equal(group_loaded(&g, &b, &err), 0);
    assert_int_equal(g.steps_ahead, b.steps_ahead);
    assert_int_equal(rounds_fill(&g, true), 2);
    group_fini(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_agree),    cmocka_unit_test(test_disagree),
        cmocka_unit_test(test_rounds),   cmocka_unit_test(test_rounds_refused),
        cmocka_unit_test(test_64_ranks), cmocka_unit_test(test_short_steps),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The core with the prefix cache, under memory pressure, and its policies. */
#include "common/mem.h"
#include "services/scheduler/core.h"
#include "tests/unit/scheduler/core_setup.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#define VOCAB 1000u
#define PAGE_SIZE 4u

static struct scheduler_config config_default(void)
{
    return (struct scheduler_config){
        .slots_max = 4,
        .queued_max = 256,
        .page_size = PAGE_SIZE,
        .num_pages = 64,
        .prefill_tokens_max = 64,
        .context_length = 128,
        .vocab_size = VOCAB,
        .steps_in_flight_max = 1,
        .policy = "fcfs",
        .prefix_cache = true,
        .hash_seed = 1,
        .conservativeness = 1,
    };
}

/* Token i of prompts of a family is family * 100 + i. */
static void admit_as(struct scheduler *s, uint64_t id, uint32_t family, uint32_t count,
                     uint32_t max_tokens, int64_t priority)
{
    uint32_t *prompt = mem_array(count, sizeof *prompt);
    struct proto_sampling sampling = sampling_default(max_tokens);
    struct scheduler_request r = {
        .owner = 1, .id = id, .prompt = prompt, .prompt_count = count, .sampling = &sampling};
    struct err err = {0};

    sampling.priority = priority;
    for (uint32_t i = 0; i < count; i++)
        prompt[i] = (family * 100 + i) % VOCAB;
    if (scheduler_admit(s, &r, 1000, NULL, &err))
        fail_msg("%s", err.msg);
    free(prompt);
}

static void admit(struct scheduler *s, uint64_t id, uint32_t family, uint32_t count,
                  uint32_t max_tokens)
{
    admit_as(s, id, family, count, max_tokens, 0);
}

static struct scheduler_stats stats(const struct scheduler *s)
{
    struct scheduler_stats st;

    scheduler_stats(s, &st);
    return st;
}

/* Runs all to their ends; returns the number of steps. */
static uint32_t run(struct scheduler *s, uint32_t token)
{
    const struct scheduler_step *step;
    uint32_t steps = 0, count;

    for (; (step = scheduler_plan(s, 0)); steps++)
        (void)apply(s, step, token, &count);
    assert_int_equal(stats(s).running + stats(s).waiting, 0);
    assert_int_equal(stats(s).pages_free, stats(s).pages_total);
    return steps;
}

/* The only row of the next step is a first one; where does it start? */
static uint32_t start_of(struct scheduler *s)
{
    const struct scheduler_step *step = scheduler_plan(s, 0);
    uint32_t start, count;

    assert_non_null(step);
    assert_int_equal(step->message.opened_count, 1);
    assert_int_equal(step->message.rows_count, 1);
    assert_int_equal(step->message.pages[0].first, 0); /* found and new ones */
    start = step->message.rows[0].start;
    (void)apply(s, step, 900, &count);
    return start;
}

static void test_prompt_again(void **state)
{
    struct scheduler_config c = config_default();
    const struct scheduler_output *out;
    const struct scheduler_step *step;
    struct scheduler *s = make(&c);
    uint32_t count;

    (void)state;
    admit(s, 1, 1, 10, 1);
    assert_int_equal(start_of(s), 0);
    admit(s, 2, 1, 10, 1);
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.rows[0].start, 8);
    assert_int_equal(step->message.rows[0].count, 2);
    out = apply(s, step, 900, &count);
    assert_int_equal(out[0].token.cached_tokens, 8);
    admit(s, 3, 1, 8, 1); /* known as a whole: its last token is computed all the same */
    assert_int_equal(start_of(s), 4);
    admit(s, 4, 1, 5, 1);
    assert_int_equal(start_of(s), 4);
    admit(s, 5, 2, 10, 1);
    assert_int_equal(start_of(s), 0);
    assert_int_equal(stats(s).prefix_queries, 43);
    assert_int_equal(stats(s).prefix_hits, 16);
    assert_int_equal(stats(s).pages_cached, 4);
    scheduler_flush(s);
    assert_int_equal(stats(s).pages_cached, 0);
    admit(s, 6, 1, 10, 1);
    assert_int_equal(start_of(s), 0);
    scheduler_free(&s);
}

/* Prompt and answer together are the beginning of the next turn. */
static void test_next_turn(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler *s = make(&c);

    (void)state;
    admit(s, 1, 1, 6, 6); /* tokens 100 .. 105, then six times 106 */
    (void)run(s, 106);
    admit(s, 2, 1, 7, 1); /* 100 .. 106 */
    assert_int_equal(start_of(s), 4);
    scheduler_flush(s);
    admit(s, 3, 1, 7, 2);
    (void)run(s, 107); /* 100 .. 106, 107, 107: the second page is known, its last token too */
    admit(s, 4, 1, 9, 1);
    assert_int_equal(start_of(s), 8);
    scheduler_free(&s);
}

static void test_naive(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler *s;

    (void)state;
    c.prefix_cache = false;
    s = make(&c);
    for (uint64_t id = 1; id < 4; id++) {
        admit(s, id, 1, 10, 1);
        assert_int_equal(start_of(s), 0);
    }
    assert_int_equal(stats(s).pages_cached, 0);
    scheduler_flush(s);
    scheduler_free(&s);
}

/* n choices: one computes the prompt, the others wait a step for its pages, a stranger does not. */
static void test_choices(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler *s = make(&c);
    const struct scheduler_step *step;
    uint32_t count;

    (void)state;
    for (uint64_t id = 1; id <= 3; id++)
        admit(s, id, 1, 18, 5);
    admit(s, 4, 2, 18, 5);
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.opened_count, 2);
    assert_int_equal(step->message.opened[1].tokens[0], 200);
    assert_int_equal(stats(s).waiting, 2);
    (void)apply(s, step, 900, &count);
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.opened_count, 2);
    assert_int_equal(step->message.rows_count, 4);
    assert_int_equal(step->message.rows[2].start, 16);
    assert_int_equal(step->message.rows[3].start, 16);
    assert_int_equal(stats(s).pages_free, 64 - 4 - 2 - 1 - 1 - 4); /* four pages are one */
    for (uint64_t id = 1; id <= 3; id++)
        assert_int_equal(scheduler_abort(s, 1, id), 0);
    assert_int_equal(stats(s).running, 1);
    (void)apply(s, step, 900, &count);
    assert_int_equal(count, 1);
    assert_int_equal(scheduler_abort(s, 1, 4), 0);
    assert_int_equal(stats(s).pages_free, 64);
    assert_int_equal(stats(s).slots_free, 4);
    scheduler_flush(s);
    assert_int_equal(stats(s).pages_cached, 0);
    scheduler_free(&s);
}

/* What others save by waiting must be worth a step. */
static void test_no_waiting_for_little(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler *s = make(&c);
    const struct scheduler_step *step;
    uint32_t count;

    (void)state;
    admit(s, 1, 1, 5, 2);
    admit(s, 2, 1, 40, 2); /* shares one page of ten */
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.opened_count, 2);
    assert_int_equal(step->message.rows[1].start, 0);
    (void)apply(s, step, 900, &count);
    (void)run(s, 900);
    scheduler_free(&s);
}

static void test_chunks_are_shared(void **state)
{
    struct scheduler_config c = config_default();
    const struct scheduler_step *step;
    struct scheduler *s;
    uint32_t count;

    (void)state;
    c.prefill_tokens_max = 10;
    s = make(&c);
    admit(s, 1, 1, 26, 2);
    for (int i = 0; i < 2; i++)
        (void)apply(s, scheduler_plan(s, 0), 900, &count);
    assert_int_equal(stats(s).pages_cached, 5);
    assert_int_equal(scheduler_abort(s, 1, 1), 0); /* in the middle of its prompt */
    admit(s, 2, 1, 26, 2);
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.rows[0].start, 20);
    assert_true(step->message.rows[0].sample);
    scheduler_free(&s);
}

/* Two that together outgrow the pool: the later one gives way and goes on where it was. */
static void retraction(uint32_t steps_in_flight)
{
    struct scheduler_config c = config_default();
    const struct scheduler_output *out;
    const struct scheduler_step *steps[2] = {NULL, NULL};
    uint32_t next[3] = {0}, count, reopened = 0, sampled = 0;
    struct scheduler *s;

    c.conservativeness = 0;
    c.num_pages = 10;
    c.steps_in_flight_max = steps_in_flight;
    s = make(&c);
    admit(s, 1, 1, 6, 30);
    admit(s, 2, 2, 6, 30);
    for (uint64_t applied = 0;; applied++) {
        const struct scheduler_step *step;

        while ((step = scheduler_plan(s, 0))) {
            for (uint32_t i = 0; i < step->message.opened_count; i++) {
                const struct proto_slot_open *o = &step->message.opened[i];

                assert_int_equal(o->tokens_count, 6 + o->generated);
                assert_int_equal(o->generated, next[o->tokens[0] / 100]);
                reopened += o->generated > 0;
            }
            for (uint32_t i = 0; i < step->message.rows_count; i++)
                sampled += step->message.rows[i].sample;
            steps[step->message.step % 2] = step;
        }
        if (stats(s).steps_in_flight == 0)
            break;
        out = apply(s, steps[(applied + 1) % 2], 900, &count);
        for (uint32_t i = 0; i < count; i++)
            assert_int_equal(out[i].token.index, next[out[i].token.sid]++);
    }
    assert_true(next[1] == 30 && next[2] == 30);
    assert_true(reopened >= 1 && stats(s).preemptions == reopened);
    assert_int_equal(stats(s).generation_tokens, 60);
    assert_int_equal(sampled, 60); /* none is dropped and chosen again */
    assert_int_equal(stats(s).pages_free, 10);
    assert_int_equal(stats(s).prefix_queries, 12); /* counted once */
    scheduler_free(&s);
}

static void test_retraction(void **state)
{
    (void)state;
    retraction(1);
    retraction(2);
}

/* Retracted with a row in flight, then aborted. */
static void test_abort_of_retracted(void **state)
{
    struct scheduler_config c = config_default();
    const struct scheduler_step *step = NULL, *last;
    struct scheduler *s;
    uint32_t count;

    (void)state;
    c.conservativeness = 0;
    c.num_pages = 4;
    c.steps_in_flight_max = 2;
    s = make(&c);
    admit(s, 1, 1, 4, 12);
    admit(s, 2, 2, 4, 12);
    last = scheduler_plan(s, 0);
    while (stats(s).preemptions == 0) {
        step = scheduler_plan(s, 0);
        if (stats(s).preemptions == 0) {
            assert_non_null(step);
            (void)apply(s, last, 900, &count);
            last = step;
        }
    }
    assert_int_equal(stats(s).waiting, 1);
    assert_int_equal(stats(s).running, 1);
    assert_int_equal(scheduler_abort(s, 1, 2), 0);
    assert_int_equal(stats(s).waiting, 0);
    while (stats(s).steps_in_flight) {
        (void)apply(s, last, 900, &count);
        last = step;
    }
    (void)run(s, 900);
    scheduler_free(&s);
}

/* The estimate learns: with it, sequences that would not fit wait in the first place. */
static void test_estimate(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler *s;
    uint32_t count;

    (void)state;
    c.num_pages = 20; /* 80 tokens; each may need 50 */
    s = make(&c);
    admit(s, 1, 1, 10, 40);
    admit(s, 2, 2, 10, 40); /* 10 + 0.7 * 40 each: 20 pages */
    admit(s, 3, 3, 10, 40);
    (void)apply(s, scheduler_plan(s, 0), 900, &count);
    assert_int_equal(stats(s).running, 2);
    (void)run(s, 900);
    assert_true(stats(s).preemptions <= 1);
    scheduler_free(&s);
}

static uint64_t first_opened(struct scheduler *s)
{
    const struct scheduler_step *step = scheduler_plan(s, 0);
    uint64_t family;
    uint32_t count;

    assert_non_null(step);
    assert_int_equal(step->message.opened_count, 1);
    family = step->message.opened[0].tokens[0] / 100;
    (void)apply(s, step, 900, &count);
    return family;
}

static void test_lpm(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler *s;

    (void)state;
    c.slots_max = 1;
    c.policy = "lpm";
    s = make(&c);
    admit(s, 1, 3, 20, 1);
    admit(s, 2, 2, 6, 1);
    assert_int_equal(first_opened(s), 3); /* nothing is cached: first come */
    assert_int_equal(first_opened(s), 2);
    admit(s, 3, 1, 20, 1);
    admit(s, 4, 2, 20, 1); /* one page */
    admit(s, 5, 3, 20, 1); /* four */
    assert_int_equal(first_opened(s), 3);
    assert_int_equal(first_opened(s), 2);
    assert_int_equal(first_opened(s), 1);
    scheduler_flush(s);

    admit(s, 10, 9, 20, 1);
    (void)run(s, 900);
    admit(s, 11, 1, 20, 1); /* passed by those that match, but not for good */
    for (uint64_t id = 100; id < 200; id++)
        admit(s, id, 9, 20, 1);
    for (uint32_t passed = 0; passed < 64; passed++)
        assert_int_equal(first_opened(s), 9);
    assert_int_equal(first_opened(s), 1);
    (void)run(s, 900);

    admit(s, 12, 1, 20, 1);
    scheduler_flush(s);
    admit(s, 13, 9, 20, 1);
    (void)run(s, 900);
    scheduler_flush(s);
    admit(s, 14, 9, 20, 1);
    (void)run(s, 900);
    admit(s, 15, 1, 20, 1); /* a long queue is not looked through */
    for (uint64_t id = 200; id < 328; id++)
        admit(s, id, 9, 20, 1);
    assert_int_equal(first_opened(s), 1);
    (void)run(s, 900);
    scheduler_free(&s);
}

static void test_priority(void **state)
{
    struct scheduler_config c = config_default();
    const struct scheduler_step *step;
    struct scheduler *s;
    uint32_t count;

    (void)state;
    c.slots_max = 1;
    c.policy = "priority";
    c.preempt_above = 3;
    s = make(&c);
    admit_as(s, 1, 1, 6, 1, 0);
    admit_as(s, 2, 2, 6, 1, -5);
    admit_as(s, 3, 3, 6, 1, 5);
    admit_as(s, 4, 4, 6, 1, 5);
    admit_as(s, 5, 5, 6, 1, 0);
    assert_int_equal(first_opened(s), 3);
    assert_int_equal(first_opened(s), 4);
    assert_int_equal(first_opened(s), 1);
    assert_int_equal(first_opened(s), 5);
    assert_int_equal(first_opened(s), 2);

    admit_as(s, 6, 6, 6, 9, 0);
    (void)first_opened(s);
    admit_as(s, 7, 7, 6, 1, 3); /* not more than the threshold above */
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.opened_count, 0);
    (void)apply(s, step, 900, &count);
    assert_int_equal(stats(s).preemptions, 0);
    admit_as(s, 8, 8, 6, 1, 4);
    step = scheduler_plan(s, 0); /* its last row, then it gives way */
    (void)apply(s, step, 900, &count);
    assert_int_equal(stats(s).preemptions, 1);
    assert_int_equal(first_opened(s), 8);
    assert_int_equal(first_opened(s), 7);
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.opened[0].generated, 3);
    (void)apply(s, step, 900, &count);
    (void)run(s, 900);
    assert_int_equal(stats(s).generation_tokens, 5 + 9 + 2);
    scheduler_free(&s);
}

/* Cached prompts cost no budget, yet their tokens are in the message. */
static void test_opened_tokens_bound(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler *s;

    (void)state;
    c.context_length = 1048576;
    c.page_size = 1024;
    c.num_pages = 4096;
    c.prefill_tokens_max = -1;
    s = make(&c);
    for (uint64_t id = 1; id <= 3; id++)
        admit(s, id, 1, 600000, 1);
    assert_int_equal(start_of(s), 0);
    assert_int_equal(start_of(s), 599040);
    assert_int_equal(start_of(s), 599040);
    scheduler_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompt_again),
        cmocka_unit_test(test_next_turn),
        cmocka_unit_test(test_naive),
        cmocka_unit_test(test_choices),
        cmocka_unit_test(test_no_waiting_for_little),
        cmocka_unit_test(test_chunks_are_shared),
        cmocka_unit_test(test_retraction),
        cmocka_unit_test(test_abort_of_retracted),
        cmocka_unit_test(test_estimate),
        cmocka_unit_test(test_lpm),
        cmocka_unit_test(test_priority),
        cmocka_unit_test(test_opened_tokens_bound),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Sequences whose reader is behind. */
#include "services/scheduler/core.h"

#include "common/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static struct scheduler *make_chunked(uint32_t slots_max, uint32_t num_pages, int32_t chunk)
{
    const struct scheduler_config c = {
        .slots_max = slots_max,
        .queued_max = 2,
        .page_size = 4,
        .num_pages = num_pages,
        .prefill_tokens_max = chunk,
        .context_length = 64,
        .vocab_size = 100,
        .steps_in_flight_max = 1,
        .policy = "fcfs",
    };
    struct scheduler *s = NULL;

    assert_int_equal(scheduler_new(&c, &s, NULL), 0);
    return s;
}

static struct scheduler *make(uint32_t slots_max, uint32_t num_pages)
{
    return make_chunked(slots_max, num_pages, 4);
}

static int admit(struct scheduler *s, uint64_t id, uint32_t prompt_count, uint32_t max_tokens)
{
    static const uint32_t prompt[64];
    const struct proto_sampling sampling = {.temperature = 1,
                                            .top_p = 1,
                                            .repetition_penalty = 1,
                                            .max_tokens = max_tokens,
                                            .logprobs = -1};
    const struct scheduler_request r = {.owner = 1,
                                        .id = id,
                                        .prompt = prompt,
                                        .prompt_count = prompt_count,
                                        .sampling = &sampling};

    return scheduler_admit(s, &r, 0, NULL, NULL);
}

static void set(struct scheduler *s, uint64_t id, bool paused)
{
    assert_int_equal(scheduler_pause(s, 1, id, paused), 0);
}

/* One step, with a row a sequence at most; bit i: sequence i got a token. */
static uint64_t turn(struct scheduler *s)
{
    const struct scheduler_step *step = scheduler_plan(s, 0);
    struct proto_sampled results[8];
    const struct scheduler_output *out;
    uint32_t n = 0, count;
    uint64_t got = 0, slots = 0;

    if (!step)
        return 0;
    for (uint32_t i = 0; i < step->message.rows_count; i++) {
        const struct proto_row *row = &step->message.rows[i];

        assert_false(slots >> row->slot & 1);
        slots |= UINT64_C(1) << row->slot;
        if (row->sample)
            results[n++] = (struct proto_sampled){.slot = row->slot, .id = 5};
    }
    assert_int_equal(scheduler_apply(s, step->message.step, results, n, &out, &count, NULL), 0);
    for (uint32_t i = 0; i < count; i++)
        got |= UINT64_C(1) << out[i].token.sid;
    return got;
}

static struct scheduler_stats stats(const struct scheduler *s)
{
    struct scheduler_stats st;

    scheduler_stats(s, &st);
    return st;
}

static void test_no_rows(void **state)
{
    struct scheduler *s = make(4, 64);

    (void)state;
    assert_int_equal(admit(s, 1, 2, 9), 0);
    assert_int_equal(admit(s, 2, 2, 9), 0);
    assert_int_equal(turn(s), 1 << 1 | 1 << 2);
    set(s, 1, true);
    set(s, 1, true);
    assert_int_equal(turn(s), 1 << 2);
    set(s, 2, true);
    assert_null(scheduler_plan(s, 0));
    assert_int_equal(stats(s).running, 2); /* nobody needs their slots */
    set(s, 1, false);
    assert_int_equal(turn(s), 1 << 1);
    assert_int_equal(scheduler_abort(s, 1, 2), 0);
    assert_int_equal(scheduler_pause(s, 1, 2, false), ERR_NOT_FOUND);
    assert_int_equal(stats(s).preemptions, 0);
    scheduler_free(&s);
}

/* A prompt goes on to its end; one that waits does not start. */
static void test_prompts(void **state)
{
    struct scheduler *s = make(4, 64);

    (void)state;
    assert_int_equal(admit(s, 1, 7, 9), 0);
    assert_int_equal(turn(s), 0);
    set(s, 1, true);
    assert_int_equal(turn(s), 1 << 1);
    assert_int_equal(turn(s), 0);
    assert_int_equal(admit(s, 2, 2, 9), 0);
    set(s, 2, true);
    assert_null(scheduler_plan(s, 0));
    assert_int_equal(stats(s).waiting, 1);
    assert_int_equal(scheduler_abort(s, 1, 2), 0);
    assert_int_equal(stats(s).waiting, 0);
    scheduler_free(&s);
}

/* Who waits takes the slot of one that is paused; that one goes on later, in front. */
static void test_slots(void **state)
{
    struct scheduler *s = make(2, 64);

    (void)state;
    assert_int_equal(admit(s, 1, 1, 3), 0);
    assert_int_equal(admit(s, 2, 1, 3), 0);
    assert_int_equal(turn(s), 1 << 1 | 1 << 2);
    set(s, 1, true);
    assert_int_equal(admit(s, 3, 1, 2), 0);
    assert_int_equal(admit(s, 4, 1, 2), 0);
    assert_int_equal(turn(s), 1 << 2 | 1 << 3);
    assert_int_equal(stats(s).preemptions, 1);
    set(s, 1, false);
    assert_int_equal(turn(s), 1 << 2 | 1 << 3); /* both end */
    assert_int_equal(turn(s), 1 << 1 | 1 << 4);
    assert_int_equal(turn(s), 1 << 1 | 1 << 4);
    assert_int_equal(stats(s).running + stats(s).waiting, 0);
    scheduler_free(&s);
}

/* The first that came gives way, because it is paused, and not the one that is behind it. */
static void test_pages(void **state)
{
    struct scheduler *s = make(2, 5);

    (void)state;
    assert_int_equal(admit(s, 1, 4, 13), 0);
    assert_int_equal(admit(s, 2, 4, 13), 0);
    while (turn(s) != (1 << 1 | 1 << 2))
        assert_int_equal(stats(s).preemptions, 0);
    set(s, 1, true);
    while (stats(s).preemptions == 0)
        assert_int_equal(turn(s), 1 << 2);
    assert_int_equal(turn(s), 1 << 2);
    set(s, 1, false);
    for (int i = 0; i < 40; i++)
        (void)turn(s);
    assert_int_equal(stats(s).running + stats(s).waiting, 0);
    scheduler_free(&s);
}

/* A prompt whose pages one that is paused has taken gets them back. */
static void test_stuck_prompt(void **state)
{
    struct scheduler *s = make(2, 8);

    (void)state;
    assert_int_equal(admit(s, 1, 1, 31), 0);
    assert_int_equal(turn(s), 1 << 1);
    assert_int_equal(admit(s, 2, 27, 1), 0); /* with the one page of the other, all of them */
    for (int i = 0; i < 4; i++)
        assert_int_equal(turn(s), 1 << 1); /* grows meanwhile */
    set(s, 1, true);
    for (int i = 0; i < 8 && stats(s).running + stats(s).waiting > 1; i++)
        (void)turn(s);
    assert_int_equal(stats(s).waiting, 1); /* the paused one alone */
    assert_int_equal(stats(s).running, 0);
    scheduler_free(&s);
}

/* The same where there are pages for a part of the chunk: that is one row, not two. */
static void test_short_prompt(void **state)
{
    struct scheduler *s = make_chunked(2, 8, 5);

    (void)state;
    assert_int_equal(admit(s, 1, 1, 31), 0);
    assert_int_equal(turn(s), 1 << 1);
    assert_int_equal(admit(s, 2, 27, 1), 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(turn(s), 1 << 1);
    assert_int_equal(stats(s).prompt_tokens, 1 + 20);
    assert_int_equal(stats(s).pages_free, 1); /* of the two that five more tokens take */
    set(s, 1, true);
    assert_int_equal(turn(s), 0);
    assert_int_equal(stats(s).prompt_tokens, 1 + 25);
    assert_int_equal(stats(s).preemptions, 1);
    assert_int_equal(turn(s), 1 << 2);
    scheduler_free(&s);
}

/* Those that are paused do not fill the queue, but there is a bound. */
static void test_queue(void **state)
{
    struct scheduler *s = make(1, 64);

    (void)state;
    for (uint64_t id = 1; id <= 2; id++) {
        assert_int_equal(admit(s, id, 2, 3), 0);
        set(s, id, true);
    }
    assert_int_equal(stats(s).waiting, 2);
    assert_int_equal(admit(s, 3, 2, 3), ERR_BUSY);
    set(s, 1, false);
    assert_int_equal(admit(s, 3, 2, 3), 0);
    scheduler_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_rows),      cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_slots),        cmocka_unit_test(test_pages),
        cmocka_unit_test(test_stuck_prompt), cmocka_unit_test(test_short_prompt),
        cmocka_unit_test(test_queue),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

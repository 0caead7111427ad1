#include "services/bench/results.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void near(double value, double wanted)
{
    if (fabs(value - wanted) > 1e-9 * (1 + fabs(wanted)))
        fail_msg("%.12g is not %.12g", value, wanted);
}

/* As numpy.percentile has them. */
static void test_percentiles(void **state)
{
    double four[] = {40, 10, 30, 20};
    double one[] = {7};
    double hundred[101];
    struct summary s = summarize(four, 4);

    (void)state;
    near(s.mean, 25);
    near(s.std, 11.180339887498949);
    near(s.p50, 25);
    near(s.p90, 37);
    near(s.p99, 39.7);
    near(s.max, 40);
    s = summarize(one, 1);
    near(s.p50, 7);
    near(s.p99, 7);
    near(s.std, 0);
    for (int i = 0; i <= 100; i++)
        hundred[i] = (double)((i * 37) % 101);
    s = summarize(hundred, 101);
    near(s.p50, 50);
    near(s.p90, 90);
    near(s.p99, 99);
    assert_int_equal(summarize(NULL, 0).count, 0);
}

static void test_report(void **state)
{
    static const struct sample samples[] = {
        {.start_us = 0,
         .first_us = 100000,
         .end_us = 1000000,
         .input_tokens = 10,
         .output_tokens = 10,
         .chunks = 9,
         .outcome = OUTCOME_OK},
        {.due_us = 500000,
         .start_us = 501000,
         .first_us = 801000,
         .end_us = 801000,
         .input_tokens = 5,
         .output_tokens = 1,
         .chunks = 1,
         .outcome = OUTCOME_OK},
        {.due_us = 1000000, .start_us = 1000000, .end_us = 1100000, .outcome = OUTCOME_NONE},
        {.due_us = 1500000, .start_us = 1500000, .end_us = 1600000, .outcome = OUTCOME_NONE},
    };
    static const uint32_t gaps_us[] = {1000, 2000, 3000};
    struct results r;
    struct report p;

    (void)state;
    results_init(&r, 4);
    memcpy(r.samples, samples, sizeof samples);
    results_add_gaps(&r, gaps_us, 3);
    results_add_gaps(&r, gaps_us, 0);
    results_fail(&r, &r.samples[2], "HTTP 500");
    r.duration_us = 2000000;
    r.cpu_us = 22;
    report_make(&r, &p);
    assert_int_equal(p.completed, 2);
    assert_int_equal(p.failed, 1); /* the fourth was not finished */
    assert_int_equal(p.input_tokens, 15);
    assert_int_equal(p.output_tokens, 11);
    assert_int_equal(p.chunks, 10);
    near(p.request_rate, 1);
    near(p.output_rate, 5.5);
    near(p.concurrency, 0.65);
    near(p.offered_rate, 2);
    near(p.cpu_us_token, 2);
    near(p.ttft_ms.mean, 200);
    near(p.e2e_ms.mean, 650);
    assert_int_equal(p.tpot_ms.count, 1); /* one token has no rhythm */
    near(p.tpot_ms.mean, 100);
    near(p.itl_ms.p50, 2);
    near(p.late_ms.mean, 0.5);
    results_fini(&r);
}

static void test_nothing(void **state)
{
    struct results r;
    struct report p;

    (void)state;
    results_init(&r, 1);
    report_make(&r, &p);
    assert_int_equal(p.completed, 0);
    assert_true(isinf(p.offered_rate));
    near(p.output_rate, 0);
    assert_int_equal(p.ttft_ms.count, 0);
    results_fini(&r);
}

/* Reasons are grouped; those beyond the bound together. */
static void test_reasons(void **state)
{
    struct results r;
    char text[32];

    (void)state;
    results_init(&r, 100);
    for (size_t i = 0; i < 100; i++) {
        (void)snprintf(text, sizeof text, "reason %zu", i / 2);
        results_fail(&r, &r.samples[i], text);
    }
    assert_int_equal(r.reasons_count, REASONS_MAX);
    assert_int_equal(r.reasons[0].count, 2);
    assert_string_equal(r.reasons[REASONS_MAX - 2].text, "reason 22");
    assert_string_equal(r.reasons[REASONS_MAX - 1].text, "other reasons");
    assert_int_equal(r.reasons[REASONS_MAX - 1].count, 100 - 2 * (REASONS_MAX - 1));
    assert_int_equal(r.samples[99].reason, REASONS_MAX - 1);
    results_fini(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_percentiles),
        cmocka_unit_test(test_report),
        cmocka_unit_test(test_nothing),
        cmocka_unit_test(test_reasons),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What a reply does to its sample, and the picture made from many. */
#include "services/bench/reply.h"

#include "services/bench/plot.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define EVENT(text) "data: {\"choices\":[{\"index\":0,\"text\":\"" text "\"}]}\n\n"
#define FINISH "data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n"
#define USAGE "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":6,\"completion_tokens\":3}}\n\n"
#define DONE "data: [DONE]\n\n"

struct played {
    struct sample sample;
    struct results results;
};

/* The pieces come 1 ms apart, the end 1 ms later. http: why HTTP says it failed, NULL: complete. */
static void play(struct played *o, enum shape shape, int status, const char *const *pieces,
                 const char *http)
{
    struct reply r;
    int64_t now_us = 0;
    bool more = true;

    memset(&o->sample, 0, sizeof o->sample);
    o->sample.input_asked = 6;
    o->sample.output_asked = 3;
    results_init(&o->results, 1);
    reply_init(&r, shape, &o->sample);
    for (; *pieces && more; pieces++)
        more = reply_feed(&r, status, *pieces, strlen(*pieces), now_us += 1000);
    reply_end(&r, status, more ? http : "", now_us + 1000, &o->results);
    reply_fini(&r);
}

static void test_success(void **state)
{
    static const char *const pieces[] = {EVENT("a"),          "data: {\"choices\":[{\"te",
                                         "xt\":\"b\"}]}\n\n", EVENT("") EVENT("c") FINISH,
                                         USAGE DONE,          NULL};
    struct played o;

    (void)state;
    play(&o, SHAPE_COMPLETIONS, 200, pieces, NULL);
    assert_int_equal(o.sample.outcome, OUTCOME_OK);
    assert_int_equal(o.sample.chunks, 3);
    assert_int_equal(o.sample.output_tokens, 3);
    assert_int_equal(o.sample.input_tokens, 6);
    assert_int_equal(o.sample.first_us, 1000);
    assert_int_equal(o.sample.end_us, 6000);
    assert_int_equal(o.results.gaps_count, 2);
    assert_int_equal(o.results.gaps_us[0], 2000);
    assert_int_equal(o.results.gaps_us[1], 1000);
    assert_int_equal(o.results.without_usage + o.results.shorter + o.results.more_chunks +
                         o.results.other_inputs,
                     0);
    results_fini(&o.results);
}

/* Usage and chunks are held against each other, and against what was asked for. */
static void test_cross_check(void **state)
{
    static const char *const no_usage[] = {EVENT("a") EVENT("b") FINISH DONE, NULL};
    static const char *const many[] = {EVENT("a") EVENT("b") EVENT("c") EVENT("d") USAGE DONE,
                                       NULL};
    static const char *const textless[] = {FINISH USAGE DONE, NULL};
    struct played o;

    (void)state;
    play(&o, SHAPE_COMPLETIONS, 200, no_usage, NULL);
    assert_int_equal(o.sample.outcome, OUTCOME_OK);
    assert_int_equal(o.results.without_usage, 1);
    assert_int_equal(o.results.shorter, 1);
    assert_int_equal(o.sample.output_tokens, 2);
    results_fini(&o.results);
    play(&o, SHAPE_COMPLETIONS, 200, many, NULL);
    assert_int_equal(o.results.more_chunks, 1);
    assert_int_equal(o.sample.output_tokens, 3);
    results_fini(&o.results);
    play(&o, SHAPE_COMPLETIONS, 200, textless, NULL);
    assert_int_equal(o.sample.outcome, OUTCOME_OK);
    assert_int_equal(o.sample.first_us, o.sample.end_us);
    results_fini(&o.results);
}

/* /generate repeats the text: an event counts when it brings more. */
static void test_generate(void **state)
{
    static const char *const pieces[] = {
        "data: {\"text\":\"a\",\"meta_info\":{\"completion_tokens\":1,\"prompt_tokens\":6}}\n\n",
        "data: {\"text\":\"a\",\"meta_info\":{\"completion_tokens\":1}}\n\n",
        "data: {\"text\":\"ab\",\"meta_info\":{\"completion_tokens\":3,\"finish_reason\":"
        "{\"type\":\"length\"}}}\n\n",
        "data: {\"text\":\"ab\",\"meta_info\":{\"completion_tokens\":3}}\n\n" DONE, NULL};
    struct played o;

    (void)state;
    play(&o, SHAPE_GENERATE, 200, pieces, NULL);
    assert_int_equal(o.sample.outcome, OUTCOME_OK);
    assert_int_equal(o.sample.chunks, 2);
    assert_int_equal(o.sample.output_tokens, 3);
    results_fini(&o.results);
}

static void expect_failure(int status, const char *piece, const char *http, const char *reason)
{
    const char *const pieces[] = {piece, NULL};
    struct played o;

    play(&o, SHAPE_COMPLETIONS, status, pieces, http);
    assert_int_equal(o.sample.outcome, OUTCOME_FAILED);
    assert_int_equal(o.results.reasons_count, 1);
    assert_string_equal(o.results.reasons[0].text, reason);
    assert_int_equal(o.results.gaps_count, 0); /* a failed reply's rhythm is not measured */
    results_fini(&o.results);
}

static void test_failures(void **state)
{
    char many[60000] = "";

    (void)state;
    expect_failure(429, "{\"error\":{\"message\":\"queue is full\"}}", NULL,
                   "HTTP 429: queue is full");
    expect_failure(422, "{\"detail\":\"no\"}", NULL, "HTTP 422: no");
    expect_failure(502, "<html>\x1b[2J</html>", NULL, "HTTP 502: <html>?[2J</html>");
    expect_failure(500, "", NULL, "HTTP 500");
    expect_failure(200, EVENT("a"), "cut", "cut");
    expect_failure(200, EVENT("a") EVENT("b"), NULL,
                   "the stream ended without finish_reason and [DONE]");
    expect_failure(200, "{\"choices\":[{\"text\":\"a\"}]}", NULL,
                   "the reply is no stream of events");
    expect_failure(200, EVENT("a") "data: {oops\n\n", NULL, "an event is no JSON object: {oops");
    expect_failure(200, "data: {\"error\":{\"message\":\"boom\"}}\n\n" DONE, NULL,
                   "error event: boom");
    expect_failure(200, "event: error\ndata: {\"code\":1}\n\n", NULL, "error event: {\"code\":1}");
    expect_failure(200, "data: {\"choices\":[{\"finish_reason\":\"abort\"}]}\n\n" DONE, NULL,
                   "the server ended the request (finish_reason abort)");
    for (int i = 0; i < 200; i++)
        (void)strcat(many, EVENT("a"));
    expect_failure(200, many, NULL, "the server sends far more than was asked for");
}

/* ---- the picture ---- */

static void test_steps(void **state)
{
    static const struct {
        double span, step;
    } cases[] = {{6, 1}, {6.1, 2}, {12, 2}, {13, 5}, {30, 5}, {31, 10}, {0.06, 0.01}, {1e6, 2e5}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (fabs(plot_step(cases[i].span, 6) / cases[i].step - 1) > 1e-9)
            fail_msg("%g: %g", cases[i].span, plot_step(cases[i].span, 6));
}

static size_t occurrences(const char *text, const char *word)
{
    size_t n = 0;

    for (; (text = strstr(text, word)); text++)
        n++;
    return n;
}

static void test_plot(void **state)
{
    struct bench_config c = {
        .rates = {4, 1, (double)INFINITY, 2}, .rates_count = 4, .runs_count = 4};
    struct report reports[4] = {
        {.completed = 1}, {.completed = 1}, {.completed = 1}, {.failed = 1}};
    struct buf out = {0};

    (void)state;
    reports[0].ttft_ms = (struct summary){.count = 1, .p50 = 20, .p90 = 30, .p99 = 40};
    reports[1].ttft_ms = (struct summary){.count = 1, .p50 = 10, .p90 = 20, .p99 = 30};
    plot_write(&c, "<model> & more", reports, 4, &out);
    /* Two runs have a point (the others: no finite rate, nothing completed), in six lines. */
    assert_int_equal(occurrences(out.data, "<circle"), 12);
    assert_int_equal(occurrences(out.data, "<polyline"), 6);
    assert_non_null(strstr(out.data, "&lt;model> &amp; more"));
    assert_null(strstr(out.data, "nan"));
    assert_null(strstr(out.data, "inf"));
    buf_fini(&out);
    plot_write(&c, "none", reports, 0, &out);
    assert_int_equal(occurrences(out.data, "<circle"), 0);
    assert_null(strstr(out.data, "nan"));
    buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_success),  cmocka_unit_test(test_cross_check),
        cmocka_unit_test(test_generate), cmocka_unit_test(test_failures),
        cmocka_unit_test(test_steps),    cmocka_unit_test(test_plot),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

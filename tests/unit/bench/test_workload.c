#include "services/bench/random.h"
#include "services/bench/workload.h"

#include "common/buf.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_random_lengths(void **state)
{
    struct workload a, b, c;
    uint32_t low = UINT32_MAX, high = 0;

    (void)state;
    workload_random(&a, 5000, 200, 50, 0.5, 7);
    workload_random(&b, 5000, 200, 50, 0.5, 7);
    workload_random(&c, 5000, 200, 50, 0.5, 8);
    assert_memory_equal(a.requests, b.requests, a.count * sizeof *a.requests);
    assert_memory_not_equal(a.requests, c.requests, a.count * sizeof *a.requests);
    for (size_t i = 0; i < a.count; i++) {
        low = a.requests[i].input_tokens < low ? a.requests[i].input_tokens : low;
        high = a.requests[i].input_tokens > high ? a.requests[i].input_tokens : high;
        assert_in_range(a.requests[i].output_tokens, 25, 50);
    }
    assert_int_equal(low, 100); /* 5000 draws of 101 values meet both ends */
    assert_int_equal(high, 200);
    workload_fini(&a);
    workload_random(&a, 1000, 3, 1, 0, 7);
    for (size_t i = 0; i < a.count; i++)
        assert_in_range(a.requests[i].input_tokens, 1, 3);
    workload_fini(&a);
    workload_random(&a, 10, 64, 32, 1, 7);
    for (size_t i = 0; i < a.count; i++)
        assert_int_equal(a.requests[i].input_tokens, 64);
    workload_fini(&a);
    workload_fini(&b);
    workload_fini(&c);
}

static void test_poisson(void **state)
{
    enum { N = 20000 };
    struct workload w = {.count = N};
    int64_t *a = malloc(N * sizeof *a), *b = malloc(N * sizeof *b);
    double squares = 0, mean;

    (void)state;
    assert_non_null(a);
    assert_non_null(b);
    arrivals_poisson(&w, 100, 3, a);
    arrivals_poisson(&w, 100, 3, b);
    assert_memory_equal(a, b, N * sizeof *a);
    arrivals_poisson(&w, 100, 4, b);
    assert_memory_not_equal(a, b, N * sizeof *a);
    assert_int_equal(a[0], 0);
    mean = (double)a[N - 1] / (N - 1);
    for (int i = 1; i < N; i++) {
        assert_true(a[i] >= a[i - 1]);
        squares += pow((double)(a[i] - a[i - 1]) - mean, 2);
    }
    /* Gaps of a Poisson process: mean and deviation are 1/rate (within 5 standard errors). */
    assert_true(fabs(mean - 10000) < 5 * 10000 / sqrt(N));
    assert_true(fabs(sqrt(squares / N) - 10000) < 500);
    arrivals_poisson(&w, (double)INFINITY, 3, a);
    for (int i = 0; i < N; i++)
        assert_int_equal(a[i], 0);
    free(a);
    free(b);
}

static void test_prompts(void **state)
{
    struct workload w;
    uint32_t first[64], again[64];

    (void)state;
    workload_random(&w, 3, 64, 1, 1, 1);
    prompt_ids(&w, 1, 1, 1, 100, first);
    for (int i = 0; i < 64; i++)
        assert_in_range(first[i], 0, 99);
    prompt_ids(&w, 1, 1, 1, 100, again);
    assert_memory_equal(first, again, sizeof first);
    prompt_ids(&w, 2, 1, 1, 100, again); /* another request */
    assert_memory_not_equal(first, again, sizeof first);
    prompt_ids(&w, 1, 1, 2, 100, again); /* another run */
    assert_memory_not_equal(first, again, sizeof first);
    prompt_ids(&w, 1, 2, 1, 100, again); /* another seed */
    assert_memory_not_equal(first, again, sizeof first);
    workload_fini(&w);
}

/* ---- traces ---- */

#define HEADER "TIMESTAMP,ContextTokens,GeneratedTokens"

static int parse(struct workload *w, const char *text, size_t count, uint64_t context,
                 struct err *err)
{
    memset(err, 0, sizeof *err);
    return workload_trace_text(w, text, strlen(text), count, context, err);
}

static void test_azure(void **state)
{
    static const char *const texts[] = {
        HEADER "\r\n2023-11-16 23:59:59.6805900,374,44\r\n2023-11-17 00:00:00.1805910,396,109\r\n",
        HEADER "\n2023-11-16 23:59:59.680590+00:00,374,44\n\n2023-11-17 00:00:00.180591,396,109",
    };
    struct workload w;
    struct err err;
    int64_t due[2];

    (void)state;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(parse(&w, texts[i], 100, 0, &err), 0);
        assert_int_equal(w.count, 2);
        assert_int_equal(w.requests[0].input_tokens, 374);
        assert_int_equal(w.requests[1].output_tokens, 109);
        assert_int_equal(w.requests[0].arrival_us, 0);
        assert_int_equal(w.requests[1].arrival_us, 500001);
        arrivals_trace(&w, 0.5, due);
        assert_int_equal(due[1], 250000);
        workload_fini(&w);
    }
}

/* Leap days and years' ends count. */
static void test_dates(void **state)
{
    struct workload w;
    struct err err;

    (void)state;
    assert_int_equal(parse(&w,
                           HEADER "\n2023-12-31 23:59:59,1,1\n2024-02-28 00:00:00,1,1\n"
                                  "2024-03-01 00:00:00,1,1\n",
                           9, 0, &err),
                     0);
    assert_int_equal(w.requests[1].arrival_us, (58 * 86400LL + 1) * 1000000);
    assert_int_equal(w.requests[2].arrival_us, (60 * 86400LL + 1) * 1000000);
    workload_fini(&w);
}

static void test_mooncake(void **state)
{
    static const char text[] =
        "{\"timestamp\": 5000, \"input_length\": 1024, \"output_length\": 5, \"hash_ids\": [0, "
        "1]}\n"
        "{\"timestamp\": 27, \"input_length\": 600, \"output_length\": 3, \"hash_ids\": [0, 2]}\n"
        "{\"timestamp\": 5000, \"input_length\": 7, \"output_length\": 1}\n";
    struct workload w;
    struct err err;
    uint32_t a[1024], b[1024];

    (void)state;
    assert_int_equal(parse(&w, text, 100, 0, &err), 0);
    assert_int_equal(w.count, 3);
    assert_int_equal(w.requests[0].input_tokens, 600); /* in the order of time */
    assert_int_equal(w.requests[1].input_tokens, 1024);
    assert_int_equal(w.requests[2].input_tokens, 7); /* and of the file */
    assert_int_equal(w.requests[1].arrival_us, 4973000);
    prompt_ids(&w, 0, 1, 1, 5000, a);
    prompt_ids(&w, 1, 1, 1, 5000, b);
    assert_memory_equal(a, b, 512 * sizeof *a); /* both begin with block 0 */
    assert_memory_not_equal(a + 512, b + 512, 88 * sizeof *a);
    workload_fini(&w);
}

static void test_cut(void **state)
{
    static const char text[] = HEADER "\n2023-11-16 00:00:01,10,10\n2023-11-16 00:00:02,90,11\n"
                                      "2023-11-16 00:00:03,90,10\n2023-11-16 00:00:04,1,1\n";
    struct workload w;
    struct err err;

    (void)state;
    assert_int_equal(parse(&w, text, 2, 100, &err), 0);
    assert_int_equal(w.count, 2);
    assert_int_equal(w.skipped, 1);
    assert_int_equal(w.requests[1].arrival_us, 2000000);
    workload_fini(&w);
    assert_int_equal(parse(&w, text, 1, 0, &err), 0);
    assert_int_equal(w.count, 1);
    workload_fini(&w);
    assert_int_equal(parse(&w, text, 9, 1, &err), ERR_INVALID);
    assert_string_equal(err.msg, "no row of the trace fits into the context of 1 tokens");
    assert_null(w.requests);
}

static void test_bad_traces(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "no requests"},
        {HEADER "\n", "no requests"},
        {"time,in,out\n1,2,3\n", "line 1 is neither"},
        {"\x89PNG\r\n", "line 1 is neither"},
        {HEADER "\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:46.68,374\n",
         "line 3 is no time"},
        {HEADER "\n2023-13-16 18:15:46,374,44\n", "line 2 is no time"},
        {HEADER "\n2023-11-16 18:15:46.,374,44\n", "line 2 is no time"},
        {HEADER "\n2023-11-16 18:15:46,0,44\n", "line 2 is no time"},
        {HEADER "\n2023-11-16 18:15:46,16777217,44\n", "line 2 is no time"},
        {HEADER "\n2023-11-16 18:15:46,99999999999999999999,44\n", "line 2 is no time"},
        {HEADER "\n2023-11-16 18:15:46,-1,44\n", "line 2 is no time"},
        {HEADER "\n2023-11-16 18:15:46,1,44,5\n", "line 2 is no time"},
        {"{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 1}\n{", "line 2 is no object"},
        {"{\"timestamp\": 0, \"input_length\": 1}", "line 1 is no object"},
        {"{\"timestamp\": -1, \"input_length\": 1, \"output_length\": 1}", "line 1 is no object"},
        {"{\"timestamp\": 1e300, \"input_length\": 1, \"output_length\": 1}",
         "line 1 is no object"},
        {"{\"timestamp\": 0, \"input_length\": 1.5, \"output_length\": 1}", "line 1 is no object"},
        {"{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": [-1]}",
         "line 1 is no object"},
        {"{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": {}}",
         "line 1 is no object"},
    };
    struct workload w;
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(parse(&w, cases[i].text, 10, 0, &err), ERR_INVALID);
        if (!strstr(err.msg, cases[i].message))
            fail_msg("'%s' says '%s'", cases[i].text, err.msg);
        assert_null(w.requests);
    }
    assert_int_equal(workload_trace(&w, "/nowhere/trace.csv", 1, 0, &err), ERR_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_lengths),
        cmocka_unit_test(test_poisson),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_azure),
        cmocka_unit_test(test_dates),
        cmocka_unit_test(test_mooncake),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_bad_traces),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

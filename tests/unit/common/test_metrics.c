#include "common/mem.h"
#include "common/metrics.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_find(void **state)
{
    (void)state;
    for (size_t i = 0; i < METRICS_COUNT; i++) {
        const char *name = metric_name((enum metric)i);

        assert_int_equal(metric_find(name, strlen(name)), i);
        assert_int_equal(metric_find(name, strlen(name) - 1), METRICS_COUNT);
    }
    assert_int_equal(metric_find("", 0), METRICS_COUNT);
    assert_int_equal(metric_kind(METRIC_TTFT), METRIC_HISTOGRAM);
}

static void test_bounds(void **state)
{
    (void)state;
    for (size_t i = 1; i < METRIC_BUCKETS - 1; i++)
        assert_true(metric_bounds[i] > metric_bounds[i - 1]);
}

static void test_print(void **state)
{
    struct metrics *a = mem_zalloc(sizeof *a);
    struct metrics *b = mem_zalloc(sizeof *b);
    const struct metrics *all[] = {a, b};
    static const char *const names[] = {"scheduler-0", "we\"ird\\\n"};
    struct buf out = {0};

    (void)state;
    metric_set(a, METRIC_KV_PAGES_TOTAL, 512);
    metric_set(b, METRIC_KV_PAGES_TOTAL, NAN);
    metric_add(a, METRIC_SUCCESS_STOP, 2);
    metric_add(a, METRIC_SUCCESS_STOP, 1);
    metric_add(b, METRIC_SUCCESS_ABORT, 1);
    metrics_print(all, names, 2, &out);
    assert_string_equal(
        out.data,
        "# HELP phalanx:kv_pages_total KV pages of the pool\n"
        "# TYPE phalanx:kv_pages_total gauge\n"
        "phalanx:kv_pages_total{process=\"scheduler-0\"} 512\n"
        "phalanx:kv_pages_total{process=\"we\\\"ird\\\\\\n\"} NaN\n"
        "# HELP phalanx:request_success_total Choices that ended, by reason\n"
        "# TYPE phalanx:request_success_total counter\n"
        "phalanx:request_success_total{finished_reason=\"stop\",process=\"scheduler-0\"} 3\n"
        "phalanx:request_success_total{finished_reason=\"abort\",process=\"we\\\"ird\\\\\\n\"} "
        "1\n");
    buf_fini(&out);
    free(a);
    free(b);
}

static void test_histogram(void **state)
{
    struct metrics *m = mem_zalloc(sizeof *m);
    const struct metrics *all[] = {m};
    static const char *const names[] = {"p"};
    struct buf out = {0};

    (void)state;
    metric_observe(m, METRIC_TTFT, 0.0001); /* on the bound: belongs below it */
    metric_observe(m, METRIC_TTFT, 0.3);
    metric_observe(m, METRIC_TTFT, 1e6);
    assert_int_equal(m->buckets[METRIC_TTFT][0], 1);
    assert_int_equal(m->buckets[METRIC_TTFT][METRIC_BUCKETS - 1], 1);
    metrics_print(all, names, 1, &out);
    assert_non_null(strstr(out.data, "# TYPE phalanx:time_to_first_token_seconds histogram\n"));
    assert_non_null(strstr(out.data, "_bucket{process=\"p\",le=\"0.0001\"} 1\n"));
    assert_non_null(strstr(out.data, "_bucket{process=\"p\",le=\"0.25\"} 1\n"));
    assert_non_null(strstr(out.data, "_bucket{process=\"p\",le=\"0.5\"} 2\n"));
    assert_non_null(strstr(out.data, "_bucket{process=\"p\",le=\"320\"} 2\n"));
    assert_non_null(strstr(out.data, "_bucket{process=\"p\",le=\"+Inf\"} 3\n"));
    assert_non_null(strstr(out.data, "_sum{process=\"p\"} 1000000.3001\n"));
    assert_non_null(strstr(out.data, "_count{process=\"p\"} 3\n"));
    buf_fini(&out);
    free(m);
}

static void test_process(void **state)
{
    struct metrics *m = mem_zalloc(sizeof *m);

    (void)state;
    metrics_sample_process(m);
    assert_true(m->used[METRIC_RESIDENT_BYTES]);
    assert_true(m->value[METRIC_RESIDENT_BYTES] > 100000);
    assert_true(m->used[METRIC_CPU_SECONDS]);
    free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_find),    cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_print),   cmocka_unit_test(test_histogram),
        cmocka_unit_test(test_process),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

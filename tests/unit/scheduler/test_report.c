/* What the scheduler tells about itself. */
#include "services/scheduler/report.h"

#include "common/file.h"
#include "common/log.h"
#include "proto/stats.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <unistd.h>

static double value(const struct proto_stats *m, uint32_t source, enum metric id)
{
    struct metrics metrics;

    stats_read(&m->sources[source], &metrics);
    assert_true(metrics.used[id]);
    return metrics.value[id];
}

static void test_stats(void **state)
{
    struct scheduler_stats now = {.running = 2, .waiting = 1, .pages_total = 10, .pages_free = 4};
    struct metrics worker = {0};
    struct proto_stat stats[METRICS_COUNT];
    struct proto_source source;
    struct proto_stats m = {NULL, 0};
    struct report r;

    (void)state;
    report_init(&r, 3, 0);
    assert_false(report_stats(&r, &now, "scheduler-0", &m));
    report_worker(&r, 2, "worker-2", &m); /* a message without content */
    assert_false(report_stats(&r, &now, "scheduler-0", &m));
    report_queue_time(&r, 1500000);
    report_step(&r, 2000000, 500000);
    now.steps = 7;
    now.prompt_tokens = 100;
    assert_true(report_stats(&r, &now, "scheduler-0", &m));
    assert_int_equal(m.sources_count, 1);
    assert_true(proto_str_is(m.sources[0].name, "scheduler-0"));
    assert_true(value(&m, 0, METRIC_NUM_REQUESTS_RUNNING) == 2);
    assert_true(value(&m, 0, METRIC_NUM_REQUESTS_WAITING) == 1);
    assert_true(value(&m, 0, METRIC_KV_CACHE_USAGE) == 0.6);
    assert_true(value(&m, 0, METRIC_QUEUE_TIME) == 1.5);
    assert_true(value(&m, 0, METRIC_STEP_TIME) == 2);
    assert_true(value(&m, 0, METRIC_STEP_COMPUTE) == 0.5);
    assert_true(value(&m, 0, METRIC_STEPS) == 7);
    assert_false(report_stats(&r, &now, "scheduler-0", &m));

    metric_set(&worker, METRIC_WEIGHT_BYTES, 55);
    source = stats_source(&worker, "x", stats);
    m = (struct proto_stats){&source, 1};
    report_worker(&r, 2, "worker-2", &m);
    now.steps = 9;
    assert_true(report_stats(&r, &now, "scheduler-0", &m));
    assert_int_equal(m.sources_count, 2);
    assert_true(value(&m, 0, METRIC_STEPS) == 9);
    assert_true(value(&m, 0, METRIC_PROMPT_TOKENS) == 100); /* counted once */
    assert_true(proto_str_is(m.sources[1].name, "worker-2"));
    assert_true(value(&m, 1, METRIC_WEIGHT_BYTES) == 55);
    report_fini(&r);
}

/* The log lines of report_log(now) at 5 s after the last. */
static void log_lines(struct report *r, const struct scheduler_stats *now, struct buf *out)
{
    char path[] = "/tmp/phalanx-test-report-XXXXXX";
    int file = mkstemp(path), saved = dup(STDERR_FILENO);
    struct err err;

    assert_true(file >= 0 && saved >= 0);
    (void)dup2(file, STDERR_FILENO);
    report_log(r, now, r->logged_us + 5000000);
    (void)dup2(saved, STDERR_FILENO);
    buf_clear(out);
    assert_int_equal(file_read(path, 65536, out, &err), 0);
    (void)close(file);
    (void)close(saved);
    (void)unlink(path);
}

static void test_log(void **state)
{
    struct scheduler_stats now = {.pages_total = 10, .pages_free = 10};
    struct buf out = {0};
    struct report r;

    (void)state;
    report_init(&r, 1, 1000);
    log_lines(&r, &now, &out);
    assert_int_equal(out.len, 0); /* nothing to do */
    now = (struct scheduler_stats){.running = 3,
                                   .waiting = 2,
                                   .pages_total = 10,
                                   .pages_free = 4,
                                   .steps = 5,
                                   .prompt_tokens = 100,
                                   .generation_tokens = 10,
                                   .prefix_queries = 200,
                                   .prefix_hits = 50};
    log_lines(&r, &now, &out);
    assert_non_null(strstr(out.data, "running=3 queued=2 token_usage=0.60 "
                                     "prefill_tokens_per_s=20.0 decode_tokens_per_s=2.0 "
                                     "cache_hit_rate=0.25"));
    log_lines(&r, &now, &out); /* still running, but nothing came */
    assert_non_null(strstr(out.data, "decode_tokens_per_s=0.0 cache_hit_rate=0.00"));
    now.running = now.waiting = 0;
    log_lines(&r, &now, &out);
    assert_int_equal(out.len, 0);
    buf_fini(&out);
    report_fini(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stats), cmocka_unit_test(test_log)};

    log_init("test", LOG_INFO);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

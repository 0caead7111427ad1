/* When the last steps are written to the log, and what is written. */
#include "services/scheduler/watchdog.h"

#include "common/buf.h"
#include "common/file.h"
#include "common/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <unistd.h>

#define S INT64_C(1000000)

/* Runs the call with standard error in a file; `lines` is what was logged. */
static struct buf lines;
static int saved;
static char path[64];

static void capture_begin(void)
{
    int file;

    strcpy(path, "/tmp/phalanx-test-watchdog-XXXXXX");
    file = mkstemp(path);
    saved = dup(STDERR_FILENO);
    assert_true(file >= 0 && saved >= 0 && dup2(file, STDERR_FILENO) >= 0);
    (void)close(file);
}

static void capture_end(void)
{
    struct err err;

    (void)dup2(saved, STDERR_FILENO);
    (void)close(saved);
    buf_clear(&lines);
    assert_int_equal(file_read(path, 65536, &lines, &err), 0);
    buf_append(&lines, "", 1);
    (void)unlink(path);
}

static uint32_t lines_count(void)
{
    uint32_t n = 0;

    for (const char *at = lines.data; (at = strchr(at, '\n')); at++)
        n++;
    return n;
}

static void look(struct watchdog *w, bool work, int64_t now_us)
{
    capture_begin();
    watchdog_look(w, work, 10 * S, now_us);
    capture_end();
}

static void send_step(struct watchdog *w, uint64_t epoch, uint64_t number, int64_t now_us)
{
    struct proto_row rows[] = {{.slot = 1, .count = 1}, {.slot = 2, .count = 100}};
    struct proto_step m = {.step = number, .rows = rows, .rows_count = 2};

    watchdog_sent(w, epoch, &m, now_us);
}

static void test_a_stall_is_told_once(void **state)
{
    struct watchdog w;

    (void)state;
    watchdog_init(&w, 3, 0);
    look(&w, false, 100 * S); /* nothing to do is no stall */
    assert_int_equal(lines_count(), 0);
    send_step(&w, 7, 1, 100 * S);
    watchdog_answered(&w, 7, 1, 1, 101 * S);
    watchdog_answered(&w, 6, 1, 0, 101 * S); /* an epoch that is over */
    watchdog_answered(&w, 7, 2, 0, 101 * S); /* a step that was not sent */
    look(&w, true, 111 * S - 1);
    assert_int_equal(lines_count(), 0);
    look(&w, true, 111 * S);
    assert_int_equal(lines_count(), 2);
    assert_non_null(strstr(lines.data, "steps_sent=1 \"nothing has moved for 10.0 s"));
    assert_non_null(strstr(lines.data, "epoch=7 step=1 rows=2 prefill_tokens=100 "
                                       "sent_s_ago=11.000 last_answer_ms=1000.000 missing=0,2\n"));
    look(&w, true, 200 * S);
    assert_int_equal(lines_count(), 0);
    watchdog_answered(&w, 7, 1, 0, 201 * S); /* it moves, and stops again */
    look(&w, true, 211 * S);
    assert_int_equal(lines_count(), 2);
    assert_non_null(strstr(lines.data, "missing=2\n"));
}

static void test_work_without_any_step(void **state)
{
    struct watchdog w;

    (void)state;
    watchdog_init(&w, 1, 0);
    look(&w, true, 10 * S);
    assert_int_equal(lines_count(), 1);
}

static void test_the_last_ones_are_kept(void **state)
{
    struct watchdog w;

    (void)state;
    watchdog_init(&w, 64, 0);
    for (uint64_t i = 1; i <= WATCHDOG_STEPS + 5; i++) {
        send_step(&w, 1, i, 0);
        for (uint32_t rank = 0; rank < 64 && i < 30; rank++)
            watchdog_answered(&w, 1, i, rank, 1000);
    }
    watchdog_answered(&w, 1, 5, 0, 0); /* forgotten already */
    capture_begin();
    watchdog_dump(&w, "asked", 2 * S);
    capture_end();
    assert_int_equal(lines_count(), WATCHDOG_STEPS + 1);
    assert_null(strstr(lines.data, " step=5 "));
    assert_non_null(strstr(lines.data, " step=6 rows=2 prefill_tokens=100 sent_s_ago=2.000 "
                                       "last_answer_ms=1.000\n"));
    assert_non_null(strstr(lines.data, "last_answer_ms=- missing=0,1,2,3,"));
    assert_non_null(strstr(lines.data, ",62,63\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_stall_is_told_once),
        cmocka_unit_test(test_work_without_any_step),
        cmocka_unit_test(test_the_last_ones_are_kept),
    };
    int failed;

    log_init("scheduler-0", LOG_INFO);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    buf_fini(&lines);
    return failed;
}

#include "common/log.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char text[8192];

/* Standard error goes to a file between capture_begin and capture_end, which fills text. */
static int saved = -1, file = -1;

static void capture_begin(void)
{
    char path[] = "/tmp/phalanx-test-log-XXXXXX";

    file = mkstemp(path);
    assert_true(file >= 0);
    (void)unlink(path);
    saved = dup(STDERR_FILENO);
    assert_true(dup2(file, STDERR_FILENO) >= 0);
}

static void capture_end(void)
{
    ssize_t n;

    (void)dup2(saved, STDERR_FILENO);
    (void)close(saved);
    n = pread(file, text, sizeof text - 1, 0);
    (void)close(file);
    assert_true(n >= 0);
    text[n] = '\0';
}

static void test_line(void **state)
{
    (void)state;
    log_init("scheduler-0", LOG_INFO);
    capture_begin();
    log_debug("hidden");
    log_info("step=%d name=%s", 12, "a\nb\x1b[31m");
    capture_end();
    assert_int_equal(strspn(text, "0123456789-T:.Z"), 24);
    assert_string_equal(text + 24, " INFO scheduler-0 step=12 name=a?b?[31m\n");
}

static void test_level(void **state)
{
    (void)state;
    log_set_level(LOG_DEBUG);
    assert_int_equal(log_get_level(), LOG_DEBUG);
    capture_begin();
    log_debug("seen");
    capture_end();
    assert_non_null(strstr(text, " DEBUG scheduler-0 seen\n"));
    log_set_level(LOG_ERROR);
    capture_begin();
    log_warn("hidden");
    capture_end();
    assert_string_equal(text, "");
}

static void hup(int level)
{
    assert_int_equal(sigqueue(getpid(), SIGHUP, (union sigval){.sival_int = level}), 0);
}

static void test_hup(void **state)
{
    (void)state;
    log_init("scheduler-0", LOG_WARN);
    (void)signal(SIGHUP, SIG_DFL); /* whatever it was for who runs the tests */
    log_follow_sighup();
    capture_begin();
    (void)kill(getpid(), SIGHUP); /* to one's only thread: delivered before it returns */
    assert_int_equal(log_get_level(), LOG_DEBUG);
    (void)kill(getpid(), SIGHUP);
    assert_int_equal(log_get_level(), LOG_WARN);
    hup(LOG_INFO);
    assert_int_equal(log_get_level(), LOG_INFO);
    hup(LOG_ERROR + 1);
    hup(-1);
    assert_int_equal(log_get_level(), LOG_INFO);
    capture_end();
    assert_string_equal(text, "scheduler-0: log level debug\nscheduler-0: log level warn\n"
                              "scheduler-0: log level info\nscheduler-0: log level info\n"
                              "scheduler-0: log level info\n");
}

static void test_hup_is_ignored(void **state)
{
    struct sigaction now;

    (void)state;
    (void)signal(SIGHUP, SIG_IGN);
    log_follow_sighup();
    assert_int_equal(sigaction(SIGHUP, NULL, &now), 0);
    assert_ptr_equal(now.sa_handler, SIG_IGN);
}

static void test_long(void **state)
{
    char word[6000];

    (void)state;
    memset(word, 'x', sizeof word - 1);
    word[sizeof word - 1] = '\0';
    capture_begin();
    log_say("%s", word);
    capture_end();
    assert_true(strlen(text) <= 4096);
    assert_int_equal(strcspn(text, "\n"), strlen(text) - 1);
}

/* Nobody reads: the writer goes on, and says later how many lines that were. */
static void test_full_pipe(void **state)
{
    static char taken[1 << 20];
    ssize_t n;
    int ends[2];

    (void)state;
    log_init("scheduler-0", LOG_INFO);
    assert_int_equal(pipe(ends), 0);
    saved = dup(STDERR_FILENO);
    assert_true(dup2(ends[1], STDERR_FILENO) >= 0);
    for (int i = 0; i < 20000; i++)
        log_say("line %d", i);
    (void)fcntl(ends[0], F_SETFL, O_NONBLOCK);
    while (read(ends[0], taken, sizeof taken) > 0)
        continue;
    log_say("room");
    n = read(ends[0], taken, sizeof taken - 1);
    (void)dup2(saved, STDERR_FILENO);
    (void)close(saved);
    (void)close(ends[0]);
    (void)close(ends[1]);
    assert_true(n > 0);
    taken[n] = '\0';
    assert_memory_equal(taken, "scheduler-0: ", 13);
    assert_in_range(atoi(taken + 13), 1, 19999);
    assert_non_null(strstr(taken, " lines lost, nobody took them\nroom\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_line),           cmocka_unit_test(test_level),
        cmocka_unit_test(test_long),           cmocka_unit_test(test_hup),
        cmocka_unit_test(test_hup_is_ignored), cmocka_unit_test(test_full_pipe),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

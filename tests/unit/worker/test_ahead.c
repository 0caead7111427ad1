/* Threads that fill buffers ahead of who uses them. */
#include "services/worker/ahead.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#define BYTES 64u

struct work {
    uint64_t fails_at; /* and from there on; UINT64_MAX: never */
    uint64_t slow_at;  /* takes longer than others */
    uint64_t most;     /* that are filled before any is given back */
    uint64_t done;     /* by the user */
    uint64_t calls;
    bool early; /* one was filled whose buffer was still in use */
};

static int fill(void *ctx, uint64_t i, void *buffer, struct err *err)
{
    struct work *w = ctx;

    (void)__atomic_fetch_add(&w->calls, 1u, __ATOMIC_RELAXED);
    if (i >= __atomic_load_n(&w->done, __ATOMIC_ACQUIRE) + w->most)
        __atomic_store_n(&w->early, true, __ATOMIC_RELAXED);
    if (i == w->slow_at)
        (void)nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    if (i >= w->fails_at)
        return err_set(err, ERR_IO, "result %llu", (unsigned long long)i);
    memset(buffer, (int)(i % 251), BYTES);
    return 0;
}

static struct ahead_config config_of(struct work *w, uint32_t threads, uint32_t buffers,
                                     uint64_t count)
{
    w->most = buffers;
    return (struct ahead_config){.threads = threads,
                                 .buffers = buffers,
                                 .buffer_bytes = BYTES,
                                 .count = count,
                                 .fill = fill,
                                 .ctx = w};
}

static void results_come_in_order(void **state)
{
    (void)state;
    for (uint32_t threads = 1; threads <= AHEAD_THREADS_MAX; threads++)
        for (uint32_t buffers = 1; buffers <= threads + 2; buffers++) {
            struct work w = {.fails_at = UINT64_MAX, .slow_at = 7};
            struct ahead_config config = config_of(&w, threads, buffers, 200);
            struct ahead *a;
            struct err err;

            assert_int_equal(ahead_start(&config, &a, &err), 0);
            for (uint64_t i = 0; i < 200; i++) {
                unsigned char expected[BYTES];
                void *buffer;

                __atomic_store_n(&w.done, i, __ATOMIC_RELEASE); /* those before are given back */
                assert_int_equal(ahead_next(a, &buffer, &err), 0);
                memset(expected, (int)(i % 251), BYTES);
                assert_memory_equal(buffer, expected, BYTES);
            }
            ahead_stop(&a);
            assert_null(a);
            assert_int_equal(w.calls, 200);
            assert_false(w.early);
        }
}

static void an_error_waits_for_its_turn(void **state)
{
    struct work w = {.fails_at = 23, .slow_at = 22};
    struct ahead_config config = config_of(&w, 4, 6, 1000);
    struct ahead *a;
    struct err err;
    void *buffer;

    (void)state;
    assert_int_equal(ahead_start(&config, &a, &err), 0);
    for (uint64_t i = 0; i < 23; i++) {
        __atomic_store_n(&w.done, i, __ATOMIC_RELEASE);
        assert_int_equal(ahead_next(a, &buffer, &err), 0);
    }
    assert_int_equal(ahead_next(a, &buffer, &err), ERR_IO);
    assert_string_equal(err.msg, "result 23");
    ahead_stop(&a);
    assert_true(w.calls < 1000);
}

static void it_can_be_stopped_early(void **state)
{
    struct work w = {.fails_at = UINT64_MAX, .slow_at = 1};
    struct ahead_config config = config_of(&w, 3, 5, 1000);
    struct ahead *a = NULL;
    struct err err;
    void *buffer;

    (void)state;
    ahead_stop(&a);
    assert_int_equal(ahead_start(&config, &a, &err), 0);
    ahead_stop(&a);
    assert_int_equal(ahead_start(&config, &a, &err), 0);
    assert_int_equal(ahead_next(a, &buffer, &err), 0);
    ahead_stop(&a);
    config.threads = 0;
    assert_int_equal(ahead_start(&config, &a, &err), ERR_INTERNAL);
    assert_null(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(results_come_in_order),
        cmocka_unit_test(an_error_waits_for_its_turn),
        cmocka_unit_test(it_can_be_stopped_early),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

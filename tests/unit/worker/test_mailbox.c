/* The queue between the bus's thread and the engine's. */
#include "services/worker/mailbox.h"

#include "common/clock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static uint32_t rank_of(struct buf *bytes)
{
    struct proto_arena arena = {0};
    struct proto_header header;
    struct err err;
    void *message;
    uint32_t rank;

    assert_int_equal(proto_decode(bytes->data, bytes->len, &arena, &header, &message, &err), 0);
    assert_int_equal(header.type, PROTO_KV_READY);
    rank = ((struct proto_kv_ready *)message)->rank;
    proto_arena_fini(&arena);
    buf_fini(bytes);
    return rank;
}

static void count_up(void *ctx)
{
    ++*(int *)ctx;
}

static void the_order_is_kept_and_the_bound_too(void **state)
{
    struct mailbox m;
    struct buf bytes;
    struct err err;
    int notified = 0;

    (void)state;
    mailbox_init(&m, count_up, &notified);
    assert_false(mailbox_poll(&m, &bytes));
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < MAILBOX_MAX; i++) {
            struct proto_kv_ready ready = {.rank = i};

            assert_int_equal(mailbox_push(&m, PROTO_KV_READY, &ready, &err), 0);
        }
        assert_int_equal(
            mailbox_push(&m, PROTO_KV_READY, &(struct proto_kv_ready){.rank = 1}, &err), ERR_BUSY);
        for (uint32_t i = 0; i < MAILBOX_MAX - round; i++) {
            assert_true(mailbox_wait(&m, &bytes));
            assert_int_equal(rank_of(&bytes), i);
        }
        while (mailbox_poll(&m, &bytes))
            buf_fini(&bytes);
    }
    assert_int_equal(notified, 3 * MAILBOX_MAX);
    mailbox_fini(&m);
}

static void *take_all(void *ctx)
{
    struct mailbox *m = ctx;
    struct buf bytes;
    uintptr_t sum = 0;

    while (mailbox_wait(m, &bytes))
        sum += rank_of(&bytes);
    return (void *)sum;
}

static void a_waiting_thread_is_woken(void **state)
{
    struct mailbox m;
    struct err err;
    pthread_t thread;
    void *sum;
    uint32_t want = 0;

    (void)state;
    mailbox_init(&m, NULL, NULL);
    assert_int_equal(pthread_create(&thread, NULL, take_all, &m), 0);
    for (uint32_t i = 1; i <= 1000;) {
        struct proto_kv_ready ready = {.rank = i};

        if (mailbox_push(&m, PROTO_KV_READY, &ready, &err) == 0)
            want += i++;
    }
    for (bool empty = false; !empty;) {
        (void)pthread_mutex_lock(&m.lock);
        empty = m.count == 0;
        (void)pthread_mutex_unlock(&m.lock);
    }
    mailbox_close(&m);
    assert_int_equal(pthread_join(thread, &sum), 0);
    assert_int_equal((uintptr_t)sum, want);
    mailbox_fini(&m);
}

static void nothing_passes_a_closed_one(void **state)
{
    struct proto_kv_ready ready = {.rank = 1};
    struct mailbox m;
    struct buf bytes;
    struct err err;
    int notified = 0;

    (void)state;
    mailbox_init(&m, count_up, &notified);
    assert_int_equal(mailbox_push(&m, PROTO_KV_READY, &ready, &err), 0);
    mailbox_close(&m);
    assert_int_equal(mailbox_push(&m, PROTO_KV_READY, &ready, &err), 0);
    assert_int_equal(notified, 1);
    assert_false(mailbox_poll(&m, &bytes));
    assert_false(mailbox_wait(&m, &bytes));
    mailbox_fini(&m); /* frees what was never taken */
}

static void *push_late(void *ctx)
{
    const struct timespec late = {0, 20000000};
    struct proto_kv_ready ready = {.rank = 3};

    (void)nanosleep(&late, NULL);
    return (void *)(intptr_t)mailbox_push(ctx, PROTO_KV_READY, &ready, NULL);
}

static void waiting_ends_in_time(void **state)
{
    struct mailbox m;
    struct buf bytes;
    pthread_t thread;
    void *rc;
    int64_t start_us = clock_mono_us();

    (void)state;
    mailbox_init(&m, NULL, NULL);
    assert_false(mailbox_wait_until(&m, &bytes, start_us + 5000));
    assert_true(clock_mono_us() >= start_us + 5000);
    assert_false(mailbox_wait_until(&m, &bytes, start_us)); /* long ago */
    assert_int_equal(pthread_create(&thread, NULL, push_late, &m), 0);
    assert_true(mailbox_wait_until(&m, &bytes, start_us + 60000000));
    assert_int_equal(rank_of(&bytes), 3);
    assert_int_equal(pthread_join(thread, &rc), 0);
    assert_null(rc);
    mailbox_close(&m);
    start_us = clock_mono_us();
    assert_false(mailbox_wait_until(&m, &bytes, start_us + 5000));
    assert_true(clock_mono_us() >= start_us + 5000);
    mailbox_fini(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_order_is_kept_and_the_bound_too),
        cmocka_unit_test(a_waiting_thread_is_woken),
        cmocka_unit_test(nothing_passes_a_closed_one),
        cmocka_unit_test(waiting_ends_in_time),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

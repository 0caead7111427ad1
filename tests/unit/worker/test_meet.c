/* Ranks agree on a folder, whatever earlier ones left in the store. */
#include "common/buf.h"
#include "common/log.h"
#include "common/mem.h"
#include "services/worker/meet.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <pthread.h>
#include <unistd.h>

#define RANKS 4

struct member {
    pthread_t thread;
    const char *store;
    uint32_t rank, size;
    double timeout_s;
    useconds_t late_us;
    char *folder;
    struct err err;
    int rc;
};

static char store[] = "/tmp/phalanx-test-meet-XXXXXX";

static int store_make(void **state)
{
    (void)state;
    log_init("test", LOG_ERROR);
    strcpy(store + sizeof store - 7, "XXXXXX");
    return mkdtemp(store) ? 0 : -1;
}

static int store_remove(void **state)
{
    char command[128];

    (void)state;
    (void)snprintf(command, sizeof command, "rm -rf %s", store);
    return system(command);
}

static void *member_run(void *ctx)
{
    struct member *m = ctx;

    (void)usleep(m->late_us);
    m->rc = meet_in_store(m->store, m->rank, m->size, m->timeout_s, &m->folder, &m->err);
    return NULL;
}

static void member_start(struct member *m, uint32_t rank, uint32_t size, double timeout_s)
{
    m->store = store;
    m->rank = rank;
    m->size = size;
    m->timeout_s = timeout_s;
    assert_int_equal(pthread_create(&m->thread, NULL, member_run, m), 0);
}

static void member_end(struct member *m)
{
    (void)pthread_join(m->thread, NULL);
}

static int folders(void)
{
    DIR *dir = opendir(store);
    int count = 0;

    assert_non_null(dir);
    for (struct dirent *e = readdir(dir); e; e = readdir(dir))
        count += strncmp(e->d_name, "group-", 6) == 0;
    (void)closedir(dir);
    return count;
}

/* Every rank comes, in an order of `first`; the folder they met in. */
static char *meet_all(uint32_t first)
{
    struct member m[RANKS] = {0};
    char *folder;

    for (uint32_t r = 0; r < RANKS; r++) {
        m[r].late_us = ((r + first) % RANKS) * 20000;
        member_start(&m[r], r, RANKS, 20);
    }
    for (uint32_t r = 0; r < RANKS; r++) {
        member_end(&m[r]);
        if (m[r].rc)
            fail_msg("rank %u: %s", r, m[r].err.msg);
        assert_string_equal(m[r].folder, m[0].folder);
    }
    folder = mem_strdup(m[0].folder);
    for (uint32_t r = 0; r < RANKS; r++)
        free(m[r].folder);
    assert_int_equal(access(folder, W_OK), 0);
    assert_int_equal(folders(), 1);
    return folder;
}

/* Again and again in the same store: another folder each time, and no old one is left. */
static void test_meets_again(void **state)
{
    char *before = mem_strdup("");

    (void)state;
    for (uint32_t i = 0; i < 2 * RANKS; i++) {
        char *now = meet_all(i);
        struct buf junk = {0};
        FILE *f;

        assert_string_not_equal(now, before);
        buf_printf(&junk, "%s/left", now);
        f = fopen(junk.data, "w");
        assert_true(f && fclose(f) == 0);
        buf_fini(&junk);
        free(before);
        before = now;
    }
    free(before);
}

/* A rank that gave up and comes again takes its place; what its first start said is void. */
static void test_comes_again(void **state)
{
    struct member early = {0}, m[3] = {0};

    (void)state;
    member_start(&early, 2, 3, 0.05); /* alone: nobody invites it in time */
    member_end(&early);
    assert_int_equal(early.rc, ERR_TIMEOUT);
    member_start(&m[0], 0, 3, 20);
    member_start(&m[1], 1, 3, 20);
    (void)usleep(100000); /* the invitation to the first start of rank 2 is out */
    member_start(&m[2], 2, 3, 20);
    for (int r = 0; r < 3; r++) {
        member_end(&m[r]);
        if (m[r].rc)
            fail_msg("rank %d: %s", r, m[r].err.msg);
        assert_string_equal(m[r].folder, m[0].folder);
    }
    for (int r = 0; r < 3; r++)
        free(m[r].folder);
}

static void test_who_is_missing(void **state)
{
    struct member m[2] = {0}, follower = {0};

    (void)state;
    member_start(&m[0], 0, 4, 0.3);
    member_start(&m[1], 2, 4, 0.6);
    member_end(&m[0]);
    member_end(&m[1]);
    assert_int_equal(m[0].rc, ERR_TIMEOUT);
    assert_null(m[0].folder);
    assert_non_null(strstr(m[0].err.msg, "rank 1, 3"));
    assert_int_equal(m[1].rc, ERR_TIMEOUT);
    assert_non_null(strstr(m[1].err.msg, "rank 0"));
    member_start(&follower, 1, 2, 0.1);
    member_end(&follower);
    assert_int_equal(follower.rc, ERR_TIMEOUT);
    assert_non_null(strstr(follower.err.msg, "rank 0"));
}

/* A rank that lives on in a group without rank 0 looks as if it were there. */
static void test_earlier_group(void **state)
{
    struct member m[2] = {0}, again = {0};

    (void)state;
    for (uint32_t r = 0; r < 2; r++)
        member_start(&m[r], r, 2, 20);
    for (uint32_t r = 0; r < 2; r++) {
        member_end(&m[r]);
        assert_int_equal(m[r].rc, 0);
        free(m[r].folder);
    }
    member_start(&again, 0, 2, 60);
    member_end(&again);
    assert_int_equal(again.rc, ERR_PEER);
    assert_non_null(strstr(again.err.msg, "rank 1 does not answer"));
    for (uint32_t r = 0; r < 2; r++)
        member_start(&m[r], r, 2, 20);
    for (uint32_t r = 0; r < 2; r++) {
        member_end(&m[r]);
        assert_int_equal(m[r].rc, 0);
        free(m[r].folder);
    }
    member_start(&again, 1, 2, 60);
    member_end(&again);
    assert_int_equal(again.rc, ERR_PEER);
    assert_non_null(strstr(again.err.msg, "rank 0 does not answer"));
}

static void put(const char *name, const char *text)
{
    char path[128];
    FILE *f;

    (void)snprintf(path, sizeof path, "%s/%s", store, name);
    f = fopen(path, "w");
    assert_true(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

static void test_junk(void **state)
{
    (void)state;
    put("group", "what is this\n");
    put("rank-1", "");
    put("rank-2", "0\n");
    put("rank-3", "fffffffffffffffffffffffffffffffffffffff\n");
    put("ack-1", "1 1\n");
    put("ack-2", "\xff\xfe");
    free(meet_all(0));
}

static void test_no_store(void **state)
{
    char *folder;
    struct err err;

    (void)state;
    assert_int_equal(meet_in_store("/nowhere/at/all", 0, 2, 1, &folder, &err), ERR_IO);
    assert_int_equal(meet_in_store("/nowhere/at/all", 1, 2, 1, &folder, &err), ERR_IO);
    assert_null(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_meets_again, store_make, store_remove),
        cmocka_unit_test_setup_teardown(test_comes_again, store_make, store_remove),
        cmocka_unit_test_setup_teardown(test_who_is_missing, store_make, store_remove),
        cmocka_unit_test_setup_teardown(test_earlier_group, store_make, store_remove),
        cmocka_unit_test_setup_teardown(test_junk, store_make, store_remove),
        cmocka_unit_test(test_no_store),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "common/file.h"

#include "common/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[] = "/tmp/phalanx-test-file-XXXXXX";

static int setup(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return rmdir(dir);
}

static void test_read(void **state)
{
    char *path = file_join(dir, "x");
    struct buf b = {0};
    struct err err = {0};
    FILE *f = fopen(path, "w");

    (void)state;
    assert_non_null(f);
    assert_int_equal(fwrite("a\0b", 1, 3, f), 3);
    (void)fclose(f);
    assert_true(file_exists(path));
    buf_puts(&b, ">");
    assert_int_equal(file_read(path, 3, &b, &err), 0);
    assert_int_equal(b.len, 4);
    assert_memory_equal(b.data, ">a\0b", 5);
    assert_int_equal(file_read(path, 2, &b, &err), ERR_LIMIT);
    assert_memory_equal(err.msg, path, strlen(path));
    assert_int_equal(b.len, 4);
    (void)unlink(path);
    assert_false(file_exists(path));
    assert_int_equal(file_read(path, 3, &b, &err), ERR_NOT_FOUND);
    buf_fini(&b);
    free(path);
}

static void test_not_a_file(void **state)
{
    char *path = file_join(dir, "pipe");
    struct buf b = {0};
    struct err err = {0};

    (void)state;
    assert_int_equal(file_read(dir, 100, &b, &err), ERR_INVALID);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(file_read(path, 100, &b, &err), ERR_INVALID); /* and does not hang */
    (void)unlink(path);
    buf_fini(&b);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_not_a_file),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}

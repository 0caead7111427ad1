#include "common/err.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void test_set(void **state)
{
    struct err err = {0};

    (void)state;
    assert_int_equal(err_set(&err, ERR_LIMIT, "%s: %d", "field", 7), ERR_LIMIT);
    assert_int_equal(err.code, ERR_LIMIT);
    assert_string_equal(err.msg, "field: 7");
    assert_int_equal(err_prefix(&err, "row %d", 3), ERR_LIMIT);
    assert_string_equal(err.msg, "row 3: field: 7");
    errno = ENOENT;
    assert_int_equal(err_errno(&err, ERR_IO, "open"), ERR_IO);
    assert_string_equal(err.msg, "open: No such file or directory");
}

static void test_null(void **state)
{
    (void)state;
    assert_int_equal(err_set(NULL, ERR_BUSY, "x"), ERR_BUSY);
    assert_int_equal(err_errno(NULL, ERR_IO, "x"), ERR_IO);
}

static void test_long(void **state)
{
    char text[2000];
    struct err err = {0};

    (void)state;
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    (void)err_set(&err, ERR_INVALID, "%s", text);
    assert_int_equal(strlen(err.msg), sizeof err.msg - 1);
    (void)err_prefix(&err, "%s", text);
    (void)err_prefix(&err, "short");
    assert_memory_equal(err.msg, "short: xxx", 10);
    errno = ENOENT;
    (void)err_errno(&err, ERR_IO, "%s", text);
    assert_int_equal(strlen(err.msg), sizeof err.msg - 1);
}

static void test_text(void **state)
{
    (void)state;
    assert_string_equal(err_text(ERR_BUSY), "busy");
    assert_string_equal(err_text(0), "no error");
    assert_string_equal(err_text(-1000), "no error");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set),
        cmocka_unit_test(test_null),
        cmocka_unit_test(test_long),
        cmocka_unit_test(test_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

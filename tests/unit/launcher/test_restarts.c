#include "services/launcher/restarts.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define SECOND_US 1000000

static void test_bound(void **state)
{
    struct restarts r = {0};

    (void)state;
    for (int i = 0; i < RESTARTS_MAX; i++)
        assert_true(restarts_take(&r, i * SECOND_US));
    assert_false(restarts_take(&r, RESTARTS_MAX * SECOND_US));
    assert_int_equal(r.count, RESTARTS_MAX); /* what was refused does not count */
}

/* The window slides: each one that is old enough makes room for one. */
static void test_window(void **state)
{
    struct restarts r = {0};

    (void)state;
    for (int i = 0; i < RESTARTS_MAX; i++)
        assert_true(restarts_take(&r, i * SECOND_US));
    assert_false(restarts_take(&r, RESTARTS_US - 1));
    assert_true(restarts_take(&r, RESTARTS_US));
    assert_false(restarts_take(&r, RESTARTS_US));
    assert_true(restarts_take(&r, RESTARTS_US + SECOND_US));
    assert_false(restarts_take(&r, RESTARTS_US + SECOND_US));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bound),
        cmocka_unit_test(test_window),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

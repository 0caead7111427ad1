#include "common/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void test_round_trip(void **state)
{
    (void)state;
    for (uint32_t cp = 0; cp <= 0x10ffff; cp++) {
        char text[4];
        uint32_t back = 0;
        int n;

        if (cp >= 0xd800 && cp <= 0xdfff)
            continue;
        n = utf8_encode(cp, text);
        assert_int_equal(utf8_decode(text, (size_t)n, &back), n);
        assert_int_equal(back, cp);
        for (int cut = 1; cut < n; cut++) {
            assert_int_equal(utf8_decode(text, (size_t)cut, &back), -1);
            assert_int_equal(utf8_complete(text, (size_t)cut), 0);
        }
        assert_int_equal(utf8_complete(text, (size_t)n), n);
    }
}

static void test_invalid(void **state)
{
    static const char *const bad[] = {
        "\x80",
        "\xbf",
        "\xc0\x80",
        "\xc1\xbf",
        "\xe0\x80\x80",
        "\xe0\x9f\xbf",
        "\xed\xa0\x80",
        "\xed\xbf\xbf",
        "\xf0\x80\x80\x80",
        "\xf0\x8f\xbf\xbf",
        "\xf4\x90\x80\x80",
        "\xf5\x80\x80\x80",
        "\xff",
        "\xe2\x28\xa1",
        "\xe2\x82\x28",
        "\xc3(",
    };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint32_t cp;

        assert_int_equal(utf8_decode(bad[i], strlen(bad[i]), &cp), 0);
        assert_false(utf8_valid(bad[i], strlen(bad[i])));
        /* Nothing to wait for: more bytes would not make it valid. */
        assert_int_equal(utf8_complete(bad[i], strlen(bad[i])), strlen(bad[i]));
    }
}

static void test_valid(void **state)
{
    (void)state;
    assert_true(utf8_valid("", 0));
    assert_true(utf8_valid("a\0b", 3));
    assert_true(utf8_valid("\xe2\x82\xac", 3));
    assert_false(utf8_valid("\xe2\x82", 2));
}

static void test_complete(void **state)
{
    (void)state;
    assert_int_equal(utf8_complete("", 0), 0);
    assert_int_equal(utf8_complete("ab", 2), 2);
    assert_int_equal(utf8_complete("ab\xf0\x9f\x98", 5), 2);
    assert_int_equal(utf8_complete("ab\xf0", 3), 2);
    assert_int_equal(utf8_complete("\x80\x80\x80\x80", 4), 4);
    assert_int_equal(utf8_complete("\xc3\xa9\xc3", 3), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_invalid),
        cmocka_unit_test(test_valid),
        cmocka_unit_test(test_complete),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

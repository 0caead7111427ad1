#include "common/buf.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_append(void **state)
{
    struct buf b = {0};
    char *taken;

    (void)state;
    buf_puts(&b, "ab");
    buf_putc(&b, 'c');
    buf_printf(&b, "%d%s", 42, "!");
    assert_int_equal(b.len, 6);
    assert_string_equal(b.data, "abc42!");
    buf_consume(&b, 3);
    assert_string_equal(b.data, "42!");
    for (int i = 0; i < 1000; i++)
        buf_append(&b, "0123456789", 10);
    assert_int_equal(b.len, 10003);
    assert_int_equal(strlen(b.data), 10003);
    buf_clear(&b);
    assert_int_equal(b.len, 0);
    assert_string_equal(b.data, "");
    buf_puts(&b, "x");
    taken = buf_take(&b);
    assert_string_equal(taken, "x");
    assert_null(b.data);
    free(taken);
    taken = buf_take(&b);
    assert_string_equal(taken, "");
    free(taken);
    buf_fini(&b);
}

static void json_is(const char *text, size_t len, const char *wanted)
{
    struct buf b = {0};

    buf_json_string(&b, text, len);
    assert_string_equal(b.data, wanted);
    buf_fini(&b);
}

static void test_json_string(void **state)
{
    (void)state;
    json_is("", 0, "\"\"");
    json_is("a\"b\\c/", 6, "\"a\\\"b\\\\c/\"");
    json_is("\b\f\n\r\t", 5, "\"\\b\\f\\n\\r\\t\"");
    json_is("\0\x1f\x7f", 3, "\"\\u0000\\u001f\\u007f\"");
    json_is("h\xc3\xa9\xf0\x9f\x98\x80", 7, "\"h\xc3\xa9\xf0\x9f\x98\x80\"");
    json_is("a\xff"
            "b",
            3,
            "\"a\xef\xbf\xbd"
            "b\"");
    json_is("\xe2\x82", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\"");                 /* cut short */
    json_is("\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""); /* a surrogate */
}

static void test_whole_numbers(void **state)
{
    struct buf b = {0};

    (void)state;
    buf_uint(&b, 0);
    buf_putc(&b, ' ');
    buf_uint(&b, 10);
    buf_putc(&b, ' ');
    buf_uint(&b, UINT64_MAX);
    buf_putc(&b, ' ');
    buf_hex(&b, 0);
    buf_putc(&b, ' ');
    buf_hex(&b, 0x1af0);
    buf_putc(&b, ' ');
    buf_hex(&b, UINT64_MAX);
    assert_string_equal(b.data, "0 10 18446744073709551615 0 1af0 ffffffffffffffff");
    buf_fini(&b);
}

static void number_is(double value, const char *wanted)
{
    struct buf b = {0};

    buf_json_number(&b, value);
    assert_string_equal(b.data, wanted);
    buf_fini(&b);
}

static void test_json_number(void **state)
{
    static const double values[] = {1.0 / 3, DBL_MAX, DBL_MIN, 5e-324, 123456789.125, -1e-7, 1e22};

    (void)state;
    number_is(0, "0");
    number_is(-1.5, "-1.5");
    number_is(0.1, "0.1");
    number_is(1e15, "1e+15");
    number_is(NAN, "null");
    number_is(-INFINITY, "null");
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        struct buf b = {0};
        double back;

        buf_json_number(&b, values[i]);
        back = strtod(b.data, NULL);
        assert_memory_equal(&back, &values[i], sizeof back);
        buf_fini(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_append),
        cmocka_unit_test(test_json_string),
        cmocka_unit_test(test_json_number),
        cmocka_unit_test(test_whole_numbers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

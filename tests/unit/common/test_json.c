#include "common/json.h"

#include "common/buf.h"
#include "common/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static int parse(const char *text, json_t **out, struct err *err)
{
    memset(err, 0, sizeof *err);
    return json_parse(text, strlen(text), JSON_DEPTH_REQUEST, out, err);
}

static void test_accepts(void **state)
{
    static const char *const good[] = {
        "null",
        "1",
        "-0",
        "\"x\"",
        "[]",
        "{}",
        " [1, 2.5e3, true, {\"a\": \"\\u00e9\"}] ",
        "\"\\ud83d\\ude00\"",
        "{\"a\": {\"a\": 1}}",
        "9223372036854775807",
        "\"\\u0000\"",
        "\"[[[[{{{{\\\"[[[\"",
    };

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct err err;
        json_t *value;

        if (parse(good[i], &value, &err))
            fail_msg("%s: %s", good[i], err.msg);
        assert_non_null(value);
        json_decref(value);
    }
}

static void test_refuses(void **state)
{
    static const char *const bad[] = {
        "",
        " ",
        "{",
        "[1,]",
        "[1 2]",
        "{\"a\":1,}",
        "{a:1}",
        "'x'",
        "nul",
        "NaN",
        "Infinity",
        "01",
        "+1",
        "1.",
        ".5",
        "0x10",
        "1e400",
        "-1e400",
        "9223372036854775808",
        "[] []",
        "{\"a\":1,\"a\":2}",
        "{\"a\":1,\"\\u0061\":2}",
        "\"\\ud800\"",
        "\"\\udc00\"",
        "\"\\ud800\\ud800\"",
        "\"\\ud800x\"",
        "\"\xff\"",
        "\"\xed\xa0\x80\"",
        "\"\xc0\x80\"",
        "\"a\nb\"",
        "\"\\x41\"",
        "\"abc",
        "]",
        "\xef\xbb\xbf{}",
    };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err err;
        json_t *value = NULL;

        if (parse(bad[i], &value, &err) != ERR_INVALID)
            fail_msg("accepted: %s", bad[i]);
        assert_null(value);
        assert_non_null(strstr(err.msg, "line"));
    }
}

static void test_embedded_nul(void **state)
{
    json_t *value;
    struct err err;

    (void)state;
    assert_int_equal(json_parse("[1]\0", 4, 64, &value, &err), ERR_INVALID);
    assert_int_equal(json_parse("\0", 1, 64, &value, &err), ERR_INVALID);
}

static void test_depth(void **state)
{
    struct buf text = {0};
    struct err err;
    json_t *value;

    (void)state;
    for (int i = 0; i < 64; i++)
        buf_putc(&text, '[');
    for (int i = 0; i < 64; i++)
        buf_putc(&text, ']');
    assert_int_equal(json_parse(text.data, text.len, 64, &value, &err), 0);
    json_decref(value);
    assert_int_equal(json_parse(text.data, text.len, 63, &value, &err), ERR_LIMIT);
    assert_non_null(strstr(err.msg, "63"));
    buf_clear(&text);
    for (int i = 0; i < 100000; i++)
        buf_putc(&text, '[');
    assert_int_equal(json_parse(text.data, text.len, 64, &value, &err), ERR_LIMIT);
    buf_clear(&text);
    /* Closing more than was opened must not make room for more depth. */
    for (int i = 0; i < 1000; i++)
        buf_putc(&text, ']');
    for (int i = 0; i < 1000; i++)
        buf_putc(&text, '[');
    assert_int_not_equal(json_parse(text.data, text.len, 64, &value, &err), 0);
    buf_fini(&text);
}

static void test_order(void **state)
{
    static const char *const wanted[] = {"z", "a", "m"};
    struct err err;
    json_t *value, *item;
    const char *key;
    size_t i = 0;

    (void)state;
    assert_int_equal(parse("{\"z\":1,\"a\":2,\"m\":3}", &value, &err), 0);
    json_object_foreach(value, key, item) assert_string_equal(key, wanted[i++]);
    assert_int_equal(i, 3);
    json_decref(value);
}

static void test_files(void **state)
{
    char path[] = "/tmp/phalanx-test-json-XXXXXX";
    int fd = mkstemp(path);
    struct err err = {0};
    json_t *value;

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "{\"a\": }", 7), 7);
    assert_int_equal(json_load_path(path, 100, &value, &err), ERR_INVALID);
    assert_memory_equal(err.msg, path, strlen(path));
    assert_int_equal(json_load_path(path, 6, &value, &err), ERR_LIMIT);
    assert_int_equal(pwrite(fd, "1", 1, 6), 1);
    assert_int_equal(pwrite(fd, "1}", 2, 6), 2);
    assert_int_equal(json_load_path(path, 100, &value, &err), 0);
    json_decref(value);
    (void)close(fd);
    (void)unlink(path);
    assert_int_equal(json_load_path(path, 100, &value, &err), ERR_NOT_FOUND);
    assert_null(value);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepts),      cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_embedded_nul), cmocka_unit_test(test_depth),
        cmocka_unit_test(test_order),        cmocka_unit_test(test_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

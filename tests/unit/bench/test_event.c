#include "services/bench/event.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct event read_ok(const char *text)
{
    struct event e;

    if (!event_read(text, strlen(text), &e))
        fail_msg("refused: %s", text);
    return e;
}

static void expect(const char *text, size_t text_len, int64_t prompt, int64_t completion,
                   bool finished)
{
    struct event e = read_ok(text);

    assert_int_equal(e.text_len, text_len);
    assert_int_equal(e.prompt_tokens, prompt);
    assert_int_equal(e.completion_tokens, completion);
    assert_int_equal(e.finished, finished);
    assert_false(e.failed);
    assert_false(e.aborted);
}

/* As the servers write them. */
static void test_completions(void **state)
{
    (void)state;
    /* vLLM */
    expect("{\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"created\":1,\"model\":\"m\","
           "\"choices\":[{\"index\":0,\"text\":\" the\",\"logprobs\":null,\"finish_reason\":null,"
           "\"stop_reason\":null}]}",
           4, -1, -1, false);
    expect("{\"id\":\"cmpl-1\",\"choices\":[{\"index\":0,\"text\":\"\",\"logprobs\":null,"
           "\"finish_reason\":\"length\",\"stop_reason\":null}],\"usage\":null}",
           0, -1, -1, true);
    expect("{\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"choices\":[],\"usage\":"
           "{\"prompt_tokens\":12,\"total_tokens\":20,\"completion_tokens\":8,"
           "\"prompt_tokens_details\":{\"cached_tokens\":3,\"completion_tokens\":99}}}",
           0, 12, 8, false);
    /* SGLang: usage in every chunk when it is asked to */
    expect(
        "{\"choices\":[{\"index\":0,\"text\":\"ab\",\"logprobs\":null,\"finish_reason\":\"stop\","
        "\"matched_stop\":2}],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7}}",
        2, 5, 7, true);
}

static void test_chat(void **state)
{
    (void)state;
    expect("{\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
           "\"logprobs\":null,\"finish_reason\":null}]}",
           0, -1, -1, false);
    expect(
        "{\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\\\"b\"},\"finish_reason\":null}]}",
        4, -1, -1, false);
    expect("{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null,"
           "\"reasoning_content\":\"hm\"}}]}",
           2, -1, -1, false);
    expect("{\"choices\":[{\"delta\":{\"reasoning\":\"hmm\"}}]}", 3, -1, -1, false);
    expect("{\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}", 0, -1, -1, true);
    /* Text that stands elsewhere is none of the reply. */
    expect("{\"choices\":[{\"delta\":{\"tool\":{\"content\":\"x\"}},\"logprobs\":{\"text\":\"y\","
           "\"content\":[{\"token\":\"z\",\"usage\":{\"prompt_tokens\":3}}]}}]}",
           0, -1, -1, false);
}

static void test_generate(void **state)
{
    (void)state;
    expect(
        "{\"text\":\"abc\",\"output_ids\":[1,2],\"meta_info\":{\"id\":\"x\",\"finish_reason\":null,"
        "\"prompt_tokens\":4,\"completion_tokens\":2,\"cached_tokens\":0}}",
        3, 4, 2, false);
    expect("{\"text\":\"abcd\",\"meta_info\":{\"finish_reason\":{\"type\":\"length\",\"length\":3},"
           "\"prompt_tokens\":4,\"completion_tokens\":3}}",
           4, 4, 3, true);
}

static void expect_failure(const char *text, const char *message)
{
    struct event e = read_ok(text);

    assert_true(e.failed);
    if (!message) {
        assert_null(e.message);
        return;
    }
    assert_int_equal(e.message_len, strlen(message));
    assert_memory_equal(e.message, message, e.message_len);
}

static void test_failures(void **state)
{
    (void)state;
    expect_failure("{\"error\":{\"message\":\"out of memory\",\"type\":\"x\",\"code\":500}}",
                   "out of memory");
    expect_failure("{\"error\":\"it broke\"}", "it broke");
    expect_failure("{\"error\":{\"code\":1}}", NULL);
    expect_failure("{\"object\":\"error\",\"message\":\"too long\",\"code\":400}", "too long");
    assert_false(read_ok("{\"error\":null,\"text\":\"a\"}").failed);
    assert_true(read_ok("{\"choices\":[{\"finish_reason\":\"abort\"}]}").aborted);
    assert_true(read_ok("{\"meta_info\":{\"finish_reason\":{\"type\":\"abort\"}}}").aborted);
    assert_false(read_ok("{\"choices\":[{\"finish_reason\":\"stop\"}]}").aborted);
}

static void test_forms(void **state)
{
    (void)state;
    expect(" {\n\t\"choices\" : [ { \"text\" : \"a\" , \"n\" : -1.5e+3 } ] , \"x\" : true }\r\n ",
           1, -1, -1, false);
    expect("{}", 0, -1, -1, false);
    expect("{\"a\":[],\"b\":{},\"c\":[[],[{}]]}", 0, -1, -1, false);
    expect("{\"a\":\"\\\\\",\"text\":\"\\\\\\\"\"}", 4, -1, -1, false);
    /* Two choices of one event. */
    expect("{\"choices\":[{\"text\":\"ab\"},{\"text\":\"c\"}]}", 3, -1, -1, false);
    /* Numbers that count nothing. */
    expect("{\"usage\":{\"prompt_tokens\":-3,\"completion_tokens\":1.5}}", 0, -1, -1, false);
    expect("{\"usage\":{\"prompt_tokens\":99999999999999999999,\"completion_tokens\":null}}", 0, -1,
           -1, false);
}

static void test_refused(void **state)
{
    static const char *const texts[] = {
        "",
        "null",
        "[]",
        "\"a\"",
        "{",
        "}",
        "{]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\" 1}",
        "{\"a\":[1,]}",
        "{\"a\":1}}",
        "{\"a\":\"b}",
        "{a:1}",
        "{\"a\":1 2}",
        "{\"a\":\"b\\\"}",
        "{\"a\":[1}",
        "{,}",
        "{\"a\":1}x",
        "{\"a\":@}",
    };
    struct event e;

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (event_read(texts[i], strlen(texts[i]), &e))
            fail_msg("accepted: %s", texts[i]);
    assert_false(event_read("{\"a\":1\0}", 8, &e));
    /* A name with NULs is no shorter name. */
    assert_true(event_read("{\"text\0\0\0\0\0\0\0\0\":\"x\"}", 20, &e));
    assert_int_equal(e.text_len, 0);
}

static void test_depth(void **state)
{
    char text[3 * EVENT_DEPTH_MAX + 64];
    struct event e;

    (void)state;
    for (int extra = 0; extra < 2; extra++) {
        int lists = EVENT_DEPTH_MAX - 1 + extra;
        size_t n = 5;

        memcpy(text, "{\"a\":", 5);
        memset(text + n, '[', (size_t)lists);
        memset(text + n + lists, ']', (size_t)lists);
        n += 2 * (size_t)lists;
        text[n++] = '}';
        assert_int_equal(event_read(text, n, &e), !extra);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_completions), cmocka_unit_test(test_chat),
        cmocka_unit_test(test_generate),    cmocka_unit_test(test_failures),
        cmocka_unit_test(test_forms),       cmocka_unit_test(test_refused),
        cmocka_unit_test(test_depth),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

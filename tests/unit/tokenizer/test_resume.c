/* A request that another tokenizer had begun: after any of its tokens, the text that it got and the
 * text that follows are together what it would have been. */
#include "services/tokenizer/request.h"
#include "tests/unit/tokenizer/tiny.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define IDS_MAX 12

struct row {
    const char *name;
    uint32_t ids[IDS_MAX];
    uint32_t count;
    const char *stop;
    bool echo;
};

static const struct row rows[] = {
    {"plain", {259, ' ', 'a', 'b'}, 4, NULL, false},
    {"echo", {259, ' ', 'a', 'b'}, 4, NULL, true},
    {"UTF-8 in single bytes", {0xf0, 0x9f, 0x98, 0x80, 0xc3, 0xa9, 'x'}, 7, NULL, true},
    {"UTF-8 broken inside", {0xe2, 0x82, 'a', 0x80, 0xf0, 0x80, 'b'}, 7, NULL, false},
    {"held back and let go", {'a', 'b', 'c', 'a', 'b', 'x', 'y'}, 7, "abcabd", false},
    {"stop over several tokens", {'x', 'a', 'b', 'c', 'a', 'b', 'd', 'z'}, 8, "abcabd", false},
    {"special tokens", {'x', TINY_END, 'y', TINY_TOOL}, 4, NULL, true},
};

static struct request *request_of(const struct row *row, struct proto_resumed *resumed,
                                  uint32_t resumed_count, uint32_t n)
{
    struct proto_header header = {.type = PROTO_GENERATE, .id = 1};
    struct proto_stop stop = {proto_str(row->stop ? row->stop : "")};
    struct proto_generate g = {.kind = PROMPT_TEXT,
                               .text = proto_str("hello \xc3\xa9"),
                               .n = n,
                               .echo = row->echo,
                               .skip_special_tokens = true,
                               .sampling.logprobs = -1,
                               .stops = &stop,
                               .stops_count = row->stop ? 1 : 0,
                               .resumed = resumed,
                               .resumed_count = resumed_count};
    struct err err = {0};
    struct request *r = request_new(&header, &g, &err);

    assert_non_null(r);
    return r;
}

/* Tokens from..to of the row; returns the stop string that was found. */
static int feed(struct request *r, const struct row *row, uint32_t from, uint32_t to,
                struct buf *text)
{
    int stop = -1;

    if (from == 0 && to)
        buf_append(text, r->echo.data, r->echo.len);
    for (uint32_t i = from; i < to && stop < 0; i++)
        stop = detok_push(&r->sequences[0].detok, &row->ids[i], 1, text);
    return stop;
}

static void row_check(const struct row *row, const struct tokenizer *t)
{
    struct request *calm = request_of(row, NULL, 0, 1);
    struct buf whole = {0};
    struct err err = {0};
    int stop;

    assert_int_equal(request_encode(calm, t, NULL, &err), 0);
    stop = feed(calm, row, 0, row->count, &whole);
    for (uint32_t at = 0; at < row->count; at++) {
        struct request *before = request_of(row, NULL, 0, 1), *after;
        struct proto_resumed resumed = {.ids = (uint32_t *)(uintptr_t)row->ids, .ids_count = at};
        struct buf text = {0};

        assert_int_equal(request_encode(before, t, NULL, &err), 0);
        if (feed(before, row, 0, at, &text) >= 0) {
            request_free(&before);
            buf_fini(&text);
            break;
        }
        resumed.text_bytes = text.len;
        after = request_of(row, &resumed, 1, 1);
        assert_int_equal(request_encode(after, t, NULL, &err), 0);
        assert_int_equal(after->sequences[0].ids.len, at);
        assert_int_equal(after->open, 1);
        if (feed(after, row, at, row->count, &text) != stop || text.len != whole.len ||
            (text.len && memcmp(text.data, whole.data, text.len) != 0))
            fail_msg("%s at %u: \"%s\", not \"%s\"", row->name, at, text.data, whole.data);
        request_free(&before);
        request_free(&after);
        buf_fini(&text);
    }
    request_free(&calm);
    buf_fini(&whole);
}

static void test_any_token(void **state)
{
    struct tokenizer *t = tiny_load(tiny_byte_level);

    (void)state;
    assert_non_null(t);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        row_check(&rows[i], t);
    tokenizer_free(&t);
}

static void test_choices(void **state)
{
    struct tokenizer *t = tiny_load(tiny_byte_level);
    uint32_t ids[] = {'a', 'b'};
    struct proto_resumed resumed[] = {
        {.choice = 2, .ended = true},
        {.choice = 0, .ids = ids, .ids_count = 2, .text_bytes = 2, .prompt_scored = 3}};
    struct request *r = request_of(&rows[0], resumed, 2, 3);
    struct err err = {0};

    (void)state;
    assert_int_equal(request_encode(r, t, NULL, &err), 0);
    assert_int_equal(r->open, 2);
    assert_true(r->sequences[2].ended);
    assert_false(r->sequences[0].ended || r->sequences[1].ended);
    assert_int_equal(r->sequences[0].scored, 3);
    assert_int_equal(r->sequences[0].ids.len, 2);
    assert_int_equal(r->sequences[1].ids.len, 0);
    request_free(&r);
    tokenizer_free(&t);
}

static void test_impossible(void **state)
{
    static uint32_t ids[] = {'a', 'b'};
    static struct {
        struct proto_resumed resumed[2];
        uint32_t count;
        int code;
    } bad[] = {
        {{{.choice = 2}}, 1, ERR_PROTOCOL},
        {{{.choice = UINT32_MAX, .ended = true}}, 1, ERR_PROTOCOL},
        {{{.choice = 0, .ended = true}, {.choice = 0, .ended = true}}, 2, ERR_PROTOCOL},
        {{{.choice = 0, .ended = true}, {.choice = 1, .ended = true}}, 2, ERR_PROTOCOL},
        {{{.choice = 0, .prompt_scored = 1000}}, 1, ERR_PROTOCOL},
        {{{.ids = ids, .ids_count = 2, .text_bytes = 1}}, 1, ERR_INTERNAL},
        {{{.ids = ids, .ids_count = 2, .text_bytes = UINT64_MAX}}, 1, ERR_INTERNAL},
        {{{.text_bytes = 1}}, 1, ERR_INTERNAL},
    };
    struct tokenizer *t = tiny_load(tiny_byte_level);

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct request *r = request_of(&rows[0], bad[i].resumed, bad[i].count, 2);
        struct err err = {0};

        assert_int_equal(request_encode(r, t, NULL, &err), bad[i].code);
        assert_true(err.msg[0]);
        request_free(&r);
    }
    tokenizer_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_token),
        cmocka_unit_test(test_choices),
        cmocka_unit_test(test_impossible),
    };

    return cmocka_run_group_tests_name("resume", tests, NULL, NULL);
}

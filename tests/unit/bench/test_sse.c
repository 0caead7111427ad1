#include "services/bench/sse.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct seen {
    struct buf text; /* name|data; of every event */
    size_t stop_after;
    size_t count;
};

static bool on_event(void *ctx, const char *name, const char *data, size_t len)
{
    struct seen *s = ctx;

    assert_int_equal(strlen(data), len);
    buf_printf(&s->text, "%s|%s;", name, data);
    return ++s->count != s->stop_after;
}

/* The stream in pieces of n bytes gives these events, the last by sse_end. */
static void expect_pieces(const char *stream, size_t n, const char *wanted)
{
    size_t len = strlen(stream);
    struct seen seen = {0};
    struct sse sse = {0};

    buf_puts(&seen.text, "");
    for (size_t at = 0; at < len; at += n) {
        char *piece = malloc(n); /* of its own, so that a read beyond it is found */

        assert_non_null(piece);
        memcpy(piece, stream + at, len - at < n ? len - at : n);
        assert_int_equal(sse_feed(&sse, piece, len - at < n ? len - at : n, on_event, &seen), 0);
        free(piece);
    }
    assert_int_equal(sse_end(&sse, on_event, &seen), 0);
    assert_string_equal(seen.text.data ? seen.text.data : "", wanted);
    buf_fini(&seen.text);
    sse_fini(&sse);
}

static void expect(const char *stream, const char *wanted)
{
    for (size_t n = 1; n <= strlen(stream); n++)
        expect_pieces(stream, n, wanted);
}

static void test_any_byte(void **state)
{
    (void)state;
    expect("data: {\"a\":1}\n\ndata: [DONE]\n\n", "|{\"a\":1};|[DONE];");
    expect("data: a\r\n\r\ndata: b\r\n\r\n", "|a;|b;");
    expect("data: a\r\rdata: b\r\r", "|a;|b;");
    expect("data:a\n\ndata:  b\n\n", "|a;| b;");
    expect("data: one\ndata: two\ndata\n\n", "|one\ntwo\n;");
    expect(": ping - 2026\n\ndata: a\nid: 7\nretry: 1\n\n: x\n\n", "|a;");
    expect("event: error\ndata: a\n\ndata: b\n\n", "error|a;|b;");
    expect("\xef\xbb\xbf"
           "data: a\n\n",
           "|a;");
    expect("event: aVeryLongNameForAnEvent\ndata: a\n\n", "aVeryLongNameFo|a;");
    expect("\n\n\nda: a\ndatas: b\n\n", "");
    expect("data: \xc3\xa9\xe2\x82\xac\n\n", "|\xc3\xa9\xe2\x82\xac;");
}

static void test_unfinished(void **state)
{
    (void)state;
    expect("data: a\n\ndata: [DONE]", "|a;|[DONE];");
    expect("data: a\n\ndata: b\n", "|a;|b;");
}

static void test_stop(void **state)
{
    struct seen seen = {.stop_after = 2};
    struct sse sse = {0};

    (void)state;
    assert_int_equal(sse_feed(&sse, "data: a\n\ndata: b\n\ndata: c\n\n", 27, on_event, &seen),
                     ERR_BUSY);
    assert_int_equal(seen.count, 2);
    buf_fini(&seen.text);
    sse_fini(&sse);
}

/* At the bound, and one byte beyond it: in one line, and in many. */
static void test_bound(void **state)
{
    size_t room = SSE_EVENT_BYTES_MAX;
    char *text = malloc(room + 8);

    (void)state;
    assert_non_null(text);
    for (size_t extra = 0; extra < 2; extra++) {
        struct seen seen = {0};
        struct sse sse = {0};
        int rc;

        memcpy(text, "data: ", 6);
        memset(text + 6, 'x', room - 6 + extra);
        rc = sse_feed(&sse, text, room + extra, on_event, &seen);
        assert_int_equal(rc, extra ? ERR_LIMIT : 0);
        sse_fini(&sse);
        rc = 0;
        for (size_t sent = 0; sent <= room * 2 && !rc; sent += 1 << 20) {
            memset(text + 6, 'x', 1 << 20);
            text[6 + (1 << 20)] = '\n';
            rc = sse_feed(&sse, text, 7 + (1 << 20), on_event, &seen);
        }
        assert_int_equal(rc, ERR_LIMIT);
        sse_fini(&sse);
        buf_fini(&seen.text);
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_byte),
        cmocka_unit_test(test_unfinished),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_bound),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "services/tokenizer/detok.h"

#include "common/utf8.h"
#include "tests/unit/tokenizer/tiny.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define IDS_MAX 12

struct row {
    const char *name;
    void (*make)(struct buf *);
    uint32_t ids[IDS_MAX];
    size_t count;
    const char *stops[3];
    bool skip_special, continues;
    const char *text;
    int stop;
};

#define B(x) (TINY_BYTE + (x))

static const struct row rows[] = {
    {"plain", tiny_byte_level, {259, ' ', 'a', 'b'}, 4, {0}, true, false, "hello ab", -1},
    {"UTF-8 in single bytes",
     tiny_byte_level,
     {0xf0, 0x9f, 0x98, 0x80, 0xc3, 0xa9},
     6,
     {0},
     true,
     false,
     "\xf0\x9f\x98\x80\xc3\xa9",
     -1},
    {"UTF-8 cut at the end",
     tiny_byte_level,
     {'a', 0xe2, 0x82},
     3,
     {0},
     true,
     false,
     "a\xef\xbf\xbd",
     -1},
    {"UTF-8 broken inside",
     tiny_byte_level,
     {0xe2, 0x82, 'a', 0x80, 0xf0, 0x80, 'b'},
     7,
     {0},
     true,
     false,
     "\xef\xbf\xbd"
     "a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
     "b",
     -1},
    {"specials skipped",
     tiny_byte_level,
     {TINY_END, 'a', TINY_END, TINY_TOOL, 999, 'b'},
     6,
     {0},
     true,
     false,
     "a<tool>b",
     -1},
    {"specials shown",
     tiny_byte_level,
     {TINY_END, 'a', TINY_TOOL},
     3,
     {0},
     false,
     false,
     "<|end|>a<tool>",
     -1},
    {"a special between halves",
     tiny_byte_level,
     {0xc3, TINY_END, 0xa9},
     3,
     {0},
     true,
     false,
     "\xc3\xa9",
     -1},
    {"stop", tiny_byte_level, {'x', 'a', 'b', 'c', 'y'}, 5, {"abc"}, true, false, "x", 0},
    {"stop inside a token", tiny_byte_level, {'x', 259, 'y'}, 3, {"ell"}, true, false, "xh", 0},
    {"stop that overlaps itself",
     tiny_byte_level,
     {'a', 'a', 'a', 'b', 'z'},
     5,
     {"aab"},
     true,
     false,
     "a",
     0},
    {"nearly a stop",
     tiny_byte_level,
     {'a', 'b', 'a', 'b', 'd'},
     5,
     {"ababc"},
     true,
     false,
     "ababd",
     -1},
    {"nearly a stop at the end",
     tiny_byte_level,
     {'x', 'a', 'b'},
     3,
     {"abc"},
     true,
     false,
     "xab",
     -1},
    {"the first complete counts",
     tiny_byte_level,
     {'a', 'b', 'c', 'd'},
     4,
     {"abcd", "bc"},
     true,
     false,
     "a",
     1},
    {"of two at once the longest",
     tiny_byte_level,
     {'x', 'a', 'b', 'c'},
     4,
     {"bc", "abc"},
     true,
     false,
     "x",
     1},
    {"stop of several bytes a character",
     tiny_byte_level,
     {'x', 0xc3, 0xa9, 'y'},
     4,
     {"\xc3\xa9"},
     true,
     false,
     "x",
     0},
    {"stop in what the end gives out",
     tiny_byte_level,
     {'x', 0xe2, 0x82},
     3,
     {"\xef\xbf\xbd"},
     true,
     false,
     "x",
     -1},
    {"leading space dropped",
     tiny_fallback,
     {1, TINY_HI, TINY_HI},
     3,
     {0},
     true,
     false,
     "hi hi",
     -1},
    {"leading space kept", tiny_fallback, {TINY_HI, TINY_HI}, 2, {0}, true, true, " hi hi", -1},
    {"one space only", tiny_fallback, {TINY_SPACE, TINY_HI}, 2, {0}, true, false, " hi", -1},
    {"run of bytes",
     tiny_fallback,
     {TINY_HI, B(0xc3), B(0xa9), B('x'), 260},
     5,
     {0},
     true,
     false,
     "hi\xc3\xa9xh",
     -1},
    {"a bad byte spoils its run",
     tiny_fallback,
     {B('a'), B(0xe2), B('b'), TINY_HI},
     4,
     {0},
     true,
     false,
     "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd hi",
     -1},
    {"run at the end",
     tiny_fallback,
     {TINY_HI, B(0xf0), B(0x9f)},
     3,
     {0},
     true,
     false,
     "hi\xef\xbf\xbd\xef\xbf\xbd",
     -1},
};

/* Feeds the row's ids, cut wherever a bit of cuts is set; checks what every piece must be. */
static int detok_cut(const struct row *row, const struct tokenizer *t, unsigned cuts,
                     struct buf *out)
{
    struct detok_stop stops[3];
    size_t stops_count = 0, start = 0;
    struct detok d;
    int stop = -1;

    for (; stops_count < 3 && row->stops[stops_count]; stops_count++)
        stops[stops_count] =
            (struct detok_stop){row->stops[stops_count], strlen(row->stops[stops_count])};
    detok_init(&d, t, stops, stops_count, row->skip_special, row->continues);
    for (size_t i = 0; i < row->count; i++) {
        size_t before = out->len;
        int found;

        if (i + 1 < row->count && !(cuts >> i & 1))
            continue;
        found = detok_push(&d, row->ids + start, i + 1 - start, out);
        start = i + 1;
        assert_true(utf8_valid(out->data + before, out->len - before));
        assert_true(stop < 0 || (found < 0 && out->len == before));
        if (found >= 0)
            stop = found;
    }
    detok_finish(&d, out);
    assert_int_equal(d.emitted, out->len);
    detok_fini(&d);
    return stop;
}

static void test_all_cuts(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct row *row = &rows[i];
        struct tokenizer *t = tiny_load(row->make);

        assert_non_null(t);
        for (unsigned cuts = 0; cuts < 1u << (row->count - 1); cuts++) {
            struct buf out = {0};
            int stop;

            buf_reserve(&out, 0);
            stop = detok_cut(row, t, cuts, &out);
            if (stop != row->stop || out.len != strlen(row->text) ||
                memcmp(out.data, row->text, out.len) != 0)
                fail_msg("%s, cuts %x: stop %d, text %.*s", row->name, cuts, stop, (int)out.len,
                         out.data);
            buf_fini(&out);
        }
        if (!row->stops[0] && !row->continues) {
            struct buf whole = {0};

            tokenizer_decode(t, row->ids, row->count, row->skip_special, &whole);
            assert_string_equal(whole.data, row->text);
            buf_fini(&whole);
        }
        tokenizer_free(&t);
    }
}

/* Text is given out as soon as it is certain, not only at the end. */
static void test_prompt(void **state)
{
    struct tokenizer *t = tiny_load(tiny_byte_level);
    struct detok_stop stop = {"abc", 3};
    const uint32_t ids[] = {'x', 'a', 'b', 'z', 0xc3};
    const size_t certain[] = {1, 1, 1, 4, 4};
    struct buf out = {0};
    struct detok d;

    (void)state;
    detok_init(&d, t, &stop, 1, true, false);
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(detok_push(&d, &ids[i], 1, &out), -1);
        assert_int_equal(out.len, certain[i]);
    }
    detok_finish(&d, &out);
    assert_string_equal(out.data, "xabz\xef\xbf\xbd");
    detok_fini(&d);
    buf_fini(&out);
    tokenizer_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_cuts),
        cmocka_unit_test(test_prompt),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

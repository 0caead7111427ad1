#include "tests/unit/tokenizer/tiny.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void expect(const struct tokenizer *t, const char *text, size_t len, unsigned flags,
                   const uint32_t *want, size_t count)
{
    struct ids ids = {0};
    struct err err = {0};

    assert_int_equal(tokenizer_encode(t, text, len, flags, 1u << 20, &ids, &err), 0);
    assert_int_equal(ids.len, count);
    if (count)
        assert_memory_equal(ids.data, want, count * sizeof *want);
    ids_fini(&ids);
}

#define EXPECT(t, text, flags, ...)                                                                \
    do {                                                                                           \
        const uint32_t want[] = {__VA_ARGS__};                                                     \
        expect(t, text, sizeof(text) - 1, flags, want, sizeof want / sizeof *want);                \
    } while (0)

static void test_merges(void **state)
{
    struct tokenizer *t = tiny_load(tiny_byte_level);

    (void)state;
    expect(t, "", 0, 0, NULL, 0);
    EXPECT(t, "hello", 0, 259);
    EXPECT(t, "hell", 0, 258);
    EXPECT(t, "hel", 0, 256, 'l');
    EXPECT(t, "lllhe", 0, 257, 'l', 256); /* of equal rank the leftmost */
    EXPECT(t, "hello w", 0, 259, 260);
    EXPECT(t, "a\0b", 0, 'a', 0, 'b');
    EXPECT(t, "e\xcc\x81", 0, 0xc3, 0xa9); /* NFC */
    tokenizer_free(&t);
}

/* Words of every length around the border between the two algorithms. */
static void test_long_words(void **state)
{
    struct tokenizer *t = tiny_load(tiny_byte_level);

    (void)state;
    for (size_t n = 1; n < 300; n++) {
        struct ids want = {0};
        struct buf text = {0};

        for (size_t i = 0; i < n; i++)
            buf_putc(&text, 'a');
        for (size_t i = 0; i < n / 4; i++)
            ids_push(&want, 262);
        if (n % 4 >= 2)
            ids_push(&want, 261);
        if (n % 2)
            ids_push(&want, 'a');
        expect(t, text.data, n, 0, want.data, want.len);
        expect(t, text.data, n, 0, want.data, want.len); /* again, from the cache */
        ids_fini(&want);
        buf_fini(&text);
    }
    tokenizer_free(&t);
}

static void test_fallback(void **state)
{
    struct tokenizer *t = tiny_load(tiny_fallback);

    (void)state;
    EXPECT(t, "hi hi", 0, TINY_HI, TINY_HI);
    EXPECT(t, " hi", 0, TINY_SPACE, TINY_HI);
    EXPECT(t, "\xc3\xa9", 0, TINY_SPACE, TINY_BYTE + 0xc3, TINY_BYTE + 0xa9);
    EXPECT(t, "hi<s>hi", ENCODE_SPLIT_ADDED, TINY_HI, 1, TINY_HI);
    tokenizer_free(&t);
}

static void test_added(void **state)
{
    struct tokenizer *t = tiny_load(tiny_byte_level);
    struct buf shielded = {0};
    uint32_t id;

    (void)state;
    EXPECT(t, "a<|end|>b", ENCODE_SPLIT_ADDED, 'a', TINY_END, 'b');
    EXPECT(t, "<tool>", ENCODE_SPLIT_ADDED | ENCODE_ADD_SPECIAL, TINY_END, TINY_TOOL);
    EXPECT(t, "<tool>", 0, '<', 't', 'o', 'o', 'l', '>');
    EXPECT(t, "a  cat.", ENCODE_SPLIT_ADDED, 'a', TINY_WORD, '.');
    EXPECT(t, "cats", ENCODE_SPLIT_ADDED, 'c', 'a', 't', 's');
    tokenizer_shield(t, "<tool><|end|>", 13, &shielded); /* <tool> is no special token */
    assert_int_equal(shielded.len, 14);
    expect(t, shielded.data, shielded.len, ENCODE_SPLIT_ADDED,
           (const uint32_t[]){TINY_TOOL, '<', '|', 'e', 'n', 'd', '|', '>'}, 8);
    assert_true(tokenizer_id(t, "<tool>", &id));
    assert_int_equal(id, TINY_TOOL);
    assert_false(tokenizer_id(t, "<tool", &id));
    assert_int_equal(tokenizer_size(t), TINY_WORD + 1);
    assert_true(tokenizer_is_special(t, TINY_END));
    assert_false(tokenizer_is_special(t, TINY_TOOL));
    assert_false(tokenizer_is_special(t, 1u << 30));
    buf_fini(&shielded);
    tokenizer_free(&t);
}

/* Exactly ids_max fit; one more is refused and leaves the array as it was. */
static void test_ids_max(void **state)
{
    struct tokenizer *t = tiny_load(tiny_byte_level);
    struct ids ids = {0};
    struct err err = {0};

    (void)state;
    ids_push(&ids, 7);
    assert_int_equal(tokenizer_encode(t, "a b c", 5, 0, 5, &ids, &err), 0);
    assert_int_equal(ids.len, 6);
    assert_int_equal(tokenizer_encode(t, "a b c", 5, 0, 4, &ids, &err), ERR_LIMIT);
    assert_non_null(strstr(err.msg, "4 ids"));
    assert_int_equal(ids.len, 6);
    assert_int_equal(tokenizer_encode(t, "a b c", 5, ENCODE_ADD_SPECIAL, 5, &ids, &err), ERR_LIMIT);
    assert_int_equal(tokenizer_encode(t, "", 0, 0, 0, &ids, &err), 0);
    ids_fini(&ids);
    tokenizer_free(&t);
}

/* Bytes that are no UTF-8 are the caller's mistake, but must do no harm. */
static void test_invalid_utf8(void **state)
{
    struct tokenizer *t[] = {tiny_load(tiny_byte_level), tiny_load(tiny_fallback)};
    static const char text[] =
        "\xe2\x82 \xf0\x9f\x98 \xc3 \x80\xfe\xed\xa0\x80\xf4\xff\xf7\xbf\xbf";

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        for (size_t len = 0; len < sizeof text; len++) {
            char *copy = malloc(len + 1);
            struct ids ids = {0};

            assert_non_null(copy);
            memcpy(copy, text, len);
            assert_int_equal(
                tokenizer_encode(t[i], copy, len, ENCODE_SPLIT_ADDED, 1000, &ids, NULL), 0);
            ids_fini(&ids);
            free(copy);
        }
        tokenizer_free(&t[i]);
    }
}

static void *encode_often(void *arg)
{
    const struct tokenizer *t = arg;

    for (int i = 0; i < 200; i++) {
        struct ids ids = {0};

        if (tokenizer_encode(t, "hello w hello<tool>", 19, ENCODE_SPLIT_ADDED, 100, &ids, NULL) ||
            ids.len != 5 || ids.data[0] != 259 || ids.data[4] != TINY_TOOL)
            arg = NULL;
        ids_fini(&ids);
    }
    return arg;
}

static void test_threads(void **state)
{
    struct tokenizer *t = tiny_load(tiny_byte_level);
    pthread_t threads[12]; /* more than the pool has work areas */
    void *result;

    (void)state;
    for (size_t i = 0; i < 12; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, encode_often, t), 0);
    for (size_t i = 0; i < 12; i++) {
        assert_int_equal(pthread_join(threads[i], &result), 0);
        assert_ptr_equal(result, t);
    }
    tokenizer_free(&t);
}

static void test_bad_files(void **state)
{
    static const struct {
        const char *json;
        int code;
    } rows[] = {
        {"", ERR_INVALID},
        {"[]", ERR_INVALID},
        {"{\"model\":{\"type\":\"BPE\"}}", ERR_INVALID},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", ERR_INVALID},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":4294967295},\"merges\":[]}}", ERR_INVALID},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":16777215},\"merges\":[]}}", ERR_LIMIT},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]}}", ERR_INVALID},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[\"a a\"]}}", ERR_INVALID},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[\"aa\"]}}", ERR_INVALID},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},"
         "\"added_tokens\":[{\"content\":5}]}",
         ERR_INVALID},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},"
         "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"}}}",
         ERR_UNSUPPORTED},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}", 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct tokenizer *t;
        struct err err = {0};
        int rc = tokenizer_parse(rows[i].json, strlen(rows[i].json), &t, &err);

        if (rc != rows[i].code)
            fail_msg("row %zu: %d %s", i, rc, err.msg);
        assert_true(rc == 0 || (err.msg[0] && !t));
        tokenizer_free(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merges),   cmocka_unit_test(test_long_words),
        cmocka_unit_test(test_fallback), cmocka_unit_test(test_added),
        cmocka_unit_test(test_ids_max),  cmocka_unit_test(test_invalid_utf8),
        cmocka_unit_test(test_threads),  cmocka_unit_test(test_bad_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

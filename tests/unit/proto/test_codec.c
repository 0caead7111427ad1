/* The codec, driven by the tables: every message with random contents, then cut, damaged and
 * over-long encodings. */
#include "common/file.h"
#include "proto/table.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define ROUNDS 40
#define DOCUMENT "docs/protocol.md"

/* splitmix64: the same on every machine. */
static uint64_t draw(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Numbers of all widths, the extremes among them. */
static uint64_t draw_number(uint64_t *state)
{
    const uint64_t value = draw(state);
    switch (draw(state) % 8) {
    case 0:
        return 0;
    case 1:
        return UINT64_MAX;
    case 2:
        return (uint64_t)1 << (value % 64);
    case 3:
        return ((uint64_t)1 << (value % 64)) - 1;
    default:
        return value >> (value % 64);
    }
}

/* Everything the random messages point to, freed at once. */
static struct {
    void *all[65536];
    size_t count;
} pool;

static void *pool_take(size_t size)
{
    assert_true(pool.count < sizeof(pool.all) / sizeof(pool.all[0]));
    void *p = calloc(1, size ? size : 1);
    assert_non_null(p);
    pool.all[pool.count++] = p;
    return p;
}

static void pool_free(void)
{
    while (pool.count > 0)
        free(pool.all[--pool.count]);
}

static void fill_bytes(void *at, size_t len, uint64_t *state)
{
    for (size_t i = 0; i < len; i++)
        ((unsigned char *)at)[i] = (unsigned char)draw(state);
}

static void fill(const struct record *record, void *base, unsigned depth, uint64_t *state);

static void fill_counted(const struct field *f, void *base, unsigned depth, uint64_t *state)
{
    void *at = table_in(base, f->offset);
    uint64_t count = draw(state) % (f->kind == KIND_RECS ? (depth > 1 ? 2 : 5) : 40);
    if (draw(state) % 16 == 0 && f->kind != KIND_RECS)
        count = draw(state) % 70000; /* past the 8 and 16 bit heads */
    if (count > f->bound)
        count = f->bound;
    if (f->kind == KIND_STR) {
        char *data = pool_take(count);
        fill_bytes(data, count, state);
        *(struct proto_str *)at = (struct proto_str){data, count};
        return;
    }
    *(uint32_t *)table_in(base, f->count_offset) = (uint32_t)count;
    const size_t size = f->kind == KIND_RECS ? f->sub()->size : table_element_size(f->kind);
    char *elements = pool_take(count * size);
    *(void **)at = elements;
    if (f->kind != KIND_RECS)
        fill_bytes(elements, count * size, state);
    for (uint64_t i = 0; f->kind == KIND_RECS && i < count; i++)
        fill(f->sub(), elements + i * size, depth + 1, state);
}

static void fill(const struct record *record, void *base, unsigned depth, uint64_t *state)
{
    for (uint32_t i = 0; i < record->count; i++) {
        const struct field *f = &record->fields[i];
        void *at = table_in(base, f->offset);
        if (f->kind == KIND_BOOL)
            *(bool *)at = draw(state) & 1;
        else if (f->kind == KIND_U32)
            *(uint32_t *)at = (uint32_t)draw_number(state);
        else if (f->kind == KIND_U64)
            *(uint64_t *)at = draw_number(state);
        else if (f->kind == KIND_I64)
            *(int64_t *)at = (int64_t)draw_number(state);
        else if (f->kind == KIND_F64)
            *(double *)at = (double)(int64_t)draw_number(state) / 3;
        else if (f->kind == KIND_REC)
            fill(f->sub(), at, depth, state);
        else
            fill_counted(f, base, depth, state);
    }
}

static void compare(const struct record *record, const void *a, const void *b);

static void compare_counted(const struct field *f, const void *a, const void *b)
{
    const void *const x = table_at(a, f->offset), *const y = table_at(b, f->offset);
    if (f->kind == KIND_STR) {
        const struct proto_str *s = x, *t = y;
        assert_int_equal(s->len, t->len);
        assert_memory_equal(s->data, t->data, s->len);
        return;
    }
    const uint32_t count = *(const uint32_t *)table_at(a, f->count_offset);
    assert_int_equal(count, *(const uint32_t *)table_at(b, f->count_offset));
    const char *const s = *(const char *const *)x, *const t = *(const char *const *)y;
    const size_t size = f->kind == KIND_RECS ? f->sub()->size : table_element_size(f->kind);
    if (f->kind != KIND_RECS && count > 0)
        assert_memory_equal(s, t, count * size);
    for (uint32_t i = 0; f->kind == KIND_RECS && i < count; i++)
        compare(f->sub(), s + i * size, t + i * size);
}

static void compare(const struct record *record, const void *a, const void *b)
{
    static const size_t sizes[KINDS] = {
        [KIND_BOOL] = sizeof(bool), [KIND_U32] = 4, [KIND_U64] = 8, [KIND_I64] = 8, [KIND_F64] = 8,
    };
    for (uint32_t i = 0; i < record->count; i++) {
        const struct field *f = &record->fields[i];
        const void *const x = table_at(a, f->offset), *const y = table_at(b, f->offset);
        if (f->kind == KIND_REC)
            compare(f->sub(), x, y);
        else if (sizes[f->kind] > 0)
            assert_memory_equal(x, y, sizes[f->kind]);
        else
            compare_counted(f, a, b);
    }
}

/* A random message of a type and its encoding. */
static void *make(unsigned type, uint64_t *state, struct proto_header *header, struct buf *out)
{
    const struct record *record = table_message(type)->record();
    void *message = pool_take(record->size);
    fill(record, message, 0, state);
    *header = (struct proto_header){.type = (enum proto_type)type,
                                    .epoch = draw_number(state),
                                    .seq = draw_number(state),
                                    .id = draw_number(state)};
    struct err err = {0};
    if (proto_encode(header, message, out, &err) != 0)
        fail_msg("encode: %s", err.msg);
    return message;
}

static void test_every_message_comes_back(void **state)
{
    (void)state;
    uint64_t seed = 1;
    struct proto_arena arena = {0};
    for (unsigned type = 1; type < PROTO_TYPES; type++) {
        for (int round = 0; round < ROUNDS; round++) {
            struct buf bytes = {0}, again = {0}, dump = {0}, dump_again = {0};
            struct proto_header header, got = {0};
            struct err err = {0};
            void *copy = NULL;
            void *message = make(type, &seed, &header, &bytes);
            if (proto_decode(bytes.data, bytes.len, &arena, &got, &copy, &err) != 0)
                fail_msg("%s: %s", proto_type_name((enum proto_type)type), err.msg);
            assert_int_equal(got.type, header.type);
            assert_true(got.epoch == header.epoch && got.seq == header.seq && got.id == header.id);
            compare(table_message(type)->record(), message, copy);
            assert_int_equal(proto_encode(&got, copy, &again, &err), 0);
            assert_int_equal(again.len, bytes.len);
            assert_memory_equal(again.data, bytes.data, bytes.len);
            proto_dump(&header, message, &dump);
            proto_dump(&got, copy, &dump_again);
            assert_string_equal(dump.data, dump_again.data);
            assert_null(strchr(dump.data, '\n'));
            buf_fini(&bytes);
            buf_fini(&again);
            buf_fini(&dump);
            buf_fini(&dump_again);
            proto_arena_clear(&arena);
            pool_free();
        }
    }
    proto_arena_fini(&arena);
}

/* Decodes a copy of exactly len bytes, so that reading past them is noticed by a sanitizer. Memory
 * may grow with the message, never with what a count claims. */
static int decode_exact(const char *data, size_t len, struct err *err)
{
    struct proto_arena arena = {0};
    struct proto_header header;
    void *message = NULL;
    char *copy = malloc(len ? len : 1);
    assert_non_null(copy);
    memcpy(copy, data, len);
    int rc = proto_decode(copy, len, &arena, &header, &message, err);
    free(copy);
    if (rc == 0) {
        struct buf dump = {0};
        proto_dump(&header, message, &dump);
        buf_fini(&dump);
    }
    assert_true(arena.bytes <= 65536 + 64 * len);
    proto_arena_fini(&arena);
    return rc;
}

/* A message of a type whose encoding has at most len_max bytes. */
static void make_short(unsigned type, uint64_t *seed, size_t len_max, struct buf *bytes)
{
    struct proto_header header;
    do {
        buf_clear(bytes);
        make(type, seed, &header, bytes);
        pool_free();
    } while (bytes->len > len_max);
}

static void test_every_truncation_is_refused(void **state)
{
    (void)state;
    uint64_t seed = 2;
    struct buf bytes = {0};
    for (unsigned type = 1; type < PROTO_TYPES; type++) {
        make_short(type, &seed, 3000, &bytes);
        for (size_t len = 0; len < bytes.len; len++) {
            struct err err = {0};
            assert_int_equal(decode_exact(bytes.data, len, &err), ERR_PROTOCOL);
            assert_true(err.msg[0] != '\0');
        }
        buf_putc(&bytes, '\0');
        assert_int_equal(decode_exact(bytes.data, bytes.len, NULL), ERR_PROTOCOL);
    }
    buf_fini(&bytes);
}

static void test_every_byte_damaged(void **state)
{
    (void)state;
    uint64_t seed = 3;
    size_t refused = 0;
    struct buf bytes = {0};
    for (unsigned type = 1; type < PROTO_TYPES; type++) {
        make_short(type, &seed, 1500, &bytes);
        for (size_t i = 0; i < bytes.len; i++) {
            const char was = bytes.data[i];
            for (int bit = 0; bit < 8; bit++) {
                bytes.data[i] = (char)(was ^ (1 << bit));
                refused += decode_exact(bytes.data, bytes.len, NULL) != 0;
            }
            bytes.data[i] = (char)0xff;
            refused += decode_exact(bytes.data, bytes.len, NULL) != 0;
            bytes.data[i] = was;
        }
        assert_int_equal(decode_exact(bytes.data, bytes.len, NULL), 0);
    }
    assert_true(refused > 1000);
    buf_fini(&bytes);
}

static void test_random_bytes(void **state)
{
    (void)state;
    uint64_t seed = 4;
    char data[64];
    for (int round = 0; round < 20000; round++) {
        const size_t len = draw(&seed) % sizeof(data);
        fill_bytes(data, len, &seed);
        assert_int_equal(decode_exact(data, len, NULL), ERR_PROTOCOL);
    }
}

/* Every bounded field of every record, one over its bound, refused by name; and at its bound not
 * refused for it. Only the outermost level is tried: nested ones run through the same code. */
static void test_bounds_when_encoding(void **state)
{
    (void)state;
    unsigned tried = 0;
    for (unsigned type = 1; type < PROTO_TYPES; type++) {
        const struct record *record = table_message(type)->record();
        for (uint32_t i = 0; i < record->count; i++) {
            const struct field *f = &record->fields[i];
            if (f->bound == 0 || f->bound > 100000)
                continue;
            const size_t size = f->kind == KIND_STR    ? 1
                                : f->kind == KIND_RECS ? f->sub()->size
                                                       : table_element_size(f->kind);
            void *message = pool_take(record->size);
            void *elements = pool_take((f->bound + 1) * size);
            for (uint32_t over = 0; over < 2; over++) {
                const uint32_t count = f->bound + over;
                struct buf out = {0};
                struct err err = {0};
                const struct proto_header header = {.type = (enum proto_type)type};
                if (f->kind == KIND_STR) {
                    *(struct proto_str *)table_in(message, f->offset) =
                        (struct proto_str){elements, count};
                } else {
                    *(void **)table_in(message, f->offset) = elements;
                    *(uint32_t *)table_in(message, f->count_offset) = count;
                }
                buf_puts(&out, "before");
                assert_int_equal(proto_encode(&header, message, &out, &err), over ? ERR_LIMIT : 0);
                if (over) {
                    assert_string_equal(out.data, "before");
                    assert_non_null(strstr(err.msg, f->name));
                } else {
                    assert_int_equal(decode_exact(out.data + 6, out.len - 6, &err), 0);
                }
                buf_fini(&out);
                tried++;
            }
            pool_free();
        }
    }
    assert_true(tried > 40);
}

/* The same from the wire: a string and a list over their bounds. */
static void test_bounds_when_decoding(void **state)
{
    (void)state;
    struct err err = {0};
    struct buf b = {0};
    const char head[] = {(char)0x96, PROTO_ABORT, PROTO_VERSION, 0, 1, 0, (char)0xc4, (char)129};
    buf_append(&b, head, sizeof(head));
    for (int i = 0; i < 129; i++)
        buf_putc(&b, 'x');
    assert_int_equal(decode_exact(b.data, b.len, &err), ERR_PROTOCOL);
    assert_string_equal(err.msg, "abort.reason: longer than its bound");
    b.data[7] = (char)128;
    assert_int_equal(decode_exact(b.data, b.len - 1, &err), 0);
    buf_fini(&b);

    const char tokens[] = {(char)0x96, PROTO_TOKENS, PROTO_VERSION, 0, 1, 0,
                           (char)0xdc, 0x10,         0x01,          0, 0, 0};
    assert_int_equal(decode_exact(tokens, sizeof(tokens), &err), ERR_PROTOCOL);
    assert_string_equal(err.msg, "tokens.tokens: more elements than its bound");
    const char claims[] = {(char)0x96, PROTO_TOKENS, PROTO_VERSION, 0, 1, 0,
                           (char)0xdc, 0x10,         0x00,          0, 0, 0};
    assert_int_equal(decode_exact(claims, sizeof(claims), &err), ERR_PROTOCOL);
    assert_string_equal(err.msg, "tokens.tokens: more elements than the message has bytes for");
}

/* 4 GiB claimed by 20 bytes: refused before memory is taken (decode_exact checks the arena). */
static void test_claims_are_checked_first(void **state)
{
    (void)state;
    struct err err = {0};
    const unsigned char str[] = {0x96, PROTO_ABORT, PROTO_VERSION, 0, 1, 0, 0xc6, 0xff,
                                 0xff, 0xff,        0xff,          1, 2, 3, 4};
    assert_int_equal(decode_exact((const char *)str, sizeof(str), &err), ERR_PROTOCOL);
    assert_string_equal(err.msg, "abort.reason: longer than the message");
    const unsigned char recs[] = {0x96, PROTO_CHUNKS, PROTO_VERSION, 0,    1,   0,
                                  0xdd, 0xff,         0xff,          0xff, 0xff};
    assert_int_equal(decode_exact((const char *)recs, sizeof(recs), &err), ERR_PROTOCOL);
}

static void test_other_versions_and_types(void **state)
{
    (void)state;
    struct err err = {0};
    const unsigned char version[] = {0x96, PROTO_PING, PROTO_VERSION + 1, 0, 0, 0, 0};
    assert_int_equal(decode_exact((const char *)version, sizeof(version), &err), ERR_PROTOCOL);
    assert_string_equal(err.msg, "header: protocol version 2, this side has 1");
    const unsigned char type[] = {0x96, PROTO_TYPES, PROTO_VERSION, 0, 0, 0, 0};
    assert_int_equal(decode_exact((const char *)type, sizeof(type), &err), ERR_PROTOCOL);
    const unsigned char none[] = {0x96, PROTO_NONE, PROTO_VERSION, 0, 0, 0, 0};
    assert_int_equal(decode_exact((const char *)none, sizeof(none), &err), ERR_PROTOCOL);
    const unsigned char ping[] = {0x96, PROTO_PING, PROTO_VERSION, 0, 0, 0, 7};
    assert_int_equal(decode_exact((const char *)ping, sizeof(ping), &err), 0);
    /* Integers may come in any width, negative ones only where they fit. */
    const unsigned char wide[] = {0x96, PROTO_PING, PROTO_VERSION, 0, 0, 0, 0xd1, 0, 7};
    assert_int_equal(decode_exact((const char *)wide, sizeof(wide), &err), 0);
    const unsigned char negative[] = {0x96, PROTO_PING, PROTO_VERSION, 0, 0, 0, 0xff};
    assert_int_equal(decode_exact((const char *)negative, sizeof(negative), &err), ERR_PROTOCOL);
    assert_string_equal(proto_type_name(PROTO_NONE), "?");
    assert_string_equal(proto_type_name(PROTO_TYPES), "?");
    const struct proto_header header = {.type = PROTO_TYPES};
    struct buf out = {0};
    assert_int_equal(proto_encode(&header, ping, &out, &err), ERR_INVALID);
    buf_fini(&out);
}

/* The bytes of one message, so that the wire does not change unnoticed. */
static void test_the_wire(void **state)
{
    (void)state;
    uint32_t stops[] = {1, 0x01020304};
    const struct proto_submit m = {
        .sampling = {.temperature = 1.0,
                     .top_k = -1,
                     .seed = 300,
                     .ignore_eos = true,
                     .stop_token_ids = stops,
                     .stop_token_ids_count = 2},
        .trace_id = proto_str("id"),
    };
    const struct proto_header header = {.type = PROTO_SUBMIT, .epoch = 1, .seq = 2, .id = 70000};
    static const unsigned char expected[] = {
        0x9a, PROTO_SUBMIT,
        1,    1,
        2,    0xce,
        0,    1,
        0x11, 0x70, /* header */
        0xc4, 0,    /* prompt */
        0xdc, 0,
        16, /* sampling */
        0xcb, 0x3f,
        0xf0, 0,
        0,    0,
        0,    0,
        0, /* temperature */
        0xcb, 0,
        0,    0,
        0,    0,
        0,    0,
        0,    /* top_p */
        0xff, /* top_k */
        0xcb, 0,
        0,    0,
        0,    0,
        0,    0,
        0, /* min_p */
        0xcb, 0,
        0,    0,
        0,    0,
        0,    0,
        0, /* presence_penalty */
        0xcb, 0,
        0,    0,
        0,    0,
        0,    0,
        0, /* frequency_penalty */
        0xcb, 0,
        0,    0,
        0,    0,
        0,    0,
        0, /* repetition_penalty */
        0xcd, 1,
        0x2c, 0,
        0,    0xc3,
        0,    /* seed .. logprobs */
        0xc2, /* prompt_logprobs */
        0,    /* priority */
        0xc4, 8,
        1,    0,
        0,    0,
        4,    3,
        2,    1, /* stop_token_ids */
        0x90,    /* logit_bias */
        0xc4, 2,
        'i',  'd',
        0xc4, 0, /* resumed */
        0,       /* replays */
    };
    struct buf out = {0};
    assert_int_equal(proto_encode(&header, &m, &out, NULL), 0);
    assert_int_equal(out.len, sizeof(expected));
    assert_memory_equal(out.data, expected, sizeof(expected));
    buf_fini(&out);
}

static void test_dump(void **state)
{
    (void)state;
    struct buf out = {0};
    struct proto_token tokens[2] = {{.sid = 5, .id = 7}, {.sid = 6, .finish = FINISH_STOP}};
    const struct proto_tokens m = {.tokens = tokens, .tokens_count = 2};
    const struct proto_header header = {.type = PROTO_TOKENS, .epoch = 1, .seq = 2, .id = 3};
    proto_dump(&header, &m, &out);
    assert_string_equal(out.data, "TOKENS epoch=1 seq=2 id=3 tokens=["
                                  "{sid=5 index=0 id=7 finish=0 cached_tokens=0 logprob=[]},"
                                  "{sid=6 index=0 id=0 finish=1 cached_tokens=0 logprob=[]}]");
    buf_fini(&out);
}

static void test_strings(void **state)
{
    (void)state;
    char *copy = proto_strdup((struct proto_str){"abcd", 3});
    assert_string_equal(copy, "abc");
    free(copy);
    copy = proto_strdup((struct proto_str){NULL, 0});
    assert_string_equal(copy, "");
    free(copy);
    assert_true(proto_str_is((struct proto_str){NULL, 0}, ""));
    assert_true(proto_str_is(proto_str("ab"), "ab"));
    assert_false(proto_str_is(proto_str("ab"), "abc"));
    assert_false(proto_str_is(proto_str("ab"), "ac"));
}

static void test_arena_keeps_little(void **state)
{
    (void)state;
    struct proto_arena arena = {0};
    struct proto_header header = {.type = PROTO_SUBMIT}, got;
    struct buf bytes = {0};
    void *message = NULL;
    uint32_t *prompt = calloc(1048576, sizeof(*prompt));
    const struct proto_submit m = {.prompt = prompt, .prompt_count = 1048576};
    assert_int_equal(proto_encode(&header, &m, &bytes, NULL), 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(proto_decode(bytes.data, bytes.len, &arena, &got, &message, NULL), 0);
        assert_int_equal(((struct proto_submit *)message)->prompt_count, 1048576);
        assert_true(arena.bytes > 4000000 && arena.bytes < 5000000);
        proto_arena_clear(&arena);
        assert_true(arena.bytes < 100000);
    }
    proto_arena_fini(&arena);
    buf_fini(&bytes);
    free(prompt);
}

/* Run from the root of the project. */
static void test_document_is_current(void **state)
{
    (void)state;
    struct buf page = {0}, file = {0};
    struct err err = {0};
    proto_document(&page);
    if (getenv("UPDATE_DOCS")) {
        FILE *f = fopen(DOCUMENT, "w");
        assert_non_null(f);
        assert_int_equal(fwrite(page.data, 1, page.len, f), page.len);
        assert_int_equal(fclose(f), 0);
    }
    if (file_read(DOCUMENT, 1048576, &file, &err) != 0)
        fail_msg("%s", err.msg);
    if (file.len != page.len || memcmp(file.data, page.data, page.len) != 0)
        fail_msg("%s is not what proto/messages.def says; write it with UPDATE_DOCS=1", DOCUMENT);
    buf_fini(&page);
    buf_fini(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_message_comes_back),
        cmocka_unit_test(test_every_truncation_is_refused),
        cmocka_unit_test(test_every_byte_damaged),
        cmocka_unit_test(test_random_bytes),
        cmocka_unit_test(test_bounds_when_encoding),
        cmocka_unit_test(test_bounds_when_decoding),
        cmocka_unit_test(test_claims_are_checked_first),
        cmocka_unit_test(test_other_versions_and_types),
        cmocka_unit_test(test_the_wire),
        cmocka_unit_test(test_dump),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_arena_keeps_little),
        cmocka_unit_test(test_document_is_current),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

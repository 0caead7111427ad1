/* The connection parser: requests cut at every byte, malformed ones, each limit from both sides. */
#include "services/gateway/http_parser.h"
#include "services/gateway/limits.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

struct outcome {
    int requests;    /* complete ones */
    int status;      /* of the problem; 0: none */
    struct buf seen; /* "METHOD target [body]\n" of each */
};

/* Feeds text in pieces of `step` bytes. */
static struct outcome parse(const char *text, size_t len, size_t step)
{
    struct outcome o = {0};
    struct problem problem = {0};
    struct http_parser p;
    size_t at = 0;

    http_parser_init(&p, &problem);
    while (at < len && !problem.status) {
        size_t n = step < len - at ? step : len - at, used = 0;
        enum http_parsed event = http_parser_feed(&p, text + at, n, &used);

        assert_true(used <= n);
        if (event == PARSED_HEAD) {
            size_t more = 0;

            event = http_parser_feed(&p, text + at + used, n - used, &more);
            used += more;
        }
        at += used;
        if (event == PARSED_DONE) {
            o.requests++;
            buf_printf(&o.seen, "%s %.*s [%.*s]\n", llhttp_method_name(p.llhttp.method),
                       (int)p.target.len, p.head.data + p.target.at, (int)p.body.len,
                       p.body.data ? p.body.data : "");
            http_parser_next(&p);
        }
    }
    o.status = problem.status;
    http_parser_fini(&p);
    return o;
}

static void expect(const char *text, size_t len, int requests, int status, const char *seen)
{
    for (size_t step = 1; step <= len; step = step < 40 ? step + 1 : step * 3) {
        struct outcome o = parse(text, len, step);

        if (o.status != status || o.requests != requests)
            print_error("step %zu of: %.200s\n", step, text);
        assert_int_equal(o.status, status);
        assert_int_equal(o.requests, requests);
        if (seen)
            assert_string_equal(o.seen.data ? o.seen.data : "", seen);
        buf_fini(&o.seen);
    }
}

static void test_good(void **state)
{
    static const struct {
        const char *text;
        int requests;
        const char *seen;
    } rows[] = {
        {"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", 1, "GET /a []\n"},
        {"GET /a HTTP/1.0\r\n\r\n", 1, "GET /a []\n"},
        {"\r\n\r\nGET / HTTP/1.1\r\nhOsT: x\r\n\r\n", 1, "GET / []\n"},
        {"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 1, "POST /b [hello]\n"},
        {"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 1, "POST /b []\n"},
        {"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
         "3\r\nabc\r\nA;name=value\r\n0123456789\r\n0\r\nTrailer: t\r\nHost: y\r\n\r\n",
         1, "POST /c [abc0123456789]\n"},
        {"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nPOST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: "
         "2\r\n\r\n"
         "hiGET /3 HTTP/1.1\r\nHost: x\r\n\r\n",
         3, "GET /1 []\nPOST /2 [hi]\nGET /3 []\n"},
        {"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
         "GET /2 HTTP/1.1\r\nHost: x\r\n\r\n",
         2, "GET / []\nGET /2 []\n"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        expect(rows[i].text, strlen(rows[i].text), rows[i].requests, 0, rows[i].seen);
}

static void test_bad(void **state)
{
    static const struct {
        const char *text;
        int status;
    } rows[] = {
        {"\x16\x03\x01\x02\x01\x01\x01\x01", 400}, /* TLS */
        {"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
        {"get / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
        {"GET  HTTP/1.1\r\nHost: x\r\n\r\n", 400},
        {"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505},
        {"GET / HTTP/0.9\r\n\r\n", 505},
        {"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505},
        {"GET / JUNK/1.1\r\nHost: x\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n\r\n", 400},                       /* no Host */
        {"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400}, /* two */
        {"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n", 400},
        {"GET / HTTP/1.1\rHost: x\r\n\r\n", 400}, /* CR without LF */
        {"GET / HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n", 400},
        {"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 405},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1x\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
         400},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
         "fffffffffffffffff\r\n",
         400},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8388609\r\n\r\n", 413},
        {"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n", 400},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        expect(rows[i].text, strlen(rows[i].text), 0, rows[i].status, NULL);
}

static void test_nul(void **state)
{
    static const char in_value[] = "GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n";
    static const char in_target[] = "GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n";

    (void)state;
    expect(in_value, sizeof in_value - 1, 0, 400, NULL);
    expect(in_target, sizeof in_target - 1, 0, 400, NULL);
}

static void head_of(struct buf *text, size_t fields, size_t bytes)
{
    buf_puts(text, "GET / HTTP/1.1\r\nHost: x\r\n");
    for (size_t i = 1; i < fields; i++)
        buf_printf(text, "F%zu: x\r\n", i);
    if (bytes) {
        buf_puts(text, "Long: ");
        while (text->len < bytes - 4)
            buf_putc(text, 'x');
        buf_puts(text, "\r\n");
    }
    buf_puts(text, "\r\n");
}

static void expect_head(size_t fields, size_t bytes, int requests, int status)
{
    struct buf text = {0};
    size_t steps[] = {1000, 1 << 20};

    head_of(&text, fields, bytes);
    if (bytes)
        assert_int_equal(text.len, bytes);
    for (size_t i = 0; i < 2; i++) {
        struct outcome o = parse(text.data, text.len, steps[i]);

        assert_int_equal(o.status, status);
        assert_int_equal(o.requests, requests);
        buf_fini(&o.seen);
    }
    buf_fini(&text);
}

static void test_head_limits(void **state)
{
    (void)state;
    expect_head(HTTP_FIELDS_MAX, 0, 1, 0);
    expect_head(HTTP_FIELDS_MAX + 1, 0, 0, 431);
    expect_head(1, HTTP_HEAD_BYTES_MAX - 1, 1, 0);
    expect_head(1, HTTP_HEAD_BYTES_MAX + 1, 0, 431);
    expect_head(1, HTTP_HEAD_BYTES_MAX * 40, 0, 431);
}

/* A head that never ends, whatever it is made of. */
static void test_endless_head(void **state)
{
    static const char *const repeated[] = {"\r\n", "x", " ", "F: x\r\n", "F:\r\n\t"};

    (void)state;
    for (size_t i = 0; i < sizeof repeated / sizeof repeated[0]; i++) {
        struct buf text = {0};
        struct outcome o;

        if (i)
            buf_puts(&text, "GET / HTTP/1.1\r\nHost: x\r\nA: ");
        while (text.len < 4 * HTTP_HEAD_BYTES_MAX)
            buf_puts(&text, repeated[i]);
        o = parse(text.data, text.len, 777);
        assert_int_equal(o.requests, 0);
        assert_in_range(o.status, 400, 431);
        buf_fini(&o.seen);
        buf_fini(&text);
    }
}

static void test_body_limits(void **state)
{
    struct buf text = {0};
    struct outcome o;

    (void)state;
    buf_printf(&text, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n",
               HTTP_BODY_BYTES_MAX);
    buf_reserve(&text, HTTP_BODY_BYTES_MAX);
    memset(text.data + text.len, 'x', HTTP_BODY_BYTES_MAX);
    text.len += HTTP_BODY_BYTES_MAX;
    o = parse(text.data, text.len, 65536);
    assert_int_equal(o.requests, 1);
    buf_fini(&o.seen);

    buf_clear(&text);
    buf_puts(&text, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i <= HTTP_BODY_BYTES_MAX / 65536; i++) {
        buf_puts(&text, "10000\r\n");
        for (int k = 0; k < 1024; k++)
            buf_puts(&text, "0123456789012345678901234567890123456789012345678901234567890123");
        buf_puts(&text, "\r\n");
    }
    o = parse(text.data, text.len, 65536);
    assert_int_equal(o.requests, 0);
    assert_int_equal(o.status, 413);
    buf_fini(&o.seen);

    /* chunk extensions are no way around it */
    buf_clear(&text);
    buf_puts(&text, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;a=");
    for (int i = 0; i <= HTTP_BODY_BYTES_MAX / 64 + 1; i++)
        buf_puts(&text, "0123456789012345678901234567890123456789012345678901234567890123");
    o = parse(text.data, text.len, 65536);
    assert_int_equal(o.status, 413);
    buf_fini(&o.seen);
    buf_fini(&text);
}

static void test_fields(void **state)
{
    static const char text[] = "POST /p?q HTTP/1.1\r\nHost: h\r\nAUTHORIZATION:   Bearer k \t\r\n"
                               "content-type: application/json\r\nX-Request-ID:\r\n\r\n";
    struct problem problem = {0};
    struct http_parser p;
    size_t used, len;

    (void)state;
    http_parser_init(&p, &problem);
    assert_int_equal(http_parser_feed(&p, text, sizeof text - 1, &used), PARSED_HEAD);
    assert_memory_equal(http_parser_field(&p, HTTP_FIELD_AUTHORIZATION, &len), "Bearer k", 8);
    assert_int_equal(len, 8);
    assert_memory_equal(http_parser_field(&p, HTTP_FIELD_CONTENT_TYPE, &len), "application/json",
                        16);
    assert_non_null(http_parser_field(&p, HTTP_FIELD_REQUEST_ID, &len));
    assert_int_equal(len, 0);
    assert_null(http_parser_field(&p, HTTP_FIELD_ORIGIN, &len));
    assert_true(p.keep_alive);
    http_parser_fini(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),         cmocka_unit_test(test_bad),
        cmocka_unit_test(test_nul),          cmocka_unit_test(test_head_limits),
        cmocka_unit_test(test_endless_head), cmocka_unit_test(test_body_limits),
        cmocka_unit_test(test_fields),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "services/bench/config.h"

#include "services/bench/body.h"
#include "services/bench/target.h"

#include "common/json.h"
#include "common/mem.h"

#include <math.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct read_config {
    struct options options;
    struct bench_config config;
};

/* Reads a command line, words separated by blanks. */
static int read_words(struct read_config *r, const char *words, struct err *err)
{
    char text[512], *argv[40], *save = NULL;
    int argc = 1, rc;

    memset(err, 0, sizeof *err);
    memset(&r->config, 0, sizeof r->config);
    argv[0] = text;
    (void)snprintf(text, sizeof text, "x %s", words);
    (void)strtok_r(text, " ", &save);
    for (char *w; argc < 40 && (w = strtok_r(NULL, " ", &save));)
        argv[argc++] = w;
    rc = options_parse(&r->options, 'B', argc, argv, err);
    return rc ? rc : bench_config_read(&r->config, &r->options, err);
}

static void fini(struct read_config *r)
{
    bench_config_fini(&r->config);
    options_fini(&r->options);
}

static void refuse(const char *words, const char *message)
{
    struct read_config r;
    struct err err;

    assert_int_not_equal(read_words(&r, words, &err), 0);
    if (!strstr(err.msg, message))
        fail_msg("'%s' says '%s'", words, err.msg);
    fini(&r);
}

static void test_loads(void **state)
{
    struct read_config r;
    struct err err;

    (void)state;
    assert_int_equal(read_words(&r, "", &err), 0);
    assert_int_equal(r.config.runs_count, 1);
    assert_true(isinf(bench_config_rate(&r.config, 0)));
    assert_true(isinf(bench_config_limit(&r.config, 0)));
    assert_true(r.config.ignore_eos);
    fini(&r);
    assert_int_equal(read_words(&r, "--request-rate 0.5,2,inf --max-concurrency 9", &err), 0);
    assert_int_equal(r.config.runs_count, 3);
    assert_true(bench_config_rate(&r.config, 1) == 2);
    assert_true(isinf(bench_config_rate(&r.config, 2)));
    assert_true(bench_config_limit(&r.config, 2) == 9);
    assert_int_equal(r.config.swept, LOAD_RATE);
    fini(&r);
    assert_int_equal(read_words(&r, "--max-concurrency 1,8 --disable-ignore-eos", &err), 0);
    assert_int_equal(r.config.swept, LOAD_CONCURRENCY);
    assert_true(bench_config_limit(&r.config, 1) == 8);
    assert_false(r.config.ignore_eos);
    fini(&r);
    assert_int_equal(
        read_words(&r, "--dataset-name trace --dataset-path x --trace-scale 1,.5", &err), 0);
    assert_int_equal(r.config.swept, LOAD_SCALE);
    assert_true(isnan(bench_config_rate(&r.config, 1)));
    assert_true(bench_config_scale(&r.config, 1) == 0.5);
    fini(&r);
}

static void test_refused(void **state)
{
    char many[SWEEP_MAX * 2 + 40] = "--request-rate 1";

    (void)state;
    refuse("--request-rate 0", "--request-rate: '0' is not a number from 0.001 to 1e+06 or inf");
    refuse("--request-rate 1,,2", "--request-rate: '' is not");
    refuse("--request-rate nan", "'nan' is not");
    refuse("--request-rate 1,2,", "'' is not");
    refuse("--max-concurrency 1.5", "1.5 is no whole number");
    refuse("--max-concurrency inf", "'inf' is not");
    refuse("--request-rate 1,2 --max-concurrency 1,2", "only one of");
    refuse("--dataset-name trace", "needs --dataset-path");
    refuse("--dataset-path x", "is for --dataset-name trace");
    refuse("--trace-scale 2", "is for --dataset-name trace");
    refuse("--dataset-name trace --dataset-path x --trace-scale 2 --request-rate 1", "one of them");
    refuse("--plot x.svg", "needs a sweep");
    refuse("--extra-request-body [1]", "--extra-request-body: it is no JSON object");
    refuse("--extra-request-body {", "--extra-request-body");
    refuse("--backend tgi", "--backend");
    for (int i = 0; i < SWEEP_MAX; i++)
        (void)strcat(many, ",1");
    refuse(many, "more than 64 values");
    many[strlen(many) - 2] = '\0';
    {
        struct read_config r;
        struct err err;

        assert_int_equal(read_words(&r, many, &err), 0);
        assert_int_equal(r.config.runs_count, SWEEP_MAX);
        fini(&r);
    }
}

/* ---- the server's address ---- */

static void expect_target(const char *url, const char *base, int port)
{
    struct target t;
    struct err err = {0};

    if (target_init(&t, url, "127.0.0.1", 81, "", &err))
        fail_msg("%s: %s", url, err.msg);
    assert_string_equal(t.base, base);
    assert_int_equal(ntohs(((struct sockaddr_in *)&t.address)->sin_port), port);
    target_fini(&t);
}

static void refuse_target(const char *url, const char *key, const char *message)
{
    struct target t;
    struct err err = {0};

    assert_int_not_equal(target_init(&t, url, "127.0.0.1", 81, key, &err), 0);
    if (!strstr(err.msg, message))
        fail_msg("'%s' says '%s'", url, err.msg);
    target_fini(&t);
}

static void test_target(void **state)
{
    struct target t;
    struct err err;
    struct buf out = {0}, body = {0};

    (void)state;
    expect_target("", "http://127.0.0.1:81", 81);
    expect_target("http://127.0.0.1", "http://127.0.0.1:80", 80);
    expect_target("http://127.0.0.1:8000/", "http://127.0.0.1:8000", 8000);
    expect_target("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000", 8000);
    expect_target("http://127.0.0.1:8000/a/b/v1/", "http://127.0.0.1:8000/a/b", 8000);
    refuse_target("https://x", "", "https is not supported");
    refuse_target("127.0.0.1:80", "", "does not begin with http://");
    refuse_target("http://", "", "no host");
    refuse_target("http://:80", "", "no host");
    refuse_target("http://127.0.0.1:0", "", "no port");
    refuse_target("http://127.0.0.1:65536", "", "no port");
    refuse_target("http://127.0.0.1:8x", "", "no port");
    refuse_target("http://a b", "", "is not http://host:port/path");
    refuse_target("http://x/\r\nA: b", "", "is not http://host:port/path");
    refuse_target("", "a\r\nX: y", "--api-key");
    assert_int_equal(target_init(&t, "http://127.0.0.1:8/p", "", 0, "k", &err), 0);
    buf_puts(&body, "{}");
    target_request(&t, "POST", "/v1/x", &body, &out);
    assert_string_equal(out.data, "POST /p/v1/x HTTP/1.1\r\nHost: 127.0.0.1:8\r\nUser-Agent: "
                                  "phalanx-bench\r\nAuthorization: Bearer k\r\nContent-Type: "
                                  "application/json\r\nContent-Length: 2\r\n\r\n{}");
    buf_fini(&out);
    buf_fini(&body);
    target_fini(&t);
}

/* ---- bodies ---- */

static void expect_body(const char *words, const char *wanted)
{
    static const uint32_t ids[] = {0, 7, 4294967295u, 120};
    struct read_config r;
    struct buf out = {0};
    struct err err;
    json_t *json = NULL;

    assert_int_equal(read_words(&r, words, &err), 0);
    body_write(&r.config, "m\"", ids, 4, 9, &out);
    assert_string_equal(out.data, wanted);
    assert_int_equal(json_parse(out.data, out.len, 8, &json, &err), 0);
    json_decref(json);
    buf_fini(&out);
    fini(&r);
}

static void test_bodies(void **state)
{
    (void)state;
    expect_body("",
                "{\"model\":\"m\\\"\",\"prompt\":[0,7,4294967295,120],\"max_tokens\":9,"
                "\"ignore_eos\":true,\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
    expect_body("--backend openai-chat --disable-ignore-eos --extra-request-body {\"a\":[1]}",
                "{\"model\":\"m\\\"\",\"messages\":[{\"role\":\"user\",\"content\":\"the for may "
                "other\"}],\"max_tokens\":9,\"stream\":true,\"stream_options\":"
                "{\"include_usage\":true},\"a\":[1]}");
    expect_body("--backend generate --temperature 0.5",
                "{\"input_ids\":[0,7,4294967295,120],\"sampling_params\":{\"max_new_tokens\":9,"
                "\"ignore_eos\":true,\"temperature\":0.5},\"stream\":true}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loads),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_target),
        cmocka_unit_test(test_bodies),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

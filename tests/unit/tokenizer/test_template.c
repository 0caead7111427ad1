#include "services/tokenizer/template.h"
#include "services/tokenizer/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static int run(const char *source, const char *vars_text, const struct template_limits *limits,
               struct buf *out, struct err *err)
{
    struct template *t = NULL;
    json_t *vars = NULL;
    int rc = json_parse(vars_text, strlen(vars_text), JSON_DEPTH_FILE, &vars, err);

    assert_int_equal(rc, 0);
    rc = template_parse(source, strlen(source), &t, err);
    if (rc == 0)
        rc = template_render(t, vars, 1721995511, limits, out, err);
    template_free(&t);
    json_decref(vars);
    return rc;
}

/* The limits without the one on time, which depends on the machine. */
static struct template_limits limits_of(void)
{
    struct template_limits limits = template_limits_default;

    limits.time_us = 0;
    return limits;
}

struct row {
    const char *source, *vars, *text; /* text NULL: an error whose message holds error */
    const char *error;
};

static const struct row rows[] = {
    {"{{ a }}-{{ b.c[0] }}", "{\"a\":1,\"b\":{\"c\":[\"x\"]}}", "1-x", NULL},
    {"{{ 9223372036854775807 + 1 }}", "{}", NULL, "line 1: integer overflow"},
    {"{{ 9223372036854775807 * 2 }}", "{}", NULL, "integer overflow"},
    {"{{ (0 - 9223372036854775807 - 1) // -1 }}", "{}", NULL, "integer overflow"},
    {"{{ (0 - 9223372036854775807 - 1) % -1 }}", "{}", "0", NULL},
    {"{{ -(0 - 9223372036854775807 - 1) }}", "{}", NULL, "integer overflow"},
    {"{{ 99999999999999999999 }}", "{}", NULL, "64 bits"},
    {"{{ 10 ** 30 }}", "{}", NULL, "integer overflow"},
    {"{{ range(3)[::9223372036854775807] }}", "{}", "range(0, 3, 9223372036854775807)", NULL},
    {"{{ 'abc'[::-9223372036854775807] }}", "{}", "c", NULL},
    {"\n\n{{ nope.x }}", "{}", NULL, "line 3: 'nope' is undefined"},
    {"{{ raise_exception('Sorry: %s {x}') }}", "{}", NULL, "Sorry: %s {x}"},
    {"{% include 'x' %}", "{}", NULL, "line 1: unexpected 'include'"},
    {"{% extends 'x' %}", "{}", NULL, "unexpected 'extends'"},
    {"{% for x in y %}", "{}", NULL, "expected 'endfor'"},
    {"a\n{% if x %}{% endfor %}", "{}", NULL, "line 2: unexpected 'endfor'"},
    {"{{ '%99999999999d' % 1 }}", "{}", NULL, "too large"},
    {"{{ '{:99999999999}'.format(1) }}", "{}", NULL, "format"},
    {"{{ ('%1000f' % 1.5) | length }}", "{}", "1000", NULL},
    {"{{ '%.1000f' % 1.5 }}", "{}", NULL, "too large"},
    {"{{ 1e308 * 10 }} {{ ('%.100f' % 1e308) | length }}", "{}", "inf 410", NULL},
    {"{{ strftime_now('%Q') }}", "{}", NULL, "unknown conversion"},
    {"{{ strftime_now('%-d %H') }}{{ strftime_now('%') }}", "{}", "26 12%", NULL},
    {"{% set l = [] %}{{ l.append(l) }}{{ l }}", "{}", NULL, "depth"},
    {"{% set l = [] %}{{ l.append(l) }}{{ l | tojson }}", "{}", NULL, "depth"},
    {"{% set l = [] %}{% set m = [] %}{{ l.append(m) }}{{ m.append(l) }}{{ l == m }}", "{}", NULL,
     "depth"},
    {"{% set l = [1] %}{% for x in l %}{% set _ = l.pop() %}{% endfor %}{{ l }}", "{}", "[]", NULL},
    {"{% set d = {'a': 1, 'b': 2} %}{% for x in d %}{% set _ = d.pop(x) %}{% endfor %}{{ d }}",
     "{}", "{'b': 2}", NULL},
    {"{{ ('[' * 5000) | from_json }}", "{}", NULL, "depth"},
    {"{{ '\"\\\\ud800\"' | from_json }}", "{}", NULL, "no valid JSON"},
    {"{{ '\"abc' | from_json }}{{ '\"\\\\' | from_json }}", "{}", NULL, "no valid JSON"},
};

static void check_row(const struct row *row)
{
    struct template_limits limits = limits_of();
    struct buf out = {0};
    struct err err = {0};
    int rc = run(row->source, row->vars, &limits, &out, &err);

    if (row->text) {
        if (rc != 0)
            fail_msg("%s: %s", row->source, err.msg);
        assert_string_equal(out.data ? out.data : "", row->text);
    } else {
        if (rc == 0 || !strstr(err.msg, row->error))
            fail_msg("%s gave '%s', not an error with '%s'", row->source,
                     rc == 0 ? out.data : err.msg, row->error);
        assert_int_equal(out.len, 0);
    }
    buf_fini(&out);
}

static void test_rows(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_row(&rows[i]);
}

static void test_raise_is_verbatim(void **state)
{
    struct template_limits limits = limits_of();
    struct buf out = {0};
    struct err err = {0};

    (void)state;
    assert_int_equal(
        run("x\n{{ raise_exception('Roles must alternate') }}", "{}", &limits, &out, &err),
        ERR_INVALID);
    assert_string_equal(err.msg, "Roles must alternate");
    buf_fini(&out);
}

/* Each limit is named in the error of a template that passes it. */
static void expect_limit(const char *source, const struct template_limits *limits, const char *name)
{
    struct buf out = {0};
    struct err err = {0};
    int rc = run(source, "{\"s\": \"0123456789\"}", limits, &out, &err);

    if (rc != ERR_LIMIT || !strstr(err.msg, name))
        fail_msg("%s: %d '%s', expected the limit of %s", source, rc, err.msg, name);
    assert_int_equal(out.len, 0);
    buf_fini(&out);
}

static void expect_text(const char *source, const struct template_limits *limits, const char *text)
{
    struct buf out = {0};
    struct err err = {0};
    int rc = run(source, "{\"s\": \"0123456789\"}", limits, &out, &err);

    if (rc != 0)
        fail_msg("%s: %s", source, err.msg);
    assert_string_equal(out.data ? out.data : "", text);
    buf_fini(&out);
}

static void test_limit_fuel(void **state)
{
    struct template_limits limits = limits_of();

    (void)state;
    limits.fuel = 2000;
    expect_text("{% for i in range(100) %}{% endfor %}", &limits, "");
    expect_limit("{% for i in range(900) %}{{ i }}{% endfor %}", &limits, "fuel");
    expect_limit("{% for i in range(100) %}{% for j in range(100) %}{% endfor %}{% endfor %}",
                 &limits, "fuel");
}

static void test_limit_depth(void **state)
{
    static const char recurse[] =
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}"
        "{{ m(@) }}ok";
    struct template_limits limits = limits_of();
    char source[256];

    (void)state;
    limits.depth = 20;
    for (int calls = 8; calls <= 80; calls += 72) {
        const char *at = strchr(recurse, '@');

        snprintf(source, sizeof source, "%.*s%d%s", (int)(at - recurse), recurse, calls, at + 1);
        if (calls == 8)
            expect_text(source, &limits, "ok");
        else
            expect_limit(source, &limits, "depth");
    }
    expect_limit("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", &limits, "depth");
    expect_limit("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", &limits, "depth");
    limits = limits_of();
    expect_limit("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", &limits, "depth");
}

static void test_limit_range(void **state)
{
    struct template_limits limits = limits_of();

    (void)state;
    expect_text("{{ range(10000) | length }}", &limits, "10000");
    expect_limit("{{ range(10001) | length }}", &limits, "range");
    expect_limit("{{ range(0, -9223372036854775807, -1) }}", &limits, "range");
    limits.range = 3;
    expect_text("{{ range(0, 9223372036854775807, 4611686018427387904) | length }}", &limits, "2");
    expect_limit("{{ range(4) }}", &limits, "range");
}

static void test_limit_output(void **state)
{
    struct template_limits limits = limits_of();

    (void)state;
    limits.output = 100;
    expect_text("{{ ('x' * 100) | length }}", &limits, "100");
    expect_limit("{{ 'x' * 101 }}", &limits, "output");
    expect_limit("{{ 'x' * 9223372036854775807 }}", &limits, "output");
    expect_limit("{{ s * 5 + s * 6 }}", &limits, "output");
    expect_limit("{{ s * 5 ~ s * 6 }}", &limits, "output");
    expect_limit("{% for i in range(11) %}{{ s }}{% endfor %}", &limits, "output");
    expect_limit("{% set x %}{% for i in range(11) %}{{ s }}{% endfor %}{% endset %}", &limits,
                 "output");
    expect_limit("{{ 'x'.ljust(101) }}", &limits, "output");
    expect_limit("{{ 'x' | center(9223372036854775807) }}", &limits, "output");
    expect_limit("{{ 'aaaaaaaaaa'.replace('a', s + s) }}", &limits, "output");
    expect_limit("{{ ([s] * 20) | join('-') }}", &limits, "output");
    expect_limit("{{ 'a\nb' | indent(1000) }}", &limits, "output");
    expect_limit("{{ ([s] * 20) | tojson }}", &limits, "output");
    expect_limit("{{ '%1000s' % 'x' }}", &limits, "output");
}

static void test_limit_memory(void **state)
{
    struct template_limits limits = limits_of();

    (void)state;
    limits.output = 65536;
    expect_limit("{% for i in range(9999) %}{% set x = 'x' * 65536 %}{% endfor %}", &limits,
                 "memory");
    limits.fuel = 1ull << 60;
    expect_limit("{% set ns = namespace(l=[1]) %}{% for i in range(60) %}"
                 "{% set ns.l = ns.l + ns.l %}{% endfor %}",
                 &limits, "memory");
    expect_limit("{{ ([1] * 9223372036854775807) | length }}", &limits, "memory");
}

static void test_limit_time(void **state)
{
    struct template_limits limits = limits_of();

    (void)state;
    limits.fuel = 1ull << 60;
    limits.time_us = 1000;
    expect_limit("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
                 &limits, "time");
    expect_limit("{% for i in range(9999) %}{{ ('x' * 1000000) == ('x' * 1000000) }}{% endfor %}",
                 &limits, "time");
}

/* A piece many times over between a head and a tail. */
static int run_repeated(const char *head, const char *piece, size_t count, const char *tail,
                        struct err *err)
{
    struct template_limits limits = limits_of();
    struct buf source = {0}, out = {0};
    int rc;

    buf_puts(&source, head);
    for (size_t i = 0; i < count; i++)
        buf_puts(&source, piece);
    buf_puts(&source, tail);
    rc = run(source.data, "{\"a\": 1}", &limits, &out, err);
    buf_fini(&source);
    buf_fini(&out);
    return rc;
}

static void test_hostile_nesting(void **state)
{
    static const struct {
        const char *head, *piece, *tail;
    } nests[] = {
        {"{{ ", "(", ""},
        {"{{ ", "[", ""},
        {"{{ ", "{1:", ""},
        {"{{ ", "-", "1 }}"},
        {"{{ ", "not ", "1 }}"},
        {"{{ ", "1 if 1 else ", "1 }}"},
        {"{{ ", "a[", ""},
        {"{{ ", "a(", ""},
        {"", "{% if 1 %}", ""},
        {"", "{% for x in a %}", ""},
        {"", "{% macro m() %}", ""},
        {"{{ 1", ".a", " }}"},
        {"{{ a", "[0]", " }}"},
        {"{{ a", "|list", " }}"},
        {"{{ a", " is defined", " }}"},
        {"{{ a", "()", " }}"},
        {"{{ a", " and a", " }}"},
        {"{% set x = a", ".b", " %}"},
        {"{{ 1", " < 2", " }}"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof nests / sizeof *nests; i++) {
        struct err err = {0};
        int rc = run_repeated(nests[i].head, nests[i].piece, 100000 / strlen(nests[i].piece),
                              nests[i].tail, &err);

        if (rc == 0)
            fail_msg("'%s' without end was accepted", nests[i].piece);
        assert_true(err.msg[0]);
    }
}

/* What templates really have: long chains are no nesting. */
static void test_long_chains(void **state)
{
    struct err err = {0};

    (void)state;
    assert_int_equal(run_repeated("{{ 1", " + 1", 2000, " }}", &err), 0);
    assert_int_equal(run_repeated("{{ 1", " ~ 1", 20000, " }}", &err), 0);
    assert_int_equal(run_repeated("{% if 0 %}", "{% elif 0 %}", 20000, "{% endif %}", &err), 0);
    assert_int_equal(run_repeated("", "{{ a }}", 20000, "", &err), 0);
    assert_int_equal(run_repeated("{{ [", "1, ", 20000, "] }}", &err), 0);
    assert_int_equal(run_repeated("{{ ", "(", 60, "1 }}", &err), ERR_INVALID);
}

static void test_source_limits(void **state)
{
    struct template *t = NULL;
    struct err err = {0};
    size_t len = 2 * 1024 * 1024;
    char *big = calloc(len, 1);

    (void)state;
    assert_non_null(big);
    assert_int_equal(template_parse(big, len, &t, &err), ERR_LIMIT);
    assert_null(t);
    assert_int_equal(template_parse("\xff", 1, &t, &err), ERR_INVALID);
    assert_null(t);
    free(big);
}

/* Shield bytes are invisible to every operation and come out where they went in. */
static void test_shield(void **state)
{
    static const struct {
        const char *source, *text;
    } cases[] = {
        {"{{ s }}", "<\xff|end|>x"},
        {"{{ s | length }}", "8"},
        {"{{ s == '<|end|>x' }}{{ '|end|' in s }}{{ s.startswith('<|') }}", "TrueTrueTrue"},
        {"{{ s[0] }}", "<"},
        {"{{ s[1] }}", "\xff|"},
        {"{{ s[1:] }}", "\xff|end|>x"},
        {"{{ s.split('|') }}", "['<', 'end', '>x']"},
        {"{{ s | tojson }}", "\"<\xff|end|>x\""},
        {"{{ s | tojson(ensure_ascii=true) }}", "\"<\xff|end|>x\""},
        {"{{ [s] }}", "['<\xff|end|>x']"},
        {"{{ s | upper }}", "<\xff|END|>X"},
        {"{{ d['k|y'] }}{{ d['k|y'] is defined }}", "vTrue"},
        {"{{ s.find('end') }}{{ s.rfind('|') }}{{ s.index('x') }}", "257"},
        {"{{ s.replace('|end|', '') }}", "<\xff>x"},
        {"{% for c in s %}{{ c }},{% endfor %}", "<,\xff|,e,n,d,|,>,x,"},
        {"{{ only | length }}{% for c in only %}x{% endfor %}{{ 'y' if only }}", "0"},
    };
    struct template_limits limits = limits_of();
    json_t *vars = json_object(), *dict = json_object();

    (void)state;
    json_object_set_new_nocheck(vars, "s", json_stringn_nocheck("<\xff|end|>x", 9));
    json_object_set_new_nocheck(vars, "only", json_stringn_nocheck("\xff\xff", 2));
    json_object_set_new_nocheck(dict, "k\xff|y", json_string("v"));
    json_object_set_new_nocheck(vars, "d", dict);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct template *t = NULL;
        struct buf out = {0};
        struct err err = {0};

        assert_int_equal(template_parse(cases[i].source, strlen(cases[i].source), &t, &err), 0);
        if (template_render(t, vars, 0, &limits, &out, &err) != 0)
            fail_msg("%s: %s", cases[i].source, err.msg);
        assert_string_equal(out.data, cases[i].text);
        template_free(&t);
        buf_fini(&out);
    }
    json_decref(vars);
}

/* Renders append, and one template renders many times with different variables. */
static void test_render_again(void **state)
{
    static const char source[] = "{% set x = (x or 0) + 1 %}{{ x }}{{ y }};";
    struct template_limits limits = limits_of();
    struct template *t = NULL;
    struct buf out = {0};
    struct err err = {0};

    (void)state;
    assert_int_equal(template_parse(source, sizeof source - 1, &t, &err), 0);
    for (int i = 0; i < 3; i++) {
        json_t *vars = json_pack("{s:i}", "y", i);

        assert_int_equal(template_render(t, vars, 0, &limits, &out, &err), 0);
        json_decref(vars);
    }
    assert_string_equal(out.data, "10;11;12;");
    template_free(&t);
    template_free(&t);
    buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_raise_is_verbatim),
        cmocka_unit_test(test_limit_fuel),
        cmocka_unit_test(test_limit_depth),
        cmocka_unit_test(test_limit_range),
        cmocka_unit_test(test_limit_output),
        cmocka_unit_test(test_limit_memory),
        cmocka_unit_test(test_limit_time),
        cmocka_unit_test(test_hostile_nesting),
        cmocka_unit_test(test_long_chains),
        cmocka_unit_test(test_source_limits),
        cmocka_unit_test(test_shield),
        cmocka_unit_test(test_render_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "common/mem.h"
#include "common/options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define WORDS 12

/* Parses the words of line (separated by single spaces). */
static int parse(struct options *o, char who, const char *line, struct err *err)
{
    char text[512];
    char *argv[WORDS] = {text};
    char *save = NULL;
    int argc = 1;
    int rc;

    assert_true(strlen(line) < sizeof text);
    (void)strcpy(text, line);
    for (char *w = strtok_r(text, " ", &save); w && argc < WORDS; w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    memset(err, 0, sizeof *err);
    rc = options_parse(o, who, argc, argv, err);
    return rc;
}

static void refuse(char who, const char *line, const char *message)
{
    struct options o;
    struct err err;

    assert_int_equal(parse(&o, who, line, &err), ERR_INVALID);
    assert_string_equal(err.msg, message);
    options_fini(&o);
}

static void test_defaults(void **state)
{
    struct options o;
    struct err err;

    (void)state;
    assert_int_equal(parse(&o, 'S', "", &err), 0);
    assert_string_equal(options_str(&o, OPT_HOST), "127.0.0.1");
    assert_int_equal(options_int(&o, OPT_PORT), 1919);
    assert_true(options_float(&o, OPT_MEM_FRACTION_STATIC) == 0.9);
    assert_false(options_bool(&o, OPT_DUMMY_WEIGHT));
    for (size_t i = 0; i < OPTIONS_COUNT; i++)
        assert_false(o.set[i]);
    options_fini(&o);
}

static void test_forms(void **state)
{
    struct options o;
    struct err err;

    (void)state;
    assert_int_equal(
        parse(&o, 'S', "--model /m --tp=4 --dummy-weight --chunked-prefill-size -1", &err), 0);
    assert_string_equal(options_str(&o, OPT_MODEL_PATH), "/m");
    assert_int_equal(options_int(&o, OPT_TP_SIZE), 4);
    assert_true(options_bool(&o, OPT_DUMMY_WEIGHT));
    assert_int_equal(options_int(&o, OPT_CHUNKED_PREFILL_SIZE), -1);
    assert_true(o.set[OPT_TP_SIZE]);
    assert_false(o.set[OPT_PORT]);
    options_fini(&o);

    assert_int_equal(parse(&o, 'S', "--dummy-weight --no-dummy-weight --port 1 --port=65535", &err),
                     0);
    assert_false(options_bool(&o, OPT_DUMMY_WEIGHT));
    assert_true(o.set[OPT_DUMMY_WEIGHT]);
    assert_int_equal(options_int(&o, OPT_PORT), 65535);
    options_fini(&o);

    assert_int_equal(parse(&o, 'S', "--dummy-weight=off --api-key=--x=y -h", &err), 0);
    assert_false(options_bool(&o, OPT_DUMMY_WEIGHT));
    assert_string_equal(options_str(&o, OPT_API_KEY), "--x=y");
    assert_true(options_bool(&o, OPT_HELP));
    options_fini(&o);
}

/* One name, two options: each executable has its own. */
static void test_names_by_executable(void **state)
{
    struct options o;
    struct err err;

    (void)state;
    assert_int_equal(parse(&o, 'B', "--model m", &err), 0);
    assert_string_equal(options_str(&o, OPT_MODEL), "m");
    assert_false(o.set[OPT_MODEL_PATH]);
    options_fini(&o);
    assert_int_equal(parse(&o, 'S', "--model m", &err), 0);
    assert_string_equal(options_str(&o, OPT_MODEL_PATH), "m");
    assert_false(o.set[OPT_MODEL]);
    options_fini(&o);
}

static void test_unknown(void **state)
{
    (void)state;
    refuse('S', "--prot 80", "unknown option --prot, did you mean --port?");
    refuse('S', "--max-running 8",
           "unknown option --max-running, did you mean --max-running-requests?");
    refuse('S', "-tp 2", "unknown option -tp, did you mean --tp-size?");
    refuse('S', "--xyzzy", "unknown option --xyzzy (--help lists all)");
    refuse('S', "--", "unknown option -- (--help lists all)");
    refuse('S', "--no-port", "unknown option --no-port, did you mean --port?");
    refuse('S', "serve", "unexpected argument 'serve' (options begin with --)");
    refuse('S', "--rank 1", "--rank is an option of phalanx-worker");
    refuse('w', "--port 1",
           "--port is an option of phalanx serve and phalanx chat and phalanx bench and phalanx "
           "status and "
           "phalanx-gateway");
}

static void test_values(void **state)
{
    (void)state;
    refuse('S', "--port 0", "--port: '0' is not an integer from 1 to 65535");
    refuse('S', "--port 65536", "--port: '65536' is not an integer from 1 to 65535");
    refuse('S', "--port 80x", "--port: '80x' is not an integer from 1 to 65535");
    refuse('S', "--port=", "--port: '' is not an integer from 1 to 65535");
    refuse('S', "--port=+5", "--port: '+5' is not an integer from 1 to 65535");
    refuse('S', "--port 99999999999999999999",
           "--port: '99999999999999999999' is not an integer from 1 to 65535");
    refuse('S', "--memory-ratio nan",
           "--mem-fraction-static: 'nan' is not a number from 0.01 to 0.99");
    refuse('S', "--memory-ratio 1e400",
           "--mem-fraction-static: '1e400' is not a number from 0.01 to 0.99");
    refuse('S', "--memory-ratio 0x1p-1",
           "--mem-fraction-static: '0x1p-1' is not a number from 0.01 to 0.99");
    refuse('S', "--device gpu", "--device: 'gpu' is not one of auto|cpu|cuda|null");
    refuse('S', "--device cpu|cuda", "--device: 'cpu|cuda' is not one of auto|cpu|cuda|null");
    refuse('S', "--device=", "--device: '' is not one of auto|cpu|cuda|null");
    refuse('S', "--dummy-weight=maybe", "--dummy-weight: 'maybe' is neither true nor false");
    refuse('S', "--no-dummy-weight=true", "--no-dummy-weight takes no value");
    refuse('S', "--host", "--host needs a value (ADDR)");
    refuse('S', "--host --port 1", "--host needs a value (ADDR)");
}

static void test_long_words(void **state)
{
    char *word = mem_alloc(70001);
    char program[] = "x";
    char *argv[] = {program, word, NULL};
    struct options o;
    struct err err = {0};

    (void)state;
    memset(word, 'a', 70000);
    memset(word, '-', 2);
    word[70000] = '\0';
    assert_int_equal(options_parse(&o, 'S', 2, argv, &err), ERR_INVALID);
    assert_non_null(strstr(err.msg, "unknown option --aaaa"));
    options_fini(&o);
    free(word);
}

static void test_environment(void **state)
{
    struct options o;
    struct err err;

    (void)state;
    assert_int_equal(setenv("PHALANX_PORT", "4000", 1), 0);
    assert_int_equal(setenv("PHALANX_DUMMY_WEIGHT", "1", 1), 0);
    assert_int_equal(setenv("PHALANX_HOST", "", 1), 0); /* as compose writes an unset one */
    assert_int_equal(setenv("PHALANX_RANK", "7", 1), 0);
    assert_int_equal(parse(&o, 'S', "", &err), 0);
    assert_int_equal(options_int(&o, OPT_PORT), 4000);
    assert_true(o.set[OPT_PORT]);
    assert_true(options_bool(&o, OPT_DUMMY_WEIGHT));
    assert_string_equal(options_str(&o, OPT_HOST), "127.0.0.1");
    assert_int_equal(options_int(&o, OPT_RANK), 0); /* not an option of serve */
    options_fini(&o);

    assert_int_equal(parse(&o, 'S', "--port 5000", &err), 0);
    assert_int_equal(options_int(&o, OPT_PORT), 5000);
    options_fini(&o);

    assert_int_equal(setenv("PHALANX_PORT", "x", 1), 0);
    refuse('S', "", "PHALANX_PORT: --port: 'x' is not an integer from 1 to 65535");
    (void)unsetenv("PHALANX_PORT");
    (void)unsetenv("PHALANX_DUMMY_WEIGHT");
    (void)unsetenv("PHALANX_HOST");
    (void)unsetenv("PHALANX_RANK");
}

/* Names that others have made usual count for less than ours. */
static void test_usual_variables(void **state)
{
    struct options o;
    struct err err;

    (void)state;
    assert_int_equal(setenv("NCCL_TIMEOUT", "90", 1), 0);
    assert_int_equal(setenv("NCCL_SOCKET_IFNAME", "eth1", 1), 0);
    assert_int_equal(parse(&o, 'w', "", &err), 0);
    assert_true(options_float(&o, OPT_DIST_TIMEOUT) == 90);
    assert_string_equal(options_str(&o, OPT_DIST_INTERFACE), "eth1");
    options_fini(&o);
    assert_int_equal(setenv("GLOO_SOCKET_IFNAME", "eth2", 1), 0);
    assert_int_equal(setenv("PHALANX_DIST_TIMEOUT", "80", 1), 0);
    assert_int_equal(parse(&o, 's', "", &err), 0);
    assert_true(options_float(&o, OPT_DIST_TIMEOUT) == 80);
    options_fini(&o);
    assert_int_equal(parse(&o, 'w', "--dist-timeout 70", &err), 0);
    assert_true(options_float(&o, OPT_DIST_TIMEOUT) == 70);
    assert_string_equal(options_str(&o, OPT_DIST_INTERFACE), "eth2");
    options_fini(&o);
    (void)unsetenv("PHALANX_DIST_TIMEOUT");
    assert_int_equal(setenv("NCCL_TIMEOUT", "soon", 1), 0);
    refuse('w', "", "NCCL_TIMEOUT: --dist-timeout: 'soon' is not a number from 1 to 86400");
    (void)unsetenv("NCCL_TIMEOUT");
    (void)unsetenv("NCCL_SOCKET_IFNAME");
    (void)unsetenv("GLOO_SOCKET_IFNAME");
}

static void test_table(void **state)
{
    struct options o;
    struct err err = {0};

    (void)state;
    assert_int_equal(parse(&o, 'S', "", &err), 0);
    for (size_t i = 0; i < OPTIONS_COUNT; i++) {
        enum option id = (enum option)i;

        /* A default is a value the option itself would take. */
        if (*options_str(&o, id)) {
            char *text = mem_strdup(options_str(&o, id));

            assert_int_equal(options_set(&o, id, text, &err), 0);
            free(text);
        }
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(option_name(id), option_name((enum option)k));
    }
    options_fini(&o);
    assert_true(option_taken_by(OPT_PORT, 'g'));
    assert_false(option_taken_by(OPT_PORT, 'w'));
    assert_true(option_is_bool(OPT_DUMMY_WEIGHT));
    assert_false(option_is_bool(OPT_PORT));
}

static void test_texts(void **state)
{
    static const char whos[] = "SCBgtsw";
    char wanted[64];

    (void)state;
    for (const char *who = whos; *who; who++) {
        struct buf help = {0};
        struct buf man = {0};

        options_help(*who, "prog name", "Does things.", &help);
        options_man(*who, "prog name", "Does things.", &man);
        for (size_t i = 0; i < OPTIONS_COUNT; i++) {
            bool taken = option_taken_by((enum option)i, *who);

            (void)snprintf(wanted, sizeof wanted, "\n  --%s", option_name((enum option)i));
            if (taken)
                assert_non_null(strstr(help.data, wanted));
        }
        for (char *line = help.data; line && *line; line = strchr(line + 1, '\n'))
            assert_true(strcspn(line + 1, "\n") <= 100);
        assert_non_null(strstr(help.data, "Usage: prog name [options]"));
        assert_non_null(strstr(man.data, ".TH PROG\\-NAME 1"));
        buf_fini(&help);
        buf_fini(&man);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_forms),
        cmocka_unit_test(test_names_by_executable),
        cmocka_unit_test(test_unknown),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_long_words),
        cmocka_unit_test(test_environment),
        cmocka_unit_test(test_usual_variables),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_texts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

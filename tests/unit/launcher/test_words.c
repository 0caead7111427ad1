#include "services/launcher/words.h"

#include "common/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static bool has(const struct words *w, const char *word)
{
    for (size_t i = 0; i < w->count; i++)
        if (strcmp(w->list[i], word) == 0)
            return true;
    return false;
}

/* Cuts text at its blanks. */
static int split(char *text, char **argv, int max)
{
    char *save = NULL;
    int n = 0;

    for (char *w = strtok_r(text, " ", &save); w && n < max; w = strtok_r(NULL, " ", &save))
        argv[n++] = w;
    return n;
}

static void test_options(void **state)
{
    char text[] = "x --model /m --port 80 --page-size 32 --api-key secret --dummy-weight";
    static const enum option but[] = {OPT_MODEL_PATH, OPTIONS_COUNT};
    char *argv[12];
    int argc = split(text, argv, 12);
    struct options o;
    struct words worker = {0};
    struct words gateway = {0};
    struct err err;

    (void)state;
    assert_int_equal(options_parse(&o, 'S', argc, argv, &err), 0);
    words_add_options(&worker, &o, 'w', but);
    words_add_options(&gateway, &o, 'g', but);
    assert_int_equal(worker.count, 2);
    assert_true(has(&worker, "--page-size=32"));
    assert_true(has(&worker, "--dummy-weight=true"));
    assert_null(worker.list[worker.count]);
    assert_int_equal(gateway.count, 1);
    assert_true(has(&gateway, "--port=80"));
    words_fini(&worker);
    words_fini(&gateway);
    options_fini(&o);
}

static void test_environment(void **state)
{
    struct words with = {0};
    struct words without = {0};

    (void)state;
    assert_int_equal(setenv("PHALANX_API_KEY", "old", 1), 0);
    assert_int_equal(setenv("PHALANX_TEST_OTHER", "1", 1), 0);
    words_add_environment(&with, "new");
    words_add_environment(&without, "");
    assert_true(has(&with, "PHALANX_API_KEY=new"));
    assert_false(has(&with, "PHALANX_API_KEY=old"));
    assert_false(has(&without, "PHALANX_API_KEY=old"));
    assert_true(has(&without, "PHALANX_TEST_OTHER=1"));
    words_fini(&with);
    words_fini(&without);
}

static void hidden(const char *first, const char *second, const char *wanted)
{
    char *argv[] = {mem_strdup("x"), mem_strdup(first), mem_strdup(second), NULL};
    char line[256];

    words_hide_key(3, argv);
    (void)snprintf(line, sizeof line, "%s %s", argv[1], argv[2]);
    assert_string_equal(line, wanted);
    for (int i = 0; i < 3; i++)
        free(argv[i]);
}

static void test_hide_key(void **state)
{
    (void)state;
    hidden("--api-key", "abc", "--api-key xxx");
    hidden("--api-key=abcd", "--port", "--api-key=xxxx --port");
    hidden("--port", "--api-key", "--port --api-key");
    hidden("--api-keys", "abc", "--api-keys abc");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_environment),
        cmocka_unit_test(test_hide_key),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "services/launcher/fingerprint.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char folder[] = "/tmp/phalanx-test-fingerprint-XXXXXX";

static int folder_make(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int folder_remove(void **state)
{
    char command[128];

    (void)state;
    (void)snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static void put(const char *name, const void *data, size_t len)
{
    char path[256];
    FILE *file;

    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, len, file), len);
    assert_int_equal(fclose(file), 0);
}

static uint64_t hash_of(bool weights)
{
    struct err err = {0};
    uint64_t hash = 0;

    if (model_fingerprint(folder, weights, &hash, &err))
        fail_msg("%s", err.msg);
    return hash;
}

/* A header of 16 bytes and 4 bytes of values. */
static const char tensors[] = "\x10\0\0\0\0\0\0\0{\"w\":[0,4]}     \1\2\3\4";
#define TENSORS_LEN (sizeof tensors - 1)

static void test_what_counts(void **state)
{
    char other[TENSORS_LEN];
    uint64_t with, without;

    (void)state;
    put("config.json", "{}", 2);
    put("tokenizer.json", "{}", 2);
    put("model-1.safetensors", tensors, TENSORS_LEN);
    with = hash_of(true);
    without = hash_of(false);
    assert_true(with != without);
    assert_true(with == hash_of(true));

    memcpy(other, tensors, TENSORS_LEN);
    other[TENSORS_LEN - 1] = 9; /* a value */
    put("model-1.safetensors", other, TENSORS_LEN);
    assert_true(hash_of(true) == with);
    other[10] = 'v'; /* the name of a tensor */
    put("model-1.safetensors", other, TENSORS_LEN);
    assert_true(hash_of(true) != with);
    assert_true(hash_of(false) == without);
    put("model-1.safetensors", tensors, TENSORS_LEN - 1); /* shorter */
    assert_true(hash_of(true) != with);
    put("model-1.safetensors", tensors, TENSORS_LEN);
    assert_true(hash_of(true) == with);

    put("model-2.safetensors", tensors, TENSORS_LEN); /* one more */
    assert_true(hash_of(true) != with);
    put("README.md", "x", 1);
    assert_true(hash_of(false) == without);
    put("tokenizer.json", "[]", 2);
    assert_true(hash_of(false) != without);
}

/* What is no weights file is hashed as far as it goes: its reader will say what is wrong. */
static void test_strange_files(void **state)
{
    static const char huge[] = "\xff\xff\xff\xff\xff\xff\xff\xff{";

    (void)state;
    put("empty.safetensors", "", 0);
    put("huge.safetensors", huge, sizeof huge - 1);
    (void)hash_of(true);
}

static void test_no_folder(void **state)
{
    struct err err = {0};
    uint64_t hash;

    (void)state;
    assert_int_equal(model_fingerprint("/nonexistent", true, &hash, &err), ERR_IO);
    assert_non_null(strstr(err.msg, "/nonexistent"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_counts),
        cmocka_unit_test(test_strange_files),
        cmocka_unit_test(test_no_folder),
    };

    return cmocka_run_group_tests(tests, folder_make, folder_remove);
}

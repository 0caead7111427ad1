/* safetensors: what is read, and every way a file can be wrong. */
#include "common/file.h"
#include "services/worker/safetensors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[64];

static int setup(void **state)
{
    (void)state;
    (void)snprintf(dir, sizeof dir, "/tmp/phalanx-test-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    char command[96];

    (void)state;
    (void)snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

static void write_raw(const char *name, const void *data, size_t len)
{
    char *path = file_join(dir, name);
    FILE *f = fopen(path, "wb");

    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
    free(path);
}

static void write_model(const char *name, const char *header, const void *data, size_t len)
{
    struct buf b = {0};
    uint64_t n = strlen(header);

    buf_append(&b, &n, sizeof n);
    buf_puts(&b, header);
    buf_append(&b, data, len);
    write_raw(name, b.data, b.len);
    buf_fini(&b);
}

static void expect_error(const char *text)
{
    struct safetensors *s;
    struct err err = {0};

    assert_int_not_equal(safetensors_open(dir, &s, &err), 0);
    assert_null(s);
    if (!strstr(err.msg, text))
        fail_msg("expected \"%s\" in \"%s\"", text, err.msg);
}

static const char matrix_header[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"w\":{\"dtype\":\"F32\",\"shape\":[3,4],\"data_offsets\":[0,48]},"
    "\"b\":{\"dtype\":\"BF16\",\"shape\":[5],\"data_offsets\":[48,58]},"
    "\"i\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[58,66]}}";

static void write_matrix(void)
{
    char data[66] = {0};
    uint16_t bias[5] = {1, 2, 3, 4, 5};

    for (int i = 0; i < 12; i++) {
        float v = (float)i;

        memcpy(data + 4 * i, &v, 4);
    }
    memcpy(data + 48, bias, sizeof bias);
    write_model("model.safetensors", matrix_header, data, sizeof data);
}

static void reads_blocks_and_counts_bytes(void **state)
{
    struct safetensors *s;
    const struct tensor *t;
    struct err err;
    float block[4];
    uint16_t bias[2];

    (void)state;
    write_matrix();
    assert_int_equal(safetensors_open(dir, &s, &err), 0);
    assert_int_equal(safetensors_expect(s, "w", 3, 4, &t, &err), 0);
    assert_int_equal(safetensors_read(s, t, 1, 2, 1, 2, block, &err), 0);
    assert_true(block[0] == 5 && block[1] == 6 && block[2] == 9 && block[3] == 10);
    assert_int_equal(safetensors_bytes_read(s), 16);
    assert_int_equal(safetensors_read(s, t, 2, 1, 0, 4, block, &err), 0);
    assert_true(block[0] == 8 && block[3] == 11);
    assert_int_equal(safetensors_expect(s, "b", 0, 5, &t, &err), 0);
    assert_int_equal(safetensors_read(s, t, 0, 1, 3, 2, bias, &err), 0);
    assert_true(bias[0] == 4 && bias[1] == 5);
    assert_int_equal(safetensors_bytes_read(s), 16 + 16 + 4);
    safetensors_free(&s);
    assert_null(s);
}

static void expectations_name_file_and_tensor(void **state)
{
    static const struct {
        const char *name;
        uint64_t rows, cols;
        const char *text;
    } rows[] = {
        {"absent", 1, 1, "model.safetensors: no tensor absent"},
        {"w", 4, 4, "tensor w: shape (3, 4), config.json makes it (4, 4)"},
        {"w", 0, 12, "tensor w: shape (3, 4), config.json makes it (12)"},
        {"b", 1, 5, "tensor b: shape (5), config.json makes it (1, 5)"},
        {"i", 0, 1, "tensor i: type I64 is not supported"},
    };
    struct safetensors *s;
    const struct tensor *t;
    struct err err;

    (void)state;
    write_matrix();
    assert_int_equal(safetensors_open(dir, &s, &err), 0);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_not_equal(
            safetensors_expect(s, rows[i].name, rows[i].rows, rows[i].cols, &t, &err), 0);
        if (!strstr(err.msg, rows[i].text))
            fail_msg("expected \"%s\" in \"%s\"", rows[i].text, err.msg);
    }
    safetensors_free(&s);
}

static void headers_that_are_wrong(void **state)
{
    static const struct {
        const char *header;
        size_t data;
        const char *text;
    } rows[] = {
        {"[]", 0, "does not start with '{'"},
        {" {}", 0, "does not start with '{'"},
        {"{\"a\":", 0, "invalid JSON"},
        {"{\"a\":1}", 0, "tensor a: no object"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "tensor a: no dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "tensor a: shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "bad dimension 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}", 4,
         "bad dimension 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
         "at most 8"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
         "overflow"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0,
         "shape and dtype do not"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "bad data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "bad data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4,
         "span 4 bytes, shape and dtype do not"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8,
         "begins at 4, expected 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
         4, "begins at 0, expected 4"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, "duplicate"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4, "truncated"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 8,
         "4 bytes follow the last tensor"},
    };
    static const char zeros[64];

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        write_model("model.safetensors", rows[i].header, zeros, rows[i].data);
        expect_error(rows[i].text);
    }
}

static void files_that_are_wrong(void **state)
{
    static const unsigned char huge[8] = {0, 0, 0, 0, 0, 1, 0, 0};
    static const unsigned char longer[10] = {9, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    char *path = file_join(dir, "model.safetensors");

    (void)state;
    expect_error("neither model.safetensors nor");
    write_raw("model.safetensors", "abc", 3);
    expect_error("model.safetensors: truncated: 3 bytes");
    write_raw("model.safetensors", huge, sizeof huge);
    expect_error("the limit is 100000000");
    write_raw("model.safetensors", longer, sizeof longer);
    expect_error("truncated: a header of 9 bytes in a file of 10");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("/dev/zero", path), 0);
    expect_error("not a regular file");
    free(path);
}

static void a_file_that_shrinks_is_an_error(void **state)
{
    struct safetensors *s;
    const struct tensor *t;
    struct err err;
    float block[12];
    char *path = file_join(dir, "model.safetensors");

    (void)state;
    write_matrix();
    assert_int_equal(safetensors_open(dir, &s, &err), 0);
    assert_int_equal(safetensors_expect(s, "w", 3, 4, &t, &err), 0);
    assert_int_equal(truncate(path, (off_t)(8 + strlen(matrix_header) + 40)), 0);
    assert_int_equal(safetensors_read(s, t, 0, 3, 0, 4, block, &err), ERR_IO);
    assert_non_null(strstr(err.msg, "tensor w: "));
    assert_non_null(strstr(err.msg, "model.safetensors: truncated at byte"));
    safetensors_free(&s);
    free(path);
}

static void several_files(void **state)
{
    static const char index[] = "{\"weight_map\":{\"x\":\"one.safetensors\",\"y\":"
                                "\"two.safetensors\",\"z\":\"two.safetensors\"}}";
    struct safetensors *s;
    const struct tensor *t;
    struct err err;
    float value = 7, got = 0;

    (void)state;
    write_model("one.safetensors",
                "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", &value, 4);
    value = 9;
    write_model("two.safetensors",
                "{\"y\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", &value, 4);
    write_raw("model.safetensors.index.json", index, strlen(index));
    assert_int_equal(safetensors_open(dir, &s, &err), 0);
    assert_int_equal(safetensors_expect(s, "y", 0, 1, &t, &err), 0);
    assert_int_equal(safetensors_read(s, t, 0, 1, 0, 1, &got, &err), 0);
    assert_true(got == 9);
    assert_int_equal(safetensors_expect(s, "z", 0, 1, &t, &err), ERR_NOT_FOUND);
    assert_non_null(strstr(err.msg, "two.safetensors: no tensor z"));
    assert_int_equal(safetensors_expect(s, "w", 0, 1, &t, &err), ERR_NOT_FOUND);
    assert_non_null(strstr(err.msg, "index.json has no tensor w"));
    safetensors_free(&s);
}

static void an_index_that_is_wrong(void **state)
{
    static const struct {
        const char *index;
        const char *text;
    } rows[] = {
        {"{}", "no weight_map"},
        {"{\"weight_map\":{}}", "no weight_map"},
        {"{\"weight_map\":{\"a\":\"../x.safetensors\"}}", "outside of the folder"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "outside of the folder"},
        {"{\"weight_map\":{\"a\":\"..\"}}", "outside of the folder"},
        {"{\"weight_map\":{\"a\":7}}", "outside of the folder"},
        {"{\"weight_map\":{\"a\":\"gone.safetensors\"}}", "gone.safetensors: No such file"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        write_raw("model.safetensors.index.json", rows[i].index, strlen(rows[i].index));
        expect_error(rows[i].text);
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(reads_blocks_and_counts_bytes),   TEST(expectations_name_file_and_tensor),
        TEST(headers_that_are_wrong),          TEST(files_that_are_wrong),
        TEST(a_file_that_shrinks_is_an_error), TEST(several_files),
        TEST(an_index_that_is_wrong),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

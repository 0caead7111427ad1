/* A model file of any bytes: opened, every tensor looked up and read in blocks. */
#include "services/worker/safetensors.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* A folder whose model.safetensors is a file in memory. */
static int memory_file(char dir[64])
{
    char link[96], target[64];
    int fd = memfd_create("model", MFD_CLOEXEC);

    (void)snprintf(dir, 64, "/tmp/phalanx-fuzz-XXXXXX");
    if (fd < 0 || !mkdtemp(dir))
        abort();
    (void)snprintf(link, sizeof link, "%s/model.safetensors", dir);
    (void)snprintf(target, sizeof target, "/proc/self/fd/%d", fd);
    if (symlink(target, link))
        abort();
    return fd;
}

static void read_all(struct safetensors *s, const struct tensor *t)
{
    uint64_t cols = t->dims ? t->shape[t->dims - 1] : 1;
    uint64_t rows = 1;
    char *data;
    struct err err;

    if (!t->supported || t->end - t->begin > 65536 || t->end == t->begin)
        return;
    for (uint32_t i = 0; i + 1 < t->dims; i++)
        rows *= t->shape[i];
    data = malloc(t->end - t->begin);
    if (!data || safetensors_read(s, t, 0, rows, 0, cols, data, &err) ||
        (rows > 1 && safetensors_read(s, t, 1, rows - 1, cols / 2, cols - cols / 2, data, &err)))
        abort(); /* what the header promises was checked to be there */
    free(data);
}

/* The names are found again by parsing the header with the parser under test. */
static void use(struct safetensors *s, const uint8_t *data, size_t size)
{
    struct tensor_table table;
    struct err err;
    uint64_t len;

    memcpy(&len, data, sizeof len);
    if (tensor_table_parse((const char *)data + 8, len, size - 8 - len, &table, &err))
        abort();
    for (size_t i = 0; i < table.count; i++) {
        const struct tensor *t = safetensors_find(s, table.tensors[i].name);

        assert(t && !strcmp(t->name, table.tensors[i].name));
        read_all(s, t);
        (void)safetensors_expect(s, t->name, t->dims > 1 ? t->shape[0] : 0, 3, &t, &err);
    }
    tensor_table_fini(&table);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char dir[64], path[96];
    int fd = memory_file(dir);
    struct safetensors *s;
    struct err err;

    if (size && write(fd, data, size) != (ssize_t)size)
        abort();
    if (safetensors_open(dir, &s, &err) == 0)
        use(s, data, size);
    else
        assert(!s && err.msg[0]);
    safetensors_free(&s);
    (void)snprintf(path, sizeof path, "%s/model.safetensors", dir);
    (void)unlink(path);
    (void)rmdir(dir);
    (void)close(fd);
    return 0;
}

#include "services/worker/safetensors.h"

#include "common/file.h"
#include "common/json.h"
#include "common/mem.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#define SINGLE_NAME "model.safetensors"
#define INDEX_NAME "model.safetensors.index.json"
#define FILES_MAX 4096
#define INDEX_BYTES_MAX 100000000u

struct model_file {
    char *path;
    char *name; /* within the folder */
    int fd;
    uint64_t data_begin;
    struct tensor_table table;
};

struct safetensors {
    struct model_file *files;
    size_t count;
    json_t *weight_map; /* tensor -> file name; NULL when there is one file */
    uint64_t bytes_read;
    uint64_t hash;
};

static int read_at(const struct model_file *f, void *dst, uint64_t len, uint64_t offset,
                   struct err *err)
{
    char *at = dst;

    while (len) {
        ssize_t n = pread(f->fd, at, len < (1u << 30) ? (size_t)len : (1u << 30), (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, ERR_IO, "%s", f->path);
        if (n == 0)
            return err_set(err, ERR_IO, "%s: truncated at byte %llu", f->path,
                           (unsigned long long)offset);
        at += n;
        len -= (uint64_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

static int model_file_read_header(struct model_file *f, uint64_t size, uint64_t *hash,
                                  struct err *err)
{
    unsigned char prefix[8];
    uint64_t len = 0;
    char *json;
    int rc;

    if (size < sizeof prefix)
        return err_set(err, ERR_INVALID, "%s: truncated: %llu bytes", f->path,
                       (unsigned long long)size);
    rc = read_at(f, prefix, sizeof prefix, 0, err);
    if (rc)
        return rc;
    for (int i = 7; i >= 0; i--)
        len = len << 8 | prefix[i];
    if (len > SAFETENSORS_HEADER_MAX)
        return err_set(err, ERR_LIMIT, "%s: a header of %llu bytes, the limit is %u", f->path,
                       (unsigned long long)len, SAFETENSORS_HEADER_MAX);
    if (len > size - sizeof prefix)
        return err_set(err, ERR_INVALID, "%s: truncated: a header of %llu bytes in a file of %llu",
                       f->path, (unsigned long long)len, (unsigned long long)size);
    json = mem_alloc(len + 1);
    rc = read_at(f, json, len, sizeof prefix, err);
    if (!rc) {
        f->data_begin = sizeof prefix + len;
        *hash = XXH64(json, len, *hash);
        if ((rc = tensor_table_parse(json, len, size - f->data_begin, &f->table, err)))
            (void)err_prefix(err, "%s", f->path);
    }
    free(json);
    return rc;
}

static int model_file_open(struct safetensors *s, const char *dir, const char *name,
                           struct err *err)
{
    struct model_file *f = &s->files[s->count++];
    struct stat st;

    *f = (struct model_file){.path = file_join(dir, name), .name = mem_strdup(name)};
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not hang us */
    if (f->fd < 0)
        return err_errno(err, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "%s", f->path);
    if (fstat(f->fd, &st))
        return err_errno(err, ERR_IO, "%s", f->path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_INVALID, "%s: not a regular file", f->path);
    return model_file_read_header(f, (uint64_t)st.st_size, &s->hash, err);
}

static const struct model_file *file_by_name(const struct safetensors *s, const char *name)
{
    for (size_t i = 0; i < s->count; i++)
        if (!strcmp(s->files[i].name, name))
            return &s->files[i];
    return NULL;
}

/* Names come from a file: they must stay in the folder. */
static int check_file_name(const char *name, struct err *err)
{
    if (!name || !*name || name[0] == '.' || strchr(name, '/') || strlen(name) > 255)
        return err_set(err, ERR_INVALID, "weight_map names a file outside of the folder: %.200s",
                       name ? name : "(no string)");
    return 0;
}

static int open_index(struct safetensors *s, const char *dir, const char *path, struct err *err)
{
    json_t *root = NULL, *map, *value;
    const char *tensor;
    int rc = json_load_path(path, INDEX_BYTES_MAX, &root, err);

    if (rc)
        return rc;
    map = json_object_get(root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0) {
        rc = err_set(err, ERR_INVALID, "%s: no weight_map", path);
        goto out;
    }
    s->weight_map = json_incref(map);
    s->files = mem_array(FILES_MAX, sizeof *s->files);
    json_object_foreach(map, tensor, value)
    {
        const char *name = json_string_value(value);

        rc = check_file_name(name, err);
        if (rc) {
            (void)err_prefix(err, "%s", path);
            goto out;
        }
        if (file_by_name(s, name))
            continue;
        if (s->count == FILES_MAX) {
            rc = err_set(err, ERR_LIMIT, "%s: more than %d files", path, FILES_MAX);
            goto out;
        }
        rc = model_file_open(s, dir, name, err);
        if (rc)
            goto out;
    }
out:
    json_decref(root);
    return rc;
}

int safetensors_open(const char *dir, struct safetensors **out, struct err *err)
{
    struct safetensors *s = mem_zalloc(sizeof *s);
    char *index = file_join(dir, INDEX_NAME);
    char *single = file_join(dir, SINGLE_NAME);
    int rc;

    if (file_exists(index)) {
        rc = open_index(s, dir, index, err);
    } else if (!file_exists(single)) {
        rc = err_set(err, ERR_NOT_FOUND, "%s: neither " SINGLE_NAME " nor " INDEX_NAME, dir);
    } else {
        s->files = mem_array(1, sizeof *s->files);
        rc = model_file_open(s, dir, SINGLE_NAME, err);
    }
    free(index);
    free(single);
    if (rc)
        safetensors_free(&s);
    *out = s;
    return rc;
}

void safetensors_free(struct safetensors **self)
{
    struct safetensors *s = *self;

    if (!s)
        return;
    for (size_t i = 0; i < s->count; i++) {
        if (s->files[i].fd >= 0)
            (void)close(s->files[i].fd);
        free(s->files[i].path);
        free(s->files[i].name);
        tensor_table_fini(&s->files[i].table);
    }
    free(s->files);
    json_decref(s->weight_map);
    free(s);
    *self = NULL;
}

/* The file that should hold a tensor; NULL when the index does not name it. */
static const struct model_file *file_of_name(const struct safetensors *s, const char *tensor)
{
    const char *name;

    if (!s->weight_map)
        return &s->files[0];
    name = json_string_value(json_object_get(s->weight_map, tensor));
    return name ? file_by_name(s, name) : NULL;
}

const struct tensor *safetensors_find(const struct safetensors *s, const char *name)
{
    const struct model_file *f = file_of_name(s, name);

    return f ? tensor_table_find(&f->table, name) : NULL;
}

static bool shape_is(const struct tensor *t, uint64_t rows, uint64_t cols)
{
    if (rows == 0)
        return t->dims == 1 && t->shape[0] == cols;
    return t->dims == 2 && t->shape[0] == rows && t->shape[1] == cols;
}

static void shape_print(const struct tensor *t, struct buf *out)
{
    buf_puts(out, "(");
    for (uint32_t i = 0; i < t->dims; i++)
        buf_printf(out, "%s%llu", i ? ", " : "", (unsigned long long)t->shape[i]);
    buf_puts(out, ")");
}

int safetensors_expect(const struct safetensors *s, const char *name, uint64_t rows, uint64_t cols,
                       const struct tensor **out, struct err *err)
{
    const struct model_file *f = file_of_name(s, name);
    const struct tensor *t = f ? tensor_table_find(&f->table, name) : NULL;
    struct buf got = {0};

    *out = t;
    if (!f)
        return err_set(err, ERR_NOT_FOUND, INDEX_NAME " has no tensor %.200s", name);
    if (!t)
        return err_set(err, ERR_NOT_FOUND, "%s: no tensor %.200s", f->path, name);
    if (!t->supported)
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: tensor %.200s: type %s is not supported (F32, BF16, F16 are)", f->path,
                       name, t->type);
    if (shape_is(t, rows, cols))
        return 0;
    shape_print(t, &got);
    if (rows)
        (void)err_set(err, ERR_INVALID,
                      "%s: tensor %.200s: shape %s, config.json makes it (%llu, %llu)", f->path,
                      name, got.data, (unsigned long long)rows, (unsigned long long)cols);
    else
        (void)err_set(err, ERR_INVALID, "%s: tensor %.200s: shape %s, config.json makes it (%llu)",
                      f->path, name, got.data, (unsigned long long)cols);
    buf_fini(&got);
    return ERR_INVALID;
}

int safetensors_read(struct safetensors *s, const struct tensor *t, uint64_t row, uint64_t rows,
                     uint64_t col, uint64_t cols, void *dst, struct err *err)
{
    const struct model_file *f = file_of_name(s, t->name);
    uint64_t width = t->dims ? t->shape[t->dims - 1] : 1;
    uint64_t size = dtype_size(t->dtype);
    uint64_t begin = f->data_begin + t->begin + (row * width + col) * size;
    char *at = dst;
    int rc = 0;

    assert(t->supported && col + cols <= width &&
           ((row + rows) * width * size <= t->end - t->begin));
    if (cols == width) { /* whole rows lie together */
        cols *= rows;
        rows = rows ? 1 : 0;
    }
    for (uint64_t i = 0; i < rows && !rc; i++) {
        rc = read_at(f, at, cols * size, begin + i * width * size, err);
        at += cols * size;
        (void)__atomic_fetch_add(&s->bytes_read, cols * size, __ATOMIC_RELAXED);
    }
    return rc ? err_prefix(err, "tensor %.200s", t->name) : 0;
}

uint64_t safetensors_bytes_read(const struct safetensors *s)
{
    return __atomic_load_n(&s->bytes_read, __ATOMIC_RELAXED);
}

uint64_t safetensors_hash(const struct safetensors *s)
{
    return s->hash;
}

#include "services/launcher/fingerprint.h"

#include "common/buf.h"
#include "common/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES_MAX 4096
#define TEXT_BYTES_MAX ((size_t)256 << 20)
#define HEADER_BYTES_MAX ((uint64_t)100 << 20) /* of safetensors: the format's own limit */
#define CHUNK_BYTES 65536

/* FNV-1a. */
static uint64_t hash_bytes(uint64_t hash, const void *data, size_t len)
{
    const unsigned char *bytes = data;

    for (size_t i = 0; i < len; i++)
        hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
    return hash;
}

static uint64_t hash_number(uint64_t hash, uint64_t number)
{
    return hash_bytes(hash, &number, sizeof number);
}

static int hash_text(const char *dir, const char *name, uint64_t *hash, struct err *err)
{
    char *path = file_join(dir, name);
    struct buf text = {0};
    int rc = file_exists(path) ? file_read(path, TEXT_BYTES_MAX, &text, err) : 0;

    *hash = hash_bytes(*hash, name, strlen(name) + 1);
    *hash = hash_number(*hash, text.len);
    *hash = hash_bytes(*hash, text.data, text.len);
    buf_fini(&text);
    free(path);
    return rc;
}

/* The first 8 bytes are the header's length. What is wrong with a file is the worker's business:
 * here its bytes count, as far as they go. */
static int hash_header(int fd, uint64_t *hash)
{
    unsigned char bytes[CHUNK_BYTES];
    uint64_t left = 0;
    ssize_t n = read(fd, bytes, 8);

    for (int i = 0; n == 8 && i < 8; i++)
        left |= (uint64_t)bytes[i] << 8 * i;
    if (left > HEADER_BYTES_MAX)
        left = 0;
    while (n > 0 && left > 0) {
        n = read(fd, bytes, left < sizeof bytes ? (size_t)left : sizeof bytes);
        if (n > 0) {
            *hash = hash_bytes(*hash, bytes, (size_t)n);
            left -= (uint64_t)n;
        }
    }
    return n < 0 ? -1 : 0;
}

static int hash_weights(const char *dir, const char *name, uint64_t *hash, struct err *err)
{
    char *path = file_join(dir, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    int rc = 0;

    if (fd < 0 || fstat(fd, &st)) {
        rc = err_errno(err, ERR_IO, "%s", path);
    } else {
        *hash = hash_bytes(*hash, name, strlen(name) + 1);
        *hash = hash_number(*hash, (uint64_t)st.st_size);
        if (hash_header(fd, hash))
            rc = err_errno(err, ERR_IO, "%s", path);
    }
    if (fd >= 0)
        (void)close(fd);
    free(path);
    return rc;
}

static int is_weights(const struct dirent *entry)
{
    static const char suffix[] = ".safetensors";
    size_t len = strlen(entry->d_name);

    return len >= sizeof suffix && strcmp(entry->d_name + len - (sizeof suffix - 1), suffix) == 0;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int hash_all_weights(const char *dir, uint64_t *hash, struct err *err)
{
    struct dirent **names = NULL;
    int count = scandir(dir, &names, is_weights, by_name);
    int rc = 0;

    if (count < 0)
        return err_errno(err, ERR_IO, "--model-path: %s", dir);
    if (count > FILES_MAX)
        rc = err_set(err, ERR_LIMIT, "--model-path: %s has %d safetensors, at most %d", dir, count,
                     FILES_MAX);
    for (int i = 0; i < count; i++) {
        if (!rc)
            rc = hash_weights(dir, names[i]->d_name, hash, err);
        free(names[i]);
    }
    free(names);
    return rc;
}

int model_fingerprint(const char *path, bool weights, uint64_t *out, struct err *err)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    int rc = hash_text(path, "config.json", &hash, err);

    if (!rc)
        rc = hash_text(path, "tokenizer.json", &hash, err);
    if (!rc && weights)
        rc = hash_all_weights(path, &hash, err);
    *out = hash;
    return rc;
}

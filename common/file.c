#include "common/file.h"

#include "common/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int file_read(const char *path, size_t max_bytes, struct buf *out, struct err *err)
{
    struct stat st;
    int rc = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not hang us */

    if (fd < 0)
        return err_errno(err, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "%s", path);
    if (fstat(fd, &st)) {
        rc = err_errno(err, ERR_IO, "%s", path);
        goto out;
    }
    if (!S_ISREG(st.st_mode)) {
        rc = err_set(err, ERR_INVALID, "%s: not a regular file", path);
        goto out;
    }
    if ((size_t)st.st_size > max_bytes) {
        rc = err_set(err, ERR_LIMIT, "%s: %lld bytes, the limit is %zu", path,
                     (long long)st.st_size, max_bytes);
        goto out;
    }
    buf_reserve(out, (size_t)st.st_size);
    for (size_t left = (size_t)st.st_size; left;) {
        ssize_t n = read(fd, out->data + out->len, left);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            rc = err_errno(err, ERR_IO, "%s", path);
            goto out;
        }
        if (n == 0) {
            rc = err_set(err, ERR_IO, "%s: shorter than its size says", path);
            goto out;
        }
        out->len += (size_t)n;
        left -= (size_t)n;
    }
    out->data[out->len] = '\0';
out:
    (void)close(fd);
    return rc;
}

bool file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

char *file_join(const char *dir, const char *name)
{
    size_t n = strlen(dir) + strlen(name) + 2;
    char *path = mem_alloc(n);

    (void)snprintf(path, n, "%s/%s", dir, name);
    return path;
}

#include "services/launcher/keygen.h"

#include "common/buf.h"
#include "common/log.h"
#include "common/options.h"
#include "proto/bus_key.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Never over a file that is there: a cluster may run with it. */
static int key_write(const char *path, const struct buf *text, struct err *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    int rc = 0;

    if (fd < 0)
        return err_errno(err, ERR_IO, "%s", path);
    if (fchmod(fd, 0600) || write(fd, text->data, text->len) != (ssize_t)text->len || fsync(fd))
        rc = err_errno(err, ERR_IO, "%s", path);
    if (close(fd) && !rc)
        rc = err_errno(err, ERR_IO, "%s", path);
    if (rc)
        (void)unlink(path);
    return rc;
}

static int key_print(const struct buf *text, struct err *err)
{
    if (fwrite(text->data, 1, text->len, stdout) != text->len || fflush(stdout))
        return err_errno(err, ERR_IO, "standard output");
    return 0;
}

int keygen_main(const char *program, const char *summary, int argc, char **argv)
{
    struct options options;
    struct buf text = {0};
    struct err err = {0};
    const char *path;
    int rc;

    options_main(&options, 'K', program, summary, argc, argv);
    path = options_str(&options, OPT_CLUSTER_KEY_FILE);
    rc = bus_key_generate(&text, &err);
    if (!rc)
        rc = *path ? key_write(path, &text, &err) : key_print(&text, &err);
    if (rc)
        log_say("%s: %s", program, err.msg);
    else if (*path)
        log_say("%s: wrote %s; give it to every node as --cluster-key-file", program, path);
    if (text.data)
        explicit_bzero(text.data, text.len);
    buf_fini(&text);
    options_fini(&options);
    return rc ? 1 : 0;
}

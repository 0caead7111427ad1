#include "services/launcher/rundir.h"

#include "common/buf.h"
#include "common/file.h"
#include "common/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define OPEN_TRIES 10

#define SOCKET_NAME_MAX "scheduler-00.ipc"

static const char *const socket_kinds[] = {"tokenizer", "scheduler", "workers", "control"};
#define SOCKET_KINDS (sizeof socket_kinds / sizeof *socket_kinds)

/* ---- the directory ---- */

static char *rundir_default(int port)
{
    const char *base = getenv("XDG_RUNTIME_DIR");
    struct buf path = {0};

    buf_printf(&path, "%s/phalanx-%u-%d", base && *base == '/' ? base : "/tmp", (unsigned)geteuid(),
               port);
    return buf_take(&path);
}

/* Without slashes at the end: behind one, O_NOFOLLOW would follow a link. */
static char *rundir_trim(const char *path)
{
    size_t len = strlen(path);

    while (len > 1 && path[len - 1] == '/')
        len--;
    return mem_strndup(path, len);
}

static int rundir_check_length(const char *path, struct err *err)
{
    size_t room = sizeof((struct sockaddr_un *)NULL)->sun_path - 1;

    if (strlen(path) + sizeof SOCKET_NAME_MAX > room)
        return err_set(err, ERR_LIMIT,
                       "run directory %.200s: the path is longer than a socket's can be "
                       "(%zu bytes), choose another --run-dir",
                       path, room - sizeof SOCKET_NAME_MAX);
    if (strchr(path, ','))
        return err_set(
            err, ERR_INVALID,
            "run directory %.200s: a comma separates endpoints, choose another --run-dir", path);
    return 0;
}

static int rundir_open(struct rundir *r, struct err *err)
{
    struct stat st;

    if (mkdir(r->path, 0700) == 0)
        r->made = true;
    else if (errno != EEXIST)
        return err_errno(err, ERR_IO, "cannot make the run directory %s", r->path);
    r->fd = open(r->path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (r->fd < 0)
        return err_errno(err, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "run directory %s",
                         r->path);
    if (fstat(r->fd, &st))
        return err_errno(err, ERR_IO, "run directory %s", r->path);
    if (st.st_uid != geteuid())
        return err_set(err, ERR_INVALID, "run directory %s belongs to user %u, not to us (%u)",
                       r->path, (unsigned)st.st_uid, (unsigned)geteuid());
    if (st.st_mode & 077)
        return err_set(err, ERR_INVALID,
                       "run directory %s has mode %04o, others may not enter: chmod 700 it",
                       r->path, (unsigned)(st.st_mode & 07777));
    return 0;
}

/* ---- the lock ---- */

static int rundir_locked(struct rundir *r, struct err *err)
{
    char pid[16] = "";
    ssize_t n = pread(r->lock_fd, pid, sizeof pid - 1, 0);

    pid[n > 0 ? n : 0] = '\0';
    pid[strspn(pid, "0123456789")] = '\0';
    return err_set(err, ERR_BUSY, "run directory %s is in use by another server (pid %s)", r->path,
                   *pid ? pid : "unknown");
}

/* ERR_NOT_FOUND when the holder removed the lock (and maybe the directory) in between. */
static int rundir_lock(struct rundir *r, struct err *err)
{
    struct stat by_fd, by_name;

    r->lock_fd = openat(r->fd, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (r->lock_fd < 0)
        return err_errno(err, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "%s/lock", r->path);
    if (flock(r->lock_fd, LOCK_EX | LOCK_NB))
        return errno == EWOULDBLOCK ? rundir_locked(r, err)
                                    : err_errno(err, ERR_IO, "%s/lock", r->path);
    if (fstat(r->lock_fd, &by_fd) || fstatat(r->fd, "lock", &by_name, AT_SYMLINK_NOFOLLOW) ||
        by_fd.st_ino != by_name.st_ino)
        return err_set(err, ERR_NOT_FOUND, "%s/lock went away", r->path);
    if (ftruncate(r->lock_fd, 0) || dprintf(r->lock_fd, "%d\n", (int)getpid()) < 0)
        return err_errno(err, ERR_IO, "%s/lock", r->path);
    return 0;
}

static void rundir_close(struct rundir *r)
{
    if (r->lock_fd >= 0)
        (void)close(r->lock_fd);
    if (r->fd >= 0)
        (void)close(r->fd);
    r->lock_fd = r->fd = -1;
}

/* ---- its content ---- */

/* KIND-NUMBER.ipc */
static bool is_socket_name(const char *name)
{
    for (size_t i = 0; i < SOCKET_KINDS; i++) {
        size_t len = strlen(socket_kinds[i]), digits;

        if (strncmp(name, socket_kinds[i], len) != 0 || name[len] != '-')
            continue;
        digits = strspn(name + len + 1, "0123456789");
        return digits > 0 && strcmp(name + len + 1 + digits, ".ipc") == 0;
    }
    return false;
}

/* Only what a run makes: a user may have named a directory that holds more. */
static void rundir_clean(struct rundir *r)
{
    DIR *dir = opendir(r->path);
    struct dirent *entry;

    while (dir && (entry = readdir(dir)))
        if (is_socket_name(entry->d_name))
            (void)unlinkat(r->fd, entry->d_name, 0);
    if (dir)
        (void)closedir(dir);
}

char *rundir_endpoints(const struct rundir *r, const char *kind, int first, int count)
{
    struct buf text = {0};

    for (int i = 0; i < count; i++)
        buf_printf(&text, "%sipc://%s/%s-%d.ipc", i ? "," : "", r->path, kind, first + i);
    return buf_take(&text);
}

/* ipc endpoints are given to processes and to ZeroMQ: absolute ones mean the same to all. */
static int rundir_absolute(struct rundir *r, struct err *err)
{
    char *path = realpath(r->path, NULL);

    if (!path)
        return err_errno(err, ERR_IO, "run directory %s", r->path);
    free(r->path);
    r->path = path;
    return rundir_check_length(path, err);
}

int rundir_init(struct rundir *r, const char *path, int port, struct err *err)
{
    int rc = ERR_NOT_FOUND;

    memset(r, 0, sizeof *r);
    r->fd = r->lock_fd = -1;
    r->path = *path ? rundir_trim(path) : rundir_default(port);
    for (int i = 0; i < OPEN_TRIES && rc == ERR_NOT_FOUND; i++) {
        rundir_close(r);
        rc = rundir_check_length(r->path, err);
        if (!rc)
            rc = rundir_open(r, err);
        if (!rc)
            rc = rundir_lock(r, err);
    }
    if (!rc)
        rc = rundir_absolute(r, err);
    if (rc) {
        rundir_close(r); /* not ours: nothing to remove at the end */
        return rc;
    }
    rundir_clean(r);
    return 0;
}

/* Whether somebody listens there: a killed server leaves its sockets behind. */
static bool is_listening(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool yes;

    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    yes = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
    if (fd >= 0)
        (void)close(fd);
    return yes;
}

int rundir_find(const char *path, int port, char **control, struct err *err)
{
    struct rundir r = {.fd = -1, .lock_fd = -1};
    char *endpoint;
    struct stat st;
    int rc = 0;

    r.path = *path ? rundir_trim(path) : rundir_default(port);
    if (lstat(r.path, &st) || !S_ISDIR(st.st_mode))
        rc = err_set(err, ERR_NOT_FOUND, "no server: there is no run directory %s", r.path);
    else if (st.st_uid != geteuid() && geteuid() != 0)
        rc = err_set(err, ERR_INVALID, "run directory %s belongs to another user", r.path);
    else
        rc = rundir_absolute(&r, err);
    if (!rc) {
        endpoint = rundir_endpoints(&r, "control", 0, 1);
        if (is_listening(endpoint + strlen("ipc://"))) {
            *control = endpoint;
        } else {
            free(endpoint);
            rc = err_set(err, ERR_NOT_FOUND, "no server runs in %s", r.path);
        }
    }
    free(r.path);
    return rc;
}

void rundir_fini(struct rundir *r)
{
    if (r->fd >= 0) {
        rundir_clean(r);
        (void)unlinkat(r->fd, "lock", 0);
        if (r->made)
            (void)rmdir(r->path);
    }
    rundir_close(r);
    free(r->path);
}

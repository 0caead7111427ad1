#include "services/worker/meet.h"

#include "common/buf.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "common/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define POLL_MS 5
#define SAY_US 5000000    /* who is missing is said so often */
#define ANSWER_US 5000000 /* who is there agrees at once */
#define RANKS_MAX 64
#define FILE_MAX 8192
#define FOLDER_PREFIX "group-"

struct meet {
    const char *store;
    uint32_t rank, size;
    uint64_t number; /* of this start of this rank; rank 0's is the folder's */
    int64_t begin_us, said_us;
    int64_t asked_us; /* since then an answer is due; 0: not yet */
    double timeout_s;
    uint64_t seen[RANKS_MAX]; /* rank 0: numbers of the others, 0 unknown */
    bool agreed[RANKS_MAX];   /* rank 0: has acknowledged that number for this folder */
};

/* ---- files of the store ---- */

static char *meet_path(const struct meet *m, const char *name, uint32_t rank)
{
    struct buf path = {0};

    buf_printf(&path, "%s/%s", m->store, name);
    if (rank != UINT32_MAX)
        buf_printf(&path, "-%" PRIu32, rank);
    return buf_take(&path);
}

/* Whole or not at all: a new file takes the old one's place. */
static int meet_write(const struct meet *m, const char *name, uint32_t rank, const char *text,
                      struct err *err)
{
    char *path = meet_path(m, name, rank);
    struct buf fresh = {0};
    size_t len = strlen(text);
    int rc = 0, fd;

    buf_printf(&fresh, "%s.new", path);
    fd = open(fresh.data, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, text, len) != (ssize_t)len || rename(fresh.data, path))
        rc = err_errno(err, ERR_IO, "rank %" PRIu32 ": --comm-store: %s", m->rank, path);
    if (fd >= 0)
        (void)close(fd);
    buf_fini(&fresh);
    free(path);
    return rc;
}

/* The numbers (hexadecimal, separated by spaces) in a file: how many, 0 when it is not there. */
static size_t meet_read(const struct meet *m, const char *name, uint32_t rank, uint64_t *numbers,
                        size_t max)
{
    char *path = meet_path(m, name, rank);
    struct buf text = {0};
    size_t count = 0;

    if (file_read(path, FILE_MAX, &text, NULL) == 0 && text.data) {
        char *at = text.data, *end;

        while (count < max) {
            uint64_t n = strtoull(at, &end, 16);

            if (end == at)
                break;
            numbers[count++] = n;
            at = end;
        }
    }
    buf_fini(&text);
    free(path);
    return count;
}

/* ---- folders ---- */

static char *meet_folder(const struct meet *m, uint64_t number)
{
    struct buf path = {0};

    buf_printf(&path, "%s/" FOLDER_PREFIX "%016" PRIx64, m->store, number);
    return buf_take(&path);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *walk)
{
    (void)st;
    (void)type;
    (void)walk;
    (void)remove(path);
    return 0;
}

/* Folders of groups before this one. */
static void meet_sweep(const struct meet *m)
{
    DIR *dir = opendir(m->store);

    if (!dir)
        return;
    for (struct dirent *e = readdir(dir); e; e = readdir(dir)) {
        char *path;

        if (strncmp(e->d_name, FOLDER_PREFIX, strlen(FOLDER_PREFIX)) != 0)
            continue;
        path = file_join(m->store, e->d_name);
        (void)nftw(path, remove_entry, 8, FTW_PHYS | FTW_DEPTH);
        free(path);
    }
    (void)closedir(dir);
}

/* ---- agreeing ---- */

/* Rank 0: looks who is there; true when all are, and somebody has come or come again. */
static bool meet_look(struct meet *m)
{
    bool changed = false, all = true;

    for (uint32_t r = 1; r < m->size; r++) {
        uint64_t number = 0;

        if (meet_read(m, "rank", r, &number, 1) == 1 && number && number != m->seen[r]) {
            m->seen[r] = number;
            changed = true;
        }
        all = all && m->seen[r];
    }
    return all && changed;
}

static int meet_propose(struct meet *m, struct err *err)
{
    struct buf text = {0};
    int rc;

    for (uint32_t r = 0; r < m->size; r++)
        buf_printf(&text, "%016" PRIx64 "\n", r ? m->seen[r] : m->number);
    rc = meet_write(m, "group", UINT32_MAX, text.data, err);
    m->asked_us = clock_mono_us();
    buf_fini(&text);
    return rc;
}

/* Rank 0: true when all have agreed to what was proposed last. */
static bool meet_agreed(struct meet *m)
{
    bool all = true;

    for (uint32_t r = 1; r < m->size; r++) {
        uint64_t ack[2];

        m->agreed[r] = m->seen[r] && meet_read(m, "ack", r, ack, 2) == 2 && ack[0] == m->number &&
                       ack[1] == m->seen[r];
        all = all && m->agreed[r];
    }
    return all;
}

/* Other ranks: the folder's number once this start of ours is in the group, else 0. */
static uint64_t meet_invited(const struct meet *m)
{
    uint64_t group[RANKS_MAX];

    if (meet_read(m, "group", UINT32_MAX, group, m->size) != m->size || group[m->rank] != m->number)
        return 0;
    return group[0];
}

/* Who has not come; when all have, who has not agreed yet. */
static void meet_missing(const struct meet *m, char *text, size_t size)
{
    bool come = true;
    size_t used = 0;

    *text = '\0';
    if (m->rank != 0)
        (void)snprintf(text, size, "0");
    for (uint32_t r = 1; r < m->size; r++)
        come = come && m->seen[r];
    for (uint32_t r = 1; m->rank == 0 && r < m->size && used < size; r++)
        if (come ? !m->agreed[r] : !m->seen[r])
            used += (size_t)snprintf(text + used, size - used, "%s%" PRIu32, used ? ", " : "", r);
}

/* Sleeps a little; ERR_TIMEOUT when it was too much. */
static int meet_wait(struct meet *m, struct err *err)
{
    const struct timespec pause = {.tv_nsec = POLL_MS * 1000000L};
    const int64_t now_us = clock_mono_us();
    char missing[256];

    meet_missing(m, missing, sizeof missing);
    if ((double)(now_us - m->begin_us) > m->timeout_s * 1e6)
        return err_set(err, ERR_TIMEOUT,
                       "rank %" PRIu32 ": waited %g s (--dist-timeout) in %s for rank %s", m->rank,
                       m->timeout_s, m->store, missing);
    if (m->asked_us && now_us - m->asked_us > ANSWER_US)
        return err_set(err, ERR_PEER,
                       "rank %" PRIu32 ": in %s rank %s does not answer: it is gone, or still in "
                       "an earlier group, and has to be started again",
                       m->rank, m->store, missing);
    if (now_us - m->said_us >= SAY_US) {
        m->said_us = now_us;
        log_info("rank=%" PRIu32 " waiting_for=\"%s\" store=%s", m->rank, missing, m->store);
    }
    (void)nanosleep(&pause, NULL);
    return 0;
}

static int meet_lead(struct meet *m, char **folder, struct err *err)
{
    char *group = meet_path(m, "group", UINT32_MAX);
    int rc = 0;

    (void)unlink(group); /* until a new one is there, the others wait with patience */
    free(group);
    meet_sweep(m);
    *folder = meet_folder(m, m->number);
    if (mkdir(*folder, 0700))
        return err_errno(err, ERR_IO, "rank 0: %s", *folder);
    while (!rc) {
        if (meet_look(m))
            rc = meet_propose(m, err);
        if (!rc && meet_agreed(m))
            break;
        if (!rc)
            rc = meet_wait(m, err);
    }
    return rc;
}

/* Whether there was a rank 0: it notices us, or it is dead or busy with an earlier group. */
static bool meet_led(const struct meet *m)
{
    uint64_t group[RANKS_MAX];

    return meet_read(m, "group", UINT32_MAX, group, m->size) == m->size;
}

static int meet_follow(struct meet *m, char **folder, struct err *err)
{
    char text[40];
    uint64_t group = 0;
    int rc;

    (void)snprintf(text, sizeof text, "%016" PRIx64 "\n", m->number);
    rc = meet_write(m, "rank", m->rank, text, err);
    while (!rc && !(group = meet_invited(m))) {
        if (!meet_led(m))
            m->asked_us = 0;
        else if (!m->asked_us)
            m->asked_us = clock_mono_us();
        rc = meet_wait(m, err);
    }
    if (rc)
        return rc;
    *folder = meet_folder(m, group);
    (void)snprintf(text, sizeof text, "%016" PRIx64 " %016" PRIx64 "\n", group, m->number);
    return meet_write(m, "ack", m->rank, text, err);
}

int meet_in_store(const char *store, uint32_t rank, uint32_t size, double timeout_s, char **folder,
                  struct err *err)
{
    struct meet m = {.store = store, .rank = rank, .size = size, .timeout_s = timeout_s};
    int rc;

    *folder = NULL;
    if (size > RANKS_MAX)
        return err_set(err, ERR_LIMIT, "%" PRIu32 " ranks, at most %d meet", size, RANKS_MAX);
    while (m.number == 0)
        if (getrandom(&m.number, sizeof m.number, 0) != (ssize_t)sizeof m.number)
            return err_errno(err, ERR_IO, "no random numbers");
    m.begin_us = m.said_us = clock_mono_us();
    rc = rank == 0 ? meet_lead(&m, folder, err) : meet_follow(&m, folder, err);
    if (rc) {
        free(*folder);
        *folder = NULL;
    }
    return rc;
}

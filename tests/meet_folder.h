/* Ranks of a test meet in a folder that they share: blob of rank r in round n is the file n-r. */
#ifndef PHALANX_TESTS_MEET_FOLDER_H
#define PHALANX_TESTS_MEET_FOLDER_H

#include "kernels/comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define MEET_FOLDER_RANKS 16
#define MEET_FOLDER_ROUNDS 8

struct meet_folder {
    struct comm_meet meet;
    const char *folder;
    uint32_t rank, size, round;
    double timeout_s;
    char *bytes[MEET_FOLDER_RANKS];
};

static inline void meet_folder_path(char *path, size_t size, const char *folder, uint32_t round,
                                    uint32_t rank)
{
    (void)snprintf(path, size, "%s/%u-%u", folder, round, rank);
}

static inline int meet_folder_read(struct meet_folder *m, uint32_t rank, struct comm_blob *blob,
                                   struct err *err)
{
    const struct timespec pause = {.tv_nsec = 2000000};
    char path[256];
    FILE *f;

    meet_folder_path(path, sizeof path, m->folder, m->round, rank);
    for (double waited_s = 0; !(f = fopen(path, "rb")); waited_s += 0.002) {
        if (waited_s > m->timeout_s)
            return err_set(err, ERR_TIMEOUT, "rank %u has not come", rank);
        (void)nanosleep(&pause, NULL);
    }
    blob->data = m->bytes[rank] = realloc(m->bytes[rank], COMM_BLOB_MAX);
    blob->len = fread(m->bytes[rank], 1, COMM_BLOB_MAX, f);
    (void)fclose(f);
    return 0;
}

static inline int meet_folder_gather(void *ctx, const void *blob, size_t len,
                                     struct comm_blob *blobs, struct err *err)
{
    struct meet_folder *m = ctx;
    char path[256], fresh[260];
    FILE *f;
    int rc = 0;

    meet_folder_path(path, sizeof path, m->folder, m->round, m->rank);
    (void)snprintf(fresh, sizeof fresh, "%s~", path);
    f = fopen(fresh, "wb");
    if (!f || (len && fwrite(blob, len, 1, f) != 1) || fclose(f) || rename(fresh, path))
        return err_errno(err, ERR_IO, "%s", path);
    for (uint32_t r = 0; r < m->size && !rc; r++)
        rc = meet_folder_read(m, r, &blobs[r], err);
    m->round++;
    return rc;
}

/* How rank of size ranks meets the others in a folder that is empty at first. */
static inline const struct comm_meet *meet_folder_init(struct meet_folder *m, const char *folder,
                                                       uint32_t rank, uint32_t size,
                                                       double timeout_s)
{
    *m = (struct meet_folder){.folder = folder, .rank = rank, .size = size, .timeout_s = timeout_s};
    m->meet = (struct comm_meet){meet_folder_gather, m};
    return &m->meet;
}

static inline void meet_folder_fini(struct meet_folder *m)
{
    for (uint32_t r = 0; r < MEET_FOLDER_RANKS; r++)
        free(m->bytes[r]);
}

/* The folder with what ranks left in it. */
static inline void meet_folder_remove(const char *folder)
{
    char path[256];

    for (uint32_t round = 0; round < MEET_FOLDER_ROUNDS; round++)
        for (uint32_t rank = 0; rank < MEET_FOLDER_RANKS; rank++) {
            meet_folder_path(path, sizeof path, folder, round, rank);
            (void)unlink(path);
        }
    (void)rmdir(folder);
}

#endif

/* The run directory: sockets of one server, private to one user, guarded by a lock. */
#ifndef PHALANX_LAUNCHER_RUNDIR_H
#define PHALANX_LAUNCHER_RUNDIR_H

#include "common/err.h"

#include <stdbool.h>
#include <stdint.h>

struct rundir {
    char *path;
    int fd;
    int lock_fd;
    bool made; /* by us: goes at the end */
};

/* path "" is the default: $XDG_RUNTIME_DIR or /tmp, phalanx-<uid>-<port>. Makes the directory
 * (0700) or checks that it is ours and closed to others, takes the lock (ERR_BUSY names the process
 * that has it) and removes what a killed run left. Release with rundir_fini also after an error. */
int rundir_init(struct rundir *r, const char *path, int port, struct err *err);

/* The control endpoint of the server that has that run directory (path and port as above), to be
 * freed; ERR_NOT_FOUND when there is none. */
int rundir_find(const char *path, int port, char **control, struct err *err);

/* Endpoints ipc://DIR/KIND-first.ipc and the count - 1 that follow it, separated by commas; the
 * caller's. kind: "tokenizer" (bound for gateways), "scheduler" (for tokenizers), "workers",
 * "control" (by the launcher, for schedulers). */
char *rundir_endpoints(const struct rundir *r, const char *kind, int first, int count);

/* Removes the sockets, the lock and, when we made it, the directory. */
void rundir_fini(struct rundir *r);

#endif

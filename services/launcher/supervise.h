/* Children: started, watched and ended together, or a group of them alone.
 *
 * Each child is a process group of its own, so a Ctrl-C in the terminal reaches the launcher alone,
 * and gets SIGKILL from the kernel when the launcher dies. Must be used from the main thread: the
 * kernel ties that signal to the thread that forked. */
#ifndef PHALANX_LAUNCHER_SUPERVISE_H
#define PHALANX_LAUNCHER_SUPERVISE_H

#include "common/err.h"

#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define CHILDREN_MAX 256 /* ranks and their services */
#define GROUPS_MAX 32
#define GROUP_ALL (-1) /* nobody can do without it */

struct child {
    char name[32]; /* "worker-1" */
    pid_t pid;
    int pidfd; /* -1: ended and reaped */
    int group; /* 0..GROUPS_MAX - 1, or GROUP_ALL */
};

struct supervisor {
    struct child children[CHILDREN_MAX];
    size_t count;
    int signal_fd; /* SIGINT, SIGTERM, SIGHUP */
    sigset_t old_mask;
};

enum supervisor_event {
    SUPERVISOR_TIMEOUT,
    SUPERVISOR_EXTRA,  /* the caller's own descriptor is ready */
    SUPERVISOR_SIGNAL, /* the launcher was asked to stop */
    SUPERVISOR_DEATH,  /* a child ended */
};

struct supervisor_report {
    int signal;      /* of SUPERVISOR_SIGNAL */
    uint32_t groups; /* of SUPERVISOR_DEATH: bit g: a child of group g ended */
    bool vital;      /* one of GROUP_ALL did */
    char text[128];  /* of SUPERVISOR_DEATH: "worker-1 (pid 12) was killed by signal 9 (Killed)" */
};

/* Blocks the stop signals (they arrive in supervisor_wait) and becomes a subreaper. */
int supervisor_init(struct supervisor *s, struct err *err);

/* Starts argv[0] (a path) with that environment; returns when it runs or could not. */
int supervisor_start(struct supervisor *s, const char *name, int group, char *const *argv,
                     char *const *envp, struct err *err);

/* SIGKILL to what is left of a group; returns when it has ended. */
void supervisor_kill_group(struct supervisor *s, int group);

/* Waits for the first event, at most timeout_ms (-1: for ever). extra may be NULL. */
enum supervisor_event supervisor_wait(struct supervisor *s, struct pollfd *extra, int timeout_ms,
                                      struct supervisor_report *report);

/* SIGTERM to all; SIGKILL to what is left after grace_ms, or at another stop signal.
 * Returns when none is left. */
void supervisor_stop(struct supervisor *s, int grace_ms);

void supervisor_fini(struct supervisor *s);

#endif

/* Children on a libuv loop: started, watched by pidfd, and ended together or one by one.
 *
 * Each child is a process group of its own, so a Ctrl-C in the terminal reaches the launcher alone,
 * and gets SIGKILL from the kernel when the launcher dies. Must be used from the main thread: the
 * kernel ties that signal to the thread that forked. */
#ifndef PHALANX_LAUNCHER_SUPERVISE_H
#define PHALANX_LAUNCHER_SUPERVISE_H

#include "common/err.h"

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

struct bus_peer;

#define CHILDREN_MAX 256 /* ranks and their services */
#define GROUPS_MAX 32    /* replicas */

/* For supervisor_stop. */
#define STOP_GRACE_MS 3500 /* asked to stop: all gone within 5 s */
#define FAIL_GRACE_MS 1000 /* a child died: within 2 s */

enum child_role { CHILD_GATEWAY, CHILD_TOKENIZER, CHILD_SCHEDULER, CHILD_WORKER };

struct child {
    char name[32]; /* "worker-1" */
    enum child_role role;
    int replica;    /* of schedulers and workers */
    int index;      /* gateway, tokenizer: which of them; worker: its rank */
    uint64_t epoch; /* of schedulers and workers: what --epoch said */
    pid_t pid;
    int64_t started_us;
    bool doomed;                 /* its end is our doing */
    const struct bus_peer *link; /* to the control endpoint; NULL: it has none */
    bool silent;                 /* it had one */
    /* of the supervisor */
    int pidfd;
    uv_poll_t poll;
    struct supervisor *owner;
    struct child *next;
};

struct supervisor_callbacks {
    /* A child has ended and is reaped; how: "worker-1 (pid 12) was killed by signal 9 (Killed)". Of
     * several at once those that a signal killed come first: they are nearer to the cause. Children
     * may be started and killed in here. child lives until the callback returns. */
    void (*on_end)(void *ctx, const struct child *child, const char *how);
    /* SIGINT, SIGTERM, or SIGHUP of a terminal that is gone; what came by two ways at the same time
     * is told once. */
    void (*on_signal)(void *ctx, int number);
};

struct supervisor {
    uv_loop_t *loop;
    struct supervisor_callbacks on;
    void *ctx;
    struct child *children; /* that run */
    size_t count;
    uv_poll_t signals;
    uv_timer_t timer;  /* bounds the wait for those that stop */
    int signal_fd;     /* -1: not initialized */
    int64_t signal_us; /* of the last one */
    sigset_t old_mask;
    bool stopping; /* nobody is called any more */
    bool hurry;    /* a signal came while stopping */
};

/* Blocks the stop signals (on_signal gets them) and becomes a subreaper. Any other SIGHUP steps the
 * log level here and in the children. Before the process has
 * other threads: they inherit the mask. */
int supervisor_init(struct supervisor *s, uv_loop_t *loop, const struct supervisor_callbacks *on,
                    void *ctx, struct err *err);

/* Starts argv[0] (a path) with that environment; returns when it runs or could not. Of id, what
 * comes before pid counts. */
int supervisor_start(struct supervisor *s, const struct child *id, char *const *argv,
                     char *const *envp, struct err *err);

/* Every child that runs: NULL begins the walk and ends it. */
struct child *supervisor_next(struct supervisor *s, const struct child *after);

/* To the child's whole process group, a stopped one too when it is SIGKILL. The child is doomed. */
void child_signal(struct child *child, int number);

/* Tells of those that have ended by now, without waiting for the loop. */
void supervisor_reap(struct supervisor *s);

/* SIGTERM to all; SIGKILL to what is left after grace_ms, or at another stop signal. Runs the loop
 * (so not from inside of it) and returns when none is left; on_end is not called for them. */
void supervisor_stop(struct supervisor *s, int grace_ms);

/* Closes the handles; the loop must run once more for them. */
void supervisor_fini(struct supervisor *s);

#endif

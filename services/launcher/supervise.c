#include "services/launcher/supervise.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define REPEAT_US 300000  /* a signal sent again so soon is the same one, by another way */
#define KILL_WAIT_MS 3000 /* a process that outlives SIGKILL so long hangs in the kernel */
#define ALL_ROLES (-1)

/* ---- starting ---- */

/* Every process of the node logs at the same level; those that start later are told which. */
static void step_log_level(struct supervisor *s)
{
    union sigval level = {.sival_int = (int)log_step_level()};

    log_say("phalanx: log level %s", log_level_name(log_get_level()));
    for (struct child *c = s->children; c; c = c->next)
        (void)sigqueue(c->pid, SIGHUP, level);
}

static void on_signal_readable(uv_poll_t *poll, int status, int events)
{
    struct supervisor *s = poll->data;
    struct signalfd_siginfo info;
    int64_t now_us = clock_mono_us();

    (void)status;
    (void)events;
    if (read(s->signal_fd, &info, sizeof info) != (ssize_t)sizeof info)
        return;
    if (info.ssi_signo == SIGHUP && !log_terminal_gone()) {
        step_log_level(s);
        return;
    }
    if (s->signal_us && now_us - s->signal_us < REPEAT_US)
        return;
    s->signal_us = now_us;
    if (s->stopping)
        s->hurry = true;
    else
        s->on.on_signal(s->ctx, (int)info.ssi_signo);
}

int supervisor_init(struct supervisor *s, uv_loop_t *loop, const struct supervisor_callbacks *on,
                    void *ctx, struct err *err)
{
    struct sigaction hup;
    sigset_t stop;

    *s = (struct supervisor){.loop = loop, .on = *on, .ctx = ctx, .signal_fd = -1};
    (void)sigemptyset(&stop);
    (void)sigaddset(&stop, SIGINT);
    (void)sigaddset(&stop, SIGTERM);
    if (sigaction(SIGHUP, NULL, &hup) == 0 && hup.sa_handler != SIG_IGN) /* nohup stays nohup */
        (void)sigaddset(&stop, SIGHUP);
    if (sigprocmask(SIG_BLOCK, &stop, &s->old_mask))
        return err_errno(err, ERR_INTERNAL, "sigprocmask");
    if (prctl(PR_SET_CHILD_SUBREAPER, 1))
        return err_errno(err, ERR_INTERNAL, "prctl(PR_SET_CHILD_SUBREAPER)");
    s->signal_fd = signalfd(-1, &stop, SFD_CLOEXEC | SFD_NONBLOCK);
    if (s->signal_fd < 0)
        return err_errno(err, ERR_INTERNAL, "signalfd");
    (void)uv_timer_init(loop, &s->timer);
    (void)uv_poll_init(loop, &s->signals, s->signal_fd);
    s->signals.data = s;
    (void)uv_poll_start(&s->signals, UV_READABLE, on_signal_readable);
    return 0;
}

void supervisor_fini(struct supervisor *s)
{
    if (s->signal_fd < 0)
        return;
    uv_close((uv_handle_t *)&s->timer, NULL);
    uv_close((uv_handle_t *)&s->signals, NULL);
    (void)close(s->signal_fd);
    s->signal_fd = -1;
    (void)sigprocmask(SIG_SETMASK, &s->old_mask, NULL);
}

/* In the child: nothing of the launcher stays but standard output and error. */
static void child_prepare(pid_t parent)
{
    int null = open("/dev/null", O_RDONLY);
    sigset_t mask;

    (void)setpgid(0, 0);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent)
        _exit(127); /* the launcher died before the signal was set up */
    for (int i = 1; i < NSIG; i++)
        (void)signal(i, SIG_DFL);
    (void)signal(SIGTTOU, SIG_IGN); /* a background group may write to the terminal */
    (void)sigemptyset(&mask);
    (void)sigaddset(&mask, SIGHUP); /* until log_follow_sighup */
    (void)sigprocmask(SIG_SETMASK, &mask, NULL);
    if (null >= 0)
        (void)dup2(null, STDIN_FILENO);
    (void)close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
}

/* Waits until the child has called execve; 0 or its errno. */
static int child_exec_result(int fd)
{
    int code = 0;
    ssize_t n;

    do
        n = read(fd, &code, sizeof code);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof code ? code : 0;
}

static int child_fork(pid_t *pid, char *const *argv, char *const *envp, struct err *err)
{
    pid_t parent = getpid();
    int pipe_fds[2];
    int code;

    if (pipe2(pipe_fds, O_CLOEXEC))
        return err_errno(err, ERR_IO, "pipe");
    *pid = fork();
    if (*pid == 0) {
        child_prepare(parent);
        (void)execve(argv[0], argv, envp);
        code = errno;
        (void)!write(pipe_fds[1], &code, sizeof code);
        _exit(127);
    }
    code = errno;
    (void)close(pipe_fds[1]);
    if (*pid > 0)
        code = child_exec_result(pipe_fds[0]);
    (void)close(pipe_fds[0]);
    if (*pid < 0 || code) {
        if (*pid > 0)
            (void)waitpid(*pid, NULL, 0);
        errno = code;
        return err_errno(err, ERR_IO, "cannot start %s", argv[0]);
    }
    return 0;
}

static void on_child_readable(uv_poll_t *poll, int status, int events)
{
    struct child *child = poll->data;

    (void)status;
    (void)events;
    supervisor_reap(child->owner);
}

/* Its end will be seen; the child is the supervisor's then. */
static int child_watch(struct supervisor *s, struct child *child, struct err *err)
{
    child->pidfd = pidfd_open(child->pid, 0); /* close-on-exec by itself */
    if (child->pidfd < 0)
        return err_errno(err, ERR_INTERNAL, "pidfd_open");
    (void)uv_poll_init(s->loop, &child->poll, child->pidfd);
    child->poll.data = child;
    (void)uv_poll_start(&child->poll, UV_READABLE, on_child_readable);
    child->owner = s;
    child->started_us = clock_mono_us();
    child->next = s->children;
    s->children = child;
    s->count++;
    return 0;
}

int supervisor_start(struct supervisor *s, const struct child *id, char *const *argv,
                     char *const *envp, struct err *err)
{
    struct child *child;
    int rc;

    if (s->stopping)
        return err_set(err, ERR_BUSY, "%s: the node is stopping", id->name);
    if (s->count == CHILDREN_MAX)
        return err_set(err, ERR_LIMIT, "more than %d processes", CHILDREN_MAX);
    child = mem_zalloc(sizeof *child);
    *child = *id;
    child->doomed = child->silent = false;
    child->link = NULL;
    rc = child_fork(&child->pid, argv, envp, err);
    if (!rc && (rc = child_watch(s, child, err))) {
        (void)kill(-child->pid, SIGKILL);
        (void)waitpid(child->pid, NULL, 0);
    }
    if (rc)
        free(child);
    return rc;
}

/* ---- watching ---- */

struct child *supervisor_next(struct supervisor *s, const struct child *after)
{
    return after ? after->next : s->children;
}

void child_signal(struct child *child, int number)
{
    child->doomed = true;
    (void)kill(-child->pid, number);
}

/* Reaps an ended child with whatever it left in its group; false when it is still running. */
static bool child_reap(struct child *child, siginfo_t *info)
{
    memset(info, 0, sizeof *info);
    if (waitid(P_PIDFD, (id_t)child->pidfd, info, WEXITED | WNOHANG | WNOWAIT) || !info->si_pid)
        return false;
    (void)kill(-child->pid, SIGKILL); /* before the reaping: until then the number is not reused */
    (void)waitid(P_PIDFD, (id_t)child->pidfd, info, WEXITED);
    return true;
}

static void child_describe(const struct child *child, const siginfo_t *info, char *text,
                           size_t size)
{
    if (info->si_code == CLD_EXITED)
        (void)snprintf(text, size, "%s (pid %d) exited with status %d", child->name,
                       (int)child->pid, info->si_status);
    else
        (void)snprintf(text, size, "%s (pid %d) was killed by signal %d (%s%s)", child->name,
                       (int)child->pid, info->si_status, strsignal(info->si_status),
                       info->si_code == CLD_DUMPED ? ", core dumped" : "");
}

static void on_child_closed(uv_handle_t *handle)
{
    free(handle->data);
}

static void child_tell(struct supervisor *s, struct child *child, const siginfo_t *info)
{
    char how[128];

    child_describe(child, info, how, sizeof how);
    if (!s->stopping)
        s->on.on_end(s->ctx, child, how);
    uv_close((uv_handle_t *)&child->poll, on_child_closed);
    (void)close(child->pidfd);
}

void supervisor_reap(struct supervisor *s)
{
    struct {
        struct child *child;
        siginfo_t info;
    } ended[CHILDREN_MAX];
    size_t n = 0;

    for (struct child **at = &s->children; *at;) {
        struct child *child = *at;

        if (child_reap(child, &ended[n].info)) {
            *at = child->next;
            s->count--;
            ended[n++].child = child;
        } else {
            at = &child->next;
        }
    }
    for (int by_exit = 0; by_exit < 2; by_exit++)
        for (size_t i = 0; i < n; i++)
            if ((ended[i].info.si_code == CLD_EXITED) == by_exit)
                child_tell(s, ended[i].child, &ended[i].info);
}

/* ---- ending ---- */

static bool supervisor_has(const struct supervisor *s, int role)
{
    const struct child *c = s->children;

    while (c && role != ALL_ROLES && (int)c->role != role)
        c = c->next;
    return c != NULL;
}

static void on_timer(uv_timer_t *timer)
{
    (void)timer; /* has woken the loop */
}

/* Waits until all of that role have ended; gives up at the deadline, or when *hurry. */
static void supervisor_wait(struct supervisor *s, int role, int64_t deadline_us, const bool *hurry)
{
    int64_t left_us = deadline_us - clock_mono_us();

    (void)uv_timer_start(&s->timer, on_timer, left_us > 0 ? (uint64_t)left_us / 1000 : 0, 10);
    while (supervisor_has(s, role) && !*hurry && clock_mono_us() < deadline_us)
        (void)uv_run(s->loop, UV_RUN_ONCE);
    (void)uv_timer_stop(&s->timer);
}

/* Descendants whose parents are gone have become children of this subreaper: none stays. */
static void supervisor_sweep(void)
{
    FILE *children = fopen("/proc/thread-self/children", "re");
    int pid;

    if (!children)
        return;
    while (fscanf(children, "%d", &pid) == 1)
        if (kill(pid, SIGKILL) == 0)
            (void)waitpid(pid, NULL, 0);
    (void)fclose(children);
}

/* Those that need others end before these, so that nobody sees one go that it still needs. One that
 * takes long holds up the next role for a part of the time alone. */
void supervisor_stop(struct supervisor *s, int grace_ms)
{
    static const bool never = false;
    const int64_t grace_us = (int64_t)grace_ms * 1000, end_us = clock_mono_us() + grace_us;

    s->stopping = true;
    for (int role = CHILD_GATEWAY; role <= CHILD_WORKER; role++) {
        for (struct child *c = s->children; c; c = c->next)
            if ((int)c->role == role)
                child_signal(c, SIGTERM);
        supervisor_wait(s, role, clock_mono_us() + grace_us / 8, &s->hurry);
    }
    supervisor_wait(s, ALL_ROLES, end_us, &s->hurry);
    for (struct child *c = s->children; c; c = c->next) {
        log_warn("%s did not stop, killing it", c->name);
        child_signal(c, SIGKILL);
    }
    supervisor_wait(s, ALL_ROLES, clock_mono_us() + KILL_WAIT_MS * INT64_C(1000), &never);
    supervisor_sweep();
}

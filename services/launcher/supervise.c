#include "services/launcher/supervise.h"

#include "common/clock.h"
#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define REPEAT_MS 300     /* a signal sent again so soon is the same one, by another way */
#define KILL_WAIT_MS 3000 /* a process that outlives SIGKILL so long hangs in the kernel */

/* ---- starting ---- */

int supervisor_init(struct supervisor *s, struct err *err)
{
    struct sigaction hup;
    sigset_t stop;

    memset(s, 0, sizeof *s);
    s->signal_fd = -1;
    (void)sigemptyset(&stop);
    (void)sigaddset(&stop, SIGINT);
    (void)sigaddset(&stop, SIGTERM);
    if (sigaction(SIGHUP, NULL, &hup) == 0 && hup.sa_handler != SIG_IGN) /* nohup stays nohup */
        (void)sigaddset(&stop, SIGHUP);
    if (sigprocmask(SIG_BLOCK, &stop, &s->old_mask))
        return err_errno(err, ERR_INTERNAL, "sigprocmask");
    s->signal_fd = signalfd(-1, &stop, SFD_CLOEXEC | SFD_NONBLOCK);
    if (s->signal_fd < 0)
        return err_errno(err, ERR_INTERNAL, "signalfd");
    if (prctl(PR_SET_CHILD_SUBREAPER, 1))
        return err_errno(err, ERR_INTERNAL, "prctl(PR_SET_CHILD_SUBREAPER)");
    return 0;
}

void supervisor_fini(struct supervisor *s)
{
    if (s->signal_fd >= 0)
        (void)close(s->signal_fd);
    s->signal_fd = -1;
    (void)sigprocmask(SIG_SETMASK, &s->old_mask, NULL);
}

/* In the child: nothing of the launcher stays but standard output and error. */
static void child_prepare(pid_t parent)
{
    int null = open("/dev/null", O_RDONLY);
    sigset_t none;

    (void)setpgid(0, 0);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent)
        _exit(127); /* the launcher died before the signal was set up */
    for (int i = 1; i < NSIG; i++)
        (void)signal(i, SIG_DFL);
    (void)signal(SIGTTOU, SIG_IGN); /* a background group may write to the terminal */
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
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

static int child_fork(struct child *child, char *const *argv, char *const *envp, struct err *err)
{
    pid_t parent = getpid();
    int pipe_fds[2];
    int code;

    if (pipe2(pipe_fds, O_CLOEXEC))
        return err_errno(err, ERR_IO, "pipe");
    child->pid = fork();
    if (child->pid == 0) {
        child_prepare(parent);
        (void)execve(argv[0], argv, envp);
        code = errno;
        (void)!write(pipe_fds[1], &code, sizeof code);
        _exit(127);
    }
    code = errno;
    (void)close(pipe_fds[1]);
    if (child->pid > 0)
        code = child_exec_result(pipe_fds[0]);
    (void)close(pipe_fds[0]);
    if (child->pid < 0 || code) {
        if (child->pid > 0)
            (void)waitpid(child->pid, NULL, 0);
        errno = code;
        return err_errno(err, ERR_IO, "cannot start %s", argv[0]);
    }
    return 0;
}

int supervisor_start(struct supervisor *s, const char *name, int group, char *const *argv,
                     char *const *envp, struct err *err)
{
    struct child *child = s->children;
    int rc;

    while (child < s->children + s->count && child->pidfd >= 0)
        child++;
    if (child == s->children + CHILDREN_MAX)
        return err_set(err, ERR_LIMIT, "more than %d processes", CHILDREN_MAX);
    (void)snprintf(child->name, sizeof child->name, "%s", name);
    child->group = group;
    child->pidfd = -1;
    rc = child_fork(child, argv, envp, err);
    if (rc)
        return rc;
    child->pidfd = pidfd_open(child->pid, 0); /* close-on-exec by itself */
    if (child->pidfd < 0) {
        rc = err_errno(err, ERR_INTERNAL, "pidfd_open");
        (void)kill(-child->pid, SIGKILL);
        (void)waitpid(child->pid, NULL, 0);
        return rc;
    }
    if (child == s->children + s->count)
        s->count++;
    return 0;
}

/* ---- watching ---- */

/* Reaps an ended child with whatever it left in its group; false when it is still running. */
static bool child_reap(struct child *child, siginfo_t *info)
{
    memset(info, 0, sizeof *info);
    if (waitid(P_PIDFD, (id_t)child->pidfd, info, WEXITED | WNOHANG | WNOWAIT) || !info->si_pid)
        return false;
    (void)kill(-child->pid, SIGKILL); /* before the reaping: until then the number is not reused */
    (void)waitid(P_PIDFD, (id_t)child->pidfd, info, WEXITED);
    (void)close(child->pidfd);
    child->pidfd = -1;
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

/* Reaps all that ended; a signal is nearer to the cause than the exit of one who noticed. */
static bool supervisor_reap(struct supervisor *s, struct supervisor_report *report)
{
    bool any = false, by_signal = false;

    for (size_t i = 0; i < s->count; i++) {
        struct child *child = &s->children[i];
        siginfo_t info;

        if (child->pidfd < 0 || !child_reap(child, &info))
            continue;
        if (!any || (!by_signal && info.si_code != CLD_EXITED)) {
            child_describe(child, &info, report->text, sizeof report->text);
            by_signal = info.si_code != CLD_EXITED;
        }
        any = true;
        if (child->group == GROUP_ALL)
            report->vital = true;
        else
            report->groups |= UINT32_C(1) << child->group;
    }
    return any;
}

/* 0 when no stop signal is waiting. */
static int supervisor_read_signal(struct supervisor *s)
{
    struct signalfd_siginfo info;

    if (read(s->signal_fd, &info, sizeof info) != (ssize_t)sizeof info)
        return 0;
    return (int)info.ssi_signo;
}

enum supervisor_event supervisor_wait(struct supervisor *s, struct pollfd *extra, int timeout_ms,
                                      struct supervisor_report *report)
{
    struct pollfd fds[CHILDREN_MAX + 2];
    nfds_t n = 0;

    memset(report, 0, sizeof *report);
    fds[n++] = (struct pollfd){.fd = s->signal_fd, .events = POLLIN};
    fds[n++] = extra ? *extra : (struct pollfd){.fd = -1};
    for (size_t i = 0; i < s->count; i++)
        fds[n++] = (struct pollfd){.fd = s->children[i].pidfd, .events = POLLIN};
    if (poll(fds, n, timeout_ms) <= 0)
        return SUPERVISOR_TIMEOUT;
    report->signal = supervisor_read_signal(s);
    if (report->signal)
        return SUPERVISOR_SIGNAL;
    if (supervisor_reap(s, report))
        return SUPERVISOR_DEATH;
    if (extra && fds[1].revents) {
        extra->revents = fds[1].revents;
        return SUPERVISOR_EXTRA;
    }
    return SUPERVISOR_TIMEOUT;
}

/* ---- ending ---- */

static size_t supervisor_running(const struct supervisor *s)
{
    size_t n = 0;

    for (size_t i = 0; i < s->count; i++)
        n += s->children[i].pidfd >= 0;
    return n;
}

static void supervisor_signal(struct supervisor *s, int number)
{
    for (size_t i = 0; i < s->count; i++)
        if (s->children[i].pidfd >= 0)
            (void)kill(-s->children[i].pid, number);
}

/* Waits until all have ended; gives up after wait_ms or, when so told, at a stop signal. */
static void supervisor_drain(struct supervisor *s, int wait_ms, bool until_signal)
{
    int64_t start = clock_mono_us();
    int64_t deadline = start + (int64_t)wait_ms * 1000;
    struct supervisor_report report;

    while (supervisor_running(s)) {
        int64_t left_ms = (deadline - clock_mono_us()) / 1000;

        if (left_ms <= 0)
            return;
        if (supervisor_wait(s, NULL, (int)left_ms, &report) == SUPERVISOR_SIGNAL && until_signal &&
            clock_mono_us() - start > REPEAT_MS * 1000)
            return;
    }
}

void supervisor_kill_group(struct supervisor *s, int group)
{
    for (size_t i = 0; i < s->count; i++) {
        struct child *child = &s->children[i];

        if (child->group != group || child->pidfd < 0)
            continue;
        (void)kill(-child->pid, SIGKILL);
        (void)waitpid(child->pid, NULL, 0);
        (void)close(child->pidfd);
        child->pidfd = -1;
    }
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

void supervisor_stop(struct supervisor *s, int grace_ms)
{
    supervisor_signal(s, SIGTERM);
    supervisor_drain(s, grace_ms, true);
    for (size_t i = 0; i < s->count; i++)
        if (s->children[i].pidfd >= 0)
            log_warn("%s did not stop, killing it", s->children[i].name);
    supervisor_signal(s, SIGKILL);
    supervisor_drain(s, KILL_WAIT_MS, false);
    supervisor_sweep();
}

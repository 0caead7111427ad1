#include "common/log.h"

#include "common/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define LOG_LINE_MAX 4096 /* PIPE_BUF: what a pipe with room takes as a whole */
#define LOG_WAIT_MS 100

/* A signal handler may change the level while any thread logs. */
static _Atomic enum log_level level_min = LOG_INFO;
static enum log_level level_asked = LOG_INFO;
static const char *process_name = "phalanx";
static bool in_terminal;
static _Atomic unsigned lines_lost; /* since the last one that was written */

static bool terminal_open(void)
{
    int fd = open("/dev/tty", O_RDONLY | O_NOCTTY | O_CLOEXEC);

    if (fd >= 0)
        (void)close(fd);
    return fd >= 0;
}

void log_init(const char *name, enum log_level level)
{
    process_name = name;
    level_min = level_asked = level;
    in_terminal = terminal_open();
}

const char *log_level_name(enum log_level level)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};

    return level <= LOG_ERROR ? names[level] : "?";
}

void log_set_level(enum log_level level)
{
    level_min = level;
}

enum log_level log_get_level(void)
{
    return level_min;
}

enum log_level log_step_level(void)
{
    level_min = level_min == LOG_DEBUG && level_asked != LOG_DEBUG ? level_asked : LOG_DEBUG;
    return level_min;
}

bool log_terminal_gone(void)
{
    return in_terminal && !terminal_open();
}

static struct iovec piece(const char *text)
{
    return (struct iovec){(void *)(uintptr_t)text, strlen(text)};
}

/* A reader that stands still (a paused pager, a stuck collector) must not stop who logs: it is
 * waited for once and briefly, then lines are lost until there is room again. */
static bool log_has_room(void)
{
    struct pollfd out = {STDERR_FILENO, POLLOUT, 0};

    return poll(&out, 1, lines_lost ? 0 : LOG_WAIT_MS) > 0;
}

/* Only what a signal handler may call: no formatting, no time. */
static void on_hup(int number, siginfo_t *info, void *context)
{
    int saved = errno, level = info->si_value.sival_int;
    struct iovec line[4];

    (void)context;
    if (log_terminal_gone()) {
        (void)signal(number, SIG_DFL);
        (void)raise(number);
        return;
    }
    if (info->si_code != SI_QUEUE)
        (void)log_step_level();
    else if (level >= LOG_DEBUG && level <= LOG_ERROR)
        level_min = (enum log_level)level;
    line[0] = piece(process_name);
    line[1] = piece(": log level ");
    line[2] = piece(log_level_name(level_min));
    line[3] = piece("\n");
    if (log_has_room())
        (void)!writev(STDERR_FILENO, line, 4);
    else
        lines_lost++;
    errno = saved;
}

void log_follow_sighup(void)
{
    struct sigaction action = {.sa_sigaction = on_hup, .sa_flags = SA_SIGINFO | SA_RESTART};
    struct sigaction old;
    sigset_t hup;

    if (sigaction(SIGHUP, NULL, &old) == 0 && old.sa_handler != SIG_IGN) /* nohup stays nohup */
        (void)sigaction(SIGHUP, &action, NULL);
    (void)sigemptyset(&hup);
    (void)sigaddset(&hup, SIGHUP);
    (void)sigprocmask(SIG_UNBLOCK, &hup, NULL); /* the launcher's children begin with it blocked */
}

static void say_lost(unsigned lines)
{
    char line[128];
    int n = snprintf(line, sizeof line, "%.64s: %u lines lost, nobody took them\n", process_name,
                     lines);

    if (write(STDERR_FILENO, line, (size_t)n) < 0)
        return; /* neither will the next line */
}

static void log_write(char *line, size_t from, int n)
{
    unsigned lost;
    size_t len = n < 0 ? from : from + (size_t)n;

    if (len > LOG_LINE_MAX - 2)
        len = LOG_LINE_MAX - 2;
    for (size_t i = from; i < len; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    line[len] = '\n';
    if (!log_has_room()) {
        lines_lost++;
        return;
    }
    lost = atomic_exchange(&lines_lost, 0);
    if (lost)
        say_lost(lost);
    if (write(STDERR_FILENO, line, len + 1) < 0)
        return; /* nowhere left to say so */
}

void log_line(enum log_level level, const char *fmt, ...)
{
    static const char *const names[] = {"DEBUG", "INFO", "WARN", "ERROR"};
    char line[LOG_LINE_MAX];
    int64_t now_us = clock_wall_us();
    time_t seconds = (time_t)(now_us / 1000000);
    struct tm tm;
    size_t used;
    va_list ap;

    if (level < level_min)
        return;
    (void)gmtime_r(&seconds, &tm);
    used = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &tm);
    used += (size_t)snprintf(line + used, sizeof line - used, ".%03dZ %s %.64s ",
                             (int)(now_us / 1000 % 1000), names[level], process_name);
    va_start(ap, fmt);
    log_write(line, used, vsnprintf(line + used, sizeof line - used, fmt, ap));
    va_end(ap);
}

void log_say(const char *fmt, ...)
{
    char line[LOG_LINE_MAX];
    va_list ap;

    va_start(ap, fmt);
    log_write(line, 0, vsnprintf(line, sizeof line, fmt, ap));
    va_end(ap);
}

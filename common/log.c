#include "common/log.h"

#include "common/clock.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LOG_LINE_MAX 4096

static enum log_level level_min = LOG_INFO;
static const char *process_name = "phalanx";

void log_init(const char *name, enum log_level level)
{
    process_name = name;
    level_min = level;
}

void log_set_level(enum log_level level)
{
    level_min = level;
}

enum log_level log_get_level(void)
{
    return level_min;
}

static void log_write(char *line, size_t from, int n)
{
    size_t len = n < 0 ? from : from + (size_t)n;

    if (len > LOG_LINE_MAX - 2)
        len = LOG_LINE_MAX - 2;
    for (size_t i = from; i < len; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    line[len] = '\n';
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

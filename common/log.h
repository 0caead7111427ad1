/* Log lines on stderr: one line each, key=value, e.g.
 *   2026-01-02T03:04:05.678Z INFO scheduler-0 step=12 rows=4 "decode stalled"
 * Messages are written with one write(2), so lines of several processes never mix. Lines that
 * nobody takes are lost, and the next one that is taken says how many. */
#ifndef PHALANX_COMMON_LOG_H
#define PHALANX_COMMON_LOG_H

#include <stdbool.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* name: of this process in every line ("gateway-0"); borrowed, must outlive the program. */
void log_init(const char *name, enum log_level level);
void log_set_level(enum log_level level);
enum log_level log_get_level(void);
const char *log_level_name(enum log_level level);

/* Between debug and the level of log_init; returns which it is now. */
enum log_level log_step_level(void);

/* From now on SIGHUP takes a step, or sets the level that comes with it (sigqueue), and one line
 * says so. A process whose terminal is gone ends instead, and one that ignores SIGHUP goes on doing
 * so. */
void log_follow_sighup(void);

/* The process was in a terminal at log_init, and that has hung up. */
bool log_terminal_gone(void);

/* fmt makes the message with its key=value pairs; control characters from strangers are replaced
 * by '?'. Longer lines than 4 KiB are cut. */
void log_line(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* What a person at the terminal follows (start-up, "API server is ready to serve on ..."): the
 * text and a newline, without time and level. */
void log_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO, __VA_ARGS__)
#define log_warn(...) log_line(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)

#endif

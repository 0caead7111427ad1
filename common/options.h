/* Options: one table (common/options.def), one parser.
 *
 * Order: command line, then environment (PHALANX_<NAME>, dashes as underscores), then default. An
 * unknown flag, a value out of range or a flag another executable takes ends in one line that names
 * the flag, the value and what is allowed; near misses are suggested. */
#ifndef PHALANX_COMMON_OPTIONS_H
#define PHALANX_COMMON_OPTIONS_H

#include "common/buf.h"
#include "common/err.h"

#include <stdbool.h>
#include <stdint.h>

enum option {
#define OPTION(ID, kind, name, aliases, def, low, high, who, value, help) OPT_##ID,
#include "common/options.def"
#undef OPTION
    OPTIONS_COUNT
};

struct options {
    char who;                  /* the letter of the executable */
    char *text[OPTIONS_COUNT]; /* owned; the value as text, checked ("" when none) */
    bool set[OPTIONS_COUNT];   /* by command line or environment, not by default */
};

/* Parses argv[1..]. --name value, --name=value, --bool, --no-bool; -h. Positional arguments are
 * refused. Release with options_fini also after an error. */
int options_parse(struct options *o, char who, int argc, char *const *argv, struct err *err);
void options_fini(struct options *o);

/* Sets one option from text as the command line would (checks included). */
int options_set(struct options *o, enum option id, const char *text, struct err *err);

const char *options_str(const struct options *o, enum option id); /* never NULL */
int64_t options_int(const struct options *o, enum option id);
double options_float(const struct options *o, enum option id);
bool options_bool(const struct options *o, enum option id);

const char *option_name(enum option id);
bool option_taken_by(enum option id, char who);
bool option_is_bool(enum option id);
/* Writes "PHALANX_" and the name in capitals; size is at least 9. */
void option_variable(enum option id, char *text, size_t size);

/* --help of one executable; and its man page (troff man macros, section 1). */
void options_help(char who, const char *program, const char *summary, struct buf *out);
void options_man(char who, const char *program, const char *summary, struct buf *out);
/* Every option of an executable as a commented line of an environment file. */
void options_conf(char who, const char *program, struct buf *out);

/* What every main.c starts with: parses, prints --help, --version and (with the hidden --man and
 * --conf) the man page or options_conf and exits 0; prints an error line and exits 2; sets the log
 * level, which in services follows SIGHUP; ignores SIGPIPE; opens standard files that are closed.
 */
void options_main(struct options *o, char who, const char *program, const char *summary, int argc,
                  char *const *argv);

#endif

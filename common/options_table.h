/* The rows of common/options.def, for the parser (options.c) and the texts (options_text.c). */
#ifndef PHALANX_COMMON_OPTIONS_TABLE_H
#define PHALANX_COMMON_OPTIONS_TABLE_H

#include "common/options.h"

enum option_kind { OPTION_STR, OPTION_INT, OPTION_FLOAT, OPTION_BOOL, OPTION_CHOICE, OPTION_ENV };

struct option_row {
    enum option_kind kind;
    const char *name;
    const char *aliases; /* separated by spaces */
    const char *def;
    double low, high;
    const char *who;
    const char *value; /* CHOICE: allowed words, separated by '|' */
    const char *help;
};

extern const struct option_row option_rows[OPTIONS_COUNT];

/* Letters of executables and their names. */
struct option_program {
    char who;
    const char *name;
};

#define OPTION_PROGRAMS 9
extern const struct option_program option_programs[OPTION_PROGRAMS];

#endif

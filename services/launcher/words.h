/* Lists of words that end in NULL: command lines and environments. */
#ifndef PHALANX_LAUNCHER_WORDS_H
#define PHALANX_LAUNCHER_WORDS_H

#include "common/options.h"

#include <stddef.h>

struct words {
    char **list; /* owned, and each word; a NULL behind the last */
    size_t count;
};

void words_add(struct words *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void words_fini(struct words *w);

/* Adds --name=value for every option of serve that was set and that the executable `who` takes,
 * except for the keys (others see command lines) and those in `but`, ended by OPTIONS_COUNT. */
void words_add_options(struct words *w, const struct options *o, char who, const enum option *but);

/* The launcher's environment for a child: PHALANX_API_KEY is in it only when key is not "". */
void words_add_environment(struct words *w, const char *key);

/* Overwrites the value of --api-key in a command line, which everyone on the machine can read. */
void words_hide_key(int argc, char **argv);

#endif

#include "services/launcher/words.h"

#include "common/buf.h"
#include "common/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define KEY_VARIABLE "PHALANX_API_KEY="

static void words_push(struct words *w, char *word)
{
    w->list = mem_resize(w->list, w->count + 2, sizeof *w->list);
    w->list[w->count++] = word;
    w->list[w->count] = NULL;
}

void words_add(struct words *w, const char *fmt, ...)
{
    va_list ap;
    char *word;

    va_start(ap, fmt);
    if (vasprintf(&word, fmt, ap) < 0)
        word = mem_strdup("");
    va_end(ap);
    words_push(w, word);
}

void words_fini(struct words *w)
{
    for (size_t i = 0; i < w->count; i++)
        free(w->list[i]);
    free(w->list);
    memset(w, 0, sizeof *w);
}

static bool among(const enum option *list, enum option id)
{
    for (; *list != OPTIONS_COUNT; list++)
        if (*list == id)
            return true;
    return false;
}

void words_add_options(struct words *w, const struct options *o, char who, const enum option *but)
{
    for (size_t i = 0; i < OPTIONS_COUNT; i++) {
        enum option id = (enum option)i;

        if (!o->set[i] || !option_taken_by(id, who) || !option_taken_by(id, 'S') ||
            id == OPT_API_KEY || id == OPT_CLUSTER_KEY || among(but, id))
            continue;
        words_add(w, "--%s=%s", option_name(id), options_str(o, id));
    }
}

void words_add_environment(struct words *w, const char *key)
{
    for (char **e = environ; *e; e++)
        if (strncmp(*e, KEY_VARIABLE, strlen(KEY_VARIABLE)) != 0)
            words_push(w, mem_strdup(*e));
    if (*key)
        words_add(w, KEY_VARIABLE "%s", key);
}

void words_hide_key(int argc, char **argv)
{
    char flag[64];
    size_t len = (size_t)snprintf(flag, sizeof flag, "--%s", option_name(OPT_API_KEY));

    for (int i = 1; i < argc; i++) {
        char *value = NULL;

        if (strncmp(argv[i], flag, len) == 0 && argv[i][len] == '=')
            value = argv[i] + len + 1;
        else if (strcmp(argv[i], flag) == 0 && i + 1 < argc)
            value = argv[++i];
        if (value)
            memset(value, 'x', strlen(value));
    }
}

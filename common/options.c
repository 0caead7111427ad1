#include "common/options.h"

#include "common/mem.h"
#include "common/options_table.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MAX_LEN 48 /* longer flags are nobody's near miss */

const struct option_row option_rows[OPTIONS_COUNT] = {
#define OPTION(ID, kind, name, aliases, def, low, high, who, value, help)                          \
    {OPTION_##kind, name, aliases, def, low, high, who, value, help},
#include "common/options.def"
#undef OPTION
};

const struct option_program option_programs[OPTION_PROGRAMS] = {
    {'S', "phalanx serve"},     {'C', "phalanx chat"},      {'B', "phalanx bench"},
    {'K', "phalanx keygen"},    {'T', "phalanx status"},    {'g', "phalanx-gateway"},
    {'t', "phalanx-tokenizer"}, {'s', "phalanx-scheduler"}, {'w', "phalanx-worker"},
};

const char *option_name(enum option id)
{
    return option_rows[id].name;
}

bool option_taken_by(enum option id, char who)
{
    return strchr(option_rows[id].who, who) != NULL;
}

bool option_is_bool(enum option id)
{
    return option_rows[id].kind == OPTION_BOOL;
}

/* ---- names ---- */

/* True when word is one of the words in list, which are separated by sep. */
static bool word_in(const char *list, char sep, const char *word, size_t len)
{
    while (*list) {
        const char *end = strchr(list, sep);
        size_t n = end ? (size_t)(end - list) : strlen(list);

        if (n == len && memcmp(list, word, len) == 0)
            return true;
        list += n + (end ? 1 : 0);
    }
    return false;
}

/* What the name means to this executable, else to another; OPTIONS_COUNT when to none. */
static enum option option_find(char who, const char *name, size_t len)
{
    enum option found = OPTIONS_COUNT;

    for (size_t i = 0; i < OPTIONS_COUNT; i++) {
        if (!word_in(option_rows[i].name, ' ', name, len) &&
            !word_in(option_rows[i].aliases, ' ', name, len))
            continue;
        if (option_taken_by((enum option)i, who))
            return (enum option)i;
        if (found == OPTIONS_COUNT)
            found = (enum option)i;
    }
    return found;
}

/* Edits (insert, delete, replace, swap neighbours) from a to b; both at most NAME_MAX_LEN long. */
static size_t edit_distance(const char *a, size_t a_len, const char *b, size_t b_len)
{
    size_t rows[3][NAME_MAX_LEN + 1];

    for (size_t j = 0; j <= b_len; j++)
        rows[0][j] = j;
    for (size_t i = 1; i <= a_len; i++) {
        const size_t *before = rows[(i + 1) % 3], *above = rows[(i - 1) % 3];
        size_t *row = rows[i % 3];

        row[0] = i;
        for (size_t j = 1; j <= b_len; j++) {
            row[j] = above[j - 1] + (a[i - 1] != b[j - 1]);
            if (above[j] + 1 < row[j])
                row[j] = above[j] + 1;
            if (row[j - 1] + 1 < row[j])
                row[j] = row[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < row[j])
                row[j] = before[j - 2] + 1;
        }
    }
    return rows[a_len % 3][b_len];
}

/* The option of this executable whose name is nearest; OPTIONS_COUNT when none is near. */
static enum option option_near(char who, const char *name, size_t len)
{
    enum option best = OPTIONS_COUNT;
    size_t best_edits = len < 5 ? 2 : 4; /* fewer than that */

    if (len < 2 || len > NAME_MAX_LEN)
        return best;
    for (size_t i = 0; i < OPTIONS_COUNT; i++) {
        const struct option_row *row = &option_rows[i];
        size_t n = strlen(row->name);
        size_t edits;

        if (!strchr(row->who, who) || n > NAME_MAX_LEN)
            continue;
        edits = n > len && memcmp(row->name, name, len) == 0
                    ? 1
                    : edit_distance(name, len, row->name, n);
        if (edits < best_edits) {
            best = (enum option)i;
            best_edits = edits;
        }
    }
    return best;
}

static int unknown_flag(char who, const char *flag, size_t len, struct err *err)
{
    const char *name = flag + strspn(flag, "-");
    enum option near = option_near(who, name, len - (size_t)(name - flag));

    if (near == OPTIONS_COUNT)
        return err_set(err, ERR_INVALID, "unknown option %.*s (--help lists all)",
                       (int)(len < 80 ? len : 80), flag);
    return err_set(err, ERR_INVALID, "unknown option %.*s, did you mean --%s?", (int)len, flag,
                   option_rows[near].name);
}

static int foreign_flag(enum option id, struct err *err)
{
    char names[160] = "";

    for (size_t i = 0; i < OPTION_PROGRAMS; i++) {
        if (!option_taken_by(id, option_programs[i].who))
            continue;
        if (*names)
            (void)strncat(names, " and ", sizeof names - strlen(names) - 1);
        (void)strncat(names, option_programs[i].name, sizeof names - strlen(names) - 1);
    }
    return err_set(err, ERR_INVALID, "--%s is an option of %s", option_rows[id].name, names);
}

/* ---- values ---- */

static int bad_value(const struct option_row *row, const char *text, struct err *err)
{
    switch (row->kind) {
    case OPTION_INT:
        return err_set(err, ERR_INVALID, "--%s: '%.64s' is not an integer from %.0f to %.0f",
                       row->name, text, row->low, row->high);
    case OPTION_FLOAT:
        return err_set(err, ERR_INVALID, "--%s: '%.64s' is not a number from %g to %g", row->name,
                       text, row->low, row->high);
    case OPTION_BOOL:
        return err_set(err, ERR_INVALID, "--%s: '%.64s' is neither true nor false", row->name,
                       text);
    default:
        return err_set(err, ERR_INVALID, "--%s: '%.64s' is not one of %s", row->name, text,
                       row->value);
    }
}

static bool int_valid(const struct option_row *row, const char *text)
{
    char *end;
    long long value;

    if (!isdigit((unsigned char)text[*text == '-']))
        return false;
    errno = 0;
    value = strtoll(text, &end, 10);
    return !errno && !*end && (double)value >= row->low && (double)value <= row->high;
}

static bool float_valid(const struct option_row *row, const char *text)
{
    char *end;
    double value;

    if (!*text || text[strspn(text, "+-0123456789.eE")])
        return false; /* no blanks, hexadecimal, nan or inf */
    value = strtod(text, &end);
    return !*end && isfinite(value) && value >= row->low && value <= row->high;
}

/* "true" or "false", NULL when text says neither. */
static const char *bool_word(const char *text)
{
    if (word_in("true 1 yes on", ' ', text, strlen(text)))
        return "true";
    if (word_in("false 0 no off", ' ', text, strlen(text)))
        return "false";
    return NULL;
}

int options_set(struct options *o, enum option id, const char *text, struct err *err)
{
    const struct option_row *row = &option_rows[id];
    bool valid = true;
    char *copy;

    switch (row->kind) {
    case OPTION_STR:
    case OPTION_ENV:
        break;
    case OPTION_INT:
        valid = int_valid(row, text);
        break;
    case OPTION_FLOAT:
        valid = float_valid(row, text);
        break;
    case OPTION_BOOL:
        valid = bool_word(text) != NULL;
        break;
    case OPTION_CHOICE:
        valid = word_in(row->value, '|', text, strlen(text));
        break;
    }
    if (!valid)
        return bad_value(row, text, err);
    copy = mem_strdup(row->kind == OPTION_BOOL ? bool_word(text) : text);
    free(o->text[id]);
    o->text[id] = copy;
    o->set[id] = true;
    return 0;
}

const char *options_str(const struct options *o, enum option id)
{
    return o->text[id] ? o->text[id] : "";
}

int64_t options_int(const struct options *o, enum option id)
{
    return strtoll(options_str(o, id), NULL, 10);
}

double options_float(const struct options *o, enum option id)
{
    return strtod(options_str(o, id), NULL);
}

bool options_bool(const struct options *o, enum option id)
{
    return strcmp(options_str(o, id), "true") == 0;
}

/* ---- the command line ---- */

void option_variable(enum option id, char *text, size_t size)
{
    size_t used = (size_t)snprintf(text, size, "PHALANX_");

    for (const char *c = option_rows[id].name; *c && used < size - 1; c++)
        text[used++] = (char)(*c == '-' ? '_' : toupper((unsigned char)*c));
    text[used] = '\0';
}

/* Variables that others have made usual: what none of ours says, they may. */
static const struct {
    enum option id;
    const char *name;
} usual_variables[] = {
    {OPT_DIST_TIMEOUT, "NCCL_TIMEOUT"},
    {OPT_DIST_INTERFACE, "GLOO_SOCKET_IFNAME"},
    {OPT_DIST_INTERFACE, "NCCL_SOCKET_IFNAME"},
};

static int options_read_usual(struct options *o, struct err *err)
{
    for (size_t i = 0; i < sizeof usual_variables / sizeof *usual_variables; i++) {
        const enum option id = usual_variables[i].id;
        const char *text = getenv(usual_variables[i].name);

        if (option_taken_by(id, o->who) && !o->set[id] && text && *text &&
            options_set(o, id, text, err))
            return err_prefix(err, "%s", usual_variables[i].name);
    }
    return 0;
}

/* PHALANX_<NAME> of every option that can come from the environment. */
static int options_read_env(struct options *o, struct err *err)
{
    for (size_t i = 0; i < OPTIONS_COUNT; i++) {
        char name[NAME_MAX_LEN + 16];
        const char *text;

        if (!option_taken_by((enum option)i, o->who) || i == OPT_HELP || i == OPT_VERSION)
            continue;
        option_variable((enum option)i, name, sizeof name);
        text = getenv(name);
        if (text && *text && options_set(o, (enum option)i, text, err))
            return err_prefix(err, "%s", name);
    }
    return options_read_usual(o, err);
}

/* One flag without its value: which option, and whether it began with --no-. */
static enum option flag_find(char who, const char *flag, size_t len, bool *negated, struct err *err)
{
    enum option id = OPTIONS_COUNT;

    *negated = false;
    if (len == 2 && memcmp(flag, "-h", 2) == 0)
        return OPT_HELP;
    if (len > 2 && memcmp(flag, "--", 2) == 0)
        id = option_find(who, flag + 2, len - 2);
    if (id == OPTIONS_COUNT && len > 5 && memcmp(flag, "--no-", 5) == 0) {
        id = option_find(who, flag + 5, len - 5);
        *negated = true;
        if (id != OPTIONS_COUNT && option_rows[id].kind != OPTION_BOOL)
            id = OPTIONS_COUNT;
    }
    if (id == OPTIONS_COUNT) {
        (void)unknown_flag(who, flag, len, err);
    } else if (!option_taken_by(id, who)) {
        (void)foreign_flag(id, err);
        id = OPTIONS_COUNT;
    }
    return id;
}

/* Reads the flag at argv[*at] and its value; *at becomes the last word used. */
static int options_read_flag(struct options *o, int argc, char *const *argv, int *at,
                             struct err *err)
{
    const char *flag = argv[*at];
    const char *value = strchr(flag, '=');
    size_t len = value ? (size_t)(value - flag) : strlen(flag);
    bool negated;
    enum option id;

    if (*flag != '-')
        return err_set(err, ERR_INVALID, "unexpected argument '%.80s' (options begin with --)",
                       flag);
    id = flag_find(o->who, flag, len, &negated, err);
    if (id == OPTIONS_COUNT)
        return ERR_INVALID;
    if (option_rows[id].kind == OPTION_ENV)
        return err_set(err, ERR_INVALID,
                       "--%s: everyone on the machine can read a command line, use the environment",
                       option_rows[id].name);
    if (value) {
        if (negated)
            return err_set(err, ERR_INVALID, "--no-%s takes no value", option_rows[id].name);
        return options_set(o, id, value + 1, err);
    }
    if (option_rows[id].kind == OPTION_BOOL)
        return options_set(o, id, negated ? "false" : "true", err);
    if (*at + 1 >= argc || strncmp(argv[*at + 1], "--", 2) == 0)
        return err_set(err, ERR_INVALID, "--%s needs a value (%s)", option_rows[id].name,
                       option_rows[id].value);
    *at += 1;
    return options_set(o, id, argv[*at], err);
}

int options_parse(struct options *o, char who, int argc, char *const *argv, struct err *err)
{
    int rc;

    memset(o, 0, sizeof *o);
    o->who = who;
    for (size_t i = 0; i < OPTIONS_COUNT; i++)
        o->text[i] = mem_strdup(option_rows[i].def);
    rc = options_read_env(o, err);
    for (int i = 1; i < argc && !rc; i++)
        rc = options_read_flag(o, argc, argv, &i, err);
    return rc;
}

void options_fini(struct options *o)
{
    for (size_t i = 0; i < OPTIONS_COUNT; i++)
        free(o->text[i]);
    memset(o, 0, sizeof *o);
}

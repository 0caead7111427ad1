/* What the table says to people: --help, man pages, and the start of every main. */
#include "common/log.h"
#include "common/options.h"
#include "common/options_table.h"

#include <ctype.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HELP_COLUMN 34
#define HELP_WIDTH 100

/* Appends words of text from the help column on, broken at HELP_WIDTH. */
static void help_wrap(struct buf *out, size_t column, const char *text)
{
    while (*text) {
        size_t len = strcspn(text, " ");

        if (column + 1 + len > HELP_WIDTH) {
            buf_printf(out, "\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        } else if (column > HELP_COLUMN) {
            buf_putc(out, ' ');
            column++;
        }
        buf_append(out, text, len);
        column += len;
        text += len + strspn(text + len, " ");
    }
    buf_putc(out, '\n');
}

/* "--name, --alias VALUE" in the form of --help. */
static void help_flags(const struct option_row *row, struct buf *out)
{
    const char *alias = row->aliases;

    if (row->kind == OPTION_ENV) {
        char name[80];

        option_variable((enum option)(row - option_rows), name, sizeof name);
        buf_printf(out, "  %s=%s", name, row->value);
        return;
    }
    buf_printf(out, "  --%s", row->name);
    while (*alias) {
        size_t len = strcspn(alias, " ");

        buf_printf(out, ", %s%.*s", len == 1 ? "-" : "--", (int)len, alias);
        alias += len + strspn(alias + len, " ");
    }
    if (*row->value)
        buf_printf(out, " %s", row->value);
}

/* What to say behind the help text: the range of a number and the default. */
static void row_notes(const struct option_row *row, struct buf *out)
{
    if (row->kind == OPTION_INT)
        buf_printf(out, " (%.0f to %.0f", row->low, row->high);
    else if (row->kind == OPTION_FLOAT)
        buf_printf(out, " (%g to %g", row->low, row->high);
    else if (row->kind == OPTION_BOOL || !*row->def)
        return;
    else
        buf_puts(out, " (");
    if (row->kind == OPTION_INT || row->kind == OPTION_FLOAT)
        buf_puts(out, ", ");
    buf_printf(out, "default %s)", row->def);
}

void options_help(char who, const char *program, const char *summary, struct buf *out)
{
    buf_printf(out, "Usage: %s [options]\n\n%s\n\nOptions:\n", program, summary);
    for (size_t i = 0; i < OPTIONS_COUNT; i++) {
        const struct option_row *row = &option_rows[i];
        struct buf help = {0};
        size_t start = out->len;
        size_t used;

        if (!option_taken_by((enum option)i, who))
            continue;
        help_flags(row, out);
        used = out->len - start;
        if (used + 2 > HELP_COLUMN) {
            buf_putc(out, '\n');
            used = 0;
        }
        buf_printf(out, "%*s", (int)(HELP_COLUMN - used), "");
        buf_puts(&help, row->help);
        row_notes(row, &help);
        help_wrap(out, HELP_COLUMN, help.data);
        buf_fini(&help);
    }
    buf_puts(out, "\nEach option can also come from the environment: PHALANX_<NAME>, in capitals\n"
                  "with underscores, as in PHALANX_LOG_LEVEL=debug. The command line wins.\n");
}

/* Text in troff: dashes as minus signs, backslashes and leading control characters escaped. */
static void man_text(struct buf *out, const char *text)
{
    if (*text == '.' || *text == '\'')
        buf_puts(out, "\\&");
    for (const char *c = text; *c; c++) {
        if (*c == '\\')
            buf_puts(out, "\\e");
        else if (*c == '-')
            buf_puts(out, "\\-");
        else
            buf_putc(out, *c);
    }
}

static void man_option(const struct option_row *row, struct buf *out)
{
    struct buf text = {0};

    help_flags(row, &text);
    buf_puts(out, ".TP\n.B ");
    man_text(out, text.data + 2);
    buf_putc(out, '\n');
    buf_clear(&text);
    buf_puts(&text, row->help);
    row_notes(row, &text);
    man_text(out, text.data);
    buf_putc(out, '\n');
    buf_fini(&text);
}

/* A program of two words ("phalanx serve") has the page phalanx-serve(1), as git has. */
static void man_page_name(struct buf *out, const char *program, bool upper)
{
    for (const char *c = program; *c; c++) {
        if (*c == ' ' || *c == '-')
            buf_puts(out, "\\-");
        else
            buf_putc(out, (char)(upper ? toupper((unsigned char)*c) : *c));
    }
}

void options_man(char who, const char *program, const char *summary, struct buf *out)
{
    buf_puts(out, ".TH ");
    man_page_name(out, program, true);
    buf_puts(out, " 1 \"\" \"Phalanx " PHALANX_VERSION "\" \"Phalanx\"\n.SH NAME\n");
    man_page_name(out, program, false);
    buf_puts(out, " \\- ");
    man_text(out, summary);
    buf_puts(out, "\n.SH SYNOPSIS\n.B ");
    man_text(out, program);
    buf_puts(out, "\n[\\fIoptions\\fR]\n.SH OPTIONS\n");
    for (size_t i = 0; i < OPTIONS_COUNT; i++)
        if (option_taken_by((enum option)i, who))
            man_option(&option_rows[i], out);
    buf_puts(out, ".SH ENVIRONMENT\n"
                  "Each option can also come from the environment as PHALANX_<NAME>, in capitals\n"
                  "with underscores, as in PHALANX_LOG_LEVEL=debug. The command line wins.\n"
                  ".SH EXIT STATUS\n"
                  "0 after a clean stop, 2 for a wrong command line, 1 for any other failure.\n");
}

/* Text behind "# ", broken at HELP_WIDTH. */
static void conf_comment(struct buf *out, const char *text)
{
    size_t column = 0;

    while (*text) {
        size_t len = strcspn(text, " ");

        if (column > 0 && column + 1 + len > HELP_WIDTH - 2) {
            buf_putc(out, '\n');
            column = 0;
        }
        buf_puts(out, column ? " " : "# ");
        buf_append(out, text, len);
        column += len + 1;
        text += len + strspn(text + len, " ");
    }
    buf_putc(out, '\n');
}

void options_conf(char who, const char *program, struct buf *out)
{
    buf_printf(out,
               "# Options of %s, as an environment file (systemd's EnvironmentFile=, docker's\n"
               "# --env-file): take the '#' away from a line to set it. The command line wins.\n",
               program);
    for (size_t i = 0; i < OPTIONS_COUNT; i++) {
        const struct option_row *row = &option_rows[i];
        struct buf text = {0};
        char name[80];

        if (!option_taken_by((enum option)i, who) || i == OPT_HELP || i == OPT_VERSION)
            continue;
        buf_puts(&text, row->help);
        row_notes(row, &text);
        if (row->kind == OPTION_CHOICE)
            buf_printf(&text, ": %s", row->value);
        buf_putc(out, '\n');
        conf_comment(out, text.data);
        option_variable((enum option)i, name, sizeof name);
        buf_printf(out, "#%s=%s\n", name, row->def);
        buf_fini(&text);
    }
}

/* Writes the text to standard output and ends the program. */
__attribute__((noreturn)) static void print_and_exit(struct buf *text)
{
    bool written = fwrite(text->data, 1, text->len, stdout) == text->len && fflush(stdout) == 0;

    buf_fini(text);
    exit(written ? 0 : 1);
}

static enum log_level log_level_of(const char *text)
{
    for (int i = LOG_DEBUG; i <= LOG_ERROR; i++)
        if (strcmp(log_level_name((enum log_level)i), text) == 0)
            return (enum log_level)i;
    return LOG_INFO;
}

/* A program may be started with some of its standard files closed; what it opens next would get
 * their numbers, and log lines with them. */
static void standard_files_open(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        (void)close(fd);
}

void options_main(struct options *o, char who, const char *program, const char *summary, int argc,
                  char *const *argv)
{
    struct err err = {0};
    struct buf text = {0};
    const char *name;

    (void)signal(SIGPIPE, SIG_IGN);
    standard_files_open();
    if (argc == 2 && strcmp(argv[1], "--man") == 0) {
        options_man(who, program, summary, &text);
        print_and_exit(&text);
    }
    if (argc == 2 && strcmp(argv[1], "--conf") == 0) {
        options_conf(who, program, &text);
        print_and_exit(&text);
    }
    if (options_parse(o, who, argc, argv, &err)) {
        log_say("%s: %s", program, err.msg);
        options_fini(o);
        exit(2);
    }
    if (options_bool(o, OPT_HELP)) {
        options_help(who, program, summary, &text);
        print_and_exit(&text);
    }
    if (options_bool(o, OPT_VERSION)) {
        buf_printf(&text, "%s %s\n", program, PHALANX_VERSION);
        print_and_exit(&text);
    }
    name = option_taken_by(OPT_NAME, who) ? options_str(o, OPT_NAME) : "";
    log_init(*name ? name : program, log_level_of(options_str(o, OPT_LOG_LEVEL)));
    if (option_taken_by(OPT_NAME, who))
        log_follow_sighup();
}

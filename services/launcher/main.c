/* phalanx: a table of subcommands. */
#include "common/buf.h"
#include "common/log.h"
#include "common/options.h"
#include "services/bench/bench.h"
#include "services/launcher/chat.h"
#include "services/launcher/keygen.h"
#include "services/launcher/serve.h"
#include "services/launcher/status.h"
#include "services/launcher/words.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

struct command {
    const char *name;
    const char *program; /* in messages and as the title of its man page */
    char who;            /* its letter in common/options.def */
    const char *summary;
    int (*run)(const char *program, const char *summary, int argc, char **argv);
};

/* Runs for long: the key disappears from its command line, as it does from a server's. */
static int bench_hidden(const char *program, const char *summary, int argc, char **argv)
{
    struct words copy = {0};
    int status;

    for (int i = 0; i < argc; i++)
        words_add(&copy, "%s", argv[i]);
    words_hide_key(argc, argv);
    status = bench_main(program, summary, argc, copy.list);
    words_fini(&copy);
    return status;
}

static const struct command commands[] = {
    {"serve", "phalanx serve", 'S', "Serves a model over HTTP, on this machine.", serve_main},
    {"chat", "phalanx chat", 'C', "Talks to a running server in the terminal.", chat_main},
    {"bench", "phalanx bench", 'B', "Measures a server: throughput and latency under load.",
     bench_hidden},
    {"keygen", "phalanx keygen", 'K',
     "Makes a cluster key: into a new file, or on standard output.", keygen_main},
    {"status", "phalanx status", 'T', "Shows the processes and replicas of a running server.",
     status_main},
};
#define COMMANDS (sizeof commands / sizeof *commands)

static const struct command *command_find(const char *name)
{
    for (size_t i = 0; i < COMMANDS; i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

static void print_usage(FILE *to)
{
    (void)fputs("Usage: phalanx <command> [options]\n\n"
                "Serves large language models from tensor-parallel processes.\n\nCommands:\n",
                to);
    for (size_t i = 0; i < COMMANDS; i++)
        (void)fprintf(to, "  %-16s %s\n", commands[i].name, commands[i].summary);
    (void)fputs("  help [command]   Options of a command.\n"
                "  version          Version of this build.\n",
                to);
}

static void print_man(void)
{
    (void)fputs(".TH PHALANX 1 \"\" \"Phalanx " PHALANX_VERSION "\" \"Phalanx\"\n"
                ".SH NAME\nphalanx \\- serves large language models from tensor\\-parallel "
                "processes\n.SH SYNOPSIS\n.B phalanx\n\\fIcommand\\fR [\\fIoptions\\fR]\n"
                ".SH COMMANDS\n",
                stdout);
    for (size_t i = 0; i < COMMANDS; i++)
        (void)printf(".TP\n.B %s\n%s See\n.BR phalanx\\-%s (1).\n", commands[i].name,
                     commands[i].summary, commands[i].name);
    (void)fputs(".TP\n.B help \\fR[\\fIcommand\\fR]\nOptions of a command.\n"
                ".TP\n.B version\nVersion of this build.\n.SH SEE ALSO\n"
                ".BR phalanx\\-gateway (1),\n.BR phalanx\\-tokenizer (1),\n"
                ".BR phalanx\\-scheduler (1),\n.BR phalanx\\-worker (1)\n",
                stdout);
}

static int unknown_command(const char *name)
{
    log_say(
        "phalanx: unknown command '%.80s' (serve, chat, bench, keygen, status, help or version)",
        name);
    return 2;
}

static int print_help(const char *name)
{
    const struct command *command = command_find(name);
    struct buf text = {0};

    if (!command)
        return unknown_command(name);
    options_help(command->who, command->program, command->summary, &text);
    (void)fputs(text.data, stdout);
    buf_fini(&text);
    return 0;
}

static bool is_one_of(const char *word, const char *a, const char *b, const char *c)
{
    return strcmp(word, a) == 0 || strcmp(word, b) == 0 || strcmp(word, c) == 0;
}

int main(int argc, char **argv)
{
    const struct command *command;

    if (argc < 2) {
        print_usage(stderr);
        return 2;
    }
    command = command_find(argv[1]);
    if (command)
        return command->run(command->program, command->summary, argc - 1, argv + 1);
    if (is_one_of(argv[1], "help", "--help", "-h")) {
        if (argc > 2)
            return print_help(argv[2]);
        print_usage(stdout);
        return 0;
    }
    if (is_one_of(argv[1], "version", "--version", "-V")) {
        (void)printf("phalanx %s\n", PHALANX_VERSION);
        return 0;
    }
    if (strcmp(argv[1], "--man") == 0) {
        print_man();
        return 0;
    }
    return unknown_command(argv[1]);
}

#include "services/launcher/chat.h"

#include "common/buf.h"
#include "common/json.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/options.h"
#include "common/utf8.h"
#include "services/launcher/client.h"
#include "services/launcher/words.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define LINE_BYTES_MAX (1u << 20)

struct chat {
    struct options options;
    struct client *client;
    char *model;
    json_t *messages; /* the conversation so far */
    struct buf input; /* read and not yet used */
    struct buf reply; /* of the model, as it comes */
    struct err stream_error;
    int signal_fd;
    bool terminal;
    bool ended; /* end of the input */
    bool failed;
};

/* ---- output ---- */

/* A model can write anything; escape sequences must not reach the terminal. */
static void print_safe(const char *text, size_t len)
{
    for (size_t i = 0; i < len;) {
        uint32_t cp = 0;
        int n = utf8_decode(text + i, len - i, &cp);

        if (n <= 0 || (cp < 0x20 && cp != '\n' && cp != '\t') || (cp >= 0x7f && cp < 0xa0))
            (void)putchar('?');
        else
            (void)fwrite(text + i, 1, (size_t)n, stdout);
        i += n > 0 ? (size_t)n : 1;
    }
    (void)fflush(stdout);
}

static void say_error(struct chat *c, const struct err *err)
{
    (void)fflush(stdout);
    log_say("phalanx chat: %s", err->msg);
    c->failed = true;
}

/* ---- one reply ---- */

static void chat_on_event(void *ctx, const char *data, size_t len)
{
    struct chat *c = ctx;
    json_t *event = NULL;
    json_t *choice;
    json_t *content;

    if (json_parse(data, len, JSON_DEPTH_REQUEST, &event, &c->stream_error))
        return;
    if (json_object_get(event, "error")) {
        const char *message =
            json_string_value(json_object_get(json_object_get(event, "error"), "message"));

        (void)err_set(&c->stream_error, ERR_PEER, "%.400s", message ? message : "server error");
    }
    choice = json_array_get(json_object_get(event, "choices"), 0);
    content = json_object_get(json_object_get(choice, "delta"), "content");
    if (json_is_string(content)) {
        buf_append(&c->reply, json_string_value(content), json_string_length(content));
        print_safe(json_string_value(content), json_string_length(content));
    }
    json_decref(event);
}

static void chat_add(struct chat *c, const char *role, const char *text, size_t len)
{
    json_t *content = json_stringn(text, len);

    if (!content) /* not UTF-8: what was typed in another encoding */
        content = json_string("?");
    (void)json_array_append_new(c->messages,
                                json_pack("{s:s, s:o}", "role", role, "content", content));
}

static char *chat_request(const struct chat *c)
{
    double temperature = options_float(&c->options, OPT_TEMPERATURE);
    json_t *body =
        json_pack("{s:s, s:O, s:b, s:I}", "model", c->model, "messages", c->messages, "stream", 1,
                  "max_tokens", (json_int_t)options_int(&c->options, OPT_MAX_TOKENS));
    char *text;

    if (temperature >= 0)
        (void)json_object_set_new(body, "temperature", json_real(temperature));
    text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return text;
}

static void chat_ask(struct chat *c, const char *line, size_t len)
{
    size_t before = json_array_size(c->messages);
    struct err err = {0};
    char *body;
    int rc;

    chat_add(c, "user", line, len);
    body = chat_request(c);
    buf_clear(&c->reply);
    memset(&c->stream_error, 0, sizeof c->stream_error);
    rc = client_stream(c->client, "/v1/chat/completions", body ? body : "", chat_on_event, c, &err);
    free(body);
    (void)putchar('\n');
    if (rc == ERR_TIMEOUT)
        log_say("(stopped)");
    else if (rc || c->stream_error.code)
        say_error(c, rc ? &err : &c->stream_error);
    (void)fflush(stdout);
    if (c->reply.len)
        chat_add(c, "assistant", c->reply.data, c->reply.len);
    else if (rc || c->stream_error.code)
        (void)json_array_remove(c->messages, before); /* as if it had not been asked */
}

/* ---- input ---- */

static void chat_prompt(const struct chat *c)
{
    if (!c->terminal)
        return;
    (void)fputs("> ", stdout);
    (void)fflush(stdout);
}

/* Reads more input; false at its end. An interrupt drops what was typed so far. */
static bool chat_read(struct chat *c)
{
    struct pollfd fds[2] = {{.fd = STDIN_FILENO, .events = POLLIN},
                            {.fd = c->signal_fd, .events = POLLIN}};
    struct signalfd_siginfo info;
    ssize_t n;

    if (poll(fds, 2, -1) < 0)
        return errno == EINTR;
    if (fds[1].revents && read(c->signal_fd, &info, sizeof info) > 0) {
        (void)puts("\n(Ctrl-D or /exit ends the chat)");
        buf_clear(&c->input);
        chat_prompt(c);
        return true;
    }
    buf_reserve(&c->input, 4096);
    n = read(STDIN_FILENO, c->input.data + c->input.len, 4096);
    if (n > 0)
        c->input.len += (size_t)n;
    return n > 0 || (n < 0 && errno == EINTR);
}

/* The next line without its newline, in out; false at the end of the input. */
static bool chat_line(struct chat *c, struct buf *out)
{
    for (;;) {
        char *end = c->input.len ? memchr(c->input.data, '\n', c->input.len) : NULL;

        if (end || (c->ended && c->input.len) || c->input.len > LINE_BYTES_MAX) {
            size_t len = end ? (size_t)(end - c->input.data) : c->input.len;

            buf_append(out, c->input.data, len);
            buf_consume(&c->input, end ? len + 1 : len);
            return true;
        }
        if (c->ended)
            return false;
        c->ended = !chat_read(c);
    }
}

static void chat_reset(struct chat *c)
{
    const char *system = options_str(&c->options, OPT_SYSTEM);

    json_decref(c->messages);
    c->messages = json_array();
    if (*system)
        chat_add(c, "system", system, strlen(system));
}

/* False when the line ends the chat. */
static bool chat_handle(struct chat *c, const struct buf *line)
{
    if (!line->len)
        return true;
    if (line->data[0] != '/') {
        chat_ask(c, line->data, line->len);
        return true;
    }
    if (strcmp(line->data, "/exit") == 0)
        return false;
    if (strcmp(line->data, "/reset") == 0) {
        chat_reset(c);
        (void)puts("(new conversation)");
    } else {
        (void)puts("(/reset begins a new conversation, /exit ends)");
    }
    return true;
}

static void chat_loop(struct chat *c)
{
    bool more = true;

    chat_reset(c);
    if (c->terminal)
        (void)printf("%s. /reset begins a new conversation, /exit ends.\n", c->model);
    while (more) {
        struct buf line = {0};

        chat_prompt(c);
        more = chat_line(c, &line) && chat_handle(c, &line);
        buf_fini(&line);
    }
    if (c->terminal && c->ended)
        (void)putchar('\n');
}

/* ---- start ---- */

/* The first name in /v1/models. */
static int chat_find_model(struct chat *c, struct err *err)
{
    struct buf body = {0};
    json_t *json = NULL;
    const char *id = NULL;
    int rc = client_get(c->client, "/v1/models", &body, err);

    if (!rc)
        rc = json_parse(body.data ? body.data : "", body.len, JSON_DEPTH_REQUEST, &json, err);
    if (!rc) {
        id = json_string_value(
            json_object_get(json_array_get(json_object_get(json, "data"), 0), "id"));
        if (!id)
            rc = err_set(err, ERR_PROTOCOL, "/v1/models names no model");
    }
    if (rc == ERR_IO)
        (void)err_prefix(err, "no server, is `phalanx serve` running?");
    c->model = id ? mem_strdup(id) : NULL;
    json_decref(json);
    buf_fini(&body);
    return rc;
}

static int chat_connect(struct chat *c, struct err *err)
{
    sigset_t set;
    int rc;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGINT);
    if (sigprocmask(SIG_BLOCK, &set, NULL))
        return err_errno(err, ERR_INTERNAL, "sigprocmask");
    c->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (c->signal_fd < 0)
        return err_errno(err, ERR_INTERNAL, "signalfd");
    rc = client_new(options_str(&c->options, OPT_HOST), (int)options_int(&c->options, OPT_PORT),
                    options_str(&c->options, OPT_API_KEY), c->signal_fd, &c->client, err);
    return rc ? rc : chat_find_model(c, err);
}

int chat_main(const char *program, const char *summary, int argc, char **argv)
{
    struct chat *c = mem_zalloc(sizeof *c);
    struct err err = {0};
    int status;

    options_main(&c->options, 'C', program, summary, argc, argv);
    words_hide_key(argc, argv);
    c->signal_fd = -1;
    c->terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    if (chat_connect(c, &err))
        say_error(c, &err);
    else
        chat_loop(c);
    status = c->failed ? 1 : 0;
    client_free(&c->client);
    if (c->signal_fd >= 0)
        (void)close(c->signal_fd);
    json_decref(c->messages);
    buf_fini(&c->input);
    buf_fini(&c->reply);
    options_fini(&c->options);
    free(c->model);
    free(c);
    return status;
}

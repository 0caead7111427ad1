#include "services/launcher/status.h"

#include "common/log.h"
#include "common/options.h"
#include "proto/bus.h"
#include "services/launcher/rundir.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define ANSWER_MS_MAX 5000

struct status {
    struct options options;
    uv_loop_t loop;
    uv_timer_t timer;
    struct bus *bus;
    struct buf text;
    struct err err;
};

static void on_up(void *ctx, struct bus_peer *peer)
{
    (void)ctx;
    (void)peer;
}

static void on_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct status *s = ctx;

    (void)peer;
    (void)err_set(&s->err, ERR_PEER, "the server went away: %.200s", reason);
    uv_stop(&s->loop);
}

static void on_refused(void *ctx, const char *reason)
{
    struct status *s = ctx;

    (void)err_set(&s->err, ERR_PEER, "the server refuses to answer: %.300s", reason);
    uv_stop(&s->loop);
}

static void on_timeout(uv_timer_t *timer)
{
    struct status *s = timer->data;

    (void)err_set(&s->err, ERR_TIMEOUT, "the server has not answered within %d s",
                  ANSWER_MS_MAX / 1000);
    uv_stop(&s->loop);
}

static void on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                       const void *message)
{
    struct status *s = ctx;

    (void)peer;
    if (header->type != PROTO_NODE_STATUS)
        return;
    if (options_bool(&s->options, OPT_JSON))
        status_json(message, &s->text);
    else
        status_table(message, &s->text);
    uv_stop(&s->loop);
}

static int status_ask(struct status *s, const char *endpoint, struct err *err)
{
    char name[32];
    struct bus_config bus = {
        .loop = &s->loop,
        .role = "status",
        .name = name,
        .endpoint = endpoint,
        .on = {.on_up = on_up,
               .on_message = on_message,
               .on_down = on_down,
               .on_refused = on_refused},
        .ctx = s,
    };
    int rc;

    (void)snprintf(name, sizeof name, "status-%d", (int)getpid());
    if (uv_loop_init(&s->loop))
        return err_set(err, ERR_INTERNAL, "no event loop");
    (void)uv_timer_init(&s->loop, &s->timer);
    s->timer.data = s;
    (void)uv_timer_start(&s->timer, on_timeout, ANSWER_MS_MAX, 0);
    rc = bus_connect(&bus, &s->bus, err);
    if (!rc) {
        (void)uv_run(&s->loop, UV_RUN_DEFAULT);
        bus_close(&s->bus);
        rc = s->text.len ? 0 : err->code;
    }
    uv_close((uv_handle_t *)&s->timer, NULL);
    (void)uv_run(&s->loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&s->loop);
    return rc;
}

int status_main(const char *program, const char *summary, int argc, char **argv)
{
    struct status s = {0};
    char *endpoint = NULL;
    int rc;

    options_main(&s.options, 'T', program, summary, argc, argv);
    rc = rundir_find(options_str(&s.options, OPT_RUN_DIR), (int)options_int(&s.options, OPT_PORT),
                     &endpoint, &s.err);
    if (!rc)
        rc = status_ask(&s, endpoint, &s.err);
    if (!rc)
        (void)fputs(s.text.data, stdout);
    else
        log_say("%s: %s", program, s.err.msg);
    free(endpoint);
    buf_fini(&s.text);
    options_fini(&s.options);
    return rc ? 1 : 0;
}

#include "services/launcher/serve.h"

#include "common/buf.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/options.h"
#include "services/launcher/commands.h"
#include "services/launcher/control.h"
#include "services/launcher/model.h"
#include "services/launcher/node_serve.h"
#include "services/launcher/probe.h"
#include "services/launcher/recovery.h"
#include "services/launcher/rundir.h"
#include "services/launcher/snapshot.h"
#include "services/launcher/supervise.h"
#include "services/launcher/words.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#define DRAIN_SAY_MS 500   /* a drain that takes longer is worth a line */
#define DRAIN_MORE_MS 2000 /* gateways end by themselves after --drain-timeout: so much later */

enum { EXIT_FAILED = 1, EXIT_USAGE = 2 };

struct serve {
    struct options options;
    struct model_ref model;
    struct rundir run;
    struct commands commands;
    uv_loop_t loop;
    struct probe probe;
    struct supervisor children;
    struct control control;
    struct recovery recovery;
    struct node_serve nodes;
    int ranks; /* of a replica, on this node */
    char *worker_endpoints[GROUPS_MAX];
    uv_timer_t drain;
    int signal;    /* that asked us to stop */
    bool hurry;    /* and another one did */
    char why[512]; /* we end without one */
};

/* ---- before anything starts ---- */

static int check_model(struct serve *s, struct err *err)
{
    const char *text = options_str(&s->options, OPT_MODEL_PATH);

    if (!*text)
        return err_set(err, ERR_INVALID, "--model-path is missing: a model folder or a hub id");
    return model_resolve(text, &s->model, err);
}

static int check_sizes(const struct serve *s, struct err *err)
{
    const struct recovery *r = &s->recovery;
    int count = r->gateways + r->tokenizers + r->replicas_count * (s->ranks + 1);

    if (count > CHILDREN_MAX)
        return err_set(
            err, ERR_LIMIT,
            "--dp-size %d, --tp-size %d, --num-tokenizer %d and --num-gateway %d make %d "
            "processes: more than %d",
            r->replicas_count, s->ranks, r->tokenizers, r->gateways, count, CHILDREN_MAX);
    return 0;
}

/* The exit status, 0 when all is well so far. */
static int serve_prepare(struct serve *s, struct err *err)
{
    const char *host = options_str(&s->options, OPT_HOST);
    int port = (int)options_int(&s->options, OPT_PORT);

    s->recovery.gateways = (int)options_int(&s->options, OPT_NUM_GATEWAY);
    s->recovery.tokenizers = (int)options_int(&s->options, OPT_NUM_TOKENIZER);
    s->recovery.replicas_count = (int)options_int(&s->options, OPT_DP_SIZE);
    if (node_serve_init(&s->nodes, &s->options, err))
        return EXIT_USAGE;
    s->ranks = (int)s->nodes.place.ranks;
    if (check_sizes(s, err))
        return EXIT_USAGE;
    if (check_model(s, err) || node_serve_model(&s->nodes, &s->options, s->model.path, err) ||
        probe_init(&s->probe, host, port, err))
        return EXIT_USAGE;
    if (commands_init(&s->commands, &s->options, &s->model, &s->run, err))
        return EXIT_FAILED;
    if (rundir_init(&s->run, options_str(&s->options, OPT_RUN_DIR), port, err))
        return EXIT_FAILED;
    if (probe_port_free(&s->probe, host, port, err))
        return EXIT_FAILED;
    return 0;
}

/* ---- running ---- */

/* A command to paste. The key is not printed: its variable is. */
static void say_curl(const struct serve *s)
{
    const char *host = options_str(&s->options, OPT_HOST);
    const char *brackets = strchr(host, ':') ? "[]" : "";
    const char *name = commands_served_name(&s->commands);
    struct buf body = {0};

    buf_puts(&body, "{\"model\":");
    buf_json_string(&body, name, strlen(name));
    buf_puts(&body, ",\"messages\":[{\"role\":\"user\",\"content\":\"Hello, who are you?\"}]}");
    log_say("Try it:");
    log_say(
        "  curl http://%.1s%s%s:%d/v1/chat/completions -H 'Content-Type: application/json'%s -d "
        "'%s'",
        brackets, strcmp(host, "0.0.0.0") == 0 ? "127.0.0.1" : host, *brackets ? brackets + 1 : "",
        (int)options_int(&s->options, OPT_PORT),
        *options_str(&s->options, OPT_API_KEY) ? " -H \"Authorization: Bearer $PHALANX_API_KEY\""
                                               : "",
        body.data);
    buf_fini(&body);
}

static void on_ready(void *ctx)
{
    struct serve *s = ctx;

    node_zero_state(&s->nodes, true);
    if (recovery_ready(&s->recovery))
        say_curl(s);
}

static void on_lost(void *ctx)
{
    struct serve *s = ctx;

    node_zero_state(&s->nodes, false);
    probe_start(&s->probe, &s->loop, PROBE_TOKEN, on_ready, s);
}

static void on_fatal(void *ctx, const char *why)
{
    struct serve *s = ctx;

    (void)snprintf(s->why, sizeof s->why, "%s", why);
    uv_stop(&s->loop);
}

static void on_epoch(void *ctx, int replica, uint64_t epoch, const char *reason)
{
    struct serve *s = ctx;

    (void)reason;
    if (s->nodes.nodes)
        node_zero_epoch(&s->nodes, replica, epoch);
}

static void on_drained(void *ctx)
{
    struct serve *s = ctx;

    uv_stop(&s->loop);
}

static void on_drain_over(uv_timer_t *timer)
{
    uv_stop(timer->loop);
}

static void on_drain_slow(uv_timer_t *timer)
{
    struct serve *s = timer->data;
    double seconds = options_float(&s->options, OPT_DRAIN_TIMEOUT);

    log_say("phalanx: finishing what runs, at most %g s; another SIG%s ends it at once", seconds,
            sigabbrev_np(s->signal));
    (void)uv_timer_start(timer, on_drain_over,
                         (uint64_t)(seconds * 1000) + DRAIN_MORE_MS - DRAIN_SAY_MS, 0);
}

/* The first one drains, which takes no time where nothing runs. */
static void on_signal(void *ctx, int number)
{
    struct serve *s = ctx;

    s->hurry = s->signal != 0;
    s->signal = number;
    if (s->hurry || options_float(&s->options, OPT_DRAIN_TIMEOUT) == 0 ||
        !recovery_drain(&s->recovery)) {
        uv_stop(&s->loop);
        return;
    }
    (void)uv_timer_start(&s->drain, on_drain_slow, DRAIN_SAY_MS, 0);
}

static void on_child_end(void *ctx, const struct child *child, const char *how)
{
    struct serve *s = ctx;

    recovery_child_ended(&s->recovery, child, how);
}

static void on_group_down(void *ctx, int replica, uint64_t epoch, const char *reason)
{
    struct serve *s = ctx;

    recovery_group_down(&s->recovery, replica, epoch, reason);
}

static void on_linked(void *ctx, const struct bus_peer *peer)
{
    struct serve *s = ctx;

    recovery_linked(&s->recovery, peer);
}

static void on_silent(void *ctx, const struct bus_peer *peer, const char *reason)
{
    struct serve *s = ctx;

    recovery_silent(&s->recovery, peer, reason);
}

static void on_status(void *ctx)
{
    struct serve *s = ctx;

    recovery_status(&s->recovery);
}

static void on_reader(void *ctx, struct bus_peer *peer)
{
    struct serve *s = ctx;
    struct snapshot *now = mem_zalloc(sizeof *now);
    struct err err;

    snapshot_take(now, &s->recovery);
    if (bus_send(peer, PROTO_NODE_STATUS, 0, &now->message, &err))
        log_warn("%s: %s", bus_peer_name(peer), err.msg);
    free(now);
}

static int open_control(struct serve *s, struct err *err)
{
    static const struct control_callbacks on = {.on_group_down = on_group_down,
                                                .on_linked = on_linked,
                                                .on_silent = on_silent,
                                                .on_status = on_status,
                                                .on_reader = on_reader};
    char *endpoint = rundir_endpoints(&s->run, "control", 0, 1);
    double silence_s = options_float(&s->options, OPT_HEARTBEAT_TIMEOUT);
    int rc =
        control_open(&s->control, &s->loop, endpoint, (int64_t)(silence_s * 1000), &on, s, err);

    free(endpoint);
    return rc;
}

/* Ranks of all replicas are counted through in their names and devices. */
static int init_recovery(struct serve *s, struct err *err)
{
    struct recovery *r = &s->recovery;

    recovery_init(r, &s->loop);
    r->commands = &s->commands;
    r->children = &s->children;
    r->control = &s->control;
    r->on = (struct recovery_callbacks){
        .on_fatal = on_fatal, .on_lost = on_lost, .on_epoch = on_epoch, .on_drained = on_drained};
    r->ctx = s;
    for (int i = 0; i < r->replicas_count; i++) {
        struct group_config config = {
            .commands = &s->commands,
            .children = &s->children,
            .replica = i,
            .first_rank = 0,
            .last_rank = s->ranks - 1,
            .first_device = i * s->ranks,
            .first_name = i * s->ranks * (int)s->nodes.place.count,
        };

        s->worker_endpoints[i] = s->nodes.place.count > 1
                                     ? node_serve_endpoint(&s->nodes, err)
                                     : rundir_endpoints(&s->run, "workers", i, 1);
        if (!s->worker_endpoints[i])
            return err->code;
        config.worker_endpoint = s->worker_endpoints[i];
        group_configure(&r->replicas[i].group, &config);
    }
    return 0;
}

static void say_start(const struct serve *s)
{
    const struct recovery *r = &s->recovery;

    log_say("Phalanx %s: %s on device %s, tensor parallelism %d", PHALANX_VERSION,
            commands_served_name(&s->commands), options_str(&s->options, OPT_DEVICE),
            (int)options_int(&s->options, OPT_TP_SIZE));
    if (r->replicas_count > 1 || r->tokenizers > 1 || r->gateways > 1)
        log_say("replicas %d, tokenizers %d, gateways %d", r->replicas_count, r->tokenizers,
                r->gateways);
}

/* The other nodes, if there are any, end with this one. */
static void end_nodes(struct serve *s, const char *why)
{
    char text[64];
    bool failed = !s->signal || s->recovery.fatal;

    (void)snprintf(text, sizeof text, "it was stopped (SIG%s)",
                   s->signal ? sigabbrev_np(s->signal) : "");
    node_zero_end(&s->nodes, failed, failed ? why : text);
}

/* Until something can not go on or we are asked to stop; the exit status. */
static int serve_run(struct serve *s, struct err *err)
{
    int rc = open_control(s, err);

    say_start(s);
    if (!rc)
        rc = node_zero_open(&s->nodes, &s->loop, &s->options, &s->recovery, err);
    if (!rc)
        rc = recovery_start(&s->recovery, err);
    if (!rc) {
        probe_start(&s->probe, &s->loop, PROBE_READY, on_ready, s);
        (void)uv_run(&s->loop, UV_RUN_DEFAULT);
    }
    probe_stop(&s->probe);
    control_close(&s->control);
    (void)uv_timer_stop(&s->drain);
    end_nodes(s, rc ? err->msg : s->why);
    if (!s->signal || s->recovery.fatal) {
        supervisor_stop(&s->children, FAIL_GRACE_MS);
        return EXIT_FAILED;
    }
    supervisor_stop(&s->children, s->hurry ? 0 : STOP_GRACE_MS);
    log_say("phalanx: stopped (SIG%s)", sigabbrev_np(s->signal));
    return 0;
}

static int serve_start(struct serve *s, struct err *err)
{
    static const struct supervisor_callbacks on = {.on_end = on_child_end, .on_signal = on_signal};
    int status = EXIT_FAILED;

    if (uv_loop_init(&s->loop)) {
        (void)err_set(err, ERR_INTERNAL, "no event loop");
        return status;
    }
    (void)uv_timer_init(&s->loop, &s->drain);
    s->drain.data = s;
    if (!init_recovery(s, err) && !supervisor_init(&s->children, &s->loop, &on, s, err))
        status = serve_run(s, err);
    node_zero_close(&s->nodes);
    supervisor_fini(&s->children);
    probe_fini(&s->probe);
    uv_close((uv_handle_t *)&s->drain, NULL);
    recovery_fini(&s->recovery);
    (void)uv_run(&s->loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&s->loop);
    return status;
}

int serve_main(const char *program, const char *summary, int argc, char **argv)
{
    struct serve *s = mem_zalloc(sizeof *s);
    struct err err = {0};
    int status;

    options_main(&s->options, 'S', program, summary, argc, argv);
    log_init("phalanx", log_get_level());
    words_hide_key(argc, argv);
    s->run.fd = s->run.lock_fd = s->probe.fd = -1;
    status = serve_prepare(s, &err);
    if (!status && s->nodes.place.rank)
        status = node_other_run(&s->nodes, &s->commands, &err);
    else if (!status)
        status = serve_start(s, &err);
    if (err.code)
        log_say("%s: %s", program, err.msg);
    for (int i = 0; i < GROUPS_MAX; i++)
        free(s->worker_endpoints[i]);
    node_serve_fini(&s->nodes);
    rundir_fini(&s->run);
    commands_fini(&s->commands);
    model_fini(&s->model);
    options_fini(&s->options);
    free(s);
    return status;
}

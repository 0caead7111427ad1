#include "services/launcher/serve.h"

#include "common/buf.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/options.h"
#include "services/launcher/model.h"
#include "services/launcher/probe.h"
#include "services/launcher/rundir.h"
#include "services/launcher/supervise.h"
#include "services/launcher/words.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STOP_GRACE_MS 3500 /* asked to stop: all gone within 5 s */
#define FAIL_GRACE_MS 1000 /* a child died: within 2 s */

#define RESTARTS_MAX 5 /* of one replica within RESTARTS_US: more, and the node ends */
#define RESTARTS_US 60000000

enum { EXIT_FAILED = 1, EXIT_USAGE = 2 };

/* One scheduler and its ranks: the supervisor's group of the same number. */
struct replica {
    int epoch;
    int restarts; /* since window_us */
    int64_t window_us;
};

struct serve {
    struct options options;
    struct model_ref model;
    struct rundir run;
    struct probe probe;
    struct supervisor children;
    int gateways, tokenizers, ranks, replicas_count;
    struct replica replicas[GROUPS_MAX];
    char *bin; /* the folder of this executable and its siblings */
};

/* What every child is told by the launcher itself. */
static const enum option own_options[] = {OPT_MODEL_PATH, OPT_SERVED_MODEL_NAME, OPT_HELP,
                                          OPT_VERSION, OPTIONS_COUNT};

static const char *const executables[] = {"phalanx-scheduler", "phalanx-tokenizer",
                                          "phalanx-worker", "phalanx-gateway"};

/* ---- before anything starts ---- */

static int find_siblings(struct serve *s, struct err *err)
{
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    char *slash;

    if (n < 0)
        return err_errno(err, ERR_IO, "/proc/self/exe");
    self[n] = '\0';
    slash = strrchr(self, '/');
    if (slash)
        *slash = '\0';
    s->bin = mem_strdup(self);
    for (size_t i = 0; i < sizeof executables / sizeof *executables; i++) {
        char *path = file_join(s->bin, executables[i]);
        int missing = access(path, X_OK);

        if (missing)
            (void)err_errno(err, ERR_NOT_FOUND, "%s", path);
        free(path);
        if (missing)
            return ERR_NOT_FOUND;
    }
    return 0;
}

static int check_model(struct serve *s, struct err *err)
{
    const char *text = options_str(&s->options, OPT_MODEL_PATH);

    if (!*text)
        return err_set(err, ERR_INVALID, "--model-path is missing: a model folder or a hub id");
    return model_resolve(text, &s->model, err);
}

static int check_sizes(const struct serve *s, struct err *err)
{
    int count = s->gateways + s->tokenizers + s->replicas_count * (s->ranks + 1);

    if (count > CHILDREN_MAX)
        return err_set(
            err, ERR_LIMIT,
            "--dp-size %d, --tp-size %d, --num-tokenizer %d and --num-gateway %d make %d "
            "processes: more than %d",
            s->replicas_count, s->ranks, s->tokenizers, s->gateways, count, CHILDREN_MAX);
    return 0;
}

/* The exit status, 0 when all is well so far. */
static int serve_prepare(struct serve *s, struct err *err)
{
    const char *host = options_str(&s->options, OPT_HOST);
    int port = (int)options_int(&s->options, OPT_PORT);

    s->gateways = (int)options_int(&s->options, OPT_NUM_GATEWAY);
    s->tokenizers = (int)options_int(&s->options, OPT_NUM_TOKENIZER);
    s->ranks = (int)options_int(&s->options, OPT_TP_SIZE);
    s->replicas_count = (int)options_int(&s->options, OPT_DP_SIZE);
    if (check_sizes(s, err))
        return EXIT_USAGE;
    if (check_model(s, err) || probe_init(&s->probe, host, port, err))
        return EXIT_USAGE;
    if (find_siblings(s, err))
        return EXIT_FAILED;
    if (rundir_init(&s->run, options_str(&s->options, OPT_RUN_DIR), port, err))
        return EXIT_FAILED;
    if (probe_port_free(&s->probe, host, port, err))
        return EXIT_FAILED;
    return 0;
}

/* ---- children ---- */

static const char *served_name(const struct serve *s)
{
    const char *name = options_str(&s->options, OPT_SERVED_MODEL_NAME);

    return *name ? name : s->model.name;
}

static void add_endpoints(struct serve *s, struct words *argv, enum option id, const char *kind,
                          int first, int count)
{
    char *endpoints = rundir_endpoints(&s->run, kind, first, count);

    words_add(argv, "--%s=%s", option_name(id), endpoints);
    free(endpoints);
}

/* The words every executable of that letter gets. */
static void add_common(struct serve *s, struct words *argv, const char *name, char who)
{
    words_add(argv, "--name=%s", name);
    words_add_options(argv, &s->options, who, own_options);
    if (option_taken_by(OPT_MODEL_PATH, who))
        words_add(argv, "--model-path=%s", s->model.path);
    if (option_taken_by(OPT_SERVED_MODEL_NAME, who))
        words_add(argv, "--served-model-name=%s", served_name(s));
}

/* argv is released. */
static int start_words(struct serve *s, const char *name, int group, struct words *argv,
                       const char *key, struct err *err)
{
    struct words envp = {0};
    int rc;

    words_add_environment(&envp, key);
    rc = supervisor_start(&s->children, name, group, argv->list, envp.list, err);
    words_fini(argv);
    words_fini(&envp);
    return rc;
}

static struct words child_words(struct serve *s, const char *role, int index, char who, char *name,
                                size_t size)
{
    struct words argv = {0};

    (void)snprintf(name, size, "%s-%d", role, index);
    words_add(&argv, "%s/phalanx-%s", s->bin, role);
    add_common(s, &argv, name, who);
    return argv;
}

static int start_gateway(struct serve *s, int index, struct err *err)
{
    char name[32];
    struct words argv = child_words(s, "gateway", index, 'g', name, sizeof name);

    add_endpoints(s, &argv, OPT_TOKENIZER_ENDPOINT, "tokenizer", 0, s->tokenizers);
    return start_words(s, name, GROUP_ALL, &argv, options_str(&s->options, OPT_API_KEY), err);
}

static int start_tokenizer(struct serve *s, int index, struct err *err)
{
    char name[32];
    struct words argv = child_words(s, "tokenizer", index, 't', name, sizeof name);

    add_endpoints(s, &argv, OPT_TOKENIZER_ENDPOINT, "tokenizer", index, 1);
    add_endpoints(s, &argv, OPT_SCHEDULER_ENDPOINT, "scheduler", 0, s->replicas_count);
    return start_words(s, name, GROUP_ALL, &argv, "", err);
}

static int start_scheduler(struct serve *s, int replica, struct err *err)
{
    char name[32];
    struct words argv = child_words(s, "scheduler", replica, 's', name, sizeof name);

    add_endpoints(s, &argv, OPT_SCHEDULER_ENDPOINT, "scheduler", replica, 1);
    add_endpoints(s, &argv, OPT_WORKER_ENDPOINT, "workers", replica, 1);
    words_add(&argv, "--epoch=%d", s->replicas[replica].epoch);
    return start_words(s, name, replica, &argv, "", err);
}

/* Ranks of all replicas are counted through in their names. */
static int start_worker(struct serve *s, int replica, int rank, const char *comm_store,
                        struct err *err)
{
    char name[32];
    struct words argv = child_words(s, "worker", replica * s->ranks + rank, 'w', name, sizeof name);

    add_endpoints(s, &argv, OPT_WORKER_ENDPOINT, "workers", replica, 1);
    words_add(&argv, "--epoch=%d", s->replicas[replica].epoch);
    words_add(&argv, "--rank=%d", rank);
    words_add(&argv, "--first-device=%d", replica * s->ranks);
    words_add(&argv, "--comm-store=%s", comm_store);
    return start_words(s, name, replica, &argv, "", err);
}

/* A scheduler and its ranks, with the next epoch. */
static int start_replica(struct serve *s, int replica, struct err *err)
{
    char *comm_store = rundir_comm_store(&s->run, replica, ++s->replicas[replica].epoch, err);
    int rc = comm_store ? start_scheduler(s, replica, err) : err->code;

    for (int rank = 0; rank < s->ranks && !rc; rank++)
        rc = start_worker(s, replica, rank, comm_store, err);
    free(comm_store);
    return rc;
}

static int start_all(struct serve *s, struct err *err)
{
    int rc = 0;

    for (int i = 0; i < s->replicas_count && !rc; i++)
        rc = start_replica(s, i, err);
    for (int i = 0; i < s->tokenizers && !rc; i++)
        rc = start_tokenizer(s, i, err);
    for (int i = 0; i < s->gateways && !rc; i++)
        rc = start_gateway(s, i, err);
    return rc;
}

/* A replica that died starts anew while others serve; false: that does not help. */
static bool restart_replica(struct serve *s, int index)
{
    struct replica *replica = &s->replicas[index];
    int64_t now_us = clock_mono_us();
    struct err err = {0};

    if (now_us - replica->window_us > RESTARTS_US) {
        replica->window_us = now_us;
        replica->restarts = 0;
    }
    if (replica->restarts++ == RESTARTS_MAX) {
        log_say("phalanx: replica %d died %d times within %d s", index, RESTARTS_MAX + 1,
                RESTARTS_US / 1000000);
        return false;
    }
    supervisor_kill_group(&s->children, index);
    if (start_replica(s, index, &err)) {
        log_say("phalanx: replica %d: %s", index, err.msg);
        return false;
    }
    log_say("phalanx: replica %d starts again (epoch %d)", index, replica->epoch);
    return true;
}

/* The lone replica, and whatever all need, is the node: its death ends all. So does a death before
 * the server has ever been ready. */
static bool survive(struct serve *s, const struct supervisor_report *report)
{
    bool alive = s->replicas_count > 1 && s->probe.ready && !report->vital;

    for (int i = 0; i < s->replicas_count && alive; i++)
        if (report->groups & UINT32_C(1) << i)
            alive = restart_replica(s, i);
    return alive;
}

/* ---- running ---- */

/* A command to paste. The key is not printed: its variable is. */
static void say_curl(const struct serve *s)
{
    const char *host = options_str(&s->options, OPT_HOST);
    const char *brackets = strchr(host, ':') ? "[]" : "";
    struct buf body = {0};

    buf_puts(&body, "{\"model\":");
    buf_json_string(&body, served_name(s), strlen(served_name(s)));
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

/* Until a child dies or we are asked to stop; the exit status. */
static int serve_run(struct serve *s)
{
    for (;;) {
        struct supervisor_report report;
        struct pollfd fd;
        bool starting = !s->probe.ready;
        int timeout_ms = starting ? probe_poll(&s->probe, &fd) : -1;

        switch (supervisor_wait(&s->children, starting ? &fd : NULL, timeout_ms, &report)) {
        case SUPERVISOR_SIGNAL:
            supervisor_stop(&s->children, STOP_GRACE_MS);
            log_say("phalanx: stopped (SIG%s)", sigabbrev_np(report.signal));
            return 0;
        case SUPERVISOR_DEATH:
            log_say("phalanx: %s", report.text);
            if (survive(s, &report))
                break;
            supervisor_stop(&s->children, FAIL_GRACE_MS);
            return EXIT_FAILED;
        case SUPERVISOR_EXTRA:
        case SUPERVISOR_TIMEOUT:
            if (!starting)
                break;
            probe_step(&s->probe);
            if (s->probe.ready)
                say_curl(s);
            break;
        }
    }
}

static int serve_start(struct serve *s, struct err *err)
{
    int rc = supervisor_init(&s->children, err);

    log_say("Phalanx %s: %s on device %s, tensor parallelism %d", PHALANX_VERSION, served_name(s),
            options_str(&s->options, OPT_DEVICE), s->ranks);
    if (s->replicas_count > 1 || s->tokenizers > 1 || s->gateways > 1)
        log_say("replicas %d, tokenizers %d, gateways %d", s->replicas_count, s->tokenizers,
                s->gateways);
    if (!rc)
        rc = start_all(s, err);
    if (rc) {
        supervisor_stop(&s->children, FAIL_GRACE_MS);
        return EXIT_FAILED;
    }
    return serve_run(s);
}

int serve_main(const char *program, const char *summary, int argc, char **argv)
{
    struct serve *s = mem_zalloc(sizeof *s);
    struct err err = {0};
    int status;

    options_main(&s->options, 'S', program, summary, argc, argv);
    log_init("phalanx", log_get_level());
    words_hide_key(argc, argv);
    s->run.fd = s->run.lock_fd = s->probe.fd = s->children.signal_fd = -1;
    status = serve_prepare(s, &err);
    if (!status)
        status = serve_start(s, &err);
    if (err.code)
        log_say("%s: %s", program, err.msg);
    supervisor_fini(&s->children);
    rundir_fini(&s->run);
    probe_fini(&s->probe);
    model_fini(&s->model);
    options_fini(&s->options);
    free(s->bin);
    free(s);
    return status;
}

#include "services/launcher/serve.h"

#include "common/buf.h"
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

enum { EXIT_FAILED = 1, EXIT_USAGE = 2 };

struct serve {
    struct options options;
    struct model_ref model;
    struct rundir run;
    struct probe probe;
    struct supervisor children;
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

/* The exit status, 0 when all is well so far. */
static int serve_prepare(struct serve *s, struct err *err)
{
    const char *host = options_str(&s->options, OPT_HOST);
    int port = (int)options_int(&s->options, OPT_PORT);

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

/* The words every executable of that letter gets. */
static void add_common(struct serve *s, struct words *argv, const char *name, char who)
{
    words_add(argv, "--name=%s", name);
    words_add_options(argv, &s->options, who, own_options);
    if (option_taken_by(OPT_MODEL_PATH, who))
        words_add(argv, "--model-path=%s", s->model.path);
    if (option_taken_by(OPT_SERVED_MODEL_NAME, who))
        words_add(argv, "--served-model-name=%s", served_name(s));
    if (option_taken_by(OPT_TOKENIZER_ENDPOINT, who))
        words_add(argv, "--tokenizer-endpoint=%s", s->run.tokenizer_endpoint);
    if (option_taken_by(OPT_SCHEDULER_ENDPOINT, who))
        words_add(argv, "--scheduler-endpoint=%s", s->run.scheduler_endpoint);
    if (option_taken_by(OPT_WORKER_ENDPOINT, who))
        words_add(argv, "--worker-endpoint=%s", s->run.worker_endpoint);
    if (option_taken_by(OPT_EPOCH, who))
        words_add(argv, "--epoch=1");
}

static int start_child(struct serve *s, const char *role, int index, char who, struct err *err)
{
    const char *key = who == 'g' ? options_str(&s->options, OPT_API_KEY) : "";
    struct words argv = {0};
    struct words envp = {0};
    char name[32];
    int rc;

    (void)snprintf(name, sizeof name, "%s-%d", role, index);
    words_add(&argv, "%s/phalanx-%s", s->bin, role);
    add_common(s, &argv, name, who);
    if (option_taken_by(OPT_RANK, who))
        words_add(&argv, "--rank=%d", index);
    if (option_taken_by(OPT_COMM_STORE, who))
        words_add(&argv, "--comm-store=%s", s->run.comm_store);
    words_add_environment(&envp, key);
    rc = supervisor_start(&s->children, name, argv.list, envp.list, err);
    words_fini(&argv);
    words_fini(&envp);
    return rc;
}

static int start_all(struct serve *s, struct err *err)
{
    int ranks = (int)options_int(&s->options, OPT_TP_SIZE);
    int rc = start_child(s, "scheduler", 0, 's', err);

    for (int rank = 0; rank < ranks && !rc; rank++)
        rc = start_child(s, "worker", rank, 'w', err);
    if (!rc)
        rc = start_child(s, "tokenizer", 0, 't', err);
    if (!rc)
        rc = start_child(s, "gateway", 0, 'g', err);
    return rc;
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
            options_str(&s->options, OPT_DEVICE), (int)options_int(&s->options, OPT_TP_SIZE));
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

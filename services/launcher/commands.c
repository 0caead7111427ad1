#include "services/launcher/commands.h"

#include "common/file.h"
#include "common/log.h"
#include "common/mem.h"
#include "services/launcher/words.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What every child is told by the launcher itself. */
static const enum option own_options[] = {OPT_MODEL_PATH, OPT_SERVED_MODEL_NAME, OPT_LOG_LEVEL,
                                          OPT_HELP,       OPT_VERSION,           OPTIONS_COUNT};

static const char *const roles[] = {
    [CHILD_GATEWAY] = "gateway",
    [CHILD_TOKENIZER] = "tokenizer",
    [CHILD_SCHEDULER] = "scheduler",
    [CHILD_WORKER] = "worker",
};
#define ROLES (sizeof roles / sizeof *roles)

int commands_init(struct commands *c, const struct options *options, const struct model_ref *model,
                  const struct rundir *run, struct err *err)
{
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    char *slash;

    *c = (struct commands){.options = options, .model = model, .run = run};
    if (n < 0)
        return err_errno(err, ERR_IO, "/proc/self/exe");
    self[n] = '\0';
    slash = strrchr(self, '/');
    if (slash)
        *slash = '\0';
    c->bin = mem_strdup(self);
    for (size_t i = 0; i < ROLES; i++) {
        struct buf path = {0};
        int missing;

        buf_printf(&path, "%s/phalanx-%s", c->bin, roles[i]);
        missing = access(path.data, X_OK);
        if (missing)
            (void)err_errno(err, ERR_NOT_FOUND, "%s", path.data);
        buf_fini(&path);
        if (missing)
            return ERR_NOT_FOUND;
    }
    return 0;
}

void commands_fini(struct commands *c)
{
    free(c->bin);
    c->bin = NULL;
}

const char *commands_served_name(const struct commands *c)
{
    const char *name = options_str(c->options, OPT_SERVED_MODEL_NAME);

    return *name ? name : c->model->name;
}

static void add_endpoints(const struct commands *c, struct words *argv, enum option id,
                          const char *kind, int first, int count)
{
    char *endpoints = rundir_endpoints(c->run, kind, first, count);

    words_add(argv, "--%s=%s", option_name(id), endpoints);
    free(endpoints);
}

/* How every command line begins. who: the executable's letter in common/options.def. */
static struct words command_begin(const struct commands *c, struct child *id, int number, char who)
{
    struct words argv = {0};

    (void)snprintf(id->name, sizeof id->name, "%s-%d", roles[id->role], number);
    words_add(&argv, "%s/phalanx-%s", c->bin, roles[id->role]);
    words_add(&argv, "--name=%s", id->name);
    words_add(&argv, "--%s=%s", option_name(OPT_LOG_LEVEL), log_level_name(log_get_level()));
    words_add_options(&argv, c->options, who, own_options);
    if (option_taken_by(OPT_MODEL_PATH, who))
        words_add(&argv, "--model-path=%s", c->model->path);
    if (option_taken_by(OPT_SERVED_MODEL_NAME, who))
        words_add(&argv, "--served-model-name=%s", commands_served_name(c));
    return argv;
}

/* argv is released. */
static int command_run(struct supervisor *s, const struct child *id, struct words *argv,
                       const char *key, struct err *err)
{
    struct words envp = {0};
    int rc;

    words_add_environment(&envp, key);
    rc = supervisor_start(s, id, argv->list, envp.list, err);
    words_fini(argv);
    words_fini(&envp);
    return rc;
}

int commands_start_gateway(const struct commands *c, struct supervisor *s, int index,
                           struct err *err)
{
    struct child id = {.role = CHILD_GATEWAY, .index = index};
    struct words argv = command_begin(c, &id, index, 'g');

    add_endpoints(c, &argv, OPT_TOKENIZER_ENDPOINT, "tokenizer", 0,
                  (int)options_int(c->options, OPT_NUM_TOKENIZER));
    add_endpoints(c, &argv, OPT_CONTROL_ENDPOINT, "control", 0, 1);
    return command_run(s, &id, &argv, options_str(c->options, OPT_API_KEY), err);
}

int commands_start_tokenizer(const struct commands *c, struct supervisor *s, int index,
                             struct err *err)
{
    struct child id = {.role = CHILD_TOKENIZER, .index = index};
    struct words argv = command_begin(c, &id, index, 't');

    add_endpoints(c, &argv, OPT_TOKENIZER_ENDPOINT, "tokenizer", index, 1);
    add_endpoints(c, &argv, OPT_SCHEDULER_ENDPOINT, "scheduler", 0,
                  (int)options_int(c->options, OPT_DP_SIZE));
    add_endpoints(c, &argv, OPT_CONTROL_ENDPOINT, "control", 0, 1);
    return command_run(s, &id, &argv, "", err);
}

int commands_start_health(const struct commands *c, struct supervisor *s, struct err *err)
{
    struct child id = {.role = CHILD_GATEWAY};
    struct words argv = command_begin(c, &id, 0, 'g');

    add_endpoints(c, &argv, OPT_TOKENIZER_ENDPOINT, "tokenizer", 0, 1);
    words_add(&argv, "--%s", option_name(OPT_HEALTH_ONLY));
    return command_run(s, &id, &argv, options_str(c->options, OPT_API_KEY), err);
}

int commands_start_scheduler(const struct commands *c, struct supervisor *s, int replica,
                             const char *worker_endpoint, uint64_t epoch, struct err *err)
{
    struct child id = {.role = CHILD_SCHEDULER, .replica = replica, .epoch = epoch};
    struct words argv = command_begin(c, &id, replica, 's');

    add_endpoints(c, &argv, OPT_SCHEDULER_ENDPOINT, "scheduler", replica, 1);
    words_add(&argv, "--%s=%s", option_name(OPT_WORKER_ENDPOINT), worker_endpoint);
    add_endpoints(c, &argv, OPT_CONTROL_ENDPOINT, "control", 0, 1);
    words_add(&argv, "--epoch=%" PRIu64, epoch);
    return command_run(s, &id, &argv, "", err);
}

int commands_start_worker(const struct commands *c, struct supervisor *s,
                          const struct worker_place *place, struct err *err)
{
    struct child id = {.role = CHILD_WORKER,
                       .replica = place->replica,
                       .index = place->rank,
                       .epoch = place->epoch};
    struct words argv = command_begin(c, &id, place->number, 'w');

    words_add(&argv, "--%s=%s", option_name(OPT_WORKER_ENDPOINT), place->endpoint);
    words_add(&argv, "--epoch=%" PRIu64, place->epoch);
    words_add(&argv, "--rank=%d", place->rank);
    words_add(&argv, "--first-device=%d", place->first_device);
    return command_run(s, &id, &argv, "", err);
}

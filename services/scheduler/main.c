#include "common/log.h"
#include "common/options.h"
#include "services/scheduler/service.h"

#include <string.h>

static int check_options(const struct options *o, struct err *err)
{
    static const enum option needed[] = {OPT_SCHEDULER_ENDPOINT, OPT_WORKER_ENDPOINT};

    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        if (!options_str(o, needed[i])[0])
            return err_set(err, ERR_INVALID, "--%s is needed", option_name(needed[i]));
    if (options_int(o, OPT_CHUNKED_PREFILL_SIZE) == 0)
        return err_set(err, ERR_INVALID, "--%s 0: it is -1 or at least 1",
                       option_name(OPT_CHUNKED_PREFILL_SIZE));
    return 0;
}

int main(int argc, char **argv)
{
    struct options o = {0};
    struct service_config config;
    struct err err = {0};
    int rc;

    options_main(&o, 's', "phalanx-scheduler", "sequences, KV pages and steps of one replica", argc,
                 argv);
    config = (struct service_config){
        .name = options_str(&o, OPT_NAME)[0] ? options_str(&o, OPT_NAME) : "scheduler-0",
        .scheduler_endpoint = options_str(&o, OPT_SCHEDULER_ENDPOINT),
        .worker_endpoint = options_str(&o, OPT_WORKER_ENDPOINT),
        .control_endpoint = options_str(&o, OPT_CONTROL_ENDPOINT),
        .tp_size = (uint32_t)options_int(&o, OPT_TP_SIZE),
        .slots_max = (uint32_t)options_int(&o, OPT_MAX_RUNNING_REQUESTS),
        .queued_max = (uint32_t)options_int(&o, OPT_MAX_QUEUED_REQUESTS),
        .prefill_tokens_max = (int32_t)options_int(&o, OPT_CHUNKED_PREFILL_SIZE),
        .page_size = (uint32_t)options_int(&o, OPT_PAGE_SIZE),
        .num_pages = (uint32_t)options_int(&o, OPT_NUM_PAGES),
        .policy = options_str(&o, OPT_SCHEDULE_POLICY),
        .conservativeness = options_float(&o, OPT_SCHEDULE_CONSERVATIVENESS),
        .preempt_above = options_int(&o, OPT_PREEMPTION_THRESHOLD),
        .prefix_cache = strcmp(options_str(&o, OPT_CACHE_TYPE), "radix") == 0 &&
                        !options_bool(&o, OPT_DISABLE_RADIX_CACHE),
        .heartbeat_timeout_s = options_float(&o, OPT_HEARTBEAT_TIMEOUT),
        .step_timeout_s = options_float(&o, OPT_STEP_TIMEOUT),
        .dist_timeout_s = options_float(&o, OPT_DIST_TIMEOUT),
        .epoch = options_int(&o, OPT_EPOCH) ? (uint64_t)options_int(&o, OPT_EPOCH) : 1,
    };
    log_init(config.name, log_get_level());
    rc = check_options(&o, &err);
    if (!rc)
        rc = bus_security_init(&config.security, &o, &err);
    if (rc) {
        log_say("phalanx-scheduler: %s", err.msg);
        options_fini(&o);
        return 2;
    }
    rc = service_run(&config, &err);
    if (rc)
        log_error("%s", err.msg);
    bus_security_fini(&config.security);
    options_fini(&o);
    return rc ? 1 : 0;
}

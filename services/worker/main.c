#include "common/log.h"
#include "common/options.h"
#include "services/worker/worker.h"

#include <stdio.h>
#include <string.h>

/* Which combination can not work; one line that names the flag. */
static int check_options(const struct options *o, struct err *err)
{
    const char *device = options_str(o, OPT_DEVICE);
    bool null = !strcmp(device, "null");

    if (!*options_str(o, OPT_WORKER_ENDPOINT))
        return err_set(err, ERR_INVALID, "--worker-endpoint is missing");
    if (!*options_str(o, OPT_MODEL_PATH) && !null)
        return err_set(err, ERR_INVALID, "--model-path is missing");
    if (options_int(o, OPT_RANK) >= options_int(o, OPT_TP_SIZE))
        return err_set(err, ERR_INVALID, "--rank %lld, --tp-size is %lld",
                       (long long)options_int(o, OPT_RANK), (long long)options_int(o, OPT_TP_SIZE));
    if (options_int(o, OPT_TP_SIZE) > 1 && !null && !*options_str(o, OPT_COMM_STORE))
        return err_set(err, ERR_INVALID, "--comm-store is missing, ranks meet there");
    return 0;
}

int main(int argc, char **argv)
{
    struct options o = {0};
    struct worker_config config;
    struct err err = {0};
    char name[32];
    int status = 2;

    options_main(&o, 'w', "phalanx-worker", "one tensor-parallel rank: weights, KV pages, steps",
                 argc, argv);
    (void)snprintf(name, sizeof name, "worker-%d", (int)options_int(&o, OPT_RANK));
    config = (struct worker_config){
        .name = *options_str(&o, OPT_NAME) ? options_str(&o, OPT_NAME) : name,
        .endpoint = options_str(&o, OPT_WORKER_ENDPOINT),
        .epoch = (uint64_t)options_int(&o, OPT_EPOCH),
        .heartbeat_timeout_s = options_float(&o, OPT_HEARTBEAT_TIMEOUT),
        .engine = {.model_dir = options_str(&o, OPT_MODEL_PATH),
                   .device = options_str(&o, OPT_DEVICE),
                   .dtype = options_str(&o, OPT_DTYPE),
                   .dummy_weight = options_bool(&o, OPT_DUMMY_WEIGHT) ||
                                   !strcmp(options_str(&o, OPT_LOAD_FORMAT), "dummy"),
                   .rank = (uint32_t)options_int(&o, OPT_RANK),
                   .tp_size = (uint32_t)options_int(&o, OPT_TP_SIZE),
                   .first_device = (uint32_t)options_int(&o, OPT_FIRST_DEVICE),
                   .context_length = (uint32_t)options_int(&o, OPT_CONTEXT_LENGTH),
                   .num_slots = (uint32_t)options_int(&o, OPT_MAX_RUNNING_REQUESTS),
                   .prefill_tokens_max = (int32_t)options_int(&o, OPT_CHUNKED_PREFILL_SIZE),
                   .page_size = (uint32_t)options_int(&o, OPT_PAGE_SIZE),
                   .mem_fraction = options_float(&o, OPT_MEM_FRACTION_STATIC),
                   .comm_store = options_str(&o, OPT_COMM_STORE),
                   .comm_interface = options_str(&o, OPT_DIST_INTERFACE),
                   .dist_timeout_s = options_float(&o, OPT_DIST_TIMEOUT),
                   .null_step_us = (uint32_t)options_int(&o, OPT_NULL_STEP_US),
                   .graphs_off = options_bool(&o, OPT_DISABLE_CUDA_GRAPH),
                   .graph_rows_max = (uint32_t)options_int(&o, OPT_CUDA_GRAPH_MAX_BS),
                   .library_all_reduce = options_bool(&o, OPT_DISABLE_CUSTOM_ALL_REDUCE),
                   .symmetric = options_bool(&o, OPT_ENABLE_SYMM_MEM),
                   .p2p_check = options_bool(&o, OPT_ENABLE_P2P_CHECK)},
    };
    log_init(config.name, log_get_level());
    if (check_options(&o, &err) || bus_security_init(&config.security, &o, &err))
        log_error("%s", err.msg);
    else
        status = worker_run(&config);
    bus_security_fini(&config.security);
    options_fini(&o);
    return status;
}

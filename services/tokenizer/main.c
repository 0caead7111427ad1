#include "common/log.h"
#include "common/options.h"
#include "services/tokenizer/service.h"

int main(int argc, char **argv)
{
    struct options o = {0};
    struct service *service = NULL;
    struct service_config config;
    struct err err = {0};
    int rc;

    options_main(&o, 't', "phalanx-tokenizer", "text to tokens and back, chat templates", argc,
                 argv);
    config = (struct service_config){
        .name = options_str(&o, OPT_NAME)[0] ? options_str(&o, OPT_NAME) : "tokenizer-0",
        .model_dir = options_str(&o, OPT_MODEL_PATH),
        .endpoint = options_str(&o, OPT_TOKENIZER_ENDPOINT),
        .scheduler_endpoint = options_str(&o, OPT_SCHEDULER_ENDPOINT),
        .control_endpoint = options_str(&o, OPT_CONTROL_ENDPOINT),
        .dispatch_policy = options_str(&o, OPT_DISPATCH_POLICY),
        .heartbeat_timeout_s = options_float(&o, OPT_HEARTBEAT_TIMEOUT),
    };
    log_init(config.name, log_get_level());
    if (bus_security_init(&config.security, &o, &err)) {
        log_say("phalanx-tokenizer: %s", err.msg);
        options_fini(&o);
        return 2;
    }
    rc = tokenizer_service_new(&config, &service, &err);
    if (!rc)
        rc = tokenizer_service_run(service, &err);
    if (rc)
        log_error("%s", err.msg);
    tokenizer_service_free(&service);
    bus_security_fini(&config.security);
    options_fini(&o);
    return rc ? 1 : 0;
}

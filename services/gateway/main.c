/* phalanx-gateway: HTTP in front, the tokenizer behind. */
#include "common/log.h"
#include "common/options.h"
#include "services/gateway/gateway.h"

int main(int argc, char **argv)
{
    struct options options;
    struct err err = {0};
    int exit_code;

    options_main(&options, 'g', "phalanx-gateway", "HTTP server of Phalanx", argc, argv);
    if (options_str(&options, OPT_NAME)[0])
        log_init(options_str(&options, OPT_NAME), log_get_level());
    else
        log_init("gateway-0", log_get_level());
    exit_code = gateway_run(&options, &err);
    if (err.code)
        log_say("phalanx-gateway: %s", err.msg);
    options_fini(&options);
    return exit_code;
}

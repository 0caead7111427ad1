/* The tokenizer process: requests from gateways become sequences for the schedulers, tokens from
 * these become text for gateways.
 *
 * Encoding runs on libuv's thread pool, so a huge prompt never delays another request's tokens. */
#ifndef PHALANX_TOKENIZER_SERVICE_H
#define PHALANX_TOKENIZER_SERVICE_H

#include "common/err.h"
#include "proto/bus_key.h"

struct service;

struct service_config {
    const char *name; /* "tokenizer-0" */
    const char *model_dir;
    const char *endpoint;           /* bound for gateways */
    const char *scheduler_endpoint; /* connected to; one a replica, separated by commas */
    const char *control_endpoint;   /* the launcher's; "": there is none */
    const char *dispatch_policy;
    struct bus_security security;
    double heartbeat_timeout_s;
};

/* Loads the model folder's tokenizer and template, opens both buses. */
int tokenizer_service_new(const struct service_config *config, struct service **out,
                          struct err *err);

/* Runs until SIGTERM or SIGINT (0), or until a scheduler refuses us (ERR_PROTOCOL). */
int tokenizer_service_run(struct service *s, struct err *err);
void tokenizer_service_free(struct service **self);

#endif

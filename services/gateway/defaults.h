/* The sampling a request gets that asks for none. */
#ifndef PHALANX_GATEWAY_DEFAULTS_H
#define PHALANX_GATEWAY_DEFAULTS_H

#include "proto/proto.h"

/* The API's own values: temperature 1, everything else off. */
void defaults_init(struct proto_sampling *s);

/* Overrides them with generation_config.json of the model folder, where there is one: temperature,
 * top_p, top_k, min_p, repetition_penalty; "do_sample": false is temperature 0. A value that is no
 * number or out of range is left out, with a log line. */
void defaults_load(const char *model_dir, struct proto_sampling *s);

#endif

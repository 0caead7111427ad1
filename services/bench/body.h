/* The JSON body of a request. */
#ifndef PHALANX_BENCH_BODY_H
#define PHALANX_BENCH_BODY_H

#include "common/buf.h"
#include "services/bench/config.h"

#include <stdint.h>

/* ids: the prompt. A chat takes no ids: each chooses a short English word, of about one token. */
void body_write(const struct bench_config *c, const char *model, const uint32_t *ids,
                uint32_t count, uint32_t output_tokens, struct buf *out);

#endif

/* One streamed reply: bytes of its body in, times and counts out. Knows no sockets. */
#ifndef PHALANX_BENCH_REPLY_H
#define PHALANX_BENCH_REPLY_H

#include "common/buf.h"
#include "services/bench/config.h"
#include "services/bench/results.h"
#include "services/bench/sse.h"

#include <stdbool.h>
#include <stdint.h>

struct reply {
    enum shape shape;
    struct sample *sample; /* borrowed */
    struct sse sse;
    struct buf body;   /* of a reply that is an error */
    uint32_t *gaps_us; /* owned */
    size_t gaps_count, gaps_cap;
    int64_t now_us, last_us;                  /* since the start of the run */
    int64_t prompt_tokens, completion_tokens; /* -1: not said */
    size_t text_len;                          /* of /generate, which repeats the text */
    bool finished, done;
    char reason[REASON_BYTES]; /* why it failed; "" so far */
};

void reply_init(struct reply *r, enum shape shape, struct sample *sample);
void reply_fini(struct reply *r);

/* False: the reply has failed, no more of it is needed. */
bool reply_feed(struct reply *r, int status, const char *data, size_t len, int64_t now_us);

/* The reply is over. reason: NULL when HTTP has it complete; "" when reply_feed said false. Fills
 * the sample and adds it to the results. */
void reply_end(struct reply *r, int status, const char *reason, int64_t now_us,
               struct results *results);

#endif

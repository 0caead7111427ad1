/* What one event of a stream says, read without building a tree.
 *
 * The shapes of /v1/completions, /v1/chat/completions and SGLang's /generate, as OpenAI, vLLM,
 * SGLang and Phalanx write them. Unknown members are skipped. */
#ifndef PHALANX_BENCH_EVENT_H
#define PHALANX_BENCH_EVENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EVENT_DEPTH_MAX 64

struct event {
    size_t text_len;           /* of text, delta.content and reasoning, as written in the JSON */
    int64_t prompt_tokens;     /* -1 when the event does not say */
    int64_t completion_tokens; /* so far; -1 when the event does not say */
    bool finished;             /* a finish_reason that is not null */
    bool aborted;              /* it is "abort" or "error" */
    bool failed;               /* an "error" member, or "object":"error" */
    const char *message;       /* of the error, as written (escapes and all); NULL without one */
    size_t message_len;
};

/* False when data is no JSON object, or nests deeper than EVENT_DEPTH_MAX. */
bool event_read(const char *data, size_t len, struct event *out);

#endif

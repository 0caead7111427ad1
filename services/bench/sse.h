/* Server-sent events: bytes into events, whatever pieces they come in (WHATWG HTML, 9.2). */
#ifndef PHALANX_BENCH_SSE_H
#define PHALANX_BENCH_SSE_H

#include "common/buf.h"
#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>

#define SSE_EVENT_BYTES_MAX (16u << 20)

/* data: of one event, lines joined by '\n'; name: of its "event:" field, "" when it has none. Both
 * NUL-terminated and valid during the call. False: enough, nothing more is read. */
typedef bool sse_event_fn(void *ctx, const char *name, const char *data, size_t len);

struct sse {
    struct buf line; /* unfinished line */
    struct buf data; /* of the unfinished event */
    char name[16];   /* longer names are cut */
    bool has_data;
    bool after_cr;
    bool begun; /* behind a byte order mark, or there was none */
};

/* Zero-initialise, end with sse_fini. */
void sse_fini(struct sse *s);

/* ERR_LIMIT: an event is larger than SSE_EVENT_BYTES_MAX. ERR_BUSY: the callback returned false. */
int sse_feed(struct sse *s, const char *bytes, size_t len, sse_event_fn *on_event, void *ctx);

/* The stream ended in order: an event whose blank line is missing counts. */
int sse_end(struct sse *s, sse_event_fn *on_event, void *ctx);

#endif

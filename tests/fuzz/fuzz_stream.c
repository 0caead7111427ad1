/* A reply's body, in pieces: the first byte says how long a piece is. Pieces must not matter, and
 * what jansson takes as a JSON object the reader of events takes too, with the same numbers. */
#include "services/bench/event.h"
#include "services/bench/reply.h"

#include "common/json.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void check_event(const char *data, size_t len)
{
    json_t *json = NULL;
    json_t *tokens;
    struct event e;
    struct err err;
    bool read = event_read(data, len, &e);

    if (json_parse(data, len, EVENT_DEPTH_MAX - 2, &json, &err))
        return;
    if (read != json_is_object(json))
        abort();
    tokens = json_object_get(json_object_get(json, "usage"), "completion_tokens");
    if (read && !json_object_get(json, "meta_info") && json_is_integer(tokens) &&
        json_integer_value(tokens) > 0 && json_integer_value(tokens) < 1000000000 &&
        e.completion_tokens != json_integer_value(tokens) && !memchr(data, '\\', len))
        abort();
    json_decref(json);
}

static struct sample play(const char *data, size_t len, size_t piece, enum shape shape)
{
    struct sample sample = {.output_asked = 4};
    struct results results;
    struct reply r;
    bool more = true;

    results_init(&results, 1);
    reply_init(&r, shape, &sample);
    for (size_t at = 0; at < len && more; at += piece)
        more = reply_feed(&r, 200, data + at, len - at < piece ? len - at : piece, 1000);
    reply_end(&r, 200, more ? NULL : "", 2000, &results);
    if (sample.outcome == OUTCOME_NONE ||
        (sample.outcome == OUTCOME_FAILED) != results.reasons_count)
        abort();
    reply_fini(&r);
    results_fini(&results);
    return sample;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    const char *data = (const char *)bytes + 1;
    enum shape shape;
    struct sample a, b;

    if (!size)
        return 0;
    shape = bytes[0] & 1 ? SHAPE_GENERATE : SHAPE_COMPLETIONS;
    a = play(data, size - 1, (size_t)(bytes[0] >> 1) + 1, shape);
    b = play(data, size - 1, size, shape);
    if (memcmp(&a, &b, sizeof a) != 0)
        abort();
    check_event(data, size - 1);
    return 0;
}

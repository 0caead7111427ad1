#include "services/tokenizer/detok.h"

#include "common/mem.h"
#include "services/tokenizer/internal.h"

#include <stdlib.h>
#include <string.h>

/* Stop strings are followed byte by byte (Knuth, Morris, Pratt): at any time the state of each is
 * how much of it the text ends with, which is just what has to be held back. */
struct detok_private {
    struct decode_state decode;
    size_t matched[]; /* stops_count states, then the failure tables one after another */
};

static void failure_build(const struct detok_stop *stop, size_t *fail)
{
    size_t k = 0;

    fail[0] = 0;
    for (size_t i = 1; i < stop->len; i++) {
        while (k && stop->text[i] != stop->text[k])
            k = fail[k - 1];
        if (stop->text[i] == stop->text[k])
            k++;
        fail[i] = k;
    }
}

void detok_init(struct detok *d, const struct tokenizer *t, const struct detok_stop *stops,
                size_t stops_count, bool skip_special, bool continues)
{
    size_t total = stops_count, at = stops_count;

    for (size_t i = 0; i < stops_count; i++)
        total += stops[i].len;
    memset(d, 0, sizeof *d);
    d->tokenizer = t;
    d->stops = stops;
    d->stops_count = stops_count;
    d->skip_special = skip_special;
    d->private = mem_zalloc(sizeof *d->private + total * sizeof(size_t));
    for (size_t i = 0; i < stops_count; i++) {
        if (stops[i].len)
            failure_build(&stops[i], d->private->matched + at);
        at += stops[i].len;
    }
    decode_start(t, &d->private->decode, continues);
}

void detok_fini(struct detok *d)
{
    if (d->private)
        buf_fini(&d->private->decode.pending);
    free(d->private);
    buf_fini(&d->held);
    memset(d, 0, sizeof *d);
}

/* Takes one byte of text. Returns the stop string that it completes (the longest), else -1. */
static int stops_feed(struct detok *d, char byte)
{
    size_t *matched = d->private->matched;
    const size_t *fail = matched + d->stops_count;
    int found = -1;

    for (size_t i = 0; i < d->stops_count; i++) {
        const struct detok_stop *stop = &d->stops[i];
        size_t k = matched[i];

        if (!stop->len)
            continue;
        while (k && stop->text[k] != byte)
            k = fail[k - 1];
        if (stop->text[k] == byte)
            k++;
        matched[i] = k;
        if (k == stop->len && (found < 0 || stop->len > d->stops[found].len))
            found = (int)i;
        fail += stop->len;
    }
    return found;
}

static void held_emit(struct detok *d, size_t n, struct buf *out)
{
    buf_append(out, d->held.data, n);
    d->emitted += n;
    buf_consume(&d->held, n);
}

/* Looks for stop strings in what was added to held since from; gives out what is certain. */
static int held_settle(struct detok *d, size_t from, bool last, struct buf *out)
{
    size_t keep = 0;

    for (size_t i = from; i < d->held.len; i++) {
        int found = stops_feed(d, d->held.data[i]);

        if (found >= 0) {
            held_emit(d, i + 1 - d->stops[found].len, out);
            buf_clear(&d->held);
            d->stopped = true;
            return found;
        }
    }
    for (size_t i = 0; i < d->stops_count && !last; i++)
        if (d->private->matched[i] > keep)
            keep = d->private->matched[i];
    if (d->held.len > keep)
        held_emit(d, d->held.len - keep, out);
    return -1;
}

int detok_push(struct detok *d, const uint32_t *ids, size_t count, struct buf *out)
{
    size_t from = d->held.len;

    if (d->stopped)
        return -1;
    decode_push(d->tokenizer, &d->private->decode, ids, count, d->skip_special, &d->held);
    return held_settle(d, from, false, out);
}

void detok_finish(struct detok *d, struct buf *out)
{
    size_t from = d->held.len;

    if (d->stopped)
        return;
    decode_end(d->tokenizer, &d->private->decode, &d->held);
    (void)held_settle(d, from, true, out);
    d->stopped = true;
}

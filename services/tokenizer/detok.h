/* Streaming detokenizer of one sequence: ids in, text out as soon as it is certain.
 *
 * The pieces put together equal tokenizer_decode of all ids (up to the stop string), whatever the
 * pieces' borders. Held back: bytes of an incomplete UTF-8 sequence, text that may turn out to be
 * the start of a stop string. At the end nothing held is lost: incomplete bytes become U+FFFD. */
#ifndef PHALANX_TOKENIZER_DETOK_H
#define PHALANX_TOKENIZER_DETOK_H

#include "services/tokenizer/tokenizer.h"

struct detok_stop {
    const char *text; /* borrowed for the detok's life; len >= 1 */
    size_t len;
};

struct detok_private;

struct detok {
    const struct tokenizer *tokenizer;
    const struct detok_stop *stops; /* borrowed */
    size_t stops_count;
    bool skip_special;
    bool stopped;                  /* a stop string was completed, or detok_finish was called */
    struct buf held;               /* text not yet given out: it may start a stop string */
    size_t emitted;                /* bytes given out so far */
    struct detok_private *private; /* owned: decoder and stop string states */
};

/* continues: the text goes on after a prompt (a leading space of the first token is kept, as
 * decode(prompt + ids) minus decode(prompt) gives). */
void detok_init(struct detok *d, const struct tokenizer *t, const struct detok_stop *stops,
                size_t stops_count, bool skip_special, bool continues);
void detok_fini(struct detok *d);

/* Feeds ids; appends text that is certain to out (valid UTF-8). Returns the index of the stop
 * string that was completed (text from it on is dropped, later pushes give nothing), else -1. The
 * stop string that is complete first counts, of those the longest. */
int detok_push(struct detok *d, const uint32_t *ids, size_t count, struct buf *out);

/* End of the sequence: appends what was held. */
void detok_finish(struct detok *d, struct buf *out);

#endif

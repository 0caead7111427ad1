/* Chunks on their way to gateways: gathered while one message of a scheduler is worked on, one
 * CHUNKS message for each gateway. */
#ifndef PHALANX_TOKENIZER_CHUNKS_H
#define PHALANX_TOKENIZER_CHUNKS_H

#include "common/buf.h"
#include "proto/bus.h"
#include "services/tokenizer/tokenizer.h"

struct outbox {
    struct bus_peer *gateway;
    struct proto_chunk *chunks; /* owned, with what they point to but stop_text */
    uint32_t count, cap;
    struct outbox *next;
};

/* A new chunk, zeroed, for that gateway. Valid until the next one. */
struct proto_chunk *outbox_add(struct outbox **list, struct bus_peer *gateway);

/* Frees the first of the list. */
void outbox_drop(struct outbox **list);

/* Hands the text over. */
void chunk_take_text(struct proto_chunk *c, struct buf *text);

/* The token's log probabilities, when there are any, with the bytes of the tokens. */
void chunk_set_logprob(struct proto_chunk *c, const struct tokenizer *t,
                       const struct proto_token *token);

/* Log probabilities of tokens of the prompt. first: the prompt's first token, which follows nothing
 * and goes before them; NULL: they go on. */
void chunk_set_prompt_logprobs(struct proto_chunk *c, const struct tokenizer *t,
                               const uint32_t *first, const struct proto_logprob *list,
                               uint32_t count);

#endif

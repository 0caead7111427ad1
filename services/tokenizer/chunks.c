#include "services/tokenizer/chunks.h"

#include "common/mem.h"

#include <stdlib.h>
#include <string.h>

#define TOKEN_TEXT_MAX 1024 /* as in proto/messages.def */

struct proto_chunk *outbox_add(struct outbox **list, struct bus_peer *gateway)
{
    struct outbox *box = *list;

    while (box && box->gateway != gateway)
        box = box->next;
    if (!box) {
        box = mem_zalloc(sizeof *box);
        box->gateway = gateway;
        box->next = *list;
        *list = box;
    }
    if (box->count == box->cap) {
        box->cap = box->cap ? box->cap * 2 : 64;
        box->chunks = mem_resize(box->chunks, box->cap, sizeof *box->chunks);
    }
    memset(&box->chunks[box->count], 0, sizeof *box->chunks);
    return &box->chunks[box->count++];
}

/* Owned bytes; nothing is owned when there are none. */
static struct proto_str text_take(struct buf *b)
{
    struct proto_str text = {b->data, b->len};

    if (!b->len) {
        buf_fini(b);
        return proto_str("");
    }
    memset(b, 0, sizeof *b);
    return text;
}

void chunk_take_text(struct proto_chunk *c, struct buf *text)
{
    c->text = text_take(text);
}

static struct proto_str token_text(const struct tokenizer *t, uint32_t id)
{
    struct buf b = {0};

    tokenizer_token_bytes(t, id, &b);
    if (b.len > TOKEN_TEXT_MAX)
        b.len = TOKEN_TEXT_MAX;
    return text_take(&b);
}

/* One of the scheduler's log probabilities with the tokens' bytes. */
static void logprob_take(const struct tokenizer *t, const struct proto_logprob *from,
                         struct proto_logprob *to)
{
    *to = (struct proto_logprob){.id = from->id, .logprob = from->logprob};
    to->text = token_text(t, from->id);
    to->top = mem_array(from->top_count, sizeof *to->top);
    to->top_count = from->top_count;
    for (uint32_t i = 0; i < from->top_count; i++) {
        to->top[i] = from->top[i];
        to->top[i].text = token_text(t, from->top[i].id);
    }
}

void chunk_set_logprob(struct proto_chunk *c, const struct tokenizer *t,
                       const struct proto_token *token)
{
    if (!token->logprob_count)
        return;
    c->logprobs = mem_array(1, sizeof *c->logprobs);
    c->logprobs_count = 1;
    logprob_take(t, token->logprob, c->logprobs);
}

void chunk_set_prompt_logprobs(struct proto_chunk *c, const struct tokenizer *t,
                               const uint32_t *first, const struct proto_logprob *list,
                               uint32_t count)
{
    uint32_t n = 0;

    c->prompt_logprobs = mem_array((size_t)count + 1, sizeof *c->prompt_logprobs);
    if (first)
        logprob_take(t, &(struct proto_logprob){.id = *first}, &c->prompt_logprobs[n++]);
    for (uint32_t i = 0; i < count; i++)
        logprob_take(t, &list[i], &c->prompt_logprobs[n++]);
    c->prompt_logprobs_count = n;
}

static void free_str(struct proto_str s)
{
    if (s.len)
        free((void *)(uintptr_t)s.data);
}

static void logprobs_free(struct proto_logprob *list, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        free_str(list[i].text);
        for (uint32_t k = 0; k < list[i].top_count; k++)
            free_str(list[i].top[k].text);
        free(list[i].top);
    }
    free(list);
}

static void chunk_fini(struct proto_chunk *c)
{
    free_str(c->text);
    free(c->ids);
    logprobs_free(c->logprobs, c->logprobs_count);
    logprobs_free(c->prompt_logprobs, c->prompt_logprobs_count);
}

void outbox_drop(struct outbox **list)
{
    struct outbox *box = *list;

    for (uint32_t i = 0; i < box->count; i++)
        chunk_fini(&box->chunks[i]);
    *list = box->next;
    free(box->chunks);
    free(box);
}

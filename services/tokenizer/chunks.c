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

void chunk_set_logprob(struct proto_chunk *c, const struct tokenizer *t,
                       const struct proto_token *token)
{
    const struct proto_logprob *from = token->logprob;
    struct proto_logprob *to;

    if (!token->logprob_count)
        return;
    to = mem_zalloc(sizeof *to);
    to->id = from->id;
    to->logprob = from->logprob;
    to->text = token_text(t, from->id);
    to->top = mem_array(from->top_count, sizeof *to->top);
    to->top_count = from->top_count;
    for (uint32_t i = 0; i < from->top_count; i++) {
        to->top[i] = from->top[i];
        to->top[i].text = token_text(t, from->top[i].id);
    }
    c->logprobs = to;
    c->logprobs_count = 1;
}

static void free_str(struct proto_str s)
{
    if (s.len)
        free((void *)(uintptr_t)s.data);
}

static void chunk_fini(struct proto_chunk *c)
{
    free_str(c->text);
    free(c->ids);
    for (uint32_t i = 0; i < c->logprobs_count; i++) {
        free_str(c->logprobs[i].text);
        for (uint32_t k = 0; k < c->logprobs[i].top_count; k++)
            free_str(c->logprobs[i].top[k].text);
        free(c->logprobs[i].top);
    }
    free(c->logprobs);
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

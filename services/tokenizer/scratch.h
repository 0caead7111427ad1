/* What encode writes to, and the cache of words. */
#ifndef PHALANX_TOKENIZER_SCRATCH_H
#define PHALANX_TOKENIZER_SCRATCH_H

#include "services/tokenizer/internal.h"

#include <string.h>

#define CACHE_ENTRIES 16384
#define CACHE_WORD_MAX 29
#define CACHE_IDS_MAX 8

struct cache_entry {
    uint8_t len, count; /* len 0: empty */
    char word[CACHE_WORD_MAX + 1];
    uint32_t ids[CACHE_IDS_MAX];
};

static inline void cache_store(struct cache_entry *entry, const char *word, size_t len,
                               const uint32_t *ids, size_t count)
{
    if (!len || count > CACHE_IDS_MAX)
        return;
    entry->len = (uint8_t)len;
    entry->count = (uint8_t)count;
    memcpy(entry->word, word, len);
    if (count)
        memcpy(entry->ids, ids, count * sizeof *ids);
}

struct scratch *scratch_take(const struct tokenizer *t);
void scratch_give(const struct tokenizer *t, struct scratch *c);
void scratch_free(struct scratch *c);

static inline void scratch_copy(struct scratch *c, const uint32_t *ids, size_t count)
{
    if (c->out->cap - c->out->len < count || c->out_max - c->out->len < count) {
        for (size_t i = 0; i < count; i++)
            scratch_push(c, ids[i]);
        return;
    }
    for (size_t i = 0; i < count; i++)
        c->out->data[c->out->len + i] = ids[i];
    c->out->len += count;
}

#endif

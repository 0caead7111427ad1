#include "proto/arena.h"

#include "common/mem.h"

#include <stdlib.h>
#include <string.h>

#define ARENA_BLOCK 16384
#define ARENA_KEEP_MAX 1048576 /* a larger block is not kept for reuse */
#define ARENA_ALIGN 16

struct proto_block {
    struct proto_block *next;
    size_t size; /* of data */
    size_t used;
    _Alignas(ARENA_ALIGN) char data[];
};

void *arena_take(struct proto_arena *a, size_t size)
{
    const size_t padded = (size + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    struct proto_block *b = a->blocks;
    if (!b || b->size - b->used < padded) {
        const size_t space = padded > ARENA_BLOCK ? padded : ARENA_BLOCK;
        b = mem_alloc(sizeof(*b) + space);
        b->size = space;
        b->used = 0;
        b->next = a->blocks;
        a->blocks = b;
        a->bytes += space;
    }
    void *at = b->data + b->used;
    b->used += padded;
    memset(at, 0, padded);
    return at;
}

void proto_arena_clear(struct proto_arena *a)
{
    struct proto_block *keep = NULL;
    for (struct proto_block *b = a->blocks, *next; b; b = next) {
        next = b->next;
        if (!keep && b->size <= ARENA_KEEP_MAX)
            keep = b;
        else
            free(b);
    }
    if (keep) {
        keep->next = NULL;
        keep->used = 0;
    }
    a->blocks = keep;
    a->bytes = keep ? keep->size : 0;
}

void proto_arena_fini(struct proto_arena *a)
{
    for (struct proto_block *b = a->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    *a = (struct proto_arena){0};
}

char *proto_strdup(struct proto_str s)
{
    return mem_strndup(s.len > 0 ? s.data : "", s.len);
}

#include "services/tokenizer/template/arena.h"

#include "common/mem.h"

#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_MIN = 16 * 1024, CHUNK_MAX = 1024 * 1024 };

struct arena_chunk {
    struct arena_chunk *next;
    size_t used, size;
    alignas(max_align_t) char data[];
};

static size_t align_up(size_t size)
{
    const size_t mask = alignof(max_align_t) - 1;

    return (size + mask) & ~mask;
}

static struct arena_chunk *chunk_add(struct arena *a, size_t size)
{
    size_t next = a->chunks ? a->chunks->size * 2 : CHUNK_MIN;
    struct arena_chunk *chunk;

    if (next > CHUNK_MAX)
        next = CHUNK_MAX;
    if (next < size)
        next = size;
    chunk = mem_alloc(sizeof *chunk + next);
    chunk->next = a->chunks;
    chunk->used = 0;
    chunk->size = next;
    a->chunks = chunk;
    return chunk;
}

void *arena_alloc(struct arena *a, size_t size)
{
    struct arena_chunk *chunk = a->chunks;
    void *p;

    size = align_up(size ? size : 1);
    if (!chunk || chunk->size - chunk->used < size)
        chunk = chunk_add(a, size);
    p = chunk->data + chunk->used;
    chunk->used += size;
    a->used += size;
    return p;
}

void *arena_zalloc(struct arena *a, size_t size)
{
    return memset(arena_alloc(a, size), 0, size);
}

void *arena_grow(struct arena *a, void *old, size_t old_size, size_t size)
{
    struct arena_chunk *chunk = a->chunks;
    size_t have = align_up(old_size ? old_size : 1), want = align_up(size);
    char *p = old;

    if (old && p + have == chunk->data + chunk->used && want >= have &&
        chunk->size - chunk->used >= want - have) {
        chunk->used += want - have;
        a->used += want - have;
        return old;
    }
    p = arena_alloc(a, size);
    if (old)
        memcpy(p, old, old_size);
    return p;
}

char *arena_copy(struct arena *a, const char *data, size_t len)
{
    char *p = arena_alloc(a, len + 1);

    if (len)
        memcpy(p, data, len);
    p[len] = '\0';
    return p;
}

void arena_fini(struct arena *a)
{
    struct arena_chunk *chunk = a->chunks;

    while (chunk) {
        struct arena_chunk *next = chunk->next;

        free(chunk);
        chunk = next;
    }
    memset(a, 0, sizeof *a);
}

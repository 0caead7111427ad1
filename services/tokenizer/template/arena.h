/* Memory that is freed as a whole: a parsed template owns one, every render another. */
#ifndef PHALANX_TOKENIZER_TEMPLATE_ARENA_H
#define PHALANX_TOKENIZER_TEMPLATE_ARENA_H

#include <stddef.h>

struct arena_chunk;

struct arena {
    struct arena_chunk *chunks;
    size_t used; /* bytes given out; the owner compares it with a limit */
};

/* Never NULL; aligned for any type; uninitialised. The caller has bounded size. */
void *arena_alloc(struct arena *a, size_t size);
void *arena_zalloc(struct arena *a, size_t size);

/* A larger copy of old (old_size bytes of it); in place when old was the last allocation. */
void *arena_grow(struct arena *a, void *old, size_t old_size, size_t size);
char *arena_copy(struct arena *a, const char *data, size_t len); /* adds a NUL */
void arena_fini(struct arena *a);

#endif

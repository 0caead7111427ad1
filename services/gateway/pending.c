#include "services/gateway/pending.h"

#include "common/mem.h"

#include <stdlib.h>
#include <string.h>

/* Ids come in order, so that a multiplication spreads them well enough. */
static size_t home_of(const struct pending *p, uint64_t rid)
{
    return (size_t)((rid * 0x9e3779b97f4a7c15u) >> 32) & (p->cap - 1);
}

void pending_fini(struct pending *p)
{
    free(p->entries);
    memset(p, 0, sizeof *p);
}

static void insert(struct pending *p, struct pending_entry entry)
{
    size_t i = home_of(p, entry.rid);

    while (p->entries[i].rid)
        i = (i + 1) & (p->cap - 1);
    p->entries[i] = entry;
    p->count++;
}

static void grow(struct pending *p)
{
    struct pending old = *p;

    p->cap = old.cap ? old.cap * 2 : 64;
    p->count = 0;
    p->entries = mem_array(p->cap, sizeof *p->entries);
    for (size_t i = 0; i < old.cap; i++)
        if (old.entries[i].rid)
            insert(p, old.entries[i]);
    free(old.entries);
}

void pending_put(struct pending *p, uint64_t rid, struct call *call, uint32_t part)
{
    if (p->count * 4 >= p->cap * 3)
        grow(p);
    insert(p, (struct pending_entry){.rid = rid, .call = call, .part = part});
}

static size_t slot_of(const struct pending *p, uint64_t rid)
{
    size_t i;

    if (!p->cap || !rid)
        return SIZE_MAX;
    for (i = home_of(p, rid); p->entries[i].rid; i = (i + 1) & (p->cap - 1))
        if (p->entries[i].rid == rid)
            return i;
    return SIZE_MAX;
}

const struct pending_entry *pending_find(const struct pending *p, uint64_t rid)
{
    size_t i = slot_of(p, rid);

    return i == SIZE_MAX ? NULL : &p->entries[i];
}

/* Entries behind the gap move up when the gap lies between their home and them. */
void pending_remove(struct pending *p, uint64_t rid)
{
    size_t gap = slot_of(p, rid), mask = p->cap - 1;

    if (gap == SIZE_MAX)
        return;
    for (size_t i = (gap + 1) & mask; p->entries[i].rid; i = (i + 1) & mask) {
        size_t home = home_of(p, p->entries[i].rid);

        if (((i - home) & mask) >= ((i - gap) & mask)) {
            p->entries[gap] = p->entries[i];
            gap = i;
        }
    }
    memset(&p->entries[gap], 0, sizeof p->entries[gap]);
    p->count--;
}

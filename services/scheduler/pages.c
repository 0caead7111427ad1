#include "services/scheduler/pages.h"

#include "common/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void pages_init(struct pages *p, uint32_t total)
{
    /* Untouched until pages come back: a large pool costs no resident memory by itself. */
    *p = (struct pages){.freed = mem_array(total, sizeof *p->freed), .total = total};
}

void pages_fini(struct pages *p)
{
    free(p->freed);
    *p = (struct pages){0};
}

uint32_t pages_free_count(const struct pages *p)
{
    return p->freed_count + (p->total - p->fresh);
}

bool pages_promise(struct pages *p, uint32_t count)
{
    if (count > pages_free_count(p) - p->promised)
        return false;
    p->promised += count;
    return true;
}

uint32_t pages_take(struct pages *p)
{
    assert(p->promised > 0);
    p->promised--;
    return p->freed_count ? p->freed[--p->freed_count] : p->fresh++;
}

void pages_return(struct pages *p, const uint32_t *pages, uint32_t count, uint32_t unused)
{
    assert(unused <= p->promised && count <= p->fresh - p->freed_count);
    if (count)
        memcpy(p->freed + p->freed_count, pages, count * sizeof *pages);
    p->freed_count += count;
    p->promised -= unused;
}

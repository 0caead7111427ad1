#include "services/scheduler/pages.h"

#include "common/mem.h"

#include <assert.h>
#include <stdlib.h>

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

uint32_t pages_take(struct pages *p)
{
    assert(pages_free_count(p) > 0);
    return p->freed_count ? p->freed[--p->freed_count] : p->fresh++;
}

void pages_return(struct pages *p, uint32_t page)
{
    assert(page < p->fresh && p->freed_count < p->fresh);
    p->freed[p->freed_count++] = page;
}

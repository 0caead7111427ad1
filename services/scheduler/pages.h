/* The pool of KV pages that belong to nobody. */
#ifndef PHALANX_SCHEDULER_PAGES_H
#define PHALANX_SCHEDULER_PAGES_H

#include <stdint.h>

struct pages {
    uint32_t *freed; /* stack of pages that came back */
    uint32_t freed_count;
    uint32_t fresh; /* pages fresh .. total - 1 were never taken */
    uint32_t total;
};

void pages_init(struct pages *p, uint32_t total);
void pages_fini(struct pages *p);

uint32_t pages_free_count(const struct pages *p);

/* There must be a free one. */
uint32_t pages_take(struct pages *p);
void pages_return(struct pages *p, uint32_t page);

#endif

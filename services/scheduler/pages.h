/* The pool of KV pages: which are free, and how many of those are promised.
 *
 * A sequence is promised all the pages that it may need when it starts and takes them one by one
 * as it grows. What is not promised can be promised to the next. */
#ifndef PHALANX_SCHEDULER_PAGES_H
#define PHALANX_SCHEDULER_PAGES_H

#include <stdbool.h>
#include <stdint.h>

struct pages {
    uint32_t *freed; /* stack of pages that came back */
    uint32_t freed_count;
    uint32_t fresh; /* pages fresh .. total - 1 were never taken */
    uint32_t total;
    uint32_t promised; /* of the free ones */
};

void pages_init(struct pages *p, uint32_t total);
void pages_fini(struct pages *p);

uint32_t pages_free_count(const struct pages *p);

/* False when fewer than count are free and not promised. */
bool pages_promise(struct pages *p, uint32_t count);

/* Takes one page of a promise. */
uint32_t pages_take(struct pages *p);

/* Gives back count pages, and a promise of `unused` more that were not taken. */
void pages_return(struct pages *p, const uint32_t *pages, uint32_t count, uint32_t unused);

#endif

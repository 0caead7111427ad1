/* Request ids of the bus and whose they are: open addressing, ids never 0. */
#ifndef PHALANX_GATEWAY_PENDING_H
#define PHALANX_GATEWAY_PENDING_H

#include <stddef.h>
#include <stdint.h>

struct call;

struct pending_entry {
    uint64_t rid; /* 0: free */
    struct call *call;
    uint32_t part;
};

struct pending {
    struct pending_entry *entries; /* owned */
    size_t cap;                    /* 0 or a power of two */
    size_t count;
};

void pending_fini(struct pending *p);
void pending_put(struct pending *p, uint64_t rid, struct call *call, uint32_t part);
/* NULL when there is none. Valid until the next put or remove. */
const struct pending_entry *pending_find(const struct pending *p, uint64_t rid);
void pending_remove(struct pending *p, uint64_t rid);

#endif

/* Which replica takes a request: a table of policies (dispatch.c), one file each. No sockets. */
#ifndef PHALANX_TOKENIZER_DISPATCH_H
#define PHALANX_TOKENIZER_DISPATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DISPATCH_REPLICAS_MAX 32

struct dispatch_replica {
    bool ready;
    uint32_t load; /* sequences that run or wait there, as far as is known */
};

struct dispatch_policy {
    const char *name;
    /* What the policy remembers, NULL: nothing. */
    void *(*new)(void);
    void (*free)(void *state);
    /* The index of a replica that is ready; at least one is. */
    uint32_t (*choose)(void *state, const struct dispatch_replica *replicas, uint32_t count,
                       const uint32_t *prompt, size_t prompt_count);
    /* The replica went away, and with it what it had computed. */
    void (*lost)(void *state, uint32_t replica);
};

/* NULL when there is no policy of that name. */
const struct dispatch_policy *dispatch_find(const char *name);

/* The ready replica with the least load; the first from `from` on among equals. */
uint32_t dispatch_least(const struct dispatch_replica *replicas, uint32_t count, uint32_t from);

#endif

/* The replica with the fewest sequences, in turn among equals. */
#include "services/tokenizer/dispatch.h"

#include "common/mem.h"

#include <stdlib.h>

static void *turn_new(void)
{
    return mem_zalloc(sizeof(uint32_t));
}

static uint32_t choose(void *state, const struct dispatch_replica *replicas, uint32_t count,
                       const uint32_t *prompt, size_t prompt_count)
{
    uint32_t *next = state;
    uint32_t at = dispatch_least(replicas, count, *next);

    (void)prompt;
    (void)prompt_count;
    *next = (at + 1) % count;
    return at;
}

static void lost(void *state, uint32_t replica)
{
    (void)state;
    (void)replica;
}

extern const struct dispatch_policy dispatch_least_load;
const struct dispatch_policy dispatch_least_load = {
    .name = "least_load", .new = turn_new, .free = free, .choose = choose, .lost = lost};

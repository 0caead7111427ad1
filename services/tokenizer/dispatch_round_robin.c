/* Replicas in turn, whatever they have to do. */
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
    uint32_t *next = state, at = *next % count;

    (void)prompt;
    (void)prompt_count;
    while (!replicas[at].ready)
        at = (at + 1) % count;
    *next = at + 1;
    return at;
}

static void lost(void *state, uint32_t replica)
{
    (void)state;
    (void)replica;
}

extern const struct dispatch_policy dispatch_round_robin;
const struct dispatch_policy dispatch_round_robin = {
    .name = "round_robin", .new = turn_new, .free = free, .choose = choose, .lost = lost};

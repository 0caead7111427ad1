#include "services/tokenizer/dispatch.h"

#include <string.h>

extern const struct dispatch_policy dispatch_round_robin, dispatch_least_load,
    dispatch_prefix_aware;

static const struct dispatch_policy *const policies[] = {
    &dispatch_prefix_aware,
    &dispatch_least_load,
    &dispatch_round_robin,
};

const struct dispatch_policy *dispatch_find(const char *name)
{
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++)
        if (!strcmp(policies[i]->name, name))
            return policies[i];
    return NULL;
}

uint32_t dispatch_least(const struct dispatch_replica *replicas, uint32_t count, uint32_t from)
{
    uint32_t best = count;

    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = (from + i) % count;

        if (replicas[at].ready && (best == count || replicas[at].load < replicas[best].load))
            best = at;
    }
    return best;
}

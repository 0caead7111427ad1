#include "services/scheduler/policy.h"

#include <string.h>

static const struct policy *const policies[] = {
    &policy_fcfs,
};

const struct policy *policy_find(const char *name)
{
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++)
        if (strcmp(policies[i]->name, name) == 0)
            return policies[i];
    return NULL;
}

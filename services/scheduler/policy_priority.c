/* The highest priority first, among equals first come, first served. */
#include "services/scheduler/policy.h"

const struct policy policy_priority = {
    .name = "priority",
    .priorities = true,
    .next = queue_first,
};

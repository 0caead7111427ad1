/* First come, first served. */
#include "services/scheduler/policy.h"

const struct policy policy_fcfs = {
    .name = "fcfs",
    .next = queue_first,
};

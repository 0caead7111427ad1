/* How often something may be started again: at most RESTARTS_MAX times within RESTARTS_US. */
#ifndef PHALANX_LAUNCHER_RESTARTS_H
#define PHALANX_LAUNCHER_RESTARTS_H

#include <stdbool.h>
#include <stdint.h>

#define RESTARTS_MAX 5
#define RESTARTS_US 60000000

struct restarts {
    int64_t at_us[RESTARTS_MAX]; /* the last ones, a ring */
    uint64_t count;              /* since the start */
};

/* Takes one; false when there were too many. */
bool restarts_take(struct restarts *r, int64_t now_us);

#endif

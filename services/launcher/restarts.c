#include "services/launcher/restarts.h"

bool restarts_take(struct restarts *r, int64_t now_us)
{
    int64_t *oldest = &r->at_us[r->count % RESTARTS_MAX];

    if (r->count >= RESTARTS_MAX && now_us - *oldest < RESTARTS_US)
        return false;
    *oldest = now_us;
    r->count++;
    return true;
}

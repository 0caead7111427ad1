#include "kernels/cpu/cpu.h"

#include <string.h>

static const struct comm_kind *const comms[] = {
    &comm_gloo,
};

const struct comm_kind *comm_find(const char *name)
{
    for (size_t i = 0; i < sizeof comms / sizeof *comms; i++)
        if (!strcmp(comms[i]->name, name))
            return comms[i];
    return NULL;
}

#include "kernels/backends.h"
#include "services/worker/engine.h"

#include <string.h>

extern const struct engine_kind engine_cpu, engine_cuda, engine_null;

static const struct engine_kind *const engines[] = {&engine_cpu, &engine_cuda, &engine_null};

const struct engine_kind *engine_find(const char *device)
{
    const struct ops *ops;
    struct err err;

    if (!strcmp(device, "auto"))
        device = backend_load("cuda", &ops, &err) ? "cpu" : "cuda";
    for (size_t i = 0; i < sizeof engines / sizeof *engines; i++)
        if (!strcmp(engines[i]->device, device))
            return engines[i];
    return NULL;
}

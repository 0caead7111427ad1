#include "tests/kernels/support.h"

#include "common/mem.h"

#include <dlfcn.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

const struct ops *backend_open(const char *name)
{
    char dir[PATH_MAX - 64], path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", dir, sizeof dir - 1);
    const struct ops *(*entry)(void);
    void *object, *symbol;

    if (n < 0)
        return NULL;
    dir[n] = '\0';
    *strrchr(dir, '/') = '\0';
    (void)snprintf(path, sizeof path, "%s/../../lib/libphalanx-%s.so", dir, name);
    object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    symbol = object ? dlsym(object, "phalanx_backend") : NULL;
    if (!symbol) {
        (void)fprintf(stderr, "%s\n", dlerror());
        return NULL;
    }
    memcpy(&entry, &symbol, sizeof entry);
    return entry();
}

/* splitmix64 (Steele, Lea, Flood 2014) */
static uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

uint32_t random_below(uint64_t *state, uint32_t n)
{
    return (uint32_t)((random_next(state) >> 32) * n >> 32);
}

float random_exact(uint64_t *state)
{
    return ((float)random_below(state, 255) - 127.0f) / 128.0f;
}

float *random_array(uint64_t *state, size_t n, float scale)
{
    float *x = mem_array(n, sizeof *x);

    for (size_t i = 0; i < n; i++)
        x[i] = random_exact(state) * scale;
    return x;
}

double relative_error(const float *a, const float *b, size_t n)
{
    double apart = 0.0, size = 0.0;

    for (size_t i = 0; i < n; i++) {
        double x = (double)a[i] - (double)b[i];

        apart += x * x;
        size += (double)b[i] * (double)b[i];
    }
    if (!isfinite(apart) || !isfinite(size))
        return INFINITY;
    return size > 0.0 ? sqrt(apart / size) : sqrt(apart);
}

double now_s(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bool slow(void)
{
    return getenv("SANITIZE") != NULL;
}

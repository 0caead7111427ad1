#include "services/bench/random.h"

#include <math.h>

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

void random_init(struct random *r, uint64_t seed, uint64_t stream)
{
    r->state = mix(mix(seed + 0x9e3779b97f4a7c15ull) ^ (stream * 0xd1342543de82ef95ull));
}

uint64_t random_u64(struct random *r)
{
    r->state += 0x9e3779b97f4a7c15ull;
    return mix(r->state);
}

uint32_t random_below(struct random *r, uint32_t n)
{
    return (uint32_t)(((random_u64(r) >> 32) * n) >> 32);
}

double random_exponential(struct random *r)
{
    return -log1p(-(double)(random_u64(r) >> 11) * 0x1p-53);
}

/* Random numbers that are a function of (seed, stream): SplitMix64 (Steele, Lea, Flood 2014). */
#ifndef PHALANX_BENCH_RANDOM_H
#define PHALANX_BENCH_RANDOM_H

#include <stdint.h>

struct random {
    uint64_t state;
};

/* Streams of one seed are independent: a request's prompt does not depend on who came before. */
void random_init(struct random *r, uint64_t seed, uint64_t stream);
uint64_t random_u64(struct random *r);
uint32_t random_below(struct random *r, uint32_t n); /* uniform in [0, n), n > 0 */
double random_exponential(struct random *r);         /* mean 1 */

#endif

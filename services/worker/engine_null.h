/* The device without a model: token i of a request is a fixed function of its seed and i, so that
 * lost, repeated and crossed tokens show. */
#ifndef PHALANX_WORKER_ENGINE_NULL_H
#define PHALANX_WORKER_ENGINE_NULL_H

#include <stdint.h>

/* Without a config.json. */
#define NULL_VOCAB_SIZE 32000
#define NULL_CONTEXT_LENGTH 32768

/* Token i (0: the first generated one): splitmix64(seed + (i + 1) * 0x9e3779b97f4a7c15) modulo the
 * vocab_size - eos_count ids that are no end ids, counted in rising order. eos_ids rise.
 *
 * seed is the sequence's: choice i of a request has the request's "seed" + i. So a client that
 * gives a seed and asks for "return_token_ids" knows each id that has to come;
 * tests/bench/streams.c and tests/integration/test_scale.py do. */
uint32_t null_token(uint64_t seed, uint32_t i, uint32_t vocab_size, const uint32_t *eos_ids,
                    uint32_t eos_count);

#endif

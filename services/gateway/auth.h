/* The API key. */
#ifndef PHALANX_GATEWAY_AUTH_H
#define PHALANX_GATEWAY_AUTH_H

#include <stdbool.h>
#include <stddef.h>

/* True when value (of the Authorization field; may be NULL) is "Bearer <key>". The time depends on
 * the lengths alone, not on where the texts differ. */
bool auth_matches(const char *value, size_t len, const char *key);

#endif

/* The HTTP side's bounds as constants (services/gateway/limits.def). */
#ifndef PHALANX_GATEWAY_LIMITS_H
#define PHALANX_GATEWAY_LIMITS_H

enum {
#define HTTP_LIMIT(NAME, value, what) NAME = value,
#include "services/gateway/limits.def"
#undef HTTP_LIMIT
};

#endif

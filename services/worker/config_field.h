/* Fields of config.json, checked: every error names the field, the value and the range. */
#ifndef PHALANX_WORKER_CONFIG_FIELD_H
#define PHALANX_WORKER_CONFIG_FIELD_H

#include "common/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* The value, or NULL when the key is missing or null. */
json_t *config_field_get(const json_t *object, const char *key);

/* An integer in low .. high; a missing one is `missing`, or an error when missing < 0. */
int config_field_u32(const json_t *object, const char *key, int64_t missing, uint32_t low,
                     uint32_t high, uint32_t *out, struct err *err);

/* A number in low .. high; a missing one is `missing`, or an error when that is NaN. */
int config_field_f64(const json_t *object, const char *key, double missing, double low, double high,
                     double *out, struct err *err);

int config_field_bool(const json_t *object, const char *key, bool missing, bool *out,
                      struct err *err);

#endif

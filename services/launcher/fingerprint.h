/* What a model folder holds, as a number: two nodes that have the same one serve the same model. */
#ifndef PHALANX_LAUNCHER_FINGERPRINT_H
#define PHALANX_LAUNCHER_FINGERPRINT_H

#include "common/err.h"

#include <stdbool.h>
#include <stdint.h>

/* Hash of config.json, tokenizer.json and, with weights, of each *.safetensors' name, size and
 * header (names, types, shapes and places of the tensors; not their values, which would take
 * minutes to read). Files that are not there count as such. */
int model_fingerprint(const char *path, bool weights, uint64_t *out, struct err *err);

#endif

/* What tests want to know of an engine that runs a model. */
#ifndef PHALANX_WORKER_ENGINE_MODEL_H
#define PHALANX_WORKER_ENGINE_MODEL_H

#include "services/worker/engine.h"

/* Logits of result i of the last step: this rank's share, ids *begin .. *begin + *count - 1. NULL
 * where the backend keeps none. */
const float *engine_model_logits(struct engine *e, uint32_t i, uint32_t *begin, uint32_t *count);

/* Bytes of tensor data read from files. */
uint64_t engine_model_bytes_read(const struct engine *e);

#endif

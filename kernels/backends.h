/* Finds and loads backends. */
#ifndef PHALANX_KERNELS_BACKENDS_H
#define PHALANX_KERNELS_BACKENDS_H

#include "kernels/ops.h"

/* Loads libphalanx-<name>.so from ../lib or ../lib/phalanx beside the running executable. "auto"
 * takes the first of the table that loads and has a device. ERR_NOT_FOUND or ERR_UNSUPPORTED in one
 * line. The object stays loaded. */
int backend_load(const char *name, const struct ops **out, struct err *err);

#endif

/* Files. Every error message carries the path. */
#ifndef PHALANX_COMMON_FILE_H
#define PHALANX_COMMON_FILE_H

#include "common/buf.h"
#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>

/* Appends the whole file to out. ERR_NOT_FOUND, ERR_IO, or ERR_LIMIT when it is larger than
 * max_bytes. */
int file_read(const char *path, size_t max_bytes, struct buf *out, struct err *err);

bool file_exists(const char *path);

/* "dir/name" in a new string (caller frees). */
char *file_join(const char *dir, const char *name);

#endif

/* The weights of a model folder: model.safetensors, or the files that
 * model.safetensors.index.json names. Data is read by pread, never mapped: a file that shrinks is
 * an error line, not a signal. */
#ifndef PHALANX_WORKER_SAFETENSORS_H
#define PHALANX_WORKER_SAFETENSORS_H

#include "services/worker/safetensors_header.h"

struct safetensors; /* an open folder */

/* Opens all files and checks their headers. Errors name file and tensor. */
int safetensors_open(const char *dir, struct safetensors **out, struct err *err);
void safetensors_free(struct safetensors **self);

/* NULL when there is no such tensor. */
const struct tensor *safetensors_find(const struct safetensors *s, const char *name);

/* The tensor `name`, or an error that names it, when its type is supported and its shape is
 * (rows, cols), with rows == 0: (cols). */
int safetensors_expect(const struct safetensors *s, const char *name, uint64_t rows, uint64_t cols,
                       const struct tensor **out, struct err *err);

/* Copies rows row .. row + rows - 1, of each the elements col .. col + cols - 1, to dst
 * (contiguous, the tensor's type). A tensor of one dimension is one row. Only those bytes are
 * read. Bounds are the caller's: within what safetensors_expect checked. Any thread. */
int safetensors_read(struct safetensors *s, const struct tensor *t, uint64_t row, uint64_t rows,
                     uint64_t col, uint64_t cols, void *dst, struct err *err);

uint64_t safetensors_bytes_read(const struct safetensors *s); /* of data, headers not counted */
uint64_t safetensors_hash(const struct safetensors *s);       /* of all headers */

#endif

/* The header of a safetensors file: a JSON object of tensors before the data.
 * https://github.com/huggingface/safetensors (format) */
#ifndef PHALANX_WORKER_SAFETENSORS_HEADER_H
#define PHALANX_WORKER_SAFETENSORS_HEADER_H

#include "common/err.h"
#include "kernels/ops.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SAFETENSORS_HEADER_MAX 100000000u /* bytes */
#define SAFETENSORS_DIMS_MAX 8

struct tensor {
    char *name;
    char type[16];  /* as written: "BF16" */
    bool supported; /* dtype is valid; others are refused when they are used */
    enum dtype dtype;
    uint32_t dims;
    uint64_t shape[SAFETENSORS_DIMS_MAX];
    uint64_t begin, end; /* bytes of the file's data part */
};

struct tensor_table {
    struct tensor *tensors; /* sorted by name */
    size_t count;
};

/* Parses the JSON of a header whose file has data_bytes after it. Refused: anything but an object
 * of tensors, duplicate names, more than 8 dimensions, a size that is not shape times type,
 * offsets that do not cover 0 .. data_bytes without gap and overlap. */
int tensor_table_parse(const char *json, size_t len, uint64_t data_bytes, struct tensor_table *out,
                       struct err *err);
void tensor_table_fini(struct tensor_table *t);

const struct tensor *tensor_table_find(const struct tensor_table *t, const char *name);

#endif

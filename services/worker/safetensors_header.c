#include "services/worker/safetensors_header.h"

#include "common/json.h"
#include "common/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEADER_DEPTH 8 /* a header needs 3 */

/* Element types of the format; those without a dtype of ours are known by size only. */
static const struct element_type {
    const char *name;
    uint32_t bits;
    enum dtype dtype; /* DTYPES: not supported */
} element_types[] = {
    {"F32", 32, DTYPE_F32}, {"BF16", 16, DTYPE_BF16}, {"F16", 16, DTYPE_F16},
    {"F64", 64, DTYPES},    {"I64", 64, DTYPES},      {"U64", 64, DTYPES},
    {"I32", 32, DTYPES},    {"U32", 32, DTYPES},      {"I16", 16, DTYPES},
    {"U16", 16, DTYPES},    {"I8", 8, DTYPES},        {"U8", 8, DTYPES},
    {"BOOL", 8, DTYPES},    {"F8_E4M3", 8, DTYPES},   {"F8_E5M2", 8, DTYPES},
    {"F8_E8M0", 8, DTYPES}, {"F4", 4, DTYPES},
};

static const struct element_type *element_type_find(const char *name)
{
    for (size_t i = 0; i < sizeof element_types / sizeof *element_types; i++)
        if (!strcmp(element_types[i].name, name))
            return &element_types[i];
    return NULL;
}

static int json_u64(const json_t *value, uint64_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return -1;
    *out = (uint64_t)json_integer_value(value);
    return 0;
}

static int tensor_parse_type(struct tensor *t, const json_t *dtype, uint32_t *bits, struct err *err)
{
    const struct element_type *type;
    const char *name = json_string_value(dtype);

    if (!name)
        return err_set(err, ERR_INVALID, "tensor %.200s: no dtype", t->name);
    (void)snprintf(t->type, sizeof t->type, "%s", name);
    type = element_type_find(name);
    *bits = type ? type->bits : 0;
    if (type && type->dtype != DTYPES) {
        t->supported = true;
        t->dtype = type->dtype;
    }
    return 0;
}

static int tensor_parse_shape(struct tensor *t, const json_t *shape, uint64_t *elements,
                              struct err *err)
{
    *elements = 1;
    if (!json_is_array(shape) || json_array_size(shape) > SAFETENSORS_DIMS_MAX)
        return err_set(err, ERR_INVALID, "tensor %.200s: shape is no array of at most %d numbers",
                       t->name, SAFETENSORS_DIMS_MAX);
    t->dims = (uint32_t)json_array_size(shape);
    for (uint32_t i = 0; i < t->dims; i++) {
        if (json_u64(json_array_get(shape, i), &t->shape[i]))
            return err_set(err, ERR_INVALID, "tensor %.200s: bad dimension %u in shape", t->name,
                           i);
        if (__builtin_mul_overflow(*elements, t->shape[i], elements))
            return err_set(err, ERR_INVALID, "tensor %.200s: shape overflows", t->name);
    }
    return 0;
}

static int tensor_parse(struct tensor *t, const char *name, json_t *value, struct err *err)
{
    const json_t *offsets = json_object_get(value, "data_offsets");
    uint64_t elements = 0, bits_all;
    uint32_t bits = 0;
    int rc;

    t->name = mem_strdup(name);
    if (!json_is_object(value))
        return err_set(err, ERR_INVALID, "tensor %.200s: no object", name);
    rc = tensor_parse_type(t, json_object_get(value, "dtype"), &bits, err);
    if (!rc)
        rc = tensor_parse_shape(t, json_object_get(value, "shape"), &elements, err);
    if (rc)
        return rc;
    if (json_array_size(offsets) != 2 || json_u64(json_array_get(offsets, 0), &t->begin) ||
        json_u64(json_array_get(offsets, 1), &t->end) || t->begin > t->end)
        return err_set(err, ERR_INVALID, "tensor %.200s: bad data_offsets", name);
    if (bits == 0)
        return 0;
    if (__builtin_mul_overflow(elements, (uint64_t)bits, &bits_all) || bits_all % 8 ||
        bits_all / 8 != t->end - t->begin)
        return err_set(err, ERR_INVALID,
                       "tensor %.200s: data_offsets span %llu bytes, shape and dtype do not", name,
                       (unsigned long long)(t->end - t->begin));
    return 0;
}

static int compare_begin(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;

    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

static int compare_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

/* Without gap and overlap nothing can be hidden in a file or read twice. */
static int tensor_table_check_cover(struct tensor_table *t, uint64_t data_bytes, struct err *err)
{
    uint64_t at = 0;

    if (t->count)
        qsort(t->tensors, t->count, sizeof *t->tensors, compare_begin);
    for (size_t i = 0; i < t->count; i++) {
        if (t->tensors[i].begin != at)
            return err_set(err, ERR_INVALID, "tensor %.200s begins at %llu, expected %llu",
                           t->tensors[i].name, (unsigned long long)t->tensors[i].begin,
                           (unsigned long long)at);
        at = t->tensors[i].end;
    }
    if (at > data_bytes)
        return err_set(err, ERR_INVALID,
                       "truncated: the header promises %llu bytes of data, there "
                       "are %llu",
                       (unsigned long long)at, (unsigned long long)data_bytes);
    if (at < data_bytes)
        return err_set(err, ERR_INVALID, "%llu bytes follow the last tensor",
                       (unsigned long long)(data_bytes - at));
    return 0;
}

int tensor_table_parse(const char *json, size_t len, uint64_t data_bytes, struct tensor_table *out,
                       struct err *err)
{
    json_t *root = NULL, *value;
    const char *name;
    int rc;

    *out = (struct tensor_table){0};
    if (len == 0 || json[0] != '{')
        return err_set(err, ERR_INVALID, "the header does not start with '{'");
    rc = json_parse(json, len, HEADER_DEPTH, &root, err);
    if (rc)
        return err_prefix(err, "header");
    out->tensors = mem_array(json_object_size(root), sizeof *out->tensors);
    json_object_foreach(root, name, value)
    {
        if (!strcmp(name, "__metadata__"))
            continue;
        rc = tensor_parse(&out->tensors[out->count++], name, value, err);
        if (rc)
            goto out;
    }
    rc = tensor_table_check_cover(out, data_bytes, err);
    if (!rc && out->count)
        qsort(out->tensors, out->count, sizeof *out->tensors, compare_name);
out:
    json_decref(root);
    if (rc)
        tensor_table_fini(out);
    return rc;
}

void tensor_table_fini(struct tensor_table *t)
{
    for (size_t i = 0; i < t->count; i++)
        free(t->tensors[i].name);
    free(t->tensors);
    *t = (struct tensor_table){0};
}

const struct tensor *tensor_table_find(const struct tensor_table *t, const char *name)
{
    size_t low = 0, high = t->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, t->tensors[middle].name);

        if (order == 0)
            return &t->tensors[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

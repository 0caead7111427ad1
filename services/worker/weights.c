#include "services/worker/weights_plan.h"

#include "common/mem.h"
#include "services/worker/dummy.h"
#include "services/worker/progress.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STAGING_BYTES (8u << 20)

struct loader {
    const struct weights_config *config;
    const struct ops *ops;
    struct device *device;
    char *staging;
    enum dtype dummy; /* of made-up values */
    struct progress progress;
};

static int plan_check(const struct plan *p, const struct safetensors *s, enum dtype dummy,
                      uint64_t *bytes, struct err *err)
{
    const struct tensor *t;

    *bytes = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        for (uint32_t j = 0; j < p->items[i].part_count; j++) {
            const struct part *part = &p->items[i].parts[j];
            uint64_t size = dtype_size(dummy);
            int rc =
                s ? safetensors_expect(s, part->name, part->full_rows, part->full_cols, &t, err)
                  : 0;

            if (rc)
                return rc;
            if (s)
                size = dtype_size(t->dtype);
            *bytes += part->rows * part->cols * size;
        }
    }
    return 0;
}

/* Biases on o_proj exist in the format; none of the operations adds one, so they must be zero. */
static int check_o_bias(const struct weights_config *w, struct err *err)
{
    const struct model_config *c = w->model;
    const struct tensor *t;
    char name[NAME_MAX_BYTES];
    char *data;
    int rc = 0;

    if (!c->o_bias || !w->checkpoint)
        return 0;
    data = mem_alloc((size_t)c->hidden * sizeof(float));
    for (uint32_t i = 0; i < c->layers && !rc; i++) {
        size_t bytes;

        (void)snprintf(name, sizeof name, "model.layers.%u.self_attn.o_proj.bias", i);
        if (!safetensors_find(w->checkpoint, name))
            continue;
        rc = safetensors_expect(w->checkpoint, name, 0, c->hidden, &t, err);
        if (!rc)
            rc = safetensors_read(w->checkpoint, t, 0, 1, 0, c->hidden, data, err);
        bytes = rc ? 0 : (size_t)c->hidden * dtype_size(t->dtype);
        for (size_t b = 0; b < bytes && !rc; b++)
            if (data[b])
                rc = err_set(err, ERR_UNSUPPORTED,
                             "attention_bias: a bias on o_proj (%s) is not "
                             "supported",
                             name);
    }
    free(data);
    return rc;
}

static float dummy_scale(const struct part *p)
{
    return p->full_rows ? 1.0f / sqrtf((float)p->full_cols) : 0.02f;
}

/* `rows` rows of a part (from its row `first` on) to the staging area, as the source has them. */
static int part_read(struct loader *l, const struct part *p, const struct tensor *t, uint64_t first,
                     uint64_t rows, struct err *err)
{
    bool norm = strstr(p->name, "norm.weight") != NULL;

    if (t)
        return safetensors_read(l->config->checkpoint, t, p->row + first, rows, p->col, p->cols,
                                l->staging, err);
    dummy_fill(p->name, p->full_cols, p->row + first, rows, p->col, p->cols, norm ? 1 : 0,
               dummy_scale(p), l->dummy, l->staging);
    return 0;
}

/* Spreads rows of `cols` elements to `pad_cols`, zeros at the end of each; from the last row on, so
 * that nothing is overwritten before it has moved. */
static void rows_pad(char *data, uint64_t rows, uint64_t bytes, uint64_t pad_bytes)
{
    if (bytes == pad_bytes)
        return;
    for (uint64_t i = rows; i-- > 0;) {
        memmove(data + i * pad_bytes, data + i * bytes, bytes);
        memset(data + i * pad_bytes + bytes, 0, pad_bytes - bytes);
    }
}

static int part_load(struct loader *l, struct weight *w, const struct part *p, uint64_t row,
                     struct err *err)
{
    const struct tensor *t =
        l->config->checkpoint ? safetensors_find(l->config->checkpoint, p->name) : NULL;
    enum dtype dtype = t ? t->dtype : l->dummy;
    uint64_t size = dtype_size(dtype);
    uint64_t chunk = STAGING_BYTES / (p->pad_cols * size);
    int rc = 0;

    if (chunk == 0)
        chunk = 1;
    for (uint64_t first = 0; first < p->pad_rows && !rc; first += chunk) {
        uint64_t rows = p->pad_rows - first < chunk ? p->pad_rows - first : chunk;
        uint64_t real = first >= p->rows ? 0 : p->rows - first < rows ? p->rows - first : rows;

        if (real)
            rc = part_read(l, p, t, first, real, err);
        if (rc)
            return rc;
        rows_pad(l->staging, real, p->cols * size, p->pad_cols * size);
        memset(l->staging + real * p->pad_cols * size, 0, (rows - real) * p->pad_cols * size);
        rc = l->ops->weight_write(l->device, w, (uint32_t)(row + first), (uint32_t)rows, l->staging,
                                  dtype, err);
        progress_add(&l->progress, real * p->cols * size);
    }
    return rc;
}

/* The parts of a vector lie beside each other in one row: gathered before the one write. */
static int vector_load(struct loader *l, struct weight *w, const struct item *item, uint64_t cols,
                       struct err *err)
{
    float *row = mem_array(cols, sizeof *row);
    char *at = (char *)row;
    enum dtype dtype = DTYPE_F32;
    int rc = 0;

    for (uint32_t i = 0; i < item->part_count && !rc; i++) {
        const struct part *p = &item->parts[i];
        const struct tensor *t =
            l->config->checkpoint ? safetensors_find(l->config->checkpoint, p->name) : NULL;

        if (t && i && t->dtype != dtype)
            rc = err_set(err, ERR_UNSUPPORTED, "tensor %s: type %s, others of its group differ",
                         p->name, t->type);
        dtype = t ? t->dtype : l->dummy;
        if (!rc)
            rc = part_read(l, p, t, 0, 1, err);
        if (rc)
            break;
        memcpy(at, l->staging, p->cols * dtype_size(dtype));
        at += p->cols * dtype_size(dtype);
        progress_add(&l->progress, p->cols * dtype_size(dtype));
    }
    if (!rc)
        rc = l->ops->weight_write(l->device, w, 0, 1, row, dtype, err);
    free(row);
    return rc;
}

static int item_dtype(const struct loader *l, const struct item *item, enum dtype *out,
                      struct err *err)
{
    const struct tensor *t =
        l->config->checkpoint ? safetensors_find(l->config->checkpoint, item->parts[0].name) : NULL;

    return model_dtype(l->config->dtype, t ? t->dtype : l->config->model->dtype, out, err);
}

static int item_load(struct loader *l, const struct item *item, struct err *err)
{
    uint64_t rows = 0, cols = 0;
    enum dtype dtype;
    int rc = item_dtype(l, item, &dtype, err);

    if (rc)
        return rc;
    for (uint32_t i = 0; i < item->part_count; i++) {
        rows += item->parts[i].pad_rows;
        cols =
            item->kind == WEIGHT_VECTOR ? cols + item->parts[i].pad_cols : item->parts[i].pad_cols;
    }
    if (item->kind == WEIGHT_VECTOR)
        rows = 1;
    rc = l->ops->weight_new(l->device, item->kind, dtype, (uint32_t)rows, (uint32_t)cols, item->out,
                            err);
    if (rc)
        return rc;
    if (item->kind == WEIGHT_VECTOR)
        rc = vector_load(l, *item->out, item, cols, err);
    rows = 0;
    for (uint32_t i = 0; item->kind != WEIGHT_VECTOR && i < item->part_count && !rc; i++) {
        rc = part_load(l, *item->out, &item->parts[i], rows, err);
        rows += item->parts[i].pad_rows;
    }
    return rc ? rc : l->ops->weight_done(l->device, *item->out, err);
}

static uint64_t plan_staging_bytes(const struct plan *p)
{
    uint64_t most = STAGING_BYTES;

    for (uint32_t i = 0; i < p->count; i++)
        for (uint32_t j = 0; j < p->items[i].part_count; j++)
            if (p->items[i].parts[j].pad_cols * sizeof(float) > most)
                most = p->items[i].parts[j].pad_cols * sizeof(float);
    return most;
}

int weights_load(const struct weights_config *config, const struct ops *ops, struct device *device,
                 struct weights *out, struct err *err)
{
    struct loader l = {.config = config, .ops = ops, .device = device};
    struct plan plan = {0};
    uint64_t bytes;
    int rc;

    *out = (struct weights){.layers = mem_array(config->model->layers, sizeof *out->layers)};
    plan_init(&plan, out, config->model, config->shard);
    rc = model_dtype(config->dtype, config->model->dtype, &l.dummy, err);
    if (l.dummy != DTYPE_BF16) /* other halves are rounded by the device */
        l.dummy = DTYPE_F32;
    if (!rc)
        rc = plan_check(&plan, config->checkpoint, l.dummy, &bytes, err);
    if (!rc)
        rc = check_o_bias(config, err);
    if (rc)
        goto out;
    l.staging = mem_alloc(plan_staging_bytes(&plan));
    progress_init(&l.progress, "Loading weights", bytes, config->progress);
    for (uint32_t i = 0; i < plan.count && !rc; i++)
        rc = item_load(&l, &plan.items[i], err);
    progress_end(&l.progress);
    if (config->model->tied)
        out->lm_head = out->embed;
out:
    free(l.staging);
    plan_fini(&plan);
    if (rc)
        weights_fini(out);
    return rc;
}

void weights_fini(struct weights *w)
{
    free(w->layers);
    *w = (struct weights){0};
}

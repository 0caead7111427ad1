#include "services/worker/weights_plan.h"

#include "common/mem.h"
#include "services/worker/ahead.h"
#include "services/worker/dummy.h"
#include "services/worker/progress.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PIECE_BYTES (8u << 20)
#define READERS 4u

/* What is read and written at once: rows of a part, or (part NULL) a vector, whose parts lie beside
 * each other in one row. */
struct piece {
    const struct item *item;
    const struct part *part;
    uint64_t first, rows, real; /* of the part; real: that are not padding */
    uint64_t to;                /* row of the weight */
};

struct loader {
    const struct weights_config *config;
    const struct ops *ops;
    struct device *device;
    struct piece *pieces;
    uint64_t pieces_count;
    size_t piece_bytes; /* of the largest */
    enum dtype dummy;   /* of made-up values */
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

/* The tensor a part is of, or NULL: it is made up. */
static const struct tensor *part_tensor(const struct loader *l, const struct part *p)
{
    return l->config->checkpoint ? safetensors_find(l->config->checkpoint, p->name) : NULL;
}

static enum dtype part_dtype(const struct loader *l, const struct part *p)
{
    const struct tensor *t = part_tensor(l, p);

    return t ? t->dtype : l->dummy;
}

/* `rows` rows of a part (from its row `first` on) as the source has them. */
static int part_read(const struct loader *l, const struct part *p, uint64_t first, uint64_t rows,
                     char *to, struct err *err)
{
    const struct tensor *t = part_tensor(l, p);
    bool norm = strstr(p->name, "norm.weight") != NULL;

    if (t)
        return safetensors_read(l->config->checkpoint, t, p->row + first, rows, p->col, p->cols, to,
                                err);
    dummy_fill(p->name, p->full_cols, p->row + first, rows, p->col, p->cols, norm ? 1 : 0,
               dummy_scale(p), l->dummy, to);
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

static int vector_read(const struct loader *l, const struct item *item, char *to, struct err *err)
{
    enum dtype dtype = part_dtype(l, &item->parts[0]);

    for (uint32_t i = 0; i < item->part_count; i++) {
        const struct part *p = &item->parts[i];
        const struct tensor *t = part_tensor(l, p);
        int rc = 0;

        if (t && t->dtype != dtype)
            return err_set(err, ERR_UNSUPPORTED, "tensor %s: type %s, others of its group differ",
                           p->name, t->type);
        rc = part_read(l, p, 0, 1, to, err);
        if (rc)
            return rc;
        to += p->cols * dtype_size(dtype);
    }
    return 0;
}

static int piece_read(void *ctx, uint64_t i, void *buffer, struct err *err)
{
    const struct loader *l = ctx;
    const struct piece *piece = &l->pieces[i];
    const struct part *p = piece->part;
    uint64_t size, row;
    char *to = buffer;
    int rc = 0;

    if (!p)
        return vector_read(l, piece->item, to, err);
    size = dtype_size(part_dtype(l, p));
    row = p->pad_cols * size;
    if (piece->real)
        rc = part_read(l, p, piece->first, piece->real, to, err);
    if (rc)
        return rc;
    rows_pad(to, piece->real, p->cols * size, row);
    memset(to + piece->real * row, 0, (piece->rows - piece->real) * row);
    return 0;
}

static void piece_add(struct loader *l, const struct piece *piece, uint64_t bytes)
{
    if (bytes > l->piece_bytes)
        l->piece_bytes = bytes;
    l->pieces[l->pieces_count++] = *piece;
}

/* Of one part, below what the weight has of others. */
static void part_cut(struct loader *l, const struct item *item, const struct part *p, uint64_t to)
{
    uint64_t row_bytes = p->pad_cols * dtype_size(part_dtype(l, p));
    uint64_t most = PIECE_BYTES / row_bytes ? PIECE_BYTES / row_bytes : 1;
    uint64_t pieces = (p->pad_rows + most - 1) / most;

    l->pieces = mem_resize(l->pieces, l->pieces_count + pieces, sizeof *l->pieces);
    for (uint64_t first = 0; first < p->pad_rows; first += most) {
        uint64_t rows = p->pad_rows - first < most ? p->pad_rows - first : most;
        uint64_t real = first >= p->rows ? 0 : p->rows - first < rows ? p->rows - first : rows;

        piece_add(l, &(struct piece){item, p, first, rows, real, to + first}, rows * row_bytes);
    }
}

static uint64_t item_cols(const struct item *item)
{
    uint64_t cols = 0;

    for (uint32_t i = 0; i < item->part_count; i++)
        cols =
            item->kind == WEIGHT_VECTOR ? cols + item->parts[i].pad_cols : item->parts[i].pad_cols;
    return cols;
}

static uint64_t item_rows(const struct item *item)
{
    uint64_t rows = 0;

    for (uint32_t i = 0; i < item->part_count && item->kind != WEIGHT_VECTOR; i++)
        rows += item->parts[i].pad_rows;
    return item->kind == WEIGHT_VECTOR ? 1 : rows;
}

static void item_cut(struct loader *l, const struct item *item)
{
    uint64_t to = 0;

    if (item->kind == WEIGHT_VECTOR) {
        l->pieces = mem_resize(l->pieces, l->pieces_count + 1, sizeof *l->pieces);
        piece_add(l, &(struct piece){.item = item, .rows = 1}, item_cols(item) * sizeof(float));
        return;
    }
    for (uint32_t i = 0; i < item->part_count; i++) {
        part_cut(l, item, &item->parts[i], to);
        to += item->parts[i].pad_rows;
    }
}

static int item_new(const struct loader *l, const struct item *item, struct err *err)
{
    const struct tensor *t = part_tensor(l, &item->parts[0]);
    enum dtype dtype;
    int rc = model_dtype(l->config->dtype, t ? t->dtype : l->config->model->dtype, &dtype, err);

    return rc ? rc
              : l->ops->weight_new(l->device, item->kind, dtype, (uint32_t)item_rows(item),
                                   (uint32_t)item_cols(item), item->out, err);
}

static int piece_write(struct loader *l, const struct piece *piece, const void *data,
                       struct err *err)
{
    const struct part *p = piece->part ? piece->part : &piece->item->parts[0];
    enum dtype dtype = part_dtype(l, p);
    uint64_t cols = piece->part ? p->cols * piece->real : item_cols(piece->item);
    int rc = l->ops->weight_write(l->device, *piece->item->out, (uint32_t)piece->to,
                                  (uint32_t)piece->rows, data, dtype, err);

    progress_add(&l->progress, cols * dtype_size(dtype));
    return rc;
}

static int plan_write(struct loader *l, const struct plan *plan, struct ahead *ahead,
                      struct err *err)
{
    const struct piece *piece = l->pieces, *end = l->pieces + l->pieces_count;
    int rc = 0;

    for (uint32_t i = 0; i < plan->count && !rc; i++) {
        const struct item *item = &plan->items[i];

        rc = item_new(l, item, err);
        for (; !rc && piece < end && piece->item == item; piece++) {
            void *data;

            rc = ahead_next(ahead, &data, err);
            if (!rc)
                rc = piece_write(l, piece, data, err);
        }
        if (!rc)
            rc = l->ops->weight_done(l->device, *item->out, err);
    }
    return rc;
}

static int plan_load(struct loader *l, const struct plan *plan, struct err *err)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t threads = processors > 0 && processors < READERS ? (uint32_t)processors : READERS;
    const struct ahead_config config = {.threads = threads,
                                        .buffers = threads + 2,
                                        .buffer_bytes = l->piece_bytes,
                                        .count = l->pieces_count,
                                        .fill = piece_read,
                                        .ctx = l};
    struct ahead *ahead;
    int rc = ahead_start(&config, &ahead, err);

    if (rc)
        return rc;
    rc = plan_write(l, plan, ahead, err);
    ahead_stop(&ahead);
    return rc;
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
    for (uint32_t i = 0; i < plan.count; i++)
        item_cut(&l, &plan.items[i]);
    progress_init(&l.progress, "Loading weights", bytes, config->progress);
    rc = plan_load(&l, &plan, err);
    progress_end(&l.progress);
    if (config->model->tied)
        out->lm_head = out->embed;
out:
    free(l.pieces);
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

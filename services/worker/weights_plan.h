/* Which blocks of which tensors make up a rank's weights. */
#ifndef PHALANX_WORKER_WEIGHTS_PLAN_H
#define PHALANX_WORKER_WEIGHTS_PLAN_H

#include "services/worker/weights.h"

#define PARTS_MAX 3
#define NAME_MAX_BYTES 128

/* A block of one tensor of the checkpoint: `rows` of (full_rows, full_cols) from `row` on and
 * `cols` columns from `col` on; it becomes the next `pad_rows` x `pad_cols` of the weight, zeros
 * where there is none. full_rows == 0: one dimension (full_cols). */
struct part {
    char name[NAME_MAX_BYTES];
    uint64_t full_rows, full_cols;
    uint64_t row, rows, col, cols;
    uint64_t pad_rows, pad_cols;
};

/* One weight of the device. Parts lie below each other, in a vector beside each other. */
struct item {
    struct weight **out;
    enum weight_kind kind;
    struct part parts[PARTS_MAX];
    uint32_t part_count;
};

struct plan {
    struct item *items;
    uint32_t count;
};

/* One item a weight of w (whose layers are there); w's lm_head gets none when it is tied. End with
 * plan_fini. */
void plan_init(struct plan *p, struct weights *w, const struct model_config *c,
               const struct shard *s);
void plan_fini(struct plan *p);

#endif

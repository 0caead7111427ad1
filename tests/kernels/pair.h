/* One small model on two backends, the reference and CUDA, step by step side by side. */
#ifndef PHALANX_TESTS_KERNELS_PAIR_H
#define PHALANX_TESTS_KERNELS_PAIR_H

#include "tests/kernels/support.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define SLOTS 16u

struct shape {
    uint32_t hidden, heads, kv_heads, head_dim, intermediate, vocab, page_size;
    enum dtype dtype;
};

/* The same model on both: [0] the reference, [1] CUDA. */
struct pair {
    struct shape shape;
    const struct ops *ops[2];
    struct device *device[2];
    uint64_t random;
    uint32_t tokens_max, context_max, pages;
    uint32_t *page_list;
    uint32_t pages_used;
};

struct both_weights {
    struct weight *w[2];
};
struct both_acts {
    struct act *a[2];
    uint32_t width;
};

#define must(call)                                                                                 \
    do {                                                                                           \
        struct err err = {0};                                                                      \
        if (call) {                                                                                \
            print_error("%s: %s\n", #call, err.msg);                                               \
            fail();                                                                                \
        }                                                                                          \
    } while (0)

/* Largest error seen, by operation. */
struct worst {
    const char *op;
    double error;
};

extern const struct ops_sampling greedy;

/* Of every kind: head sizes, groups of heads, page sizes, types, widths that do not divide. */
#define PAIR_SHAPES 8u
extern const struct shape pair_shapes[PAIR_SHAPES];

struct ops_model model_of(const struct shape *s, const float *inv_freq);
bool pair_open(struct pair *p, const struct shape *s, uint64_t seed);
bool pair_open_decode(struct pair *p, const struct shape *s, uint64_t seed, enum ops_decode decode);
void pair_pool(struct pair *p, uint32_t tokens_max, uint32_t context_max);
/* The same in the order of a start: pages of CUDA come after the activations. */
void pair_prepare(struct pair *p, uint32_t tokens_max, uint32_t context_max);
void pair_pages(struct pair *p);
void pair_close(struct pair *p);
struct both_weights weight_make(struct pair *p, enum weight_kind kind, uint32_t rows, uint32_t cols,
                                float scale, float offset);
struct both_acts act_make(struct pair *p, uint32_t width);
void act_fill(struct pair *p, struct both_acts *a, uint32_t tokens, float scale);
void act_poison(struct pair *p, struct both_acts *a, uint32_t tokens);
void cols_compare(struct pair *p, const struct both_acts *a, uint32_t tokens, uint32_t cols,
                  struct worst *worst, double limit);
void act_compare(struct pair *p, const struct both_acts *a, uint32_t tokens, struct worst *worst,
                 double limit);
void slot_fill(struct pair *p, uint32_t slot, uint32_t count, uint32_t generated,
               const struct ops_sampling *sampling);
void slots_clear(struct pair *p, uint32_t count);
void step_begin(struct pair *p, const struct ops_row *rows, uint32_t count);
void step_end(struct pair *p);

#endif

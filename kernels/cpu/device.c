/* The CPU backend's device: memory, slots, the step's frame, the table of operations. */
#include "common/mem.h"
#include "kernels/checks.h"
#include "kernels/cpu/cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int cpu_device_open(const struct ops_config *config, const struct ops_model *model,
                           struct device **out, struct err *err)
{
    struct device *d = mem_zalloc(sizeof *d);
    size_t half = model->head_dim / 2;
    int rc;

    d->config = *config;
    d->config.comm_store = d->config.comm_interface = NULL;
    d->model = *model;
    d->inv_freq = mem_array(half, sizeof *d->inv_freq);
    memcpy(d->inv_freq, model->rope_inv_freq, half * sizeof *d->inv_freq);
    d->model.rope_inv_freq = d->inv_freq;
    d->vocab_share = (model->vocab_size + config->tp_size - 1) / config->tp_size;
    *out = d;
    if (config->tp_size == 1)
        return 0;
    d->comm_kind = comm_find("gloo");
    rc = d->comm_kind->open(config->rank, config->tp_size, config->comm_store,
                            config->comm_interface, config->comm_timeout_s, &d->comm, err);
    if (rc) {
        free(d->inv_freq);
        free(d);
        *out = NULL;
    }
    return rc;
}

static void slot_reset(struct slot *s)
{
    free((void *)(uintptr_t)s->sampling.end_ids);
    free((void *)(uintptr_t)s->sampling.bias);
    memset(&s->sampling, 0, sizeof s->sampling);
    s->open = false;
    s->count = s->generated = s->pages_count = 0;
}

static void pool_free(struct device *d)
{
    for (uint32_t i = 0; d->slots && i < d->num_slots; i++) {
        slot_reset(&d->slots[i]);
        free(d->slots[i].tokens);
        free(d->slots[i].pages);
    }
    free(d->slots);
    free(d->kv);
    free(d->rows_data);
    free(d->token_slot);
    free(d->token_position);
    free(d->token_id);
    free(d->scratch);
    free(d->gathered);
    free(d->rope);
    free(d->scores);
    free(d->gate_up);
    free(d->logits);
    free(d->row_logits);
    free(d->adjusted);
    free(d->candidates);
    free(d->counts);
    free(d->results);
    free(d->records);
    free(d->all_records);
    free(d->score_logits);
    free(d->score_records);
    free(d->all_score_records);
    free(d->scored);
}

static void cpu_device_close(struct device **self)
{
    struct device *d = *self;

    if (!d)
        return;
    if (d->comm)
        d->comm_kind->close(&d->comm);
    while (d->weights) {
        struct weight *w = d->weights;

        d->weights = w->next;
        free(w->data);
        free(w);
    }
    while (d->acts) {
        struct act *a = d->acts;

        d->acts = a->next;
        free(a->data);
        free(a);
    }
    pool_free(d);
    free(d->inv_freq);
    free(d);
    *self = NULL;
}

static int cpu_weight_new(struct device *d, enum weight_kind kind, enum dtype dtype, uint32_t rows,
                          uint32_t cols, struct weight **out, struct err *err)
{
    struct weight *w = mem_zalloc(sizeof *w);

    w->kind = kind;
    w->dtype = kind == WEIGHT_VECTOR || dtype == DTYPE_F16 ? DTYPE_F32 : dtype;
    w->rows = rows;
    w->cols = cols;
    w->data = calloc(1, weight_size(w) ? weight_size(w) : 1);
    if (!w->data) {
        free(w);
        return err_set(err, ERR_NOMEM, "out of memory for a weight of %u x %u", rows, cols);
    }
    w->next = d->weights;
    d->weights = w;
    d->weight_bytes += weight_size(w);
    *out = w;
    return 0;
}

static int cpu_weight_write(struct device *d, struct weight *w, uint32_t row, uint32_t rows,
                            const void *src, enum dtype src_dtype, struct err *err)
{
    (void)d;
    if (row > w->rows || rows > w->rows - row)
        return err_set(err, ERR_INVALID, "rows %u..%u of a weight of %u rows", row, row + rows,
                       w->rows);
    weight_pack(w, row, rows, src, src_dtype);
    return 0;
}

static int cpu_weight_done(struct device *d, struct weight *w, struct err *err)
{
    (void)d;
    (void)w;
    (void)err;
    return 0;
}

static uint64_t cpu_page_bytes(const struct device *d, uint32_t page_size)
{
    const struct ops_model *m = &d->model;

    return (uint64_t)m->layers * 2 * m->kv_heads * page_size * m->head_dim * sizeof(float);
}

/* A quarter of the machine's memory shared by the ranks, at most 1 GiB a rank: pages are only
 * touched when used, so an idle server stays small. */
static uint64_t cpu_pages_max(const struct device *d, uint32_t page_size)
{
    uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t budget = machine / 4 / d->config.tp_size;

    if (budget > (uint64_t)1 << 30)
        budget = (uint64_t)1 << 30;
    if (d->config.memory_max)
        budget =
            d->config.memory_max > d->weight_bytes ? d->config.memory_max - d->weight_bytes : 0;
    return budget / cpu_page_bytes(d, page_size);
}

static void pool_buffers(struct device *d)
{
    const struct ops_model *m = &d->model;
    size_t hidden = (size_t)d->tokens_max * m->hidden;
    size_t tp = d->config.tp_size, vocab = tp * d->vocab_share;

    d->rows_data = mem_array(d->num_slots, sizeof *d->rows_data);
    d->token_slot = mem_array(d->tokens_max, sizeof *d->token_slot);
    d->token_position = mem_array(d->tokens_max, sizeof *d->token_position);
    d->token_id = mem_array(d->tokens_max, sizeof *d->token_id);
    d->scratch = mem_array(hidden, sizeof *d->scratch);
    d->gathered = mem_array(tp > 1 ? tp * hidden : 1, sizeof *d->gathered);
    d->rope = mem_array((size_t)d->tokens_max * m->head_dim, sizeof *d->rope);
    d->scores = mem_array(d->context_max, sizeof *d->scores);
    d->gate_up = mem_array((size_t)GATE_UP_ROWS * 2 * m->intermediate, sizeof *d->gate_up);
    d->logits = mem_array((size_t)d->num_slots * d->vocab_share, sizeof *d->logits);
    d->row_logits = mem_array(vocab, sizeof *d->row_logits);
    d->adjusted = mem_array(vocab, sizeof *d->adjusted);
    d->candidates =
        mem_array(vocab > tp * CANDIDATES ? vocab : tp * CANDIDATES, sizeof *d->candidates);
    d->counts = mem_array(m->vocab_size, sizeof *d->counts);
    d->results = mem_array(d->num_slots, sizeof *d->results);
    d->records = mem_array(d->num_slots, sizeof *d->records);
    d->all_records = mem_array(tp * d->num_slots, sizeof *d->all_records);
    d->score_logits = mem_array((size_t)SCORE_BLOCK * d->vocab_share, sizeof *d->score_logits);
    d->score_records = mem_array(SCORE_BLOCK, sizeof *d->score_records);
    d->all_score_records = mem_array(tp * SCORE_BLOCK, sizeof *d->all_score_records);
    d->scored = mem_array(OPS_SCORES_MAX, sizeof *d->scored);
}

static int cpu_pool_alloc(struct device *d, uint32_t num_pages, uint32_t page_size,
                          uint32_t num_slots, uint32_t tokens_max, uint32_t context_max,
                          struct err *err)
{
    uint64_t bytes = cpu_page_bytes(d, page_size) * num_pages;

    d->kv = calloc(1, bytes);
    if (!d->kv)
        return err_set(err, ERR_NOMEM, "out of memory for %u KV pages (%llu bytes)", num_pages,
                       (unsigned long long)bytes);
    d->kv_bytes = bytes;
    d->num_pages = num_pages;
    d->page_size = page_size;
    d->num_slots = num_slots;
    d->tokens_max = tokens_max;
    d->context_max = context_max;
    d->pages_per_slot = (context_max + page_size - 1) / page_size;
    d->slots = mem_array(num_slots, sizeof *d->slots);
    for (uint32_t i = 0; i < num_slots; i++) {
        d->slots[i].tokens = mem_array((size_t)context_max + 1, sizeof(uint32_t));
        d->slots[i].pages = mem_array(d->pages_per_slot, sizeof(uint32_t));
    }
    pool_buffers(d);
    return 0;
}

static int cpu_act_new(struct device *d, uint32_t width, struct act **out, struct err *err)
{
    struct act *a = mem_zalloc(sizeof *a);

    a->width = width;
    a->data = calloc((size_t)d->tokens_max * width, sizeof *a->data);
    if (!a->data) {
        free(a);
        return err_set(err, ERR_NOMEM, "out of memory for activations of %u x %u", d->tokens_max,
                       width);
    }
    a->next = d->acts;
    d->acts = a;
    *out = a;
    return 0;
}

static void *copy_of(const void *data, size_t bytes)
{
    void *copy;

    if (!bytes)
        return NULL;
    copy = mem_alloc(bytes);
    memcpy(copy, data, bytes);
    return copy;
}

static int slot_check(const struct device *d, uint32_t slot, bool open, struct err *err)
{
    return check_slot(slot, d->num_slots, slot < d->num_slots && d->slots[slot].open, open, err);
}

static int cpu_slot_open(struct device *d, uint32_t slot, const uint32_t *tokens, uint32_t count,
                         uint32_t generated, const struct ops_sampling *sampling, struct err *err)
{
    struct slot *s;
    int rc = slot_check(d, slot, false, err);

    if (!rc)
        rc = check_tokens(slot, tokens, count, generated, d->context_max, d->model.vocab_size, err);
    if (rc)
        return rc;
    s = &d->slots[slot];
    s->open = true;
    memcpy(s->tokens, tokens, count * sizeof *tokens);
    s->count = count;
    s->generated = generated;
    s->pages_count = 0;
    s->sampling = *sampling;
    s->sampling.end_ids = copy_of(sampling->end_ids, sampling->end_ids_count * sizeof(uint32_t));
    s->sampling.bias = copy_of(sampling->bias, sampling->bias_count * sizeof(struct ops_bias));
    if (s->sampling.logprobs > OPS_LOGPROBS_MAX)
        s->sampling.logprobs = OPS_LOGPROBS_MAX;
    return 0;
}

static int cpu_slot_pages(struct device *d, uint32_t slot, uint32_t first, const uint32_t *pages,
                          uint32_t count, struct err *err)
{
    struct slot *s;
    int rc = slot_check(d, slot, true, err);

    if (rc)
        return rc;
    s = &d->slots[slot];
    rc = check_pages(slot, first, pages, count, s->pages_count, d->pages_per_slot, d->num_pages,
                     err);
    if (rc)
        return rc;
    memcpy(s->pages + first, pages, count * sizeof *pages);
    s->pages_count = first + count;
    return 0;
}

static void cpu_slot_close(struct device *d, uint32_t slot)
{
    if (slot < d->num_slots)
        slot_reset(&d->slots[slot]);
}

static int row_check(const struct device *d, const struct ops_row *row, struct err *err)
{
    int rc = slot_check(d, row->slot, true, err);

    return rc ? rc
              : check_row(row, d->slots[row->slot].count, d->slots[row->slot].pages_count,
                          d->page_size, err);
}

static int cpu_step_begin(struct device *d, const struct ops_row *rows, uint32_t count,
                          struct err *err)
{
    if (count > d->num_slots)
        return err_set(err, ERR_INVALID, "%u rows, %u slots", count, d->num_slots);
    d->tokens_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        int rc = row_check(d, &rows[i], err);

        if (rc)
            return rc;
        if (rows[i].count > d->tokens_max - d->tokens_count)
            return err_set(err, ERR_INVALID, "more than %u tokens in a step", d->tokens_max);
        for (uint32_t k = 0; k < rows[i].count; k++, d->tokens_count++) {
            d->token_slot[d->tokens_count] = rows[i].slot;
            d->token_position[d->tokens_count] = rows[i].start + k;
            d->token_id[d->tokens_count] = d->slots[rows[i].slot].tokens[rows[i].start + k];
        }
        d->rows_data[i] = rows[i];
    }
    d->rows = d->rows_data;
    d->rows_count = count;
    d->results_count = 0;
    rope_fill(d);
    return 0;
}

static int cpu_step_end(struct device *d, const struct ops_sampled **results, uint32_t *count,
                        struct err *err)
{
    (void)err;
    *results = d->results;
    *count = d->results_count;
    return 0;
}

static int cpu_act_read(struct device *d, const struct act *a, uint32_t tokens, float *out,
                        struct err *err)
{
    if (tokens > d->tokens_max)
        return err_set(err, ERR_INVALID, "%u tokens of %u", tokens, d->tokens_max);
    memcpy(out, a->data, (size_t)tokens * a->width * sizeof *out);
    return 0;
}

static int cpu_act_write(struct device *d, struct act *a, uint32_t tokens, const float *in,
                         struct err *err)
{
    if (tokens > d->tokens_max)
        return err_set(err, ERR_INVALID, "%u tokens of %u", tokens, d->tokens_max);
    memcpy(a->data, in, (size_t)tokens * a->width * sizeof *in);
    return 0;
}

static const float *cpu_logits(struct device *d, uint32_t i)
{
    return i < d->results_count ? d->logits + (size_t)i * d->vocab_share : NULL;
}

static uint64_t cpu_weight_bytes(const struct device *d)
{
    return d->weight_bytes;
}

static uint64_t cpu_kv_bytes(const struct device *d)
{
    return d->kv_bytes;
}

const struct ops *phalanx_backend(void)
{
    static const struct ops cpu = {
        .abi = OPS_ABI,
        .name = "cpu",
        .batch_invariant = true,
        .device_open = cpu_device_open,
        .device_close = cpu_device_close,
        .weight_new = cpu_weight_new,
        .weight_write = cpu_weight_write,
        .weight_done = cpu_weight_done,
        .page_bytes = cpu_page_bytes,
        .pages_max = cpu_pages_max,
        .pool_alloc = cpu_pool_alloc,
        .act_new = cpu_act_new,
        .slot_open = cpu_slot_open,
        .slot_pages = cpu_slot_pages,
        .slot_close = cpu_slot_close,
        .step_begin = cpu_step_begin,
        .embed = cpu_embed,
        .linear = cpu_linear,
        .qk_norm_rope_kv = cpu_qk_norm_rope_kv,
        .attention = cpu_attention,
        .linear_reduce_norm = cpu_linear_reduce_norm,
        .gate_up_silu = cpu_gate_up_silu,
        .score = cpu_score,
        .sample = cpu_sample,
        .step_end = cpu_step_end,
        .steps_ahead = 1,
        .act_read = cpu_act_read,
        .act_write = cpu_act_write,
        .logits = cpu_logits,
        .weight_bytes = cpu_weight_bytes,
        .kv_bytes = cpu_kv_bytes,
    };

    return &cpu;
}

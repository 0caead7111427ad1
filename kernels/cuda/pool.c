/* The KV pool and every buffer of a step. */
#include "common/mem.h"
#include "kernels/cuda/cuda.h"

#include <string.h>

char *kv_at(const struct device *d, uint32_t layer, uint32_t which)
{
    const struct ops_model *m = &d->model;
    size_t pool = ((size_t)d->num_pages + 1) * m->kv_heads * d->page_size * m->head_dim * 2;

    return d->kv + ((size_t)layer * 2 + which) * pool;
}

uint64_t cuda_page_bytes(const struct device *d, uint32_t page_size)
{
    const struct ops_model *m = &d->model;

    return (uint64_t)m->layers * 2 * m->kv_heads * page_size * m->head_dim * 2;
}

int cuda_memory(const struct device *d, struct ops_memory *out, struct err *err)
{
    size_t unused = 0, total = 0;
    cudaError_t rc = cudaMemGetInfo(&unused, &total);

    *out = (struct ops_memory){
        .total = total,
        .unused = unused,
        .workspace = d->device_bytes - d->weight_bytes - d->kv_bytes,
        .graphs = d->graph_bytes,
    };
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "memory", err);
}

/* What the fraction leaves beside all that is used already: weights, workspace, graphs, libraries,
 * other programs. */
uint64_t cuda_pages_max(const struct device *d, uint32_t page_size)
{
    double fraction = d->config.memory_fraction > 0 ? d->config.memory_fraction : MEMORY_FRACTION;
    struct ops_memory memory;
    struct err err;
    uint64_t budget, used, left;

    if (cuda_memory(d, &memory, &err) || memory.unused < RESERVE_BYTES)
        return 0;
    used = memory.total - memory.unused;
    left = (uint64_t)(fraction * (double)memory.total);
    if (d->config.memory_max) {
        left = d->config.memory_max;
        used = d->weight_bytes;
    }
    budget = left > used ? left - used : 0;
    if (budget > memory.unused - RESERVE_BYTES)
        budget = memory.unused - RESERVE_BYTES;
    return budget / cuda_page_bytes(d, page_size);
}

/* Refuses a pool that does not fit, in numbers. */
static int pool_check(const struct device *d, uint64_t bytes, uint32_t num_pages, struct err *err)
{
    struct ops_memory memory;
    int rc = cuda_memory(d, &memory, err);

    if (rc || bytes <= memory.unused)
        return rc;
    return err_set(
        err, ERR_NOMEM,
        "rank %u, cuda:%u: %u KV pages take %.2f GB, but %.2f of %.2f GB are free beside "
        "%.2f GB of weights and %.2f GB of workspace; lower --num-pages or --mem-fraction-static",
        d->config.rank, d->config.device_index, num_pages, (double)bytes / 1e9,
        (double)memory.unused / 1e9, (double)memory.total / 1e9, (double)d->weight_bytes / 1e9,
        (double)memory.workspace / 1e9);
}

struct want {
    void *out; /* pointer to the pointer */
    size_t bytes;
    const char *what;
};

static int allocate_all(struct device *d, const struct want *wants, size_t count, struct err *err)
{
    for (size_t i = 0; i < count; i++) {
        int rc = cuda_alloc(d, wants[i].bytes, wants[i].out, wants[i].what, err);

        if (rc)
            return rc;
    }
    return 0;
}

static int slots_alloc(struct device *d, struct err *err)
{
    size_t n = (size_t)d->num_slots + 1; /* one for rows that nobody asked for */
    const struct want wants[] = {
        {&d->slot_states, n * sizeof *d->slot_states, "slots"},
        {&d->slot_biases, n * SLOT_BIASES * sizeof *d->slot_biases, "biases"},
        {&d->slot_tokens, n * (d->context_max + 1) * 4, "token ids"},
        {&d->slot_pages, n * d->pages_per_slot * 4, "page tables"},
    };

    d->slots = mem_array(n, sizeof *d->slots);
    d->ops = mem_array(REPLAY_OPS_MAX, sizeof *d->ops);
    d->replays = mem_array(REPLAYS_MAX, sizeof *d->replays);
    return allocate_all(d, wants, sizeof wants / sizeof *wants, err);
}

static int frame_alloc(struct device *d, struct err *err)
{
    struct frame *f = &d->frame, *h = &d->frame_host;
    const struct want wants[] = {
        {&f->rows, d->num_slots * sizeof *f->rows, "rows"},
        {&f->token_slot, (size_t)d->tokens_max * 4, "tokens' slots"},
        {&f->token_position, (size_t)d->tokens_max * 4, "tokens' positions"},
        {&f->tiles, d->tiles_max * sizeof *f->tiles, "attention tiles"},
        {&f->decode_rows, (size_t)d->num_slots * 4, "decode rows"},
        {&f->result_slot, (size_t)d->num_slots * 4, "results' slots"},
        {&f->result_token, (size_t)d->num_slots * 4, "results' tokens"},
        {&d->token_id, (size_t)d->tokens_max * 4, "token ids of a step"},
        {&d->rope, (size_t)d->tokens_max * d->model.head_dim * sizeof(float), "rotations"},
    };

    h->rows = mem_array(d->num_slots, sizeof *h->rows);
    h->token_slot = mem_array(d->tokens_max, 4);
    h->token_position = mem_array(d->tokens_max, 4);
    h->tiles = mem_array(d->tiles_max, sizeof *h->tiles);
    h->decode_rows = mem_array(d->num_slots, 4);
    h->result_slot = mem_array(d->num_slots, 4);
    h->result_token = mem_array(d->num_slots, 4);
    for (uint32_t i = 0; i < UPLOADS; i++) {
        struct upload *u = &d->uploads[i];
        size_t bytes = (size_t)UPLOAD_WORDS * 4 + PATCHES_MAX * sizeof *u->patches;
        cudaError_t made;
        int rc = cuda_alloc_pinned(d, bytes, &u->host, "uploads", err);

        if (!rc)
            rc = cuda_alloc(d, bytes, &u->device, "uploads", err);
        if (rc)
            return rc;
        u->patches = mem_array(PATCHES_MAX, sizeof *u->patches);
        made = cudaEventCreateWithFlags(&u->done, cudaEventDisableTiming);
        if (made != cudaSuccess)
            return cuda_fail(d, made, "uploads", err);
    }
    return allocate_all(d, wants, sizeof wants / sizeof *wants, err);
}

/* Bytes for the parts of decode attention that are in memory at once. The portable kernel: a unit
 * is split only as far as its parts fit the GPU at once, two blocks a multiprocessor. Hopper's:
 * twice as many as blocks, two a multiprocessor; of two numbers 16 bytes. */
static size_t parts_bytes(const struct device *d)
{
    return 4 * (size_t)d->multiprocessors * DECODE_ROWS * 2 * d->model.head_dim * sizeof(float);
}

static int scratch_alloc(struct device *d, struct err *err)
{
    const struct ops_model *m = &d->model;
    size_t hidden = (size_t)d->tokens_max * m->hidden * 2;
    size_t tokens = d->tokens_max < GATE_UP_TOKENS ? d->tokens_max : GATE_UP_TOKENS;
    size_t gate_up = tokens * 2 * m->intermediate * 2;
    size_t arrivals = (size_t)8 * (size_t)d->multiprocessors * sizeof *d->arrivals;
    const struct want wants[] = {
        {&d->partials, parts_bytes(d), "attention parts"},
        {&d->arrivals, arrivals, "attention counters"},
    };
    int rc = allocate_all(d, wants, sizeof wants / sizeof *wants, err);
    cudaError_t cleared;

    if (!rc)
        rc = cuda_alloc_summed(d, hidden > gate_up ? hidden : gate_up, &d->scratch, "scratch", err);
    if (rc)
        return rc;
    cleared = cudaMemsetAsync(d->arrivals, 0, arrivals, d->stream);
    return cleared == cudaSuccess ? 0 : cuda_fail(d, cleared, "attention counters", err);
}

static int sample_alloc(struct device *d, struct err *err)
{
    struct sample_args *a = &d->sample, *w = &d->whole;
    size_t ranks = d->config.tp_size, row = ranks * d->vocab_share * sizeof(float);
    size_t logits = (size_t)d->num_slots * d->vocab_share * sizeof(float);
    size_t records = d->num_slots * sizeof(struct sample_record);
    const struct want wants[] = {
        {&d->last, (size_t)d->num_slots * d->model.hidden * 2, "last tokens"},
        {&a->logits, logits, "logits"},
        {&a->adjusted, logits, "adjusted logits"},
        {&a->counts, logits, "token counts"},
        {&a->parts, (size_t)d->num_slots * SPAN_PARTS * sizeof(struct sample_part), "candidates"},
        {&a->records, records, "candidates"},
        {&a->results, d->num_slots * sizeof(struct sample_result), "results"},
        {&a->all_records, ranks > 1 ? ranks * records : 1, "candidates of all ranks"},
        {&w->logits, ranks > 1 ? row : 1, "a row of logits"},
        {&w->adjusted, ranks > 1 ? row : 1, "a row of adjusted logits"},
        {&w->counts, ranks > 1 ? row : 1, "a row of counts"},
    };
    int rc = allocate_all(d, wants, sizeof wants / sizeof *wants, err);

    if (!rc)
        rc = flights_open(d, err);
    if (rc)
        return rc;
    if (ranks == 1)
        a->all_records = a->records;
    a->slots = d->slot_states;
    a->biases = d->slot_biases;
    a->slot_tokens = d->slot_tokens;
    a->slot_stride = d->context_max + 1;
    a->stride = d->vocab_share;
    a->nobody = w->nobody = d->num_slots;
    a->ranks = d->config.tp_size;
    a->begin = d->model.vocab_begin;
    a->count = d->model.vocab_count;
    w->slots = a->slots;
    w->biases = a->biases;
    w->slot_tokens = a->slot_tokens;
    w->slot_stride = a->slot_stride;
    w->stride = (uint32_t)(ranks * d->vocab_share);
    w->results_count = 1;
    w->ranks = 1;
    w->count = d->model.vocab_size;
    d->results = mem_array(d->num_slots, sizeof *d->results);
    d->logits_host = mem_array(d->vocab_share, sizeof *d->logits_host);
    return 0;
}

/* Biases are added in the activation type, known for sure only now. */
static int vectors_finish(struct device *d, struct err *err)
{
    for (struct weight *w = d->weights; w; w = w->next) {
        int rc = cuda_weight_done(d, w, err);

        if (rc)
            return rc;
    }
    return 0;
}

/* The pages and the one that is nobody's, zeroed: what was never written must be a number. */
static int pages_alloc(struct device *d, uint32_t num_pages, const char *what, struct err *err)
{
    uint64_t bytes = cuda_page_bytes(d, d->page_size) * ((uint64_t)num_pages + 1);
    cudaError_t cleared;
    int rc = pool_check(d, bytes, num_pages, err);

    if (!rc)
        rc = cuda_alloc(d, bytes, &d->kv, what, err);
    if (rc)
        return rc;
    d->kv_bytes = bytes;
    d->num_pages = num_pages;
    cleared = cudaMemsetAsync(d->kv, 0, bytes, d->stream);
    return cleared == cudaSuccess ? slots_reserve(d, err) : cuda_fail(d, cleared, what, err);
}

int cuda_prepare(struct device *d, uint32_t page_size, uint32_t num_slots, uint32_t tokens_max,
                 uint32_t context_max, struct err *err)
{
    const struct ops_model *m = &d->model;
    int rc;

    if (d->prepared || !d->typed)
        return err_set(err, ERR_INVALID, "cuda: prepare: %s",
                       d->prepared ? "called twice" : "no weights yet");
    d->page_size = page_size;
    d->num_slots = num_slots;
    d->tokens_max = tokens_max;
    d->context_max = context_max;
    d->pages_per_slot = (context_max + page_size - 1) / page_size;
    d->tile_rows = attention_tile_rows(m->head_dim, page_size);
    d->tiles_max =
        num_slots + (uint32_t)((uint64_t)tokens_max * (m->heads / m->kv_heads) / d->tile_rows) + 1;
    rc = slots_alloc(d, err);
    if (!rc)
        rc = frame_alloc(d, err);
    if (!rc)
        rc = scratch_alloc(d, err);
    if (!rc)
        rc = sample_alloc(d, err);
    if (!rc)
        rc = score_alloc(d, err);
    if (!rc)
        rc = pages_alloc(d, 0, "a KV page", err);
    if (!rc)
        rc = vectors_finish(d, err);
    d->prepared = !rc;
    return rc ? rc : cuda_wait(d, err);
}

static int prepared_check(const struct device *d, uint32_t page_size, uint32_t num_slots,
                          uint32_t tokens_max, uint32_t context_max, struct err *err)
{
    if (page_size == d->page_size && num_slots <= d->num_slots && tokens_max <= d->tokens_max &&
        context_max <= d->context_max)
        return 0;
    return err_set(err, ERR_INVALID,
                   "rank %u: asked for %u slots, steps of %u tokens, pages of %u; prepared for %u, "
                   "%u, %u: start ranks and scheduler with the same --max-running-requests, "
                   "--chunked-prefill-size and --page-size",
                   d->config.rank, num_slots, tokens_max, page_size, d->num_slots, d->tokens_max,
                   d->page_size);
}

int cuda_pool_alloc(struct device *d, uint32_t num_pages, uint32_t page_size, uint32_t num_slots,
                    uint32_t tokens_max, uint32_t context_max, struct err *err)
{
    int rc;

    if (d->pooled)
        return err_set(err, ERR_INVALID, "cuda: pool_alloc: called twice");
    rc = d->prepared ? prepared_check(d, page_size, num_slots, tokens_max, context_max, err)
                     : cuda_prepare(d, page_size, num_slots, tokens_max, context_max, err);
    if (rc)
        return rc;
    replay_forget(d);
    cuda_free(d, d->kv);
    d->kv = NULL;
    d->kv_bytes = 0;
    d->pooled = true;
    rc = pages_alloc(d, num_pages, "KV pages", err);
    return rc ? rc : cuda_wait(d, err);
}

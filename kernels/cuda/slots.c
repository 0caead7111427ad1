/* Slots and the step's frame: what the host decides, sent to the device as patches. */
#include "common/mem.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define PATCH_WORDS 8192u /* one block of the kernel copies a patch */

/* Sends what is collected; the next buffer is free when this returns. */
int uploads_send(struct device *d, struct err *err)
{
    struct upload *u = &d->uploads[d->upload_turn], *next;
    uint32_t at = (u->words + 3u) & ~3u; /* patches hold 64-bit addresses */
    size_t patches = u->count * sizeof *u->patches;
    cudaError_t rc;

    if (!u->count)
        return 0;
    memcpy(u->host + at, u->patches, patches);
    rc = cudaMemcpyAsync(u->device, u->host, (size_t)at * 4 + patches, cudaMemcpyHostToDevice,
                         d->stream);
    if (rc == cudaSuccess)
        rc = launch_patches(d->stream, u->device, (const struct patch *)(void *)(u->device + at),
                            u->count);
    if (rc == cudaSuccess)
        rc = cudaEventRecord(u->done, d->stream);
    d->upload_turn = (d->upload_turn + 1) % UPLOADS;
    d->upload_epoch++;
    next = &d->uploads[d->upload_turn];
    if (rc == cudaSuccess)
        rc = cudaEventSynchronize(next->done);
    next->words = next->count = 0;
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "upload", err);
}

/* Patches of one upload are applied in no order: they must not overlap. */
int upload_add(struct device *d, void *dst, const void *data, uint32_t words, struct err *err)
{
    for (uint32_t at = 0; at < words; at += PATCH_WORDS) {
        struct upload *u = &d->uploads[d->upload_turn];
        uint32_t part = words - at < PATCH_WORDS ? words - at : PATCH_WORDS;

        if (u->count == PATCHES_MAX || part > UPLOAD_WORDS - 4 - u->words) {
            int rc = uploads_send(d, err);

            if (rc)
                return rc;
            u = &d->uploads[d->upload_turn];
        }
        memcpy(u->host + u->words, (const char *)data + (size_t)at * 4, (size_t)part * 4);
        u->patches[u->count++] =
            (struct patch){(uint64_t)(uintptr_t)dst + (uint64_t)at * 4, u->words, part};
        u->words += part;
    }
    return 0;
}

static int slot_check(const struct device *d, uint32_t slot, bool open, struct err *err)
{
    return check_slot(slot, d->num_slots, slot < d->num_slots && d->slots[slot].open, open, err);
}

static int open_check(const struct device *d, uint32_t slot, const uint32_t *tokens, uint32_t count,
                      uint32_t generated, const struct ops_sampling *p, struct err *err)
{
    int rc = slot_check(d, slot, false, err);

    if (!rc)
        rc = check_tokens(slot, tokens, count, generated, d->context_max, d->model.vocab_size, err);
    if (!rc && (p->end_ids_count > SLOT_END_IDS || p->bias_count > SLOT_BIASES))
        rc = err_set(err, ERR_LIMIT, "slot %u: %u end ids (at most %u), %u biases (at most %u)",
                     slot, p->end_ids_count, SLOT_END_IDS, p->bias_count, SLOT_BIASES);
    return rc;
}

static struct slot_state state_of(const struct ops_sampling *p, uint32_t count, uint32_t generated)
{
    struct slot_state s = {
        .seed = p->seed,
        .temperature = p->temperature,
        .top_p = p->top_p,
        .min_p = p->min_p,
        .presence = p->presence_penalty,
        .frequency = p->frequency_penalty,
        .repetition = p->repetition_penalty,
        .top_k = p->top_k,
        .logprobs = p->logprobs > OPS_LOGPROBS_MAX ? OPS_LOGPROBS_MAX : p->logprobs,
        .min_tokens = p->min_tokens,
        .count = count,
        .generated = generated,
        .bias_count = p->bias_count,
        .end_count = p->end_ids_count,
    };

    for (uint32_t i = 0; i < p->end_ids_count; i++)
        s.end_ids[i] = p->end_ids[i];
    return s;
}

int cuda_slot_open(struct device *d, uint32_t slot, const uint32_t *tokens, uint32_t count,
                   uint32_t generated, const struct ops_sampling *sampling, struct err *err)
{
    struct slot_state state;
    struct slot *s;
    int rc = open_check(d, slot, tokens, count, generated, sampling, err);

    if (rc)
        return rc;
    s = &d->slots[slot];
    if (s->epoch == d->upload_epoch + 1)
        rc = uploads_send(d, err);
    state = state_of(sampling, count, generated);
    if (!rc)
        rc =
            upload_add(d, d->slot_tokens + (size_t)slot * (d->context_max + 1), tokens, count, err);
    if (!rc)
        rc =
            upload_add(d, d->slot_states + slot, &state,
                       (uint32_t)(offsetof(struct slot_state, end_ids) / 4) + state.end_count, err);
    if (!rc)
        rc = upload_add(d, d->slot_biases + (size_t)slot * SLOT_BIASES, sampling->bias,
                        2 * sampling->bias_count, err);
    if (rc)
        return rc;
    s->epoch = d->upload_epoch + 1;
    s->open = true;
    s->top = state.logprobs > 0 ? (uint32_t)state.logprobs : 0;
    s->count = count;
    s->pages_count = 0;
    s->adjusted = sampling->bias_count || sampling->repetition_penalty != 1.0f ||
                  sampling->presence_penalty != 0.0f || sampling->frequency_penalty != 0.0f ||
                  (sampling->end_ids_count && generated < sampling->min_tokens);
    s->cut = sampling->temperature > 0.0f &&
             (sampling->top_k > 0 || sampling->top_p < 1.0f || sampling->min_p > 0.0f);
    s->open_choice = s->cut && (sampling->top_k <= 0 || sampling->top_k > (int32_t)CANDIDATES);
    return 0;
}

int cuda_slot_pages(struct device *d, uint32_t slot, uint32_t first, const uint32_t *pages,
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
    if (first < s->pages_count && s->epoch == d->upload_epoch + 1)
        rc = uploads_send(d, err);
    if (!rc)
        rc = upload_add(d, d->slot_pages + (size_t)slot * d->pages_per_slot + first, pages, count,
                        err);
    if (rc)
        return rc;
    s->epoch = d->upload_epoch + 1;
    s->pages_count = first + count;
    return 0;
}

/* All of its pages are one, so that it can be of any length. */
int slots_reserve(struct device *d, struct err *err)
{
    const struct ops_sampling greedy = {.top_p = 1.0f, .repetition_penalty = 1.0f, .logprobs = -1};
    struct slot_state state = state_of(&greedy, 1, 0);
    uint32_t slot = d->num_slots, *pages = mem_array(d->pages_per_slot, sizeof *pages);
    cudaError_t cleared =
        cudaMemsetAsync(d->slot_tokens + (size_t)slot * (d->context_max + 1), 0,
                        ((size_t)d->context_max + 1) * sizeof *d->slot_tokens, d->stream);
    int rc = cleared == cudaSuccess ? 0 : cuda_fail(d, cleared, "slots", err);

    for (uint32_t i = 0; i < d->pages_per_slot; i++)
        pages[i] = d->num_pages;
    if (!rc)
        rc = upload_add(d, d->slot_pages + (size_t)slot * d->pages_per_slot, pages,
                        d->pages_per_slot, err);
    if (!rc)
        rc = upload_add(d, d->slot_states + slot, &state,
                        (uint32_t)(offsetof(struct slot_state, end_ids) / 4), err);
    free(pages);
    return rc ? rc : uploads_send(d, err);
}

void cuda_slot_close(struct device *d, uint32_t slot)
{
    if (slot < d->num_slots)
        d->slots[slot].open = false;
}

static int row_check(const struct device *d, const struct ops_row *row, struct err *err)
{
    int rc = slot_check(d, row->slot, true, err);

    return rc ? rc
              : check_row(row, d->slots[row->slot].count, d->slots[row->slot].pages_count,
                          d->page_size, err);
}

/* The longest tiles of a prompt first, so that they do not trail at the end. */
static void row_tiles(struct device *d, uint32_t index, uint32_t count)
{
    uint64_t rows = (uint64_t)count * (d->model.heads / d->model.kv_heads);
    uint64_t tiles = (rows + d->tile_rows - 1) / d->tile_rows;

    for (uint64_t i = tiles; i-- > 0;)
        d->frame_host.tiles[d->tiles_count++] =
            (struct frame_tile){index, (uint32_t)(i * d->tile_rows)};
}

static void row_add(struct device *d, uint32_t index, const struct ops_row *row)
{
    const struct slot *s = &d->slots[row->slot];
    struct frame *f = &d->frame_host;

    f->rows[index] = (struct frame_row){row->slot, row->start, row->count, d->tokens_count};
    for (uint32_t k = 0; k < row->count; k++) {
        f->token_slot[d->tokens_count + k] = row->slot;
        f->token_position[d->tokens_count + k] = row->start + k;
    }
    d->tokens_count += row->count;
    if (row->count == 1)
        f->decode_rows[d->decode_count++] = index;
    else
        row_tiles(d, index, row->count);
    if (!row->sample)
        return;
    f->result_slot[d->results_count] = row->slot;
    f->result_token[d->results_count++] = d->tokens_count - 1;
    d->any_adjusted = d->any_adjusted || s->adjusted;
    d->any_cut = d->any_cut || (s->cut && !d->nccl); /* ranks decide those after the step */
    d->any_open = d->any_open || s->open_choice;
}

static int frame_upload(struct device *d, struct err *err)
{
    const struct frame *f = &d->frame, *h = &d->frame_host;
    int rc = upload_add(d, f->rows, h->rows, d->rows_count * (uint32_t)(sizeof *h->rows / 4), err);

    if (!rc)
        rc = upload_add(d, f->token_slot, h->token_slot, d->tokens_count, err);
    if (!rc)
        rc = upload_add(d, f->token_position, h->token_position, d->tokens_count, err);
    if (!rc)
        rc = upload_add(d, f->tiles, h->tiles, d->tiles_count * 2, err);
    if (!rc)
        rc = upload_add(d, f->decode_rows, h->decode_rows, d->decode_count, err);
    if (!rc)
        rc = upload_add(d, f->result_slot, h->result_slot, d->results_count, err);
    if (!rc)
        rc = upload_add(d, f->result_token, h->result_token, d->results_count, err);
    return rc ? rc : uploads_send(d, err);
}

/* Rows up to the number a replayed step has, of the slot that is nobody's. */
static void rows_fill(struct device *d)
{
    struct frame *f = &d->frame_host;
    uint32_t rows = replay_bucket(d, d->rows_count);

    for (uint32_t i = d->rows_count; i < rows; i++) {
        f->rows[i] = (struct frame_row){d->num_slots, 0, 1, i};
        f->token_slot[i] = f->result_slot[i] = d->num_slots;
        f->token_position[i] = 0;
        f->result_token[i] = f->decode_rows[i] = i;
    }
    d->rows_count = d->tokens_count = d->decode_count = d->results_count = rows;
}

static int prepare_run(struct device *d, const struct op *op, struct err *err)
{
    struct prepare_args a = {
        .token_slot = d->frame.token_slot,
        .token_position = d->frame.token_position,
        .slot_tokens = d->slot_tokens,
        .inv_freq = d->inv_freq,
        .token_id = d->token_id,
        .rope = d->rope,
        .slot_stride = d->context_max + 1,
        .half = d->model.head_dim / 2,
        .tokens = d->tokens_count,
        .rope_scale = d->model.rope_scale,
    };
    cudaError_t rc = launch_prepare(d->stream, &a);

    (void)op;
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "step", err);
}

static void step_reset(struct device *d)
{
    d->tokens_count = d->rows_count = d->tiles_count = d->decode_count = d->results_count = 0;
    d->any_adjusted = d->any_cut = d->any_open = d->sampled = false;
}

/* The rows are there: they go over, and what every operation needs is made of them. */
static int step_start(struct device *d, struct err *err)
{
    const struct op prepare = {.run = prepare_run};
    cudaError_t set = cudaSetDevice((int)d->config.device_index);
    int rc;

    replay_begin(d);
    if (d->deferring)
        rows_fill(d);
    if (set != cudaSuccess)
        return cuda_fail(d, set, "step", err);
    rc = flight_begin(d, err);
    if (!rc)
        rc = frame_upload(d, err);
    return rc || !d->tokens_count ? rc : replay_add(d, &prepare, err);
}

int cuda_step_begin(struct device *d, const struct ops_row *rows, uint32_t count, struct err *err)
{
    int rc;

    if (count > d->num_slots)
        return err_set(err, ERR_INVALID, "%u rows, %u slots", count, d->num_slots);
    if (d->flights_count == STEPS_AHEAD)
        return err_set(err, ERR_INVALID, "%d steps have not ended", STEPS_AHEAD);
    rc = flight_decide(d, err);
    if (rc)
        return rc;
    step_reset(d);
    for (uint32_t i = 0; i < count; i++) {
        rc = row_check(d, &rows[i], err);
        if (rc)
            return rc;
        if (rows[i].count > d->tokens_max - d->tokens_count)
            return err_set(err, ERR_INVALID, "more than %u tokens in a step", d->tokens_max);
        row_add(d, i, &rows[i]);
    }
    d->rows_count = count;
    d->results_asked = d->results_count;
    d->balanced = balance_wanted(d);
    return step_start(d, err);
}

int slots_rehearse(struct device *d, uint32_t rows, uint32_t tokens, bool cut, bool balanced,
                   struct err *err)
{
    const struct ops_row row = {.slot = d->num_slots, .count = tokens, .sample = true};

    step_reset(d);
    d->slots[d->num_slots].cut = cut;
    for (uint32_t i = 0; i < rows; i++)
        row_add(d, i, &row);
    d->rows_count = rows;
    d->results_asked = 0;
    d->balanced = balanced;
    return step_start(d, err);
}

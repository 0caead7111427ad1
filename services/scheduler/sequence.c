#include "services/scheduler/sequence.h"

#include "common/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static void *copy_array(const void *data, uint32_t count, size_t size)
{
    void *copy;

    if (count == 0)
        return NULL;
    copy = mem_array(count, size);
    memcpy(copy, data, count * size);
    return copy;
}

struct sequence *sequence_new(const struct scheduler_request *request,
                              const struct proto_sampling *sampling, int64_t now_us)
{
    struct sequence *seq = mem_zalloc(sizeof *seq);

    seq->key = (struct sequence_key){request->owner, request->id};
    seq->state = SEQUENCE_WAITING;
    seq->prompt_count = request->prompt_count;
    seq->generated = seq->planned = request->resumed_count;
    seq->tokens =
        mem_array((size_t)request->prompt_count + request->resumed_count, sizeof *seq->tokens);
    memcpy(seq->tokens, request->prompt, request->prompt_count * sizeof *seq->tokens);
    if (request->resumed_count)
        memcpy(seq->tokens + request->prompt_count, request->resumed,
               request->resumed_count * sizeof *seq->tokens);
    seq->replays = request->replays;
    seq->max_asked = request->sampling->max_tokens > 0;
    seq->sampling = *sampling;
    seq->sampling.stop_token_ids = copy_array(
        sampling->stop_token_ids, sampling->stop_token_ids_count, sizeof *sampling->stop_token_ids);
    seq->sampling.logit_bias =
        copy_array(sampling->logit_bias, sampling->logit_bias_count, sizeof *sampling->logit_bias);
    seq->arrived_us = now_us;
    seq->node = PREFIX_ROOT;
    seq->place.page = PREFIX_ROOT;
    if (request->resumed_count) /* the prompt's come before any token */
        seq->scored = sequence_scores_end(seq);
    return seq;
}

void sequence_free(struct sequence **self)
{
    struct sequence *seq = *self;

    free(seq->tokens);
    free(seq->pages);
    free(seq->sampling.stop_token_ids);
    free(seq->sampling.logit_bias);
    free(seq);
    *self = NULL;
}

void sequence_start(struct sequence *seq, uint32_t slot, uint32_t pages_max)
{
    /* Once, so that steps need no memory; what is never written never becomes resident. */
    if (!seq->pages) {
        seq->tokens = mem_resize(seq->tokens, (size_t)seq->prompt_count + seq->sampling.max_tokens,
                                 sizeof *seq->tokens);
        seq->pages = mem_array(pages_max, sizeof *seq->pages);
    }
    seq->slot = slot;
    seq->state = SEQUENCE_PREFILL;
}

void sequence_stop(struct sequence *seq)
{
    seq->planned = seq->generated;
    seq->computed = 0;
    seq->pages_count = seq->pages_told = seq->pages_shared = 0;
    seq->node = PREFIX_ROOT;
    seq->node_depth = 0;
    seq->state = SEQUENCE_WAITING;
}

uint32_t sequence_known(const struct sequence *seq)
{
    return seq->prompt_count + seq->generated;
}

uint32_t sequence_scores_end(const struct sequence *seq)
{
    return seq->sampling.prompt_logprobs ? seq->prompt_count - 1 : 0;
}

uint32_t sequence_pending(const struct sequence *seq)
{
    if (seq->planned >= seq->sampling.max_tokens)
        return 0;
    if (seq->paused && seq->state == SEQUENCE_DECODE)
        return 0;
    return seq->prompt_count + seq->planned - seq->computed;
}

static bool contains(const uint32_t *ids, uint32_t count, uint32_t id)
{
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] == id)
            return true;
    return false;
}

enum proto_finish sequence_append(struct sequence *seq, uint32_t id, const uint32_t *eos_ids,
                                  uint32_t eos_ids_count)
{
    const struct proto_sampling *sampling = &seq->sampling;
    uint32_t index = seq->generated;

    assert(index < sampling->max_tokens);
    seq->tokens[seq->prompt_count + index] = id;
    seq->generated++;
    if (index >= sampling->min_tokens) {
        if (!sampling->ignore_eos && contains(eos_ids, eos_ids_count, id))
            return FINISH_STOP;
        if (contains(sampling->stop_token_ids, sampling->stop_token_ids_count, id))
            return FINISH_STOP;
    }
    return seq->generated == sampling->max_tokens ? FINISH_LENGTH : FINISH_NONE;
}

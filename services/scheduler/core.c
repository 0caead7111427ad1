#include "services/scheduler/core.h"

#include "common/mem.h"
#include "services/scheduler/admission.h"
#include "services/scheduler/memory.h"
#include "services/scheduler/state.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

static int config_check(const struct scheduler_config *c, struct err *err)
{
    if (c->slots_max < 1 || c->slots_max > SCHEDULER_SLOTS_MAX)
        return err_set(err, ERR_INVALID, "slots_max %u is outside of 1 .. %u", c->slots_max,
                       SCHEDULER_SLOTS_MAX);
    if (c->num_pages < 1 || c->num_pages > SCHEDULER_PAGES_MAX)
        return err_set(err, ERR_INVALID, "num_pages %u is outside of 1 .. %u", c->num_pages,
                       SCHEDULER_PAGES_MAX);
    if (c->page_size < 1)
        return err_set(err, ERR_INVALID, "page_size is 0");
    if (c->queued_max < 1)
        return err_set(err, ERR_INVALID, "queued_max is 0");
    if (c->context_length < 2)
        return err_set(err, ERR_INVALID, "context_length %u is below 2", c->context_length);
    if (c->vocab_size < 1)
        return err_set(err, ERR_INVALID, "vocab_size is 0");
    if (c->prefill_tokens_max < 1 && c->prefill_tokens_max != -1)
        return err_set(err, ERR_INVALID, "prefill_tokens_max %d is neither -1 nor positive",
                       c->prefill_tokens_max);
    if (c->steps_in_flight_max < 1 || c->steps_in_flight_max > SCHEDULER_STEPS_MAX)
        return err_set(err, ERR_INVALID, "steps_in_flight_max %u is outside of 1 .. %u",
                       c->steps_in_flight_max, SCHEDULER_STEPS_MAX);
    if (!(c->conservativeness >= 0))
        return err_set(err, ERR_INVALID, "conservativeness %g is negative", c->conservativeness);
    if (!policy_find(c->policy))
        return err_set(err, ERR_INVALID, "there is no policy named %s", c->policy);
    return 0;
}

static void budget_init(struct scheduler *s)
{
    const struct scheduler_config *c = &s->config;
    uint64_t pool = (uint64_t)c->num_pages * c->page_size;
    uint64_t prefill =
        c->prefill_tokens_max < 0 ? c->context_length : (uint64_t)c->prefill_tokens_max;
    uint64_t least;

    if (prefill > pool)
        prefill = pool;
    if (prefill > LIMIT_PROMPT_IDS)
        prefill = LIMIT_PROMPT_IDS; /* no prompt is longer; bounds the STEP message */
    /* A full batch of decode rows leaves room for a page of some prompt, so that prompts go on
     * where the budget is smaller than the batch. Uncut prompts need theirs beside the batch. */
    least = c->prefill_tokens_max < 0 || prefill < c->page_size ? prefill : c->page_size;
    s->prefill_tokens_max = (uint32_t)prefill;
    s->tokens_max = (uint32_t)(prefill > c->slots_max + least ? prefill : c->slots_max + least);
}

static void step_init(struct step *step, uint32_t slots_max)
{
    struct proto_step *m = &step->out.message;

    m->closed = mem_array(slots_max, sizeof *m->closed);
    m->opened = mem_array(slots_max, sizeof *m->opened);
    m->pages = mem_array(slots_max, sizeof *m->pages);
    m->rows = mem_array(slots_max, sizeof *m->rows);
    m->scores = mem_array(slots_max, sizeof *m->scores);
    step->sequences = mem_array(slots_max, sizeof(struct sequence *));
    step->queue_us = mem_array(slots_max, sizeof *step->queue_us);
    step->out.queue_us = step->queue_us;
}

static void step_fini(struct step *step)
{
    free(step->out.message.closed);
    free(step->out.message.opened);
    free(step->out.message.pages);
    free(step->out.message.rows);
    free(step->out.message.scores);
    free(step->sequences);
    free(step->queue_us);
}

void scheduler_pool_init(struct scheduler *s, uint32_t num_pages)
{
    struct scheduler_config *c = &s->config;

    c->num_pages = num_pages;
    pages_init(&s->pages, num_pages);
    if (c->prefix_cache)
        prefix_init(&s->tree, num_pages, c->page_size, c->hash_seed);
    s->slots_count = s->closed_count = s->pages_resting = 0;
    for (uint32_t i = c->slots_max; i > 0; i--)
        s->slots[s->slots_count++] = i - 1;
    s->planned = s->applied = 0;
    budget_init(s);
}

void scheduler_pool_fini(struct scheduler *s)
{
    pages_fini(&s->pages);
    prefix_fini(&s->tree);
}

int scheduler_new(const struct scheduler_config *config, struct scheduler **out, struct err *err)
{
    struct scheduler *s;
    int rc = config_check(config, err);

    if (rc)
        return rc;
    s = mem_zalloc(sizeof *s);
    s->config = *config;
    s->policy = policy_find(config->policy);
    s->eos_ids = mem_array(config->eos_ids_count, sizeof *s->eos_ids);
    if (config->eos_ids_count)
        memcpy(s->eos_ids, config->eos_ids, config->eos_ids_count * sizeof *s->eos_ids);
    s->config.eos_ids = s->eos_ids;
    memory_init(s);
    s->slots = mem_array(config->slots_max, sizeof *s->slots);
    s->closed = mem_array(config->slots_max, sizeof *s->closed);
    scheduler_pool_init(s, config->num_pages);
    for (uint32_t i = 0; i < config->steps_in_flight_max; i++)
        step_init(&s->steps[i], config->slots_max);
    s->outputs = mem_array(config->slots_max, sizeof *s->outputs);
    *out = s;
    return 0;
}

/* Ended sequences are known to their rows alone, each to its newest. */
void scheduler_free_retiring(struct scheduler *s)
{
    for (uint64_t n = s->applied + 1; n <= s->planned; n++) {
        struct step *step = scheduler_step_at(s, n);

        for (uint32_t i = 0; i < step->out.message.rows_count; i++) {
            struct sequence *seq = step->sequences[i];

            if (seq->state == SEQUENCE_ENDED && seq->last_step == n)
                sequence_free(&seq);
        }
    }
}

void scheduler_free(struct scheduler **self)
{
    struct scheduler *s = *self;
    struct sequence *seq, *next;

    if (!s)
        return;
    scheduler_free_retiring(s);
    HASH_ITER(hh, s->by_key, seq, next)
    {
        HASH_DEL(s->by_key, seq);
        sequence_free(&seq);
    }
    for (uint32_t i = 0; i < s->config.steps_in_flight_max; i++)
        step_fini(&s->steps[i]);
    scheduler_pool_fini(s);
    free(s->slots);
    free(s->closed);
    free(s->eos_ids);
    free(s->outputs);
    free(s->failures);
    free(s);
    *self = NULL;
}

uint32_t scheduler_tokens_max(const struct scheduler *s)
{
    return s->tokens_max;
}

static struct sequence *sequence_find(struct scheduler *s, uint64_t owner, uint64_t id)
{
    struct sequence_key key = {owner, id};
    struct sequence *seq;

    HASH_FIND(hh, s->by_key, &key, sizeof key, seq);
    return seq;
}

int scheduler_admit(struct scheduler *s, const struct scheduler_request *request, int64_t now_us,
                    struct scheduler_refusal *refusal, struct err *err)
{
    struct scheduler_refusal unused;
    struct proto_sampling resolved;
    struct sequence *seq;
    int rc = admission_check(&s->config, request, &resolved, refusal ? refusal : &unused, err);

    if (rc)
        return rc;
    if (sequence_find(s, request->owner, request->id))
        return err_set(err, ERR_INVALID, "sequence %" PRIu64 " is there already", request->id);
    /* Those for which a slot is free do not count: they start with the next step. */
    if (s->queue.count >= (uint64_t)s->config.queued_max + s->slots_count)
        return err_set(err, ERR_BUSY, "the queue is full (%u sequences wait)", s->queue.count);
    if (s->parked_count >= s->config.queued_max)
        return err_set(err, ERR_BUSY, "%u sequences wait for their readers", s->parked_count);
    seq = sequence_new(request, &resolved, now_us);
    HASH_ADD(hh, s->by_key, key, sizeof seq->key, seq);
    seq->arrival = ++s->arrivals;
    seq->priority = s->policy->priorities ? resolved.priority : 0;
    queue_insert(&s->queue, seq);
    return 0;
}

void scheduler_wait(struct scheduler *s, struct sequence *seq)
{
    if (!seq->paused) {
        queue_insert(&s->queue, seq);
        return;
    }
    DL_APPEND(s->parked, seq);
    s->parked_count++;
}

void scheduler_unwait(struct scheduler *s, struct sequence *seq)
{
    if (!seq->paused) {
        queue_remove(&s->queue, seq);
        return;
    }
    DL_DELETE(s->parked, seq);
    s->parked_count--;
}

void scheduler_release(struct scheduler *s, struct sequence *seq)
{
    assert(seq->state == SEQUENCE_ENDED || seq->state == SEQUENCE_RETRACTED);
    if (seq->last_step > s->applied)
        return;
    memory_release(s, seq);
    s->slots[s->slots_count++] = seq->slot;
    s->closed[s->closed_count++] = seq->slot;
    if (seq->state == SEQUENCE_ENDED) {
        sequence_free(&seq);
        return;
    }
    s->retracted--;
    sequence_stop(seq);
    scheduler_wait(s, seq);
}

static void batch_remove(struct scheduler *s, struct sequence *seq)
{
    if (seq->state == SEQUENCE_PREFILL)
        s->prefill = NULL;
    else
        DL_DELETE(s->decode, seq);
    s->running--;
    s->pages_resting += seq->pages_count - seq->pages_shared;
}

void scheduler_end(struct scheduler *s, struct sequence *seq)
{
    if (seq->state == SEQUENCE_RETRACTED)
        s->retracted--;
    else
        batch_remove(s, seq);
    HASH_DEL(s->by_key, seq);
    seq->state = SEQUENCE_ENDED;
    scheduler_release(s, seq);
}

void scheduler_retract(struct scheduler *s, struct sequence *seq)
{
    batch_remove(s, seq);
    seq->state = SEQUENCE_RETRACTED;
    seq->retractions++;
    s->retracted++;
    s->preemptions++;
    scheduler_release(s, seq);
}

static void sequence_abort(struct scheduler *s, struct sequence *seq)
{
    if (seq->state != SEQUENCE_WAITING) {
        scheduler_end(s, seq);
        return;
    }
    scheduler_unwait(s, seq);
    HASH_DEL(s->by_key, seq);
    sequence_free(&seq);
}

int scheduler_pause(struct scheduler *s, uint64_t owner, uint64_t id, bool paused)
{
    struct sequence *seq = sequence_find(s, owner, id);

    if (!seq)
        return ERR_NOT_FOUND;
    if (seq->state == SEQUENCE_WAITING)
        scheduler_unwait(s, seq);
    seq->paused = paused;
    if (seq->state == SEQUENCE_WAITING)
        scheduler_wait(s, seq);
    return 0;
}

int scheduler_abort(struct scheduler *s, uint64_t owner, uint64_t id)
{
    struct sequence *seq = sequence_find(s, owner, id);

    if (!seq)
        return ERR_NOT_FOUND;
    sequence_abort(s, seq);
    return 0;
}

uint32_t scheduler_abort_owner(struct scheduler *s, uint64_t owner)
{
    struct sequence *seq, *next;
    uint32_t count = 0;

    HASH_ITER(hh, s->by_key, seq, next)
    {
        if (seq->key.owner != owner)
            continue;
        sequence_abort(s, seq);
        count++;
    }
    return count;
}

void scheduler_flush(struct scheduler *s)
{
    while (prefix_loose(&s->tree))
        pages_return(&s->pages, prefix_evict(&s->tree));
}

void scheduler_stats(const struct scheduler *s, struct scheduler_stats *out)
{
    *out = (struct scheduler_stats){
        .waiting = s->queue.count + s->retracted + s->parked_count,
        .parked = s->parked_count,
        .running = s->running,
        .slots_free = s->slots_count,
        .steps_in_flight = (uint32_t)(s->planned - s->applied),
        .pages_total = s->pages.total,
        .pages_free = memory_available(s),
        .pages_cached = s->tree.count,
        .prompt_tokens = s->prompt_tokens,
        .generation_tokens = s->generation_tokens,
        .surplus_tokens = s->surplus_tokens,
        .steps = s->steps_applied,
        .prefix_queries = s->prefix_queries,
        .prefix_hits = s->prefix_hits,
        .preemptions = s->preemptions,
        .replays = s->replays,
    };
}

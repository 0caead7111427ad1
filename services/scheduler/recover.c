/* The ranks come and go, the sequences stay. */
#include "common/mem.h"
#include "services/scheduler/admission.h"
#include "services/scheduler/state.h"

#include <assert.h>
#include <stdio.h>

/* Every sequence may fail. */
static void failures_reserve(struct scheduler *s)
{
    uint32_t most = HASH_COUNT(s->by_key);

    if (most <= s->failures_cap)
        return;
    s->failures = mem_resize(s->failures, most, sizeof *s->failures);
    s->failures_cap = most;
}

/* seq is in no list any more. */
static void fail(struct scheduler *s, struct sequence *seq, uint32_t *count, const char *code,
                 const char *message)
{
    struct scheduler_failure *f = &s->failures[(*count)++];

    *f = (struct scheduler_failure){.owner = seq->key.owner, .id = seq->key.id, .code = code};
    (void)snprintf(f->message, sizeof f->message, "%s", message);
    HASH_DEL(s->by_key, seq);
    sequence_free(&seq);
}

/* Of a sequence that had a slot. */
static void begin_anew(struct scheduler *s, struct sequence *seq, uint32_t *failed)
{
    char message[160];

    sequence_stop(seq);
    seq->retractions++;
    seq->replays++;
    s->replays++;
    if (seq->replays <= LIMIT_REPLAYS) {
        scheduler_wait(s, seq);
        return;
    }
    (void)snprintf(message, sizeof message,
                   "the ranks failed %u times while this request ran, at most %d are made up for",
                   seq->replays, LIMIT_REPLAYS);
    fail(s, seq, failed, "replays_exhausted", message);
}

uint32_t scheduler_group_lost(struct scheduler *s, const struct scheduler_failure **failed)
{
    struct sequence *seq, *next;
    uint32_t count = 0;

    failures_reserve(s);
    scheduler_free_retiring(s);
    s->prefill = s->decode = NULL;
    s->running = s->retracted = 0;
    HASH_ITER(hh, s->by_key, seq, next)
    {
        seq->place = (struct prefix_place){.page = PREFIX_ROOT};
        if (seq->state != SEQUENCE_WAITING)
            begin_anew(s, seq, &count);
    }
    scheduler_pool_fini(s);
    scheduler_pool_init(s, s->config.num_pages);
    s->lost = true;
    *failed = s->failures;
    return count;
}

uint32_t scheduler_group_joined(struct scheduler *s, uint32_t num_pages,
                                const struct scheduler_failure **failed)
{
    struct sequence *seq, *next;
    uint32_t count = 0;

    assert(s->lost && num_pages >= 1 && num_pages <= SCHEDULER_PAGES_MAX);
    scheduler_pool_fini(s);
    scheduler_pool_init(s, num_pages);
    s->lost = false;
    failures_reserve(s);
    HASH_ITER(hh, s->by_key, seq, next)
    {
        struct err err;

        if (admission_refit(&s->config, seq, &err) == 0)
            continue;
        scheduler_unwait(s, seq);
        fail(s, seq, &count, "unavailable", err.msg);
    }
    *failed = s->failures;
    return count;
}

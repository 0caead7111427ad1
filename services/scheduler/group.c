#include "services/scheduler/group.h"

#include "common/mem.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEPS_LEAST 2u
/* What waits behind the step that computes is worth so much: a result's way to the scheduler and
 * the next plan's way back take 0.2 ms as a rule, and more than 1 ms now and then. */
#define AHEAD_US 1500u

static uint64_t bit(uint32_t rank)
{
    return UINT64_C(1) << rank;
}

static uint64_t all_bits(const struct group *g)
{
    return g->size == 64 ? UINT64_MAX : bit(g->size) - 1;
}

void group_init(struct group *g, uint32_t size, uint32_t page_size)
{
    assert(size >= 1 && size <= GROUP_RANKS_MAX);
    *g = (struct group){.size = size, .page_size = page_size};
}

void group_fini(struct group *g)
{
    for (size_t i = 0; i < SCHEDULER_STEPS_MAX; i++) {
        struct results *r = &g->rounds[i].results;

        free(r->sampled);
        free(r->logprobs);
        free(r->alternatives);
    }
    *g = (struct group){0};
}

void group_reset(struct group *g)
{
    g->loaded = g->ready = 0;
    g->rounds_count = 0;
    g->step_us = 0;
}

static int loaded_check(const struct group *g, const struct proto_loaded *m, struct err *err)
{
    if (m->rank >= g->size)
        return err_set(err, ERR_PROTOCOL, "rank %u is outside of the group's %u", m->rank, g->size);
    if (g->loaded & bit(m->rank))
        return err_set(err, ERR_PROTOCOL, "rank %u has come twice", m->rank);
    if (m->tp_size != g->size)
        return err_set(err, ERR_PROTOCOL,
                       "rank %u was started with --tp-size %u, the scheduler with %u", m->rank,
                       m->tp_size, g->size);
    if (m->page_size != g->page_size)
        return err_set(err, ERR_PROTOCOL,
                       "rank %u was started with --page-size %u, the scheduler with %u", m->rank,
                       m->page_size, g->page_size);
    if (m->vocab_size < 1 || m->context_length < 2)
        return err_set(err, ERR_PROTOCOL, "rank %u has a vocabulary of %u and a context of %u",
                       m->rank, m->vocab_size, m->context_length);
    if (m->pages_max < 1)
        return err_set(err, ERR_PROTOCOL,
                       "rank %u has no memory left for KV pages; see --mem-fraction-static",
                       m->rank);
    return 0;
}

static int loaded_compare(const struct group *g, const struct proto_loaded *m, struct err *err)
{
    const char *when = g->known ? " before" : "";

    if (m->vocab_size != g->vocab_size)
        return err_set(err, ERR_PROTOCOL, "rank %u has a vocabulary of %u, rank %u of %u%s",
                       m->rank, m->vocab_size, g->first_rank, g->vocab_size, when);
    if (m->context_length != g->context_length)
        return err_set(err, ERR_PROTOCOL, "rank %u has a context of %u, rank %u of %u%s", m->rank,
                       m->context_length, g->first_rank, g->context_length, when);
    if (m->fingerprint != g->fingerprint || m->eos_ids_count != g->eos_ids_count ||
        (m->eos_ids_count &&
         memcmp(m->eos_ids, g->eos_ids, m->eos_ids_count * sizeof *m->eos_ids) != 0))
        return err_set(err, ERR_PROTOCOL,
                       "rank %u has loaded another model or layout than rank %u%s (fingerprint "
                       "%016" PRIx64 ", not %016" PRIx64 ")",
                       m->rank, g->first_rank, when, m->fingerprint, g->fingerprint);
    return 0;
}

static void loaded_first(struct group *g, const struct proto_loaded *m)
{
    g->first_rank = m->rank;
    g->vocab_size = m->vocab_size;
    g->context_length = m->context_length;
    g->fingerprint = m->fingerprint;
    g->prompt_logprobs = true;
    g->eos_ids_count = m->eos_ids_count; /* at most 64: the field's bound */
    if (m->eos_ids_count)
        memcpy(g->eos_ids, m->eos_ids, m->eos_ids_count * sizeof *m->eos_ids);
    (void)snprintf(g->device, sizeof g->device, "%.*s", (int)m->device.len, m->device.data);
}

bool group_together(const struct group *g, const struct proto_loaded *m)
{
    return !g->loaded || m->communicator == g->communicator;
}

int group_loaded(struct group *g, const struct proto_loaded *m, struct err *err)
{
    int rc = loaded_check(g, m, err);

    if (!rc && !g->loaded) {
        g->communicator = m->communicator;
        g->pages_max = UINT32_MAX;
        g->pages_most = 0;
        g->steps_ahead = UINT32_MAX;
        g->page_bytes = g->weight_bytes = 0;
        if (!g->known)
            loaded_first(g, m);
    }
    if (!rc)
        rc = loaded_compare(g, m, err);
    if (rc)
        return rc;
    g->loaded |= bit(m->rank);
    g->known = g->known || group_all_loaded(g);
    g->prompt_logprobs = g->prompt_logprobs && m->prompt_logprobs;
    if (m->pages_max < g->pages_max) {
        g->pages_max = m->pages_max;
        g->pages_max_rank = m->rank;
    }
    if (m->pages_max > g->pages_most) {
        g->pages_most = m->pages_max;
        g->pages_most_rank = m->rank;
    }
    if (m->steps_ahead < g->steps_ahead)
        g->steps_ahead = m->steps_ahead;
    if (m->page_bytes > g->page_bytes)
        g->page_bytes = m->page_bytes;
    if (m->weight_bytes > g->weight_bytes)
        g->weight_bytes = m->weight_bytes;
    return 0;
}

int group_kv_ready(struct group *g, const struct proto_kv_ready *m, struct err *err)
{
    if (m->rank >= g->size || !group_all_loaded(g) || (g->ready & bit(m->rank)))
        return err_set(err, ERR_PROTOCOL, "rank %u sent KV_READY, which nobody waits for", m->rank);
    g->ready |= bit(m->rank);
    return 0;
}

bool group_uneven(const struct group *g)
{
    return g->pages_max < g->pages_most - g->pages_most / 10;
}

bool group_all_loaded(const struct group *g)
{
    return g->loaded == all_bits(g);
}

bool group_all_ready(const struct group *g)
{
    return g->ready == all_bits(g);
}

bool group_step_wanted(const struct group *g)
{
    if (g->rounds_count < STEPS_LEAST)
        return true;
    if (g->rounds_count >= GROUP_STEPS_MAX || g->rounds_count >= g->steps_ahead || !g->step_us)
        return false;
    for (uint32_t i = 0; i < g->rounds_count; i++)
        if (!g->rounds[i].decodes)
            return false;
    return (g->rounds_count - 1) * g->step_us < AHEAD_US;
}

void group_step_sent(struct group *g, uint64_t step, int64_t now_us)
{
    struct round *r = &g->rounds[g->rounds_count++];

    assert(g->rounds_count <= SCHEDULER_STEPS_MAX);
    r->step = step;
    r->sent_us = now_us;
    r->done = 0;
    r->compute_us = 0;
    r->results.count = 0;
}

/* data with room for count elements. */
static void *grow(void *data, uint32_t *cap, uint32_t count, size_t size)
{
    if (count <= *cap)
        return data;
    *cap = count > 2 * *cap ? count : 2 * *cap;
    return mem_resize(data, *cap, size);
}

static uint32_t alternatives_count(const struct proto_logprob *list, uint32_t count)
{
    uint32_t sum = 0;

    for (uint32_t i = 0; i < count; i++)
        sum += list[i].top_count;
    return sum;
}

/* What of the memory of results is in use. */
struct taken {
    uint32_t logprobs, alternatives;
};

/* The numbers alone: between scheduler and tokenizer, tokens have no text. */
static struct proto_logprob *logprobs_copy(struct results *r, struct taken *taken,
                                           const struct proto_logprob *from, uint32_t count)
{
    struct proto_logprob *copies = r->logprobs + taken->logprobs;

    for (uint32_t i = 0; i < count; i++) {
        copies[i] = (struct proto_logprob){.id = from[i].id,
                                           .logprob = from[i].logprob,
                                           .top = r->alternatives + taken->alternatives,
                                           .top_count = from[i].top_count};
        for (uint32_t k = 0; k < from[i].top_count; k++)
            r->alternatives[taken->alternatives++] = (struct proto_alternative){
                .id = from[i].top[k].id, .logprob = from[i].top[k].logprob};
    }
    taken->logprobs += count;
    return copies;
}

static void results_copy(struct results *r, const struct proto_sampled *from, uint32_t count)
{
    struct taken all = {0}, taken = {0};

    for (uint32_t i = 0; i < count; i++) {
        all.logprobs += from[i].logprob_count + from[i].prompt_count;
        all.alternatives += alternatives_count(from[i].logprob, from[i].logprob_count) +
                            alternatives_count(from[i].prompt, from[i].prompt_count);
    }
    r->sampled = grow(r->sampled, &r->sampled_cap, count, sizeof *r->sampled);
    r->logprobs = grow(r->logprobs, &r->logprobs_cap, all.logprobs, sizeof *r->logprobs);
    r->alternatives =
        grow(r->alternatives, &r->alternatives_cap, all.alternatives, sizeof *r->alternatives);
    r->count = count;
    for (uint32_t i = 0; i < count; i++) {
        struct proto_sampled *to = &r->sampled[i];

        *to = (struct proto_sampled){.slot = from[i].slot,
                                     .id = from[i].id,
                                     .logprob_count = from[i].logprob_count,
                                     .prompt_count = from[i].prompt_count};
        to->logprob = logprobs_copy(r, &taken, from[i].logprob, from[i].logprob_count);
        to->prompt = logprobs_copy(r, &taken, from[i].prompt, from[i].prompt_count);
    }
}

static struct round *round_find(struct group *g, uint64_t step)
{
    for (uint32_t i = 0; i < g->rounds_count; i++)
        if (g->rounds[i].step == step)
            return &g->rounds[i];
    return NULL;
}

int group_step_done(struct group *g, uint32_t rank, const struct proto_step_done *m, bool *complete,
                    const struct proto_sampled **results, uint32_t *results_count, struct err *err)
{
    struct round *r = round_find(g, m->step);

    *complete = false;
    if (m->rank != rank || !r || (r->done & bit(rank)))
        return err_set(err, ERR_PROTOCOL,
                       "rank %u sent STEP_DONE of rank %u and step %" PRIu64
                       ", which nobody waits for",
                       rank, m->rank, m->step);
    if (r->done == 0) {
        r->hash = m->hash;
        r->hash_rank = rank;
    } else if (r->hash != m->hash) {
        return err_set(err, ERR_PROTOCOL,
                       "ranks %u and %u have come apart in step %" PRIu64 " (hash %016" PRIx64
                       ", %016" PRIx64 ")",
                       r->hash_rank, rank, m->step, r->hash, m->hash);
    }
    r->done |= bit(rank);
    if (m->elapsed_us > r->compute_us)
        r->compute_us = m->elapsed_us;
    *complete = r == &g->rounds[0] && r->done == all_bits(g);
    if (rank == 0 && !*complete)
        results_copy(&r->results, m->results, m->results_count);
    *results = rank == 0 ? m->results : r->results.sampled;
    *results_count = rank == 0 ? m->results_count : r->results.count;
    return 0;
}

void group_step_drop(struct group *g)
{
    struct round oldest = g->rounds[0];

    assert(g->rounds_count > 0);
    g->step_us = oldest.compute_us;
    g->rounds_count--;
    memmove(&g->rounds[0], &g->rounds[1], g->rounds_count * sizeof oldest);
    g->rounds[g->rounds_count] = oldest; /* its memory is used again */
}

bool group_step_complete(const struct group *g)
{
    return g->rounds_count && g->rounds[0].done == all_bits(g);
}

const char *group_missing(const struct group *g, uint64_t mask, char *text, size_t size)
{
    size_t used = 0;

    text[0] = '\0';
    for (uint32_t rank = 0; rank < g->size && used < size; rank++)
        if (!(mask & bit(rank)))
            used += (size_t)snprintf(text + used, size - used, "%s%u", used ? ", " : "", rank);
    return text;
}

#include "services/scheduler/memory.h"

#include <assert.h>

/* How much we expect requests to use of the new tokens that they may: at first, at least, and how
 * many steps lie between the two when nothing goes wrong. */
#define RATIO_INITIAL 0.7
#define RATIO_MIN 0.1
#define RATIO_STEPS 600.0
/* What a retraction shows to be needed lies that many tokens a sequence ahead of now. */
#define RATIO_AHEAD_TOKENS 20.0
/* Nobody is expected to generate more: who does pays by a retraction. */
#define EXPECTED_TOKENS_MAX 4096u

static double at_most_one(double ratio)
{
    return ratio < 1 ? ratio : 1;
}

void memory_init(struct scheduler *s)
{
    s->new_token_ratio = at_most_one(RATIO_INITIAL * s->config.conservativeness);
    s->new_token_ratio_min = at_most_one(RATIO_MIN * s->config.conservativeness);
}

static uint32_t pages_for(const struct scheduler *s, uint64_t tokens)
{
    return (uint32_t)((tokens + s->config.page_size - 1) / s->config.page_size);
}

uint32_t memory_available(const struct scheduler *s)
{
    return pages_free_count(&s->pages) + prefix_loose(&s->tree);
}

uint32_t memory_take(struct scheduler *s)
{
    return pages_free_count(&s->pages) ? pages_take(&s->pages) : prefix_evict(&s->tree);
}

uint32_t memory_missing(const struct scheduler *s, const struct sequence *seq, uint32_t end)
{
    uint32_t needed = pages_for(s, end);

    return needed > seq->pages_count ? needed - seq->pages_count : 0;
}

static uint32_t new_tokens_max(const struct sequence *seq)
{
    uint32_t left = seq->sampling.max_tokens - seq->generated;

    return left < EXPECTED_TOKENS_MAX ? left : EXPECTED_TOKENS_MAX;
}

static uint64_t tokens_expected(const struct scheduler *s, const struct sequence *seq)
{
    uint32_t left = new_tokens_max(seq);

    if (!seq->sampling.ignore_eos)
        left = (uint32_t)((double)left * s->new_token_ratio) + 1;
    return (uint64_t)sequence_known(seq) + left;
}

static uint64_t list_reserved(const struct scheduler *s, const struct sequence *list)
{
    uint64_t pages = 0;

    for (const struct sequence *seq = list; seq; seq = seq->next) {
        uint64_t tokens = seq->paused ? sequence_known(seq) : tokens_expected(s, seq);
        uint32_t expected = pages_for(s, tokens);

        if (expected > seq->pages_count)
            pages += expected - seq->pages_count;
    }
    return pages;
}

uint64_t memory_reserved(const struct scheduler *s)
{
    return list_reserved(s, s->prefill) + list_reserved(s, s->decode);
}

uint64_t memory_expected(const struct scheduler *s, const struct sequence *seq, uint32_t depth)
{
    return pages_for(s, tokens_expected(s, seq)) - depth;
}

static void share(struct scheduler *s, struct sequence *seq, uint64_t step, bool join)
{
    uint32_t page_size = s->config.page_size;
    uint32_t known = sequence_known(seq);
    uint32_t whole = (seq->computed < known ? seq->computed : known) / page_size;

    if (!s->config.prefix_cache)
        return;
    for (; seq->node_depth < whole; seq->node_depth++) {
        uint32_t node =
            prefix_extend(&s->tree, seq->node, seq->tokens + (size_t)seq->node_depth * page_size,
                          seq->pages[seq->node_depth], step, join);

        if (node == PREFIX_ROOT)
            return;
        seq->node = node;
    }
}

void memory_share(struct scheduler *s, struct sequence *seq, uint64_t step)
{
    share(s, seq, step, false);
}

void memory_release(struct scheduler *s, struct sequence *seq)
{
    s->pages_resting -= seq->pages_count - seq->pages_shared;
    share(s, seq, s->applied, true);
    /* From the end: the pages that come first are the last to be used again. */
    for (uint32_t i = seq->pages_count; i-- > seq->pages_shared;)
        if (!prefix_holds(&s->tree, seq->pages[i]))
            pages_return(&s->pages, seq->pages[i]);
    prefix_unlock(&s->tree, seq->node);
}

/* ---- who gives way ---- */

static const struct sequence *first_running(const struct scheduler *s)
{
    const struct sequence *lists[] = {s->prefill, s->decode};
    const struct sequence *first = NULL;

    for (int i = 0; i < 2; i++)
        for (const struct sequence *seq = lists[i]; seq; seq = seq->next)
            if (!seq->paused && (!first || sequence_before(seq, first)))
                first = seq;
    return first;
}

/* Nobody waits for its tokens, then little to lose, then late to come. */
static bool cheaper(const struct sequence *a, const struct sequence *b)
{
    if (a->paused != b->paused)
        return a->paused;
    if (a->priority != b->priority)
        return a->priority < b->priority;
    if (a->generated != b->generated)
        return a->generated < b->generated;
    return a->arrival > b->arrival;
}

/* Those whose last token is in flight end before a retraction could help. */
static struct sequence *cheapest_running(const struct scheduler *s)
{
    struct sequence *lists[] = {s->prefill, s->decode};
    const struct sequence *first = first_running(s);
    struct sequence *best = NULL;

    for (int i = 0; i < 2; i++)
        for (struct sequence *seq = lists[i]; seq; seq = seq->next)
            if (seq != first && seq->planned < seq->sampling.max_tokens &&
                (!best || cheaper(seq, best)))
                best = seq;
    return best;
}

static void ratio_raise(struct scheduler *s)
{
    const struct sequence *lists[] = {s->prefill, s->decode};
    double generated = 0, most = 0;

    for (int i = 0; i < 2; i++) {
        for (const struct sequence *seq = lists[i]; seq; seq = seq->next) {
            generated += seq->generated + RATIO_AHEAD_TOKENS;
            most += seq->generated + new_tokens_max(seq);
        }
    }
    if (generated / most > s->new_token_ratio)
        s->new_token_ratio = at_most_one(generated / most);
}

bool memory_retract_paused(struct scheduler *s)
{
    struct sequence *seq = cheapest_running(s);

    if (!seq || !seq->paused)
        return false;
    scheduler_retract(s, seq);
    return true;
}

bool memory_retract(struct scheduler *s)
{
    struct sequence *seq = cheapest_running(s);

    if (!seq)
        return false;
    if (!seq->paused) /* else nothing was estimated wrongly */
        ratio_raise(s);
    scheduler_retract(s, seq);
    return true;
}

/* Pages that the decode rows of one step take. */
static uint64_t decode_missing(const struct scheduler *s)
{
    uint64_t pages = 0;

    for (const struct sequence *seq = s->decode; seq; seq = seq->next) {
        uint32_t count = sequence_pending(seq);

        if (count)
            pages += memory_missing(s, seq, seq->computed + count);
    }
    return pages;
}

void memory_make_room(struct scheduler *s)
{
    while (decode_missing(s) > (uint64_t)memory_available(s) + s->pages_resting)
        if (!memory_retract(s))
            return;
}

bool memory_preempt(struct scheduler *s, const struct sequence *seq)
{
    struct sequence *victim = cheapest_running(s);

    if (!victim) /* the only one that runs may be less urgent too */
        victim = s->decode;
    if (!victim || victim->planned >= victim->sampling.max_tokens ||
        victim->priority >= seq->priority ||
        seq->priority - victim->priority <= s->config.preempt_above)
        return false;
    scheduler_retract(s, victim);
    return true;
}

void memory_learn(struct scheduler *s)
{
    s->new_token_ratio -= (RATIO_INITIAL - RATIO_MIN) / RATIO_STEPS;
    if (s->new_token_ratio < s->new_token_ratio_min)
        s->new_token_ratio = s->new_token_ratio_min;
}

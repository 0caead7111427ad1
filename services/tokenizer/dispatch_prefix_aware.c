/* The replica that has the prompt's beginning in its cache, unless others have much less to do.
 *
 * Prompts are remembered as chains of hashes, one every BLOCK tokens, each with the replicas that
 * were sent it. The memory is bounded: sets of WAYS entries, of which the one unused for longest
 * gives way. What it says of a replica is a guess, as that one may have evicted the prefix: a wrong
 * guess costs time, nothing else.
 *
 * A replica costs the tokens it has to compute and LOAD_TOKENS for each sequence it already has.
 * Equal ones are told apart by a hash of the prompt's first block, in which all tokenizers agree.
 */
#include "services/tokenizer/dispatch.h"

#include "common/mem.h"

#include <stdlib.h>
#include <xxhash.h>

#define BLOCK 16u
#define BLOCKS_MAX 2048u /* of one prompt: what follows decides nothing */
#define SETS 65536u
#define WAYS 4u
#define LOAD_TOKENS 64u

struct entry {
    uint64_t key;      /* 0: free */
    uint32_t replicas; /* bit r: replica r was sent a prompt that begins so */
    uint32_t used;     /* clock of the last look */
};

struct prefixes {
    struct entry entries[SETS][WAYS];
    uint32_t clock;
};

static void *prefixes_new(void)
{
    return mem_zalloc(sizeof(struct prefixes));
}

static struct entry *entry_find(struct prefixes *p, uint64_t key)
{
    struct entry *set = p->entries[key % SETS];

    for (uint32_t i = 0; i < WAYS; i++)
        if (set[i].key == key)
            return &set[i];
    return NULL;
}

static struct entry *entry_make(struct prefixes *p, uint64_t key)
{
    struct entry *set = p->entries[key % SETS], *oldest = set;

    for (uint32_t i = 1; i < WAYS; i++)
        if (p->clock - set[i].used > p->clock - oldest->used)
            oldest = &set[i];
    *oldest = (struct entry){.key = key};
    return oldest;
}

static uint64_t block_key(const uint32_t *tokens, uint64_t before)
{
    uint64_t key = XXH64(tokens, BLOCK * sizeof *tokens, before);

    return key ? key : 1;
}

/* Sets matched[r] to the tokens of the prompt that replica r may have. */
static void match(struct prefixes *p, const uint32_t *prompt, size_t blocks, uint32_t *matched)
{
    uint32_t having = UINT32_MAX;
    uint64_t key = 0;

    for (size_t b = 0; b < blocks && having; b++) {
        const struct entry *entry;

        key = block_key(prompt + b * BLOCK, key);
        entry = entry_find(p, key);
        having &= entry ? entry->replicas : 0;
        for (uint32_t r = 0; r < DISPATCH_REPLICAS_MAX; r++)
            if (having >> r & 1)
                matched[r] = (uint32_t)(b + 1) * BLOCK;
    }
}

static void remember(struct prefixes *p, const uint32_t *prompt, size_t blocks, uint32_t replica)
{
    uint64_t key = 0;

    p->clock++;
    for (size_t b = 0; b < blocks; b++) {
        struct entry *entry;

        key = block_key(prompt + b * BLOCK, key);
        entry = entry_find(p, key);
        if (!entry)
            entry = entry_make(p, key);
        entry->replicas |= UINT32_C(1) << replica;
        entry->used = p->clock;
    }
}

static uint32_t choose(void *state, const struct dispatch_replica *replicas, uint32_t count,
                       const uint32_t *prompt, size_t prompt_count)
{
    size_t blocks = prompt_count / BLOCK < BLOCKS_MAX ? prompt_count / BLOCK : BLOCKS_MAX;
    size_t first = prompt_count < BLOCK ? prompt_count : BLOCK;
    uint32_t matched[DISPATCH_REPLICAS_MAX] = {0};
    uint64_t best_cost = UINT64_MAX, best_tie = 0;
    uint32_t best = count;

    match(state, prompt, blocks, matched);
    for (uint32_t r = 0; r < count; r++) {
        uint64_t cost = prompt_count - matched[r] + (uint64_t)LOAD_TOKENS * replicas[r].load;
        uint64_t tie = XXH64(prompt, first * sizeof *prompt, r);

        if (!replicas[r].ready || cost > best_cost || (cost == best_cost && tie < best_tie))
            continue;
        best = r;
        best_cost = cost;
        best_tie = tie;
    }
    remember(state, prompt, blocks, best);
    return best;
}

static void lost(void *state, uint32_t replica)
{
    struct prefixes *p = state;

    for (uint32_t s = 0; s < SETS; s++)
        for (uint32_t i = 0; i < WAYS; i++)
            p->entries[s][i].replicas &= ~(UINT32_C(1) << replica);
}

extern const struct dispatch_policy dispatch_prefix_aware;
const struct dispatch_policy dispatch_prefix_aware = {
    .name = "prefix_aware", .new = prefixes_new, .free = free, .choose = choose, .lost = lost};

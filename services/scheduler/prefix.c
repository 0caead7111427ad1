#include "services/scheduler/prefix.h"

#include "common/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define NOT_IN_HEAP 0u /* the heap's first place is 1 */

struct prefix_node {
    uint64_t used;  /* clock of its last use that is not a use of a child as well */
    uint64_t ready; /* step that computes it */
    uint32_t parent;
    uint32_t chain; /* next node of its bucket, plus 1 */
    uint32_t bucket;
    uint32_t children;
    uint32_t locks; /* direct ones, and one for each child that has any */
    uint32_t heap;  /* its place there */
    uint32_t stamp; /* counts how often the page came into the tree */
    bool live;
};

struct prefix_leaf {
    uint64_t used;
    uint32_t page;
};

void prefix_init(struct prefix *p, uint32_t num_pages, uint32_t page_size, uint64_t seed)
{
    uint32_t buckets = 1;

    while (buckets < num_pages)
        buckets *= 2; /* SCHEDULER_PAGES_MAX is a power of two: no overflow */
    /* Zeroed by the kernel: only what is used becomes resident. */
    *p = (struct prefix){
        .nodes = mem_array(num_pages, sizeof *p->nodes),
        .tokens = mem_array((size_t)num_pages * page_size, sizeof *p->tokens),
        .buckets = mem_array(buckets, sizeof *p->buckets),
        .buckets_mask = buckets - 1,
        .heap = mem_array((size_t)num_pages + 1, sizeof *p->heap),
        .page_size = page_size,
        .seed = seed,
    };
}

void prefix_fini(struct prefix *p)
{
    free(p->nodes);
    free(p->tokens);
    free(p->buckets);
    free(p->heap);
    *p = (struct prefix){0};
}

/* ---- the hash table of children ---- */

static uint32_t bucket_of(const struct prefix *p, uint32_t parent, const uint32_t *tokens)
{
    uint64_t seed = p->seed ^ (parent * UINT64_C(0x9e3779b97f4a7c15));

    return (uint32_t)XXH3_64bits_withSeed(tokens, p->page_size * sizeof *tokens, seed) &
           p->buckets_mask;
}

static uint32_t child_find(const struct prefix *p, uint32_t bucket, uint32_t parent,
                           const uint32_t *tokens)
{
    for (uint32_t at = p->buckets[bucket]; at; at = p->nodes[at - 1].chain)
        if (p->nodes[at - 1].parent == parent && memcmp(p->tokens + (size_t)(at - 1) * p->page_size,
                                                        tokens, p->page_size * sizeof *tokens) == 0)
            return at - 1;
    return PREFIX_ROOT;
}

static void child_unlink(struct prefix *p, uint32_t page)
{
    uint32_t *at = &p->buckets[p->nodes[page].bucket];

    while (*at != page + 1)
        at = &p->nodes[*at - 1].chain;
    *at = p->nodes[page].chain;
}

/* ---- the heap of leaves ---- */

static void heap_set(struct prefix *p, uint32_t at, struct prefix_leaf leaf)
{
    p->heap[at] = leaf;
    p->nodes[leaf.page].heap = at;
}

static void heap_up(struct prefix *p, uint32_t at, struct prefix_leaf leaf)
{
    for (; at > 1 && p->heap[at / 2].used > leaf.used; at /= 2)
        heap_set(p, at, p->heap[at / 2]);
    heap_set(p, at, leaf);
}

static void heap_down(struct prefix *p, uint32_t at, struct prefix_leaf leaf)
{
    for (uint64_t child; (child = (uint64_t)at * 2) <= p->heap_count; at = (uint32_t)child) {
        if (child < p->heap_count && p->heap[child + 1].used < p->heap[child].used)
            child++;
        if (p->heap[child].used >= leaf.used)
            break;
        heap_set(p, at, p->heap[child]);
    }
    heap_set(p, at, leaf);
}

static void heap_push(struct prefix *p, uint32_t page)
{
    heap_up(p, ++p->heap_count, (struct prefix_leaf){p->nodes[page].used, page});
}

static void heap_remove(struct prefix *p, uint32_t page)
{
    uint32_t at = p->nodes[page].heap;
    struct prefix_leaf last = p->heap[p->heap_count--];

    p->nodes[page].heap = NOT_IN_HEAP;
    if (last.page == page)
        return;
    if (at > 1 && p->heap[at / 2].used > last.used)
        heap_up(p, at, last);
    else
        heap_down(p, at, last);
}

/* ---- walks ---- */

static bool place_valid(const struct prefix *p, const struct prefix_place *place)
{
    return place->page != PREFIX_ROOT && p->nodes[place->page].live &&
           p->nodes[place->page].stamp == place->stamp;
}

void prefix_match(const struct prefix *p, const uint32_t *tokens, uint32_t pages_max,
                  struct prefix_place *place)
{
    if (!place_valid(p, place) || place->depth > pages_max)
        *place = (struct prefix_place){.page = PREFIX_ROOT};
    while (place->depth < pages_max) {
        const uint32_t *page_tokens = tokens + (size_t)place->depth * p->page_size;
        uint32_t bucket = bucket_of(p, place->page, page_tokens);
        uint32_t child = child_find(p, bucket, place->page, page_tokens);

        if (child == PREFIX_ROOT)
            return;
        *place = (struct prefix_place){child, place->depth + 1, p->nodes[child].stamp};
    }
}

void prefix_climb_ready(const struct prefix *p, uint64_t step, struct prefix_place *place)
{
    while (place->page != PREFIX_ROOT && p->nodes[place->page].ready >= step) {
        place->page = p->nodes[place->page].parent;
        place->depth--;
    }
    if (place->page != PREFIX_ROOT)
        place->stamp = p->nodes[place->page].stamp;
}

void prefix_path(const struct prefix *p, uint32_t page, uint32_t depth, uint32_t *pages)
{
    for (; depth > 0; page = p->nodes[page].parent)
        pages[--depth] = page;
    assert(page == PREFIX_ROOT);
}

uint32_t prefix_path_loose(const struct prefix *p, uint32_t page)
{
    uint32_t count = 0;

    for (; page != PREFIX_ROOT && p->nodes[page].locks == 0; page = p->nodes[page].parent)
        count++;
    return count;
}

/* ---- changes ---- */

void prefix_lock(struct prefix *p, uint32_t page)
{
    while (page != PREFIX_ROOT && p->nodes[page].locks++ == 0) {
        p->kept++;
        if (p->nodes[page].heap != NOT_IN_HEAP)
            heap_remove(p, page);
        page = p->nodes[page].parent;
    }
}

void prefix_unlock(struct prefix *p, uint32_t page)
{
    if (page == PREFIX_ROOT)
        return;
    p->nodes[page].used = ++p->clock;
    while (page != PREFIX_ROOT) {
        struct prefix_node *n = &p->nodes[page];

        assert(n->locks > 0);
        if (--n->locks > 0)
            return;
        p->kept--;
        if (n->children == 0)
            heap_push(p, page);
        page = n->parent;
    }
}

uint32_t prefix_extend(struct prefix *p, uint32_t parent, const uint32_t *tokens, uint32_t page,
                       uint64_t step, bool join)
{
    uint32_t bucket = bucket_of(p, parent, tokens);
    uint32_t child = child_find(p, bucket, parent, tokens);

    if (child != PREFIX_ROOT && !join)
        return PREFIX_ROOT;
    if (child == PREFIX_ROOT) {
        struct prefix_node *n = &p->nodes[page];

        assert(!n->live);
        child = page;
        *n = (struct prefix_node){.ready = step,
                                  .parent = parent,
                                  .chain = p->buckets[bucket],
                                  .bucket = bucket,
                                  .stamp = n->stamp + 1,
                                  .live = true};
        p->buckets[bucket] = page + 1;
        memcpy(p->tokens + (size_t)page * p->page_size, tokens, p->page_size * sizeof *tokens);
        if (parent != PREFIX_ROOT)
            p->nodes[parent].children++;
        p->count++;
    }
    prefix_lock(p, child);
    prefix_unlock(p, parent);
    return child;
}

bool prefix_holds(const struct prefix *p, uint32_t page)
{
    return p->nodes && p->nodes[page].live;
}

uint32_t prefix_loose(const struct prefix *p)
{
    return p->count - p->kept;
}

uint32_t prefix_evict(struct prefix *p)
{
    uint32_t page = p->heap[1].page;
    struct prefix_node *n = &p->nodes[page];
    uint32_t parent = n->parent;

    assert(p->heap_count > 0 && n->live && n->locks == 0 && n->children == 0);
    child_unlink(p, page);
    n->live = false;
    n->heap = NOT_IN_HEAP;
    p->count--;
    if (parent != PREFIX_ROOT) {
        struct prefix_node *up = &p->nodes[parent];

        if (up->used < n->used)
            up->used = n->used; /* a use of a child is one of its parents too */
        if (--up->children == 0 && up->locks == 0) {
            heap_down(p, 1, (struct prefix_leaf){up->used, parent}); /* in its child's place */
            return page;
        }
    }
    if (p->heap_count-- > 1)
        heap_down(p, 1, p->heap[p->heap_count + 1]);
    return page;
}

/* The prefix tree: KV pages that can be read again, found by the tokens they hold.
 *
 * A node is one whole page; its path from the root is the prefix whose last page_size tokens it
 * holds, so a node's content depends on nothing but its path. Node and page have the same number.
 * Children are found through one hash table keyed by (parent, tokens); tokens are compared, so a
 * collision costs time and never a wrong page. All operations are O(1) a page, eviction O(log n).
 *
 * A lock on a node keeps its whole path. Nodes that no lock keeps can be evicted, leaves first, the
 * one unused for longest first: O(log n) through a heap. */
#ifndef PHALANX_SCHEDULER_PREFIX_H
#define PHALANX_SCHEDULER_PREFIX_H

#include <stdbool.h>
#include <stdint.h>

#define PREFIX_ROOT UINT32_MAX

struct prefix_node;
struct prefix_leaf;

struct prefix {
    struct prefix_node *nodes; /* (num_pages) */
    uint32_t *tokens;          /* (num_pages, page_size) */
    uint32_t *buckets;         /* first node of each chain, plus 1 */
    uint32_t buckets_mask;
    struct prefix_leaf *heap; /* leaves that nothing keeps; the root is unused for longest */
    uint32_t heap_count;
    uint32_t page_size;
    uint32_t count; /* nodes */
    uint32_t kept;  /* of them on the path of a lock */
    uint64_t clock; /* counts uses */
    uint64_t seed;
};

/* Where a walk has come to. It stays usable while the tree changes: a place whose node is gone
 * counts as the root. Zero it with page = PREFIX_ROOT. */
struct prefix_place {
    uint32_t page;  /* PREFIX_ROOT: nothing matched */
    uint32_t depth; /* pages matched */
    uint32_t stamp; /* of that node at that time */
};

/* seed: random, so that nobody can prepare colliding prompts. */
void prefix_init(struct prefix *p, uint32_t num_pages, uint32_t page_size, uint64_t seed);
void prefix_fini(struct prefix *p);

/* Goes on from *place (or from the root) along tokens, at most to depth pages_max. */
void prefix_match(const struct prefix *p, const uint32_t *tokens, uint32_t pages_max,
                  struct prefix_place *place);

/* Climbs to the nearest node whose page was computed in a step before `step`. */
void prefix_climb_ready(const struct prefix *p, uint64_t step, struct prefix_place *place);

/* Pages of the path to page, depth of them. */
void prefix_path(const struct prefix *p, uint32_t page, uint32_t depth, uint32_t *pages);

/* Nodes on the path to page that a lock on it would keep and that nothing keeps yet. */
uint32_t prefix_path_loose(const struct prefix *p, uint32_t page);

void prefix_lock(struct prefix *p, uint32_t page);
void prefix_unlock(struct prefix *p, uint32_t page);

/* Moves a lock from parent to its child of these tokens and returns the child. Where there is none
 * yet, page becomes it: it then belongs to the tree. step: the one that computes the page. Where
 * there is one: with join it is taken, else nothing changes and PREFIX_ROOT comes back. */
uint32_t prefix_extend(struct prefix *p, uint32_t parent, const uint32_t *tokens, uint32_t page,
                       uint64_t step, bool join);

/* Whether the page is the tree's. */
bool prefix_holds(const struct prefix *p, uint32_t page);

/* Nodes that could be evicted, one after the other. */
uint32_t prefix_loose(const struct prefix *p);

/* Takes the leaf unused for longest out of the tree; there must be one (prefix_loose). */
uint32_t prefix_evict(struct prefix *p);

#endif

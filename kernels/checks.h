/* What every backend checks of a slot's operations before it uses them; one line says what is
 * wrong. */
#ifndef PHALANX_KERNELS_CHECKS_H
#define PHALANX_KERNELS_CHECKS_H

#include "kernels/ops.h"

/* is_open: whether it is; open: whether it should be. */
static inline int check_slot(uint32_t slot, uint32_t num_slots, bool is_open, bool open,
                             struct err *err)
{
    if (slot >= num_slots)
        return err_set(err, ERR_INVALID, "slot %u of %u", slot, num_slots);
    if (is_open != open)
        return err_set(err, ERR_INVALID, "slot %u is %s", slot, open ? "not open" : "open");
    return 0;
}

static inline int check_tokens(uint32_t slot, const uint32_t *tokens, uint32_t count,
                               uint32_t generated, uint32_t context_max, uint32_t vocab_size,
                               struct err *err)
{
    if (!count || count > context_max || generated > count)
        return err_set(err, ERR_INVALID, "slot %u: %u tokens, %u generated, context %u", slot,
                       count, generated, context_max);
    for (uint32_t i = 0; i < count; i++)
        if (tokens[i] >= vocab_size)
            return err_set(err, ERR_INVALID, "slot %u: token id %u of %u", slot, tokens[i],
                           vocab_size);
    return 0;
}

/* have: pages the slot has. */
static inline int check_pages(uint32_t slot, uint32_t first, const uint32_t *pages, uint32_t count,
                              uint32_t have, uint32_t pages_per_slot, uint32_t num_pages,
                              struct err *err)
{
    if (first > have || count > pages_per_slot - first)
        return err_set(err, ERR_INVALID, "slot %u: pages %u..%u of %u", slot, first, first + count,
                       pages_per_slot);
    for (uint32_t i = 0; i < count; i++)
        if (pages[i] >= num_pages)
            return err_set(err, ERR_INVALID, "slot %u: page %u of %u", slot, pages[i], num_pages);
    return 0;
}

/* tokens, pages: of the row's slot. */
static inline int check_row(const struct ops_row *row, uint32_t tokens, uint32_t pages,
                            uint32_t page_size, struct err *err)
{
    uint64_t end = (uint64_t)row->start + row->count;

    if (!row->count || end > tokens)
        return err_set(err, ERR_INVALID, "slot %u: tokens %u..%llu of %u", row->slot, row->start,
                       (unsigned long long)end, tokens);
    if (end > (uint64_t)pages * page_size)
        return err_set(err, ERR_INVALID, "slot %u: position %llu is past its %u pages", row->slot,
                       (unsigned long long)end - 1, pages);
    if (row->sample && end != tokens)
        return err_set(err, ERR_INVALID, "slot %u: sample before its last token", row->slot);
    return 0;
}

/* row: the step's, NULL when it has none of that index; tokens: of its slot; done: positions that
 * earlier scores of the step have. */
static inline int check_score(const struct ops_score *score, const struct ops_row *row,
                              uint32_t tokens, uint32_t done, struct err *err)
{
    uint64_t end = (uint64_t)score->start + score->count;

    if (!row)
        return err_set(err, ERR_INVALID, "score of row %u, which the step does not have",
                       score->row);
    if (score->start < row->start || end > (uint64_t)row->start + row->count || end >= tokens)
        return err_set(err, ERR_INVALID, "score of positions %u..%llu of row %u", score->start,
                       (unsigned long long)end, score->row);
    if (score->count > OPS_SCORES_MAX - done)
        return err_set(err, ERR_INVALID, "more than %d scored positions in a step", OPS_SCORES_MAX);
    return 0;
}

#endif

/* Filters on sequences (filters_list.c) for the table in filters.c, methods of strings
 * (methods_text.c) for the lookup in methods.c, and what these files share. */
#ifndef PHALANX_TOKENIZER_TEMPLATE_FILTERS_H
#define PHALANX_TOKENIZER_TEMPLATE_FILTERS_H

#include "services/tokenizer/template/render.h"

native_fn filter_batch, filter_dictsort, filter_first, filter_groupby, filter_items, filter_join,
    filter_last, filter_list, filter_map, filter_max, filter_min, filter_reject, filter_rejectattr,
    filter_reverse, filter_select, filter_selectattr, filter_slice, filter_sort, filter_sum,
    filter_unique;

/* Ends with a row without a name. */
extern const struct native string_methods[];

/* The truth of an argument, fallback when it was not given. */
bool bound_flag(struct render *r, const struct value *v, bool fallback);

enum pad_side { PAD_LEFT, PAD_RIGHT, PAD_CENTER };

/* t in a field of width code points; fill is one code point. */
int text_pad(struct render *r, struct text t, int64_t width, struct text fill, enum pad_side side,
             struct value *out);

/* A letter, digit or underscore, as \w has it. */
bool text_word(uint32_t cp);

#endif

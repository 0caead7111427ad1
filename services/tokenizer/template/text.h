/* Text of templates: UTF-8 counted in code points, with shield bytes (0xFF, see tokenizer.h) that
 * no operation sees: they do not count, match nothing and stay with the code point after them. */
#ifndef PHALANX_TOKENIZER_TEMPLATE_TEXT_H
#define PHALANX_TOKENIZER_TEMPLATE_TEXT_H

#include "services/tokenizer/template/arena.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct text {
    const char *data; /* not NUL-terminated; may be NULL when len is 0 */
    size_t len;
};

#define TEXT(literal) ((struct text){literal, sizeof(literal) - 1})
struct text text_of(const char *c_string);
struct text text_sub(struct text t, size_t from, size_t to);

/* Takes the first code point with its shields off rest. False when none is left. */
bool text_next(struct text *rest, struct text *unit, uint32_t *cp);

/* The same from the end. */
bool text_prev(struct text *rest, struct text *unit, uint32_t *cp);

size_t text_length(struct text t);            /* in code points */
size_t text_offset(struct text t, size_t at); /* bytes before code point `at`; len past the end */
bool text_shielded(struct text t);
bool text_equal(struct text a, struct text b);
bool text_is(struct text a, const char *c_string);
int text_compare(struct text a, struct text b); /* <0, 0, >0, by code points */

/* Bytes of t that `prefix` (or `suffix`) covers; false when t does not start (end) with it. */
bool text_starts(struct text t, struct text prefix, size_t *bytes);
bool text_ends(struct text t, struct text suffix, size_t *bytes);

/* Successive, non-overlapping finds of one needle; each costs no more than the text passed. */
struct text_finder {
    struct text raw, plain, needle;
    size_t raw_at, plain_at;
    bool overlap; /* finds may overlap: to look for the last one */
};
void text_finder_init(struct text_finder *f, struct arena *a, struct text hay, struct text needle);
bool text_find(struct text_finder *f, size_t *start, size_t *end);

/* Without its shields: t itself when it has none. */
struct text text_plain(struct arena *a, struct text t);

/* Python's str.isspace for one code point; the ends of str.splitlines. */
bool text_space(uint32_t cp);
bool text_line_end(uint32_t cp);

enum text_side { TEXT_LEFT = 1, TEXT_RIGHT = 2, TEXT_BOTH = 3 };

/* Without code points of set (white space when set is NULL) at the named sides. */
struct text text_strip(struct text t, const struct text *set, enum text_side sides);

#endif

/* Added tokens in text: leftmost, then longest, with the strip and single-word rules of the
 * reference. */
#include "common/mem.h"
#include "services/tokenizer/internal.h"
#include "services/tokenizer/unicode.h"

#include <stdlib.h>
#include <string.h>

static uint32_t node_new(struct added_set *set, unsigned char byte)
{
    if (set->nodes_count == set->nodes_cap) {
        set->nodes_cap = set->nodes_cap ? 2 * set->nodes_cap : 64;
        set->nodes = mem_resize(set->nodes, set->nodes_cap, sizeof *set->nodes);
        if (!set->nodes_count)
            set->nodes[set->nodes_count++] = (struct trie_node){0, 0, TOKEN_NONE, 0};
    }
    set->nodes[set->nodes_count] = (struct trie_node){0, 0, TOKEN_NONE, byte};
    return (uint32_t)set->nodes_count++;
}

static uint32_t node_child(const struct added_set *set, uint32_t node, unsigned char byte)
{
    uint32_t child = set->nodes[node].child;

    while (child && set->nodes[child].byte != byte)
        child = set->nodes[child].sibling;
    return child;
}

void added_insert(struct added_set *set, const char *content, size_t len, struct added_token token)
{
    unsigned char first;
    uint32_t node;

    if (!len)
        return;
    first = (unsigned char)content[0];
    if (!set->root[first])
        set->root[first] = node_new(set, first);
    node = set->root[first];
    for (size_t i = 1; i < len; i++) {
        uint32_t child = node_child(set, node, (unsigned char)content[i]);

        if (!child) {
            child = node_new(set, (unsigned char)content[i]);
            set->nodes[child].sibling = set->nodes[node].child;
            set->nodes[node].child = child;
        }
        node = child;
    }
    if (set->nodes[node].token != TOKEN_NONE)
        return; /* the first of equal patterns counts */
    set->tokens = mem_resize(set->tokens, set->tokens_count + 1, sizeof *set->tokens);
    set->tokens[set->tokens_count] = token;
    set->nodes[node].token = (uint32_t)set->tokens_count++;
}

void added_fini(struct added_set *set)
{
    free(set->tokens);
    free(set->nodes);
    memset(set, 0, sizeof *set);
}

size_t added_match(const struct added_set *set, const char *text, size_t len, size_t i,
                   uint32_t *token)
{
    uint32_t node = set->root[(unsigned char)text[i]];
    size_t longest = 0;

    for (size_t at = i; node; node = node_child(set, node, (unsigned char)text[at])) {
        at++;
        if (set->nodes[node].token != TOKEN_NONE) {
            longest = at - i;
            *token = set->nodes[node].token;
        }
        if (at == len)
            break;
    }
    return longest;
}

/* Start of the code point that ends at end. */
static size_t char_before(const unsigned char *s, size_t end, uint32_t *cp)
{
    size_t i = end - 1;

    while (i > 0 && end - i < 4 && (s[i] & 0xc0) == 0x80)
        i--;
    if (unicode_read(s, end, i, cp) != end - i) {
        *cp = 0xfffd;
        return end - 1;
    }
    return i;
}

static bool is_single_word(const char *text, size_t len, size_t start, size_t end)
{
    const unsigned char *s = (const unsigned char *)text;
    uint32_t cp;

    if (start) {
        (void)char_before(s, start, &cp);
        if (unicode_flags(cp) & UNICODE_WORD)
            return false;
    }
    if (end < len) {
        (void)unicode_read(s, len, end, &cp);
        if (unicode_flags(cp) & UNICODE_WORD)
            return false;
    }
    return true;
}

/* Spaces before start, not further back than floor. */
static size_t spaces_before(const char *text, size_t start, size_t floor)
{
    while (start > floor) {
        uint32_t cp;
        size_t i = char_before((const unsigned char *)text, start, &cp);

        if (!(unicode_flags(cp) & UNICODE_SPACE))
            break;
        start = i;
    }
    return start < floor ? floor : start;
}

static size_t spaces_after(struct added_scan *scan, size_t end)
{
    uint32_t cp;
    size_t i = end;

    if (end < scan->space_end)
        return scan->space_end;
    while (i < scan->len) {
        size_t n = unicode_read((const unsigned char *)scan->text, scan->len, i, &cp);

        if (!(unicode_flags(cp) & UNICODE_SPACE))
            break;
        i += n;
    }
    if (i > end)
        scan->space_end = i;
    return i;
}

/* Finds the next match that counts; false at the end of the text. */
static bool scan_find(const struct added_set *set, struct added_scan *scan)
{
    size_t i = scan->at;

    while (i < scan->len) {
        const struct added_token *token;
        uint32_t index = 0;
        size_t n, start, end;

        while (i < scan->len && !set->root[(unsigned char)scan->text[i]])
            i++;
        if (i == scan->len)
            break;
        n = added_match(set, scan->text, scan->len, i, &index);
        if (!n) {
            i++;
            continue;
        }
        token = &set->tokens[index];
        start = i;
        end = i += n;
        if (token->single_word && !is_single_word(scan->text, scan->len, start, end))
            continue;
        if (token->lstrip) {
            start = spaces_before(scan->text, start, scan->done < start ? scan->done : start);
            if (start < scan->done)
                start = scan->done;
        }
        if (token->rstrip)
            end = spaces_after(scan, end);
        scan->match.id = token->id;
        scan->match.start = start;
        scan->match.end = end;
        scan->at = i;
        return true;
    }
    scan->at = scan->len;
    return false;
}

bool added_next(const struct added_set *set, struct added_scan *scan, uint32_t *id, size_t *start,
                size_t *end)
{
    if (!scan->has_match)
        scan->has_match = scan_find(set, scan);
    *id = TOKEN_NONE;
    *start = scan->done;
    if (!scan->has_match) {
        *end = scan->done = scan->len;
        return *start < *end;
    }
    if (scan->done < scan->match.start) {
        *end = scan->done = scan->match.start;
        return true;
    }
    scan->has_match = false;
    *id = scan->match.id;
    *start = scan->match.start;
    *end = scan->match.end;
    scan->done = scan->match.end;
    return true;
}

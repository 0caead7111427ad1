/* Byte-pair merging of one word: O(n^2) on a few dozen symbols (which is what words are), a heap
 * for longer ones. Words seen before come from a small cache in the scratch. */
#include "services/tokenizer/internal.h"
#include "services/tokenizer/scratch.h"
#include "services/tokenizer/unicode.h"

#include "common/mem.h"

#include <stdlib.h>
#include <string.h>

#define SHORT_MAX 64 /* symbols */

static uint64_t bytes_mix(uint64_t a, uint64_t b)
{
    __extension__ unsigned __int128 p = (unsigned __int128)a * b;

    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

static uint64_t load_tail(const char *s, size_t len)
{
    uint64_t w = 0;

    memcpy(&w, s, len);
    return w;
}

static uint64_t word_hash(const char *s, size_t len)
{
    uint64_t h = 0x9e3779b97f4a7c15u + len;

    for (; len > 8; s += 8, len -= 8) {
        uint64_t w;

        memcpy(&w, s, 8);
        h = bytes_mix(h ^ w, 0xd6e8feb86659fd93u);
    }
    return bytes_mix(h ^ load_tail(s, len), 0xa0761d6478bd642fu);
}

static uint64_t merge_find(const struct bpe *b, uint32_t left, uint32_t right)
{
    uint64_t pair = (uint64_t)left << 32 | right;
    uint32_t slot = (uint32_t)(bytes_mix(pair, 0xa0761d6478bd642fu)) & b->merges_mask;

    while (b->merges[slot].pair != pair) {
        if (b->merges[slot].pair == UINT64_MAX)
            return UINT64_MAX;
        slot = (slot + 1) & b->merges_mask;
    }
    return b->merges[slot].result;
}

/* --- loading --- */

static int merge_parts(const json_t *row, const char *part[2], size_t len[2])
{
    if (json_is_array(row) && json_array_size(row) == 2) {
        for (size_t i = 0; i < 2; i++) {
            part[i] = json_string_value(json_array_get(row, i));
            len[i] = json_string_length(json_array_get(row, i));
        }
        return part[0] && part[1] ? 0 : -1;
    }
    if (json_is_string(row)) {
        size_t total = json_string_length(row);
        const char *space = memchr(json_string_value(row), ' ', total);

        if (!space)
            return -1;
        part[0] = json_string_value(row);
        len[0] = (size_t)(space - part[0]);
        part[1] = space + 1;
        len[1] = total - len[0] - 1;
        return memchr(part[1], ' ', len[1]) ? -1 : 0;
    }
    return -1;
}

static void merge_put(struct bpe *b, uint64_t pair, uint64_t result)
{
    uint32_t slot = (uint32_t)(bytes_mix(pair, 0xa0761d6478bd642fu)) & b->merges_mask;

    while (b->merges[slot].pair != pair && b->merges[slot].pair != UINT64_MAX)
        slot = (slot + 1) & b->merges_mask;
    b->merges[slot] = (struct merge){pair, result};
}

static bool has_suffix_mark(const char *s, size_t len)
{
    return len >= 3 && !memcmp(s + len - 3, "\xe2\x96\x81", 3);
}

static int merge_add(struct bpe *b, const struct vocab *v, const json_t *row, size_t rank,
                     struct buf *joined, struct err *err)
{
    const char *part[2];
    size_t len[2];
    uint32_t id[3];

    if (merge_parts(row, part, len))
        return err_set(err, ERR_INVALID, "model.merges[%zu] is no pair of tokens", rank);
    buf_clear(joined);
    for (size_t i = 0; i < 2; i++) {
        id[i] = vocab_find_model(v, part[i], len[i]);
        buf_append(joined, part[i], len[i]);
    }
    id[2] = vocab_find_model(v, joined->data, joined->len);
    for (size_t i = 0; i < 3; i++)
        if (id[i] == TOKEN_NONE)
            return err_set(err, ERR_INVALID,
                           "model.merges[%zu] names a token that is not in "
                           "model.vocab",
                           rank);
    if (len[1] >= 3 && !memcmp(part[1], "\xe2\x96\x81", 3) && !has_suffix_mark(part[0], len[0]))
        b->seams = false;
    merge_put(b, (uint64_t)id[0] << 32 | id[1], (uint64_t)rank << 32 | id[2]);
    return 0;
}

static int merges_load(struct bpe *b, const struct vocab *v, const json_t *merges, struct err *err)
{
    size_t count = json_array_size(merges), capacity = 16;
    struct buf joined = {0};
    int rc = 0;

    if (!json_is_array(merges))
        return err_set(err, ERR_INVALID, "model.merges is no list");
    if (count > TOKENIZER_IDS_MAX)
        return err_set(err, ERR_LIMIT, "model.merges: more than %u", TOKENIZER_IDS_MAX);
    while (capacity < count * 3 / 2)
        capacity *= 2;
    b->merges = mem_alloc(capacity * sizeof *b->merges);
    memset(b->merges, 0xff, capacity * sizeof *b->merges);
    b->merges_mask = (uint32_t)capacity - 1;
    for (size_t i = 0; !rc && i < count; i++)
        rc = merge_add(b, v, json_array_get(merges, i), i, &joined, err);
    buf_fini(&joined);
    return rc;
}

static void symbols_load(struct bpe *b, const struct vocab *v)
{
    static const char hex[] = "0123456789ABCDEF";

    for (unsigned i = 0; i < 256; i++) {
        const char code[] = {'<', '0', 'x', hex[i >> 4], hex[i & 15], '>'};
        char byte = (char)i, mapped[4];

        b->fallback_id[i] = vocab_find_model(v, code, sizeof code);
        b->byte_id[i] = vocab_find_model(v, mapped, bytelevel_map(&byte, 1, mapped));
        if (i < 128)
            b->ascii_id[i] = vocab_find_model(v, &byte, 1);
    }
}

int bpe_load(struct bpe *b, const struct vocab *v, json_t *model, bool bytelevel, struct err *err)
{
    static const char *const refused[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const json_t *unk = json_object_get(model, "unk_token");
    const json_t *dropout = json_object_get(model, "dropout");
    int rc;

    for (size_t i = 0; i < 2; i++)
        if (json_string_length(json_object_get(model, refused[i])))
            return err_set(err, ERR_UNSUPPORTED, "model.%s is not supported", refused[i]);
    if (json_is_number(dropout) && json_number_value(dropout) > 0)
        return err_set(err, ERR_UNSUPPORTED, "model.dropout is not supported");
    b->unk = TOKEN_NONE;
    b->fuse_unk = json_is_true(json_object_get(model, "fuse_unk"));
    b->byte_fallback = json_is_true(json_object_get(model, "byte_fallback"));
    b->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    b->bytelevel = bytelevel;
    for (uint32_t id = 0; id < v->count; id++) {
        size_t len;

        (void)strings_get(&v->content, id, &len);
        b->token_max = len > b->token_max ? len : b->token_max;
    }
    if (json_is_string(unk)) {
        b->unk = vocab_find_model(v, json_string_value(unk), json_string_length(unk));
        if (b->unk == TOKEN_NONE)
            return err_set(err, ERR_INVALID, "model.unk_token %.80s is not in model.vocab",
                           json_string_value(unk));
    }
    b->seams =
        !b->ignore_merges && !bytelevel && vocab_find_model(v, "\xe2\x96\x81", 3) != TOKEN_NONE;
    rc = merges_load(b, v, json_object_get(model, "merges"), err);
    if (!rc)
        symbols_load(b, v);
    return rc;
}

void bpe_fini(struct bpe *b)
{
    free(b->merges);
    b->merges = NULL;
}

/* --- first symbols --- */

/* Collects symbol ids in c->word; unk is held so that neighbours can fuse. */
struct symbolizer {
    const struct bpe *bpe;
    struct scratch *c;
    uint32_t unk; /* TOKEN_NONE: none held */
};

static void symbol_put(struct symbolizer *z, uint32_t id)
{
    buf_append(&z->c->word, &id, sizeof id);
}

static void symbol_char(struct symbolizer *z, uint32_t id, const char *s, size_t len)
{
    bool fallback = z->bpe->byte_fallback;

    if (id != TOKEN_NONE) {
        if (z->unk != TOKEN_NONE)
            symbol_put(z, z->unk);
        z->unk = TOKEN_NONE;
        symbol_put(z, id);
        return;
    }
    for (size_t i = 0; fallback && i < len; i++)
        fallback = z->bpe->fallback_id[(unsigned char)s[i]] != TOKEN_NONE;
    if (fallback) {
        /* A held unk stays held: the reference puts it behind the bytes, so do we. */
        for (size_t i = 0; i < len; i++)
            symbol_put(z, z->bpe->fallback_id[(unsigned char)s[i]]);
        return;
    }
    if (z->unk != TOKEN_NONE && !z->bpe->fuse_unk)
        symbol_put(z, z->unk);
    z->unk = z->bpe->unk;
}

static void word_symbols(const struct tokenizer *t, struct scratch *c, const char *s, size_t len)
{
    struct symbolizer z = {&t->bpe, c, TOKEN_NONE};
    const unsigned char *bytes = (const unsigned char *)s;

    buf_clear(&c->word);
    buf_reserve(&c->word, len * sizeof(uint32_t));
    for (size_t i = 0; i < len;) {
        uint32_t cp, id;
        size_t n = 1;

        if (t->bpe.bytelevel) {
            char mapped[2];

            id = t->bpe.byte_id[bytes[i]];
            n = id == TOKEN_NONE ? bytelevel_map(s + i, 1, mapped) : 1;
            symbol_char(&z, id, id == TOKEN_NONE ? mapped : s + i, n);
            i++;
            continue;
        }
        n = unicode_read(bytes, len, i, &cp);
        id = cp < 128 ? t->bpe.ascii_id[cp] : vocab_find_model(&t->vocab, s + i, n);
        symbol_char(&z, id, s + i, n);
        i += n;
    }
    if (z.unk != TOKEN_NONE)
        symbol_put(&z, z.unk);
}

/* --- merging --- */

/* ids[0..n) merged in place; returns how many are left. */
static size_t merge_short(const struct bpe *b, uint32_t *ids, size_t n)
{
    uint64_t pairs[SHORT_MAX];

    for (size_t i = 0; i + 1 < n; i++)
        pairs[i] = merge_find(b, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = 0;

        for (size_t i = 1; i + 1 < n; i++)
            if (pairs[i] < pairs[best])
                best = i;
        if (pairs[best] == UINT64_MAX)
            break;
        ids[best] = (uint32_t)pairs[best];
        n--;
        for (size_t i = best + 1; i < n; i++)
            ids[i] = ids[i + 1];
        for (size_t i = best + 1; i + 1 < n; i++)
            pairs[i] = pairs[i + 1];
        if (best > 0)
            pairs[best - 1] = merge_find(b, ids[best - 1], ids[best]);
        if (best + 1 < n)
            pairs[best] = merge_find(b, ids[best], ids[best + 1]);
    }
    return n;
}

struct symbol {
    uint64_t pair; /* merge of this and the next, UINT64_MAX: none (or no longer there) */
    uint32_t id;
    uint32_t prev, next; /* TOKEN_NONE at the ends */
};

static void heap_push(struct scratch *c, size_t *n, uint64_t key)
{
    size_t i = (*n)++;

    while (i && c->heap[(i - 1) / 2] > key) {
        c->heap[i] = c->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    c->heap[i] = key;
}

static uint64_t heap_pop(struct scratch *c, size_t *n)
{
    uint64_t top = c->heap[0], last = c->heap[--*n];
    size_t i = 0;

    for (;;) {
        size_t child = 2 * i + 1;

        if (child >= *n)
            break;
        if (child + 1 < *n && c->heap[child + 1] < c->heap[child])
            child++;
        if (c->heap[child] >= last)
            break;
        c->heap[i] = c->heap[child];
        i = child;
    }
    c->heap[i] = last;
    return top;
}

/* Looks up the merge at a symbol and queues it: rank first, then position. */
static void symbol_queue(const struct bpe *b, struct scratch *c, size_t *heap_len, uint32_t at)
{
    struct symbol *s = &c->symbols[at];

    s->pair = s->next == TOKEN_NONE ? UINT64_MAX : merge_find(b, s->id, c->symbols[s->next].id);
    if (s->pair != UINT64_MAX)
        heap_push(c, heap_len, (s->pair & 0xffffffff00000000u) | at);
}

/* Room for n symbols; every merge takes one entry from the heap and puts in at most two. */
static void long_reserve(struct scratch *c, size_t n)
{
    if (n > c->symbols_cap) {
        c->symbols = mem_resize(c->symbols, n, sizeof *c->symbols);
        c->symbols_cap = n;
    }
    if (2 * n > c->heap_cap) {
        c->heap = mem_resize(c->heap, 2 * n, sizeof *c->heap);
        c->heap_cap = 2 * n;
    }
}

static size_t merge_long(const struct bpe *b, struct scratch *c, uint32_t *ids, size_t n)
{
    size_t heap_len = 0, left = 0;

    long_reserve(c, n);
    for (size_t i = 0; i < n; i++)
        c->symbols[i] = (struct symbol){UINT64_MAX, ids[i], i ? (uint32_t)i - 1 : TOKEN_NONE,
                                        i + 1 < n ? (uint32_t)i + 1 : TOKEN_NONE};
    for (size_t i = 0; i < n; i++)
        symbol_queue(b, c, &heap_len, (uint32_t)i);
    while (heap_len) {
        uint64_t key = heap_pop(c, &heap_len);
        uint32_t at = (uint32_t)key, right;
        struct symbol *s = &c->symbols[at];

        if (s->pair == UINT64_MAX || s->pair >> 32 != key >> 32)
            continue; /* the pair is gone */
        s->id = (uint32_t)s->pair;
        right = s->next;
        s->next = c->symbols[right].next;
        c->symbols[right].pair = UINT64_MAX;
        if (s->next != TOKEN_NONE)
            c->symbols[s->next].prev = at;
        symbol_queue(b, c, &heap_len, at);
        if (s->prev != TOKEN_NONE)
            symbol_queue(b, c, &heap_len, s->prev);
    }
    for (uint32_t at = 0; at != TOKEN_NONE; at = c->symbols[at].next)
        ids[left++] = c->symbols[at].id;
    return left;
}

/* --- words --- */

/* With ignore_merges a word that is a token is that token. */
static uint32_t word_token(const struct tokenizer *t, struct scratch *c, const char *s, size_t len)
{
    if (len > t->bpe.token_max)
        return TOKEN_NONE;
    if (!t->bpe.bytelevel)
        return vocab_find_model(&t->vocab, s, len);
    buf_clear(&c->word);
    buf_reserve(&c->word, 2 * len);
    return vocab_find_model(&t->vocab, c->word.data, bytelevel_map(s, len, c->word.data));
}

static void word_encode(const struct tokenizer *t, struct scratch *c, const char *s, size_t len,
                        struct cache_entry *entry)
{
    uint32_t *ids;
    size_t n;

    if (t->bpe.ignore_merges) {
        uint32_t id = word_token(t, c, s, len);

        if (id != TOKEN_NONE) {
            scratch_push(c, id);
            if (entry)
                cache_store(entry, s, len, &id, 1);
            return;
        }
    }
    word_symbols(t, c, s, len);
    ids = (uint32_t *)(void *)c->word.data;
    n = c->word.len / sizeof *ids;
    n = n <= SHORT_MAX ? merge_short(&t->bpe, ids, n) : merge_long(&t->bpe, c, ids, n);
    for (size_t i = 0; i < n; i++)
        scratch_push(c, ids[i]);
    if (entry)
        cache_store(entry, s, len, ids, n);
}

static void word_cached(const struct tokenizer *t, struct scratch *c, const char *s, size_t len)
{
    struct cache_entry *entry;

    if (len > CACHE_WORD_MAX) {
        word_encode(t, c, s, len, NULL);
        return;
    }
    entry = &c->cache[word_hash(s, len) & (CACHE_ENTRIES - 1)];
    if (entry->len == len && !memcmp(entry->word, s, len)) {
        scratch_copy(c, entry->ids, entry->count);
        return;
    }
    word_encode(t, c, s, len, entry);
}

void bpe_word(const struct tokenizer *t, struct scratch *c, const char *s, size_t len)
{
    size_t start = 0;

    if (!t->bpe.seams) {
        word_cached(t, c, s, len);
        return;
    }
    for (size_t i = 3; i + 3 <= len; i++)
        if (s[i] == '\xe2' && !memcmp(s + i, "\xe2\x96\x81", 3) &&
            !has_suffix_mark(s + start, i - start)) {
            word_cached(t, c, s + start, i - start);
            start = i;
            i += 2;
        }
    word_cached(t, c, s + start, len - start);
}

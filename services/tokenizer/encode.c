/* Text to ids: added tokens out of the raw text, then per section the normalizers, the added
 * tokens of normalised text, the pre-tokenizers and the model. */
#include "common/mem.h"
#include "common/utf8.h"
#include "services/tokenizer/scratch.h"

#include <stdlib.h>
#include <string.h>

#define TEXT_BYTES_MAX (16u << 20)    /* merging takes about 40 times that at worst */
#define SCRATCH_KEEP_BYTES (1u << 20) /* larger work buffers go back to the system */

/* --- ids --- */

void ids_push(struct ids *ids, uint32_t id)
{
    if (ids->len == ids->cap) {
        ids->cap = ids->cap ? 2 * ids->cap : 64;
        ids->data = mem_resize(ids->data, ids->cap, sizeof *ids->data);
    }
    ids->data[ids->len++] = id;
}

void ids_fini(struct ids *ids)
{
    free(ids->data);
    memset(ids, 0, sizeof *ids);
}

/* --- scratch --- */

void scratch_fail(struct scratch *c, const struct err *err)
{
    if (c->rc)
        return;
    c->err = *err;
    c->rc = err->code;
}

void scratch_push(struct scratch *c, uint32_t id)
{
    if (c->out->len >= c->out_max) {
        if (!c->rc)
            c->rc = err_set(&c->err, ERR_LIMIT, "text gives more than %zu ids", c->ids_max);
        return;
    }
    ids_push(c->out, id);
}

void scratch_free(struct scratch *c)
{
    struct buf *bufs[] = {&c->plain, &c->shields, &c->work[0], &c->work[1], &c->word};

    for (size_t i = 0; i < sizeof bufs / sizeof *bufs; i++)
        buf_fini(bufs[i]);
    for (size_t i = 0; i < STAGES_MAX; i++)
        buf_fini(&c->level[i]);
    free(c->cache);
    free(c->symbols);
    free(c->heap);
    free(c);
}

struct scratch *scratch_take(const struct tokenizer *t)
{
    struct scratch *c = NULL;

    for (size_t i = 0; i < SCRATCH_POOL && !c; i++)
        c = atomic_exchange(t->pool + i, NULL);
    if (!c) {
        c = mem_zalloc(sizeof *c);
        c->cache = mem_array(CACHE_ENTRIES, sizeof *c->cache);
    }
    c->rc = 0;
    return c;
}

static void buf_trim(struct buf *b)
{
    if (b->cap > SCRATCH_KEEP_BYTES)
        buf_fini(b);
}

void scratch_give(const struct tokenizer *t, struct scratch *c)
{
    struct scratch *none;

    buf_trim(&c->plain);
    buf_trim(&c->shields);
    buf_trim(&c->work[0]);
    buf_trim(&c->work[1]);
    buf_trim(&c->word);
    for (size_t i = 0; i < STAGES_MAX; i++)
        buf_trim(&c->level[i]);
    if (c->symbols_cap > SCRATCH_KEEP_BYTES / 16) {
        free(c->symbols);
        free(c->heap);
        c->symbols = NULL;
        c->heap = NULL;
        c->symbols_cap = c->heap_cap = 0;
    }
    for (size_t i = 0; i < SCRATCH_POOL; i++) {
        none = NULL;
        if (atomic_compare_exchange_strong(t->pool + i, &none, c))
            return;
    }
    scratch_free(c);
}

/* --- encoding --- */

struct section {
    const struct tokenizer *t;
    struct scratch *c;
    unsigned flags;
    bool origin; /* at the start of the text */
};

/* Splits normalised text at the added tokens looked for there. shields: offsets at which no such
 * token may hold text on both sides. */
static void section_normalized(const struct section *z, const char *s, size_t len,
                               const size_t *shields, size_t shields_count)
{
    struct added_scan scan = {.text = s, .len = len};
    size_t start, end, plain = 0, shield = 0;
    uint32_t id;

    if (!(z->flags & ENCODE_SPLIT_ADDED) || !z->t->normalized.tokens_count) {
        stages_run(z->t, z->c, 0, s, len, z->origin);
        return;
    }
    while (!z->c->rc && added_next(&z->t->normalized, &scan, &id, &start, &end)) {
        if (id == TOKEN_NONE)
            continue;
        while (shield < shields_count && shields[shield] <= start)
            shield++;
        if (shield < shields_count && shields[shield] < end)
            continue; /* stays part of the plain text */
        if (plain < start)
            stages_run(z->t, z->c, 0, s + plain, start - plain, z->origin && !plain);
        scratch_push(z->c, id);
        plain = end;
    }
    if (plain < len)
        stages_run(z->t, z->c, 0, s + plain, len - plain, z->origin && !plain);
}

/* Drops the shields from text into c->plain; notes where they were once the text is normalised. */
static int shields_drop(const struct section *z, const char *s, size_t len)
{
    const struct normals *normals = &z->t->normals;
    struct scratch *c = z->c;
    size_t total = 0;
    int rc = 0;

    buf_clear(&c->plain);
    buf_clear(&c->shields);
    for (size_t i = 0; !rc && i < len;) {
        const char *hit = memchr(s + i, TOKENIZER_SHIELD, len - i);
        size_t end = hit ? (size_t)(hit - s) : len;
        const char *part = s + i;
        size_t part_len = end - i;

        buf_append(&c->plain, part, part_len);
        if (z->t->normalized.tokens_count) {
            rc = normals_run(normals, &part, &part_len, total == 0, c->work, &c->err);
            total += part_len;
            if (hit)
                buf_append(&c->shields, &total, sizeof total);
        }
        i = end + 1;
    }
    return rc;
}

/* Text between added tokens. */
static void section_run(const struct section *z, const char *s, size_t len)
{
    struct scratch *c = z->c;

    buf_clear(&c->shields);
    if (memchr(s, TOKENIZER_SHIELD, len)) {
        c->rc = shields_drop(z, s, len);
        s = c->plain.data;
        len = c->plain.len;
    }
    if (c->rc || !len)
        return;
    if (z->t->regexes && !utf8_valid(s, len)) {
        c->rc = err_set(&c->err, ERR_INVALID, "text is no valid UTF-8");
        return;
    }
    c->rc = normals_run(&z->t->normals, &s, &len, true, c->work, &c->err);
    if (c->rc || !len)
        return;
    section_normalized(z, s, len, (const size_t *)(const void *)c->shields.data,
                       c->shields.len / sizeof(size_t));
}

static void text_run(struct section *z, const char *text, size_t len)
{
    struct added_scan scan = {.text = text, .len = len};
    size_t start, end;
    uint32_t id;

    if (!(z->flags & ENCODE_SPLIT_ADDED) || !z->t->added.tokens_count) {
        section_run(z, text, len);
        return;
    }
    while (!z->c->rc && added_next(&z->t->added, &scan, &id, &start, &end)) {
        z->origin = start == 0;
        if (id == TOKEN_NONE)
            section_run(z, text + start, end - start);
        else
            scratch_push(z->c, id);
    }
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, unsigned flags,
                     size_t ids_max, struct ids *ids, struct err *err)
{
    struct section z = {.t = t, .flags = flags, .origin = true};
    size_t before = ids->len;
    struct scratch *c;
    int rc;

    if (len > TEXT_BYTES_MAX)
        return err_set(err, ERR_LIMIT, "text of %zu bytes is longer than %u", len, TEXT_BYTES_MAX);
    z.c = c = scratch_take(t);
    c->out = ids;
    c->ids_max = ids_max;
    c->out_max = ids_max > SIZE_MAX - before ? SIZE_MAX : before + ids_max;
    for (size_t i = 0; (flags & ENCODE_ADD_SPECIAL) && i < t->prefix.len; i++)
        scratch_push(c, t->prefix.data[i]);
    if (len)
        text_run(&z, text, len);
    for (size_t i = 0; (flags & ENCODE_ADD_SPECIAL) && i < t->suffix.len; i++)
        scratch_push(c, t->suffix.data[i]);
    rc = c->rc;
    if (rc) {
        ids->len = before;
        (void)err_set(err, rc, "%s", c->err.msg);
    }
    c->out = NULL;
    scratch_give(t, c);
    return rc;
}

/* --- shielding --- */

static size_t char_bytes(const char *text, size_t len)
{
    size_t n = 1;

    while (n < len && ((unsigned char)text[n] & 0xc0) == 0x80)
        n++;
    return n;
}

/* A shield goes behind the first character of every added token's content, so that tokens that
 * overlap or contain one another are broken up as well. */
void tokenizer_shield(const struct tokenizer *t, const char *text, size_t len, struct buf *out)
{
    size_t done = 0;

    if (!len)
        return;
    for (size_t i = 0; i < len; i++) {
        uint32_t token;
        size_t n;

        if (!t->contents.root[(unsigned char)text[i]] ||
            !added_match(&t->contents, text, len, i, &token))
            continue;
        n = char_bytes(text + i, len - i);
        if (t->contents.tokens[token].single_char)
            n = 1;
        buf_append(out, text + done, i + n - done);
        buf_putc(out, TOKENIZER_SHIELD);
        done = i + n;
    }
    buf_append(out, text + done, len - done);
}

#include "common/mem.h"
#include "common/utf8.h"
#include "services/tokenizer/internal.h"

#include <stdlib.h>
#include <string.h>

#define IDS_UNUSED_MAX 65536 /* every id up to the largest takes memory */

const char *strings_get(const struct strings *s, uint32_t id, size_t *len)
{
    *len = s->start[id + 1] - s->start[id];
    return s->data + s->start[id];
}

static uint64_t content_hash(const char *s, size_t len)
{
    uint64_t h = 0x9e3779b97f4a7c15u ^ len;

    for (; len >= 8; s += 8, len -= 8) {
        uint64_t w;

        memcpy(&w, s, 8);
        h = (h ^ w) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    for (; len; s++, len--)
        h = (h ^ (unsigned char)*s) * 0xc4ceb9fe1a85ec53u;
    return h ^ h >> 29;
}

uint32_t vocab_find(const struct vocab *v, const char *content, size_t len)
{
    uint32_t slot = (uint32_t)content_hash(content, len) & v->slots_mask;

    for (;; slot = (slot + 1) & v->slots_mask) {
        uint32_t id = v->slots[slot];
        const char *have;
        size_t have_len;

        if (id == TOKEN_NONE)
            return TOKEN_NONE;
        have = strings_get(&v->content, id, &have_len);
        if (have_len == len && !memcmp(have, content, len))
            return id;
    }
}

uint32_t vocab_find_model(const struct vocab *v, const char *content, size_t len)
{
    uint32_t id = vocab_find(v, content, len);

    return id != TOKEN_NONE && (v->kind[id] & TOKEN_MODEL) ? id : TOKEN_NONE;
}

/* False when the same content is there already. */
static bool vocab_index(struct vocab *v, uint32_t id)
{
    size_t len;
    const char *content = strings_get(&v->content, id, &len);
    uint32_t slot = (uint32_t)content_hash(content, len) & v->slots_mask;

    if (vocab_find(v, content, len) != TOKEN_NONE)
        return false;
    while (v->slots[slot] != TOKEN_NONE)
        slot = (slot + 1) & v->slots_mask;
    v->slots[slot] = id;
    return true;
}

struct vocab_row {
    const char *text; /* borrowed from the JSON */
    size_t len;
};

static int model_rows(json_t *model, struct vocab_row *rows, uint32_t count, struct err *err)
{
    for (void *it = json_object_iter(model); it; it = json_object_iter_next(model, it)) {
        json_int_t id = json_integer_value(json_object_iter_value(it));

        if (id >= count || rows[id].text)
            return err_set(err, ERR_INVALID, "model.vocab: id %lld is given twice", (long long)id);
        rows[id].text = json_object_iter_key(it);
        rows[id].len = json_object_iter_key_len(it);
    }
    return 0;
}

/* Largest id + 1; every value must be an id. */
static int model_count(json_t *model, uint32_t *count, struct err *err)
{
    *count = 0;
    for (void *it = json_object_iter(model); it; it = json_object_iter_next(model, it)) {
        const json_t *value = json_object_iter_value(it);
        json_int_t id = json_integer_value(value);

        if (!json_is_integer(value) || id < 0 || id >= TOKENIZER_IDS_MAX)
            return err_set(err, ERR_INVALID, "model.vocab: a value is no id below %u",
                           TOKENIZER_IDS_MAX);
        if (id >= *count)
            *count = (uint32_t)id + 1;
    }
    if (*count > 2 * json_object_size(model) + IDS_UNUSED_MAX)
        return err_set(err, ERR_LIMIT, "model.vocab: id %u with only %zu tokens", *count - 1,
                       json_object_size(model));
    return 0;
}

/* Index of the row with this text among rows[from..count), or count. */
static uint32_t row_find(const struct vocab_row *rows, uint32_t from, uint32_t count,
                         const char *text, size_t len)
{
    while (from < count && (rows[from].len != len || memcmp(rows[from].text, text, len) != 0))
        from++;
    return from;
}

static void vocab_fill(struct vocab *v, const struct vocab_row *rows, uint32_t count)
{
    struct strings *s = &v->content;
    size_t total = 0;

    for (uint32_t i = 0; i < count; i++)
        total += rows[i].len;
    free(s->data);
    free(s->start);
    s->data = mem_zalloc(total + 16);
    s->start = mem_array((size_t)count + 1, sizeof *s->start);
    s->count = count;
    total = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (rows[i].len)
            memcpy(s->data + total, rows[i].text, rows[i].len);
        total += rows[i].len;
        s->start[i + 1] = (uint32_t)total;
    }
}

/* Adds what is new to the rows after the model's. A new token gets the next free id, whatever its
 * entry says: the reference does so too. */
static int added_rows(struct vocab *v, json_t *added, struct vocab_row *rows, uint32_t model_size,
                      uint32_t *count, struct err *err)
{
    uint32_t base = *count;
    uint32_t next = 0; /* largest id of an added token so far, + 1 */

    for (size_t i = 0; i < json_array_size(added); i++) {
        json_t *content = json_object_get(json_array_get(added, i), "content");
        const char *text = json_string_value(content);
        size_t len = json_string_length(content);
        uint32_t id;

        if (!text)
            return err_set(err, ERR_INVALID, "added_tokens[%zu].content is no string", i);
        if (!len)
            continue;
        id = vocab_find(v, text, len);
        if (id == TOKEN_NONE) {
            id = row_find(rows, base, *count, text, len);
            if (id == *count && id != (next > model_size ? next : model_size))
                return err_set(err, ERR_UNSUPPORTED, "added token %.80s: ids have gaps before %u",
                               text, id);
        }
        if (id == *count) {
            rows[id].text = text;
            rows[id].len = len;
            *count = id + 1;
        }
        if (id + 1 > next)
            next = id + 1;
    }
    return 0;
}

static void vocab_index_all(struct vocab *v, const struct vocab_row *rows, uint32_t from,
                            uint32_t to, uint8_t kind)
{
    for (uint32_t id = from; id < to; id++)
        if (rows[id].text) {
            v->kind[id] = TOKEN_PRESENT | kind;
            (void)vocab_index(v, id);
        }
}

int vocab_load(struct vocab *v, json_t *model, json_t *added, struct err *err)
{
    struct vocab_row *rows = NULL;
    size_t capacity = 16;
    uint32_t count = 0, model_count_ids;
    int rc;

    if (!json_is_object(model))
        return err_set(err, ERR_INVALID, "model.vocab is no object");
    rc = model_count(model, &count, err);
    if (rc)
        return rc;
    if (json_array_size(added) > TOKENIZER_IDS_MAX)
        return err_set(err, ERR_LIMIT, "added_tokens: more than %u", TOKENIZER_IDS_MAX);
    rows = mem_array(count + json_array_size(added) + 1, sizeof *rows);
    v->kind = mem_zalloc(count + json_array_size(added) + 1);
    while (capacity < (count + json_array_size(added)) * 3 / 2)
        capacity *= 2;
    v->slots = mem_alloc(capacity * sizeof *v->slots);
    memset(v->slots, 0xff, capacity * sizeof *v->slots);
    v->slots_mask = (uint32_t)capacity - 1;
    rc = model_rows(model, rows, count, err);
    if (rc)
        goto out;
    vocab_fill(v, rows, count);
    vocab_index_all(v, rows, 0, count, TOKEN_MODEL);
    model_count_ids = count;
    rc = added_rows(v, added, rows, (uint32_t)json_object_size(model), &count, err);
    if (rc)
        goto out;
    vocab_fill(v, rows, count);
    vocab_index_all(v, rows, model_count_ids, count, 0);
    v->count = count;
out:
    free(rows);
    return rc;
}

void vocab_show(struct vocab *v, uint32_t id, const char *text, size_t len)
{
    v->shown = mem_resize(v->shown, v->shown_count + 1, sizeof *v->shown);
    v->shown[v->shown_count] = (struct shown){.id = id};
    buf_append(&v->shown[v->shown_count++].text, text, len);
}

void vocab_fini(struct vocab *v)
{
    free(v->content.data);
    free(v->content.start);
    free(v->kind);
    free(v->slots);
    for (size_t i = 0; i < v->shown_count; i++)
        buf_fini(&v->shown[i].text);
    free(v->shown);
    memset(v, 0, sizeof *v);
}

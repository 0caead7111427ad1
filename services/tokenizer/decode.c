/* Ids to text. The decoder's per-token steps are applied once, at load; what is left per sequence
 * is joining bytes, checking UTF-8 and dropping leading text. */
#include "common/mem.h"
#include "common/utf8.h"
#include "services/tokenizer/internal.h"

#include <stdlib.h>
#include <string.h>

#define REPLACEMENT "\xef\xbf\xbd"
#define CHUNK 64 /* ids between two looks at the room in the buffer */

/* --- loading --- */

enum step_kind { STEP_REPLACE, STEP_STRIP, STEP_META, STEP_BYTES, STEP_FUSE, STEP_BYTELEVEL };

struct step {
    enum step_kind kind;
    const json_t *def;
    struct buf from, to;
    size_t start, stop; /* STRIP */
};

static int text_field(const json_t *def, const char *name, struct buf *out, struct err *err)
{
    const json_t *value = json_object_get(def, name);

    if (!json_is_string(value) || !json_string_length(value))
        return err_set(err, ERR_INVALID, "decoder: %s is no text", name);
    buf_append(out, json_string_value(value), json_string_length(value));
    return 0;
}

static int step_load(struct step *step, const json_t *def, struct err *err)
{
    static const char *const names[] = {"Replace",      "Strip", "Metaspace",
                                        "ByteFallback", "Fuse",  "ByteLevel"};
    const char *type = json_string_value(json_object_get(def, "type"));
    const json_t *content = json_object_get(def, "content");
    size_t kind = 0;

    if (!type)
        return err_set(err, ERR_INVALID, "decoder without a type");
    while (kind < 6 && strcmp(names[kind], type) != 0)
        kind++;
    if (kind == 6)
        return err_set(err, ERR_UNSUPPORTED, "decoder %.80s is not supported", type);
    step->kind = (enum step_kind)kind;
    step->def = def;
    if (step->kind == STEP_REPLACE) {
        const json_t *pattern = json_object_get(def, "pattern");

        if (!json_object_get(pattern, "String"))
            return err_set(err, ERR_UNSUPPORTED, "decoder Replace: only string patterns");
        buf_append(&step->to, json_string_value(content), json_string_length(content));
        return text_field(pattern, "String", &step->from, err);
    }
    if (step->kind == STEP_STRIP) {
        json_int_t start = json_integer_value(json_object_get(def, "start"));
        json_int_t stop = json_integer_value(json_object_get(def, "stop"));

        if (start < 0 || stop < 0)
            return err_set(err, ERR_INVALID, "decoder Strip: start or stop below 0");
        step->start = (size_t)start;
        step->stop = (size_t)stop;
        return text_field(def, "content", &step->from, err);
    }
    return step->kind == STEP_META ? text_field(def, "replacement", &step->from, err) : 0;
}

static void step_replace(const struct step *step, struct buf *text, struct buf *work)
{
    const char *at = text->data, *end = text->data + text->len, *hit;

    buf_clear(work);
    while (at < end &&
           (hit = memmem(at, (size_t)(end - at), step->from.data, step->from.len)) != NULL) {
        buf_append(work, at, (size_t)(hit - at));
        buf_append(work, step->to.data, step->to.len);
        at = hit + step->from.len;
    }
    buf_append(work, at, (size_t)(end - at));
    buf_clear(text);
    buf_append(text, work->data, work->len);
}

static void step_strip(const struct step *step, struct buf *text)
{
    const struct buf *from = &step->from;

    for (size_t i = 0;
         i < step->start && text->len >= from->len && !memcmp(text->data, from->data, from->len);
         i++)
        buf_consume(text, from->len);
    for (size_t i = 0; i < step->stop && text->len >= from->len &&
                       !memcmp(text->data + text->len - from->len, from->data, from->len);
         i++)
        text->len -= from->len;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte of <0xXX>, -1 when the text is none. */
static int fallback_byte(const struct buf *text)
{
    int high, low;

    if (text->len != 6 || memcmp(text->data, "<0x", 3) != 0 || text->data[5] != '>')
        return -1;
    high = text->data[3] == '+' ? 0 : hex_digit(text->data[3]);
    low = hex_digit(text->data[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* Applies the steps to one token; the result is in text. */
static void token_steps(const struct step *steps, size_t count, struct buf *text, uint8_t *kind,
                        struct buf *work)
{
    for (size_t i = 0; i < count; i++) {
        int byte;

        switch (steps[i].kind) {
        case STEP_REPLACE:
            step_replace(&steps[i], text, work);
            break;
        case STEP_STRIP:
            step_strip(&steps[i], text);
            break;
        case STEP_META: {
            struct step spaces = {.from = steps[i].from, .to = {(char[]){" "}, 1, 0}};

            step_replace(&spaces, text, work);
            break;
        }
        case STEP_BYTES:
            byte = fallback_byte(text);
            if (byte >= 0) {
                buf_clear(text);
                buf_putc(text, (char)byte);
                *kind |= TOKEN_BYTE;
            }
            break;
        case STEP_BYTELEVEL:
            buf_clear(work);
            bytelevel_unmap(text->data, text->len, work);
            buf_clear(text);
            buf_append(text, work->data, work->len);
            break;
        case STEP_FUSE:
            break;
        }
    }
}

static void raw_build(struct decoder *d, struct vocab *v, const struct step *steps, size_t count)
{
    struct buf all = {0}, text = {0}, work = {0};
    const struct buf **shown = mem_array((size_t)v->count + 1, sizeof *shown);

    for (size_t i = 0; i < v->shown_count; i++)
        shown[v->shown[i].id] = &v->shown[i].text;
    d->raw.start = mem_array((size_t)v->count + 1, sizeof *d->raw.start);
    d->raw.count = v->count;
    buf_reserve(&all, v->content.start[v->count] + 16);
    buf_reserve(&text, 64);
    for (uint32_t id = 0; id < v->count; id++) {
        size_t len;
        const char *content = strings_get(&v->content, id, &len);

        if (shown[id]) {
            content = shown[id]->data;
            len = shown[id]->len;
        }
        buf_clear(&text);
        buf_append(&text, content, len);
        token_steps(steps, count, &text, &v->kind[id], &work);
        buf_append(&all, text.data, text.len);
        d->raw.start[id + 1] = (uint32_t)all.len;
        if (text.len > d->raw_max)
            d->raw_max = text.len;
    }
    d->raw.data = mem_zalloc(all.len + 16);
    memcpy(d->raw.data, all.data, all.len);
    free((void *)shown);
    buf_fini(&all);
    buf_fini(&text);
    buf_fini(&work);
}

/* Sorts the steps into those per token (the first *count) and those on the whole text. */
static int steps_split(struct decoder *d, struct step *steps, size_t *count, struct err *err)
{
    bool whole = false, bytes = false;
    size_t kept = 0;

    for (size_t i = 0; i < *count; i++) {
        struct step *step = &steps[i];

        if (whole && step->kind == STEP_STRIP && !step->stop && !d->strip) {
            d->strip = step->start;
            buf_append(&d->strip_text, step->from.data, step->from.len);
            continue;
        }
        if (step->kind == STEP_FUSE) {
            whole = true;
            continue;
        }
        if (whole || bytes || (step->kind == STEP_META && i))
            return err_set(err, ERR_UNSUPPORTED, "decoder: step %zu (%.40s) is not supported there",
                           i, json_string_value(json_object_get(step->def, "type")));
        bytes = step->kind == STEP_BYTES;
        whole = d->lossy = step->kind == STEP_BYTELEVEL;
        if (step->kind == STEP_META) {
            const char *scheme = json_string_value(json_object_get(step->def, "prepend_scheme"));

            d->meta = scheme ? strcmp(scheme, "never") != 0
                             : !json_is_false(json_object_get(step->def, "add_prefix_space"));
            buf_append(&d->meta_from, step->from.data, step->from.len);
        }
        kept = i + 1;
    }
    *count = kept;
    return 0;
}

int decoder_load(struct decoder *d, struct vocab *v, const json_t *def, struct err *err)
{
    struct step steps[STAGES_MAX] = {0};
    const char *type = json_string_value(json_object_get(def, "type"));
    const json_t *list = json_object_get(def, "decoders");
    size_t count = 0;
    int rc = 0;

    if (!def || json_is_null(def)) {
        d->join = true;
    } else if (!type || strcmp(type, "Sequence") != 0) {
        rc = step_load(&steps[0], def, err);
        count = 1;
    } else if (json_array_size(list) > STAGES_MAX) {
        rc = err_set(err, ERR_LIMIT, "decoder: more than %d steps", STAGES_MAX);
    } else {
        for (; !rc && count < json_array_size(list); count++)
            rc = step_load(&steps[count], json_array_get(list, count), err);
    }
    if (!rc)
        rc = steps_split(d, steps, &count, err);
    if (!rc)
        raw_build(d, v, steps, count);
    for (size_t i = 0; i < STAGES_MAX; i++) {
        buf_fini(&steps[i].from);
        buf_fini(&steps[i].to);
    }
    return rc;
}

void decoder_fini(struct decoder *d)
{
    free(d->raw.data);
    free(d->raw.start);
    buf_fini(&d->meta_from);
    buf_fini(&d->strip_text);
}

/* --- running --- */

void decode_start(const struct tokenizer *t, struct decode_state *state, bool continues)
{
    state->strip_left = continues ? 0 : t->decoder.strip;
    state->first = !continues;
}

/* Appends text with each ill-formed part as one U+FFFD. */
static void append_lossy(struct buf *out, const char *text, size_t len)
{
    size_t good = 0;

    if (!len)
        return;
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        int n = utf8_decode(text + i, len - i, &cp);
        size_t bad = 1;

        if (n > 0) {
            i += (size_t)n;
            continue;
        }
        for (size_t part = 2; part <= 3 && i + part <= len; part++)
            if (utf8_decode(text + i, part, &cp) == -1)
                bad = part;
        buf_append(out, text + good, i - good);
        buf_puts(out, REPLACEMENT);
        good = i += bad;
    }
    buf_append(out, text + good, len - good);
}

/* What was appended since base may be cut in or ill-formed: keeps the open end for later. */
static void settle_lossy(struct decode_state *state, struct buf *out, size_t base)
{
    struct buf fresh = {0};
    size_t certain = utf8_complete(out->data + base, out->len - base);

    buf_append(&state->pending, out->data + base + certain, out->len - base - certain);
    out->len = base + certain;
    if (!utf8_valid(out->data + base, certain)) {
        buf_append(&fresh, out->data + base, certain);
        out->len = base;
        append_lossy(out, fresh.data, fresh.len);
        buf_fini(&fresh);
    }
    out->data[out->len] = '\0';
}

/* Ends a run of byte tokens: its text, or as the reference does one U+FFFD for each byte of a run
 * that is ill-formed anywhere. */
static void settle_bytes(struct decode_state *state, struct buf *out)
{
    struct buf *run = &state->pending;

    if (!run->len)
        return;
    if (utf8_valid(run->data, run->len)) {
        buf_append(out, run->data, run->len);
    } else {
        for (size_t i = 0; i < run->len; i++)
            buf_puts(out, REPLACEMENT);
    }
    buf_clear(run);
}

/* Drops leading text from what was appended since base. */
static void settle_strip(const struct tokenizer *t, struct decode_state *state, struct buf *out,
                         size_t base)
{
    const struct buf *strip = &t->decoder.strip_text;
    size_t n = 0;

    while (state->strip_left && base + n < out->len) {
        if (out->len - base - n < strip->len ||
            memcmp(out->data + base + n, strip->data, strip->len) != 0) {
            state->strip_left = 0;
            break;
        }
        n += strip->len;
        state->strip_left--;
    }
    if (!n)
        return;
    memmove(out->data + base, out->data + base + n, out->len - base - n);
    out->len -= n;
    out->data[out->len] = '\0';
}

/* Metaspace: the first token without any replacement in it. */
static void append_first(const struct tokenizer *t, uint32_t id, struct buf *out)
{
    const struct buf *mark = &t->decoder.meta_from;
    size_t len;
    const char *content = strings_get(&t->vocab.content, id, &len);

    for (size_t i = 0; i < len;) {
        if (len - i >= mark->len && !memcmp(content + i, mark->data, mark->len))
            i += mark->len;
        else
            buf_putc(out, content[i++]);
    }
}

static void push_one(const struct tokenizer *t, struct decode_state *state, uint32_t id,
                     struct buf *out)
{
    size_t len;
    const char *raw = strings_get(&t->decoder.raw, id, &len);
    bool first = state->first;

    state->first = false;
    if (t->vocab.kind[id] & TOKEN_BYTE) {
        buf_append(&state->pending, raw, len);
        return;
    }
    settle_bytes(state, out);
    if (first && t->decoder.meta) {
        append_first(t, id, out);
        return;
    }
    if (!first && t->decoder.join)
        buf_putc(out, ' ');
    buf_append(out, raw, len);
}

static bool is_dropped(const struct tokenizer *t, uint32_t id, bool skip_special)
{
    unsigned drop = skip_special ? TOKEN_SPECIAL : 0;

    return id >= t->vocab.count || !(t->vocab.kind[id] & TOKEN_PRESENT) ||
           (t->vocab.kind[id] & drop);
}

/* ByteLevel: bytes are joined as they come. Short tokens are copied as 16 bytes whatever their
 * length: both blocks have the room. */
static void push_lossy(const struct tokenizer *t, struct decode_state *state, const uint32_t *ids,
                       size_t count, bool skip_special, struct buf *out)
{
    const struct strings *raw = &t->decoder.raw;
    size_t base = out->len;

    buf_reserve(out, 0);
    buf_append(out, state->pending.data, state->pending.len);
    buf_clear(&state->pending);
    for (size_t i = 0; i < count; i += CHUNK) {
        size_t end = count - i < CHUNK ? count : i + CHUNK;
        size_t need = 16;

        for (size_t j = i; j < end; j++)
            if (ids[j] < t->vocab.count)
                need += raw->start[ids[j] + 1] - raw->start[ids[j]];
        buf_reserve(out, need);
        for (size_t j = i; j < end; j++) {
            size_t len;
            const char *s;

            if (is_dropped(t, ids[j], skip_special))
                continue;
            s = strings_get(raw, ids[j], &len);
            if (len <= 16)
                memcpy(out->data + out->len, s, 16);
            else
                memcpy(out->data + out->len, s, len);
            out->len += len;
        }
    }
    settle_lossy(state, out, base);
}

void decode_push(const struct tokenizer *t, struct decode_state *state, const uint32_t *ids,
                 size_t count, bool skip_special, struct buf *out)
{
    size_t base = out->len;

    if (t->decoder.lossy)
        push_lossy(t, state, ids, count, skip_special, out);
    else
        for (size_t i = 0; i < count; i++)
            if (!is_dropped(t, ids[i], skip_special))
                push_one(t, state, ids[i], out);
    settle_strip(t, state, out, base);
}

void decode_end(const struct tokenizer *t, struct decode_state *state, struct buf *out)
{
    size_t base = out->len;

    if (t->decoder.lossy)
        append_lossy(out, state->pending.data, state->pending.len);
    else
        settle_bytes(state, out);
    buf_clear(&state->pending);
    settle_strip(t, state, out, base);
    buf_fini(&state->pending);
}

void tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, size_t count,
                      bool skip_special, struct buf *out)
{
    struct decode_state state = {0};

    decode_start(t, &state, false);
    decode_push(t, &state, ids, count, skip_special, out);
    decode_end(t, &state, out);
}

void tokenizer_token_bytes(const struct tokenizer *t, uint32_t id, struct buf *out)
{
    size_t len;
    const char *raw;

    if (is_dropped(t, id, false))
        return;
    raw = strings_get(&t->decoder.raw, id, &len);
    buf_append(out, raw, len);
}

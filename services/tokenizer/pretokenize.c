/* The chain of pre-tokenizers: each stage cuts a piece and hands the parts to the next one; the
 * last hands words to the model. Depth is the number of stages. */
#include "common/mem.h"
#include "services/tokenizer/scratch.h"
#include "services/tokenizer/unicode.h"

#include <stdlib.h>
#include <string.h>

/* --- running --- */

/* One stage at work on one piece. */
struct cut {
    const struct tokenizer *t;
    struct scratch *c;
    const struct stage *stage;
    size_t next; /* stage that gets the parts */
    const char *text;
    size_t len;
    bool origin;
    /* In mapped stages spans are of the byte-level characters of original. */
    const char *original;
    size_t mapped_at, original_at;
    /* A span that may still grow. */
    bool has_span, span_match;
    size_t start, end;
};

/* Offset in the original of an offset in the mapped text; offsets come in rising order. */
static size_t cut_original(struct cut *k, size_t at)
{
    if (!k->original)
        return at;
    for (; k->mapped_at < at; k->mapped_at++)
        if (((unsigned char)k->text[k->mapped_at] & 0xc0) != 0x80)
            k->original_at++;
    return k->original_at;
}

static void cut_emit(struct cut *k)
{
    size_t start, end;

    if (!k->has_span || k->start == k->end)
        return;
    start = cut_original(k, k->start);
    end = cut_original(k, k->end);
    stages_run(k->t, k->c, k->next, (k->original ? k->original : k->text) + start, end - start,
               k->origin && start == 0);
}

static void cut_span(struct cut *k, size_t start, size_t end, bool match)
{
    bool merge = false;

    match ^= k->stage->invert;
    switch (k->stage->behavior) {
    case SPLIT_ISOLATED:
        break;
    case SPLIT_REMOVED:
        if (match)
            return;
        break;
    case SPLIT_MERGED_PREVIOUS:
        merge = match && !k->span_match;
        break;
    case SPLIT_MERGED_NEXT:
        merge = !match && k->span_match;
        break;
    case SPLIT_CONTIGUOUS:
        merge = match == k->span_match;
        break;
    }
    if (!k->has_span || !merge) {
        cut_emit(k);
        k->start = start;
    }
    k->end = end;
    k->has_span = true;
    k->span_match = match;
}

static size_t next_class(const struct cut *k, size_t from, size_t *end)
{
    const unsigned char *s = (const unsigned char *)k->text;

    for (size_t i = from; i < k->len; i = *end) {
        uint32_t cp;

        *end = i + unicode_read(s, k->len, i, &cp);
        if (unicode_flags(cp) & k->stage->class_flags)
            return i;
    }
    return k->len;
}

static size_t next_scan(const struct cut *k, size_t from, size_t *end)
{
    const unsigned char *s = (const unsigned char *)k->text;
    uint32_t cp;

    for (size_t i = from; i < k->len; i += unicode_read(s, k->len, i, &cp)) {
        *end = k->stage->scan(s, k->len, i);
        if (*end > i)
            return i;
    }
    return k->len;
}

static size_t next_string(const struct cut *k, size_t from, size_t *end)
{
    const struct buf *string = &k->stage->string;
    const char *hit =
        string->len ? memmem(k->text + from, k->len - from, string->data, string->len) : NULL;

    if (!hit)
        return k->len;
    *end = (size_t)(hit - k->text) + string->len;
    return (size_t)(hit - k->text);
}

static size_t next_regex(const struct cut *k, size_t from, size_t *end)
{
    struct err err = {0};
    size_t start;
    int found = regex_next(k->stage->regex, k->text, k->len, from, &start, end);

    if (found > 0)
        return start;
    if (found < 0) {
        (void)err_set(&err, ERR_LIMIT, "pre-tokenizer: pattern takes too long on this text");
        scratch_fail(k->c, &err);
    }
    return k->len;
}

static size_t char_len(const struct cut *k, size_t i)
{
    uint32_t cp;

    return unicode_read((const unsigned char *)k->text, k->len, i, &cp);
}

static void cut_run(struct cut *k)
{
    static size_t (*const finders[])(const struct cut *, size_t,
                                     size_t *) = {next_scan, next_class, next_string, next_regex};
    size_t done = 0, from = 0;

    while (from < k->len && !k->c->rc) {
        size_t end = 0;
        size_t start = finders[k->stage->kind](k, from, &end);

        if (start >= k->len)
            break;
        if (start > done)
            cut_span(k, done, start, false);
        cut_span(k, start, end, true);
        done = end;
        from = end > start ? end : end + char_len(k, end);
    }
    if (done < k->len)
        cut_span(k, done, k->len, false);
    cut_emit(k);
}

/* ByteLevel's add_prefix_space. */
static void prefix_run(struct cut *k)
{
    const struct stage *stage = k->stage;
    struct buf *level = &k->c->level[k->next - 1];

    if (k->text[0] == ' ') {
        stages_run(k->t, k->c, k->next, k->text, k->len, k->origin);
        return;
    }
    buf_clear(level);
    buf_append(level, stage->string.data, stage->string.len);
    buf_append(level, k->text, k->len);
    stages_run(k->t, k->c, k->next, level->data, level->len, k->origin);
}

/* Metaspace: spaces become the replacement, which may be put in front too. The cut in front of
 * each is a stage of its own. */
static void meta_run(struct cut *k)
{
    const struct buf *mark = &k->stage->string;
    struct buf *level = &k->c->level[k->next - 1];
    bool marked =
        k->text[0] == ' ' || (k->len >= mark->len && !memcmp(k->text, mark->data, mark->len));

    buf_clear(level);
    if (!marked && (k->stage->meta_always || (k->stage->meta_first && k->origin)))
        buf_append(level, mark->data, mark->len);
    for (size_t i = 0; i < k->len; i++)
        if (k->text[i] == ' ')
            buf_append(level, mark->data, mark->len);
        else
            buf_putc(level, k->text[i]);
    stages_run(k->t, k->c, k->next, level->data, level->len, k->origin);
}

void stages_run(const struct tokenizer *t, struct scratch *c, size_t stage, const char *s,
                size_t len, bool origin)
{
    struct cut k = {.t = t, .c = c, .next = stage + 1, .text = s, .len = len, .origin = origin};

    if (c->rc || !len)
        return;
    if (stage == t->stages.count) {
        bpe_word(t, c, s, len);
        return;
    }
    k.stage = &t->stages.list[stage];
    if (k.stage->kind == STAGE_PREFIX) {
        prefix_run(&k);
        return;
    }
    if (k.stage->kind == STAGE_META) {
        meta_run(&k);
        return;
    }
    if (k.stage->mapped) {
        struct buf *level = &c->level[stage];

        buf_clear(level);
        buf_reserve(level, 2 * len);
        k.len = level->len = bytelevel_map(s, len, level->data);
        k.text = level->data;
        k.original = s;
    }
    cut_run(&k);
}

/* --- loading --- */

static int behavior_load(struct stage *stage, const json_t *def, const char *fallback,
                         struct err *err)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *name = json_string_value(json_object_get(def, "behavior"));

    if (!name)
        name = fallback;
    for (size_t i = 0; i < 5; i++)
        if (!strcmp(names[i], name)) {
            stage->behavior = (enum split_behavior)i;
            return 0;
        }
    return err_set(err, ERR_UNSUPPORTED, "pre_tokenizer behavior %.80s is not supported", name);
}

static int split_load(struct stage *stage, const json_t *def, struct err *err)
{
    const json_t *pattern = json_object_get(def, "pattern");
    const json_t *string = json_object_get(pattern, "String");
    const json_t *regex = json_object_get(pattern, "Regex");

    stage->invert = json_is_true(json_object_get(def, "invert"));
    if (json_is_string(string)) {
        stage->kind = STAGE_STRING;
        buf_append(&stage->string, json_string_value(string), json_string_length(string));
    } else if (json_is_string(regex)) {
        const char *text = json_string_value(regex);
        size_t len = json_string_length(regex);

        stage->kind = STAGE_SCAN;
        stage->scan = scan_known(text, len);
        if (!stage->scan) {
            int rc = regex_new(text, len, &stage->regex, err);

            stage->kind = STAGE_REGEX;
            if (rc)
                return rc;
        }
    } else {
        return err_set(err, ERR_INVALID, "pre_tokenizer Split: no pattern");
    }
    return behavior_load(stage, def, "Isolated", err);
}

static struct stage *stage_new(struct stages *p)
{
    struct stage *stage = &p->list[p->count++];

    stage->mapped = p->bytelevel;
    return stage;
}

static void bytelevel_load(struct stages *p, const json_t *def)
{
    static const char gpt2[] =
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

    if (!json_is_false(json_object_get(def, "add_prefix_space"))) {
        struct stage *stage = stage_new(p);

        stage->kind = STAGE_PREFIX;
        buf_putc(&stage->string, ' ');
    }
    if (!json_is_false(json_object_get(def, "use_regex"))) {
        struct stage *stage = stage_new(p);

        stage->kind = STAGE_SCAN;
        stage->scan = scan_known(gpt2, sizeof gpt2 - 1);
    }
    p->bytelevel = true;
}

static int metaspace_load(struct stages *p, const json_t *def, struct err *err)
{
    struct stage *stage = stage_new(p);
    const json_t *mark = json_object_get(def, "replacement");
    const char *scheme = json_string_value(json_object_get(def, "prepend_scheme"));

    if (!json_is_string(mark) || !json_string_length(mark))
        return err_set(err, ERR_INVALID, "pre_tokenizer Metaspace: no replacement");
    if (!scheme)
        scheme = json_is_false(json_object_get(def, "add_prefix_space")) ? "never" : "always";
    stage->kind = STAGE_META;
    buf_append(&stage->string, json_string_value(mark), json_string_length(mark));
    stage->meta_always = !strcmp(scheme, "always");
    stage->meta_first = !strcmp(scheme, "first");
    if (!json_is_false(json_object_get(def, "split"))) {
        stage = stage_new(p);
        stage->kind = STAGE_STRING;
        stage->behavior = SPLIT_MERGED_NEXT;
        buf_append(&stage->string, json_string_value(mark), json_string_length(mark));
    }
    return 0;
}

static int stage_load(struct stages *p, const json_t *def, struct err *err)
{
    const char *type = json_string_value(json_object_get(def, "type"));

    if (!type)
        return err_set(err, ERR_INVALID, "pre_tokenizer without a type");
    if (p->count + 2 > STAGES_MAX)
        return err_set(err, ERR_LIMIT, "pre_tokenizer: more than %d steps", STAGES_MAX);
    if (!strcmp(type, "Split"))
        return split_load(stage_new(p), def, err);
    if (!strcmp(type, "ByteLevel")) {
        if (p->bytelevel)
            return err_set(err, ERR_UNSUPPORTED, "pre_tokenizer ByteLevel twice is not supported");
        bytelevel_load(p, def);
        return 0;
    }
    if (!strcmp(type, "Digits")) {
        struct stage *stage = stage_new(p);

        stage->kind = STAGE_CLASS;
        stage->class_flags = UNICODE_DIGIT;
        stage->behavior = json_is_true(json_object_get(def, "individual_digits"))
                              ? SPLIT_ISOLATED
                              : SPLIT_CONTIGUOUS;
        return 0;
    }
    if (!strcmp(type, "Punctuation")) {
        struct stage *stage = stage_new(p);

        stage->kind = STAGE_CLASS;
        stage->class_flags = UNICODE_PUNCTUATION;
        return behavior_load(stage, def, "Isolated", err);
    }
    if (!strcmp(type, "Metaspace") && !p->bytelevel)
        return metaspace_load(p, def, err);
    return err_set(err, ERR_UNSUPPORTED, "pre_tokenizer %.80s is not supported", type);
}

int stages_load(struct stages *p, const json_t *def, struct err *err)
{
    const char *type = json_string_value(json_object_get(def, "type"));
    const json_t *list = json_object_get(def, "pretokenizers");
    int rc = 0;

    if (!def || json_is_null(def))
        return 0;
    if (!type || strcmp(type, "Sequence") != 0)
        return stage_load(p, def, err);
    for (size_t i = 0; !rc && i < json_array_size(list); i++)
        rc = stage_load(p, json_array_get(list, i), err);
    return rc;
}

void stages_fini(struct stages *p)
{
    for (size_t i = 0; i < p->count; i++) {
        buf_fini(&p->list[i].string);
        regex_free(&p->list[i].regex);
    }
}

#include "common/mem.h"
#include "common/utf8.h"
#include "services/tokenizer/internal.h"
#include "services/tokenizer/unicode.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* --- NFC and its kin --- */

struct form {
    const struct normal *rule;
    struct buf *out;
    struct buf cps; /* utf8proc_int32_t each */
};

/* Puts runs of combining marks in order. A counting sort: utf8proc's own is quadratic, and a text
 * may consist of nothing but marks. */
static void marks_order(utf8proc_int32_t *cps, size_t count)
{
    utf8proc_int32_t *copy = mem_alloc(count * sizeof *copy);
    size_t start[257] = {0};

    for (size_t i = 0; i < count; i++)
        start[utf8proc_get_property(cps[i])->combining_class + 1]++;
    for (size_t i = 1; i < 257; i++)
        start[i] += start[i - 1];
    for (size_t i = 0; i < count; i++)
        copy[start[utf8proc_get_property(cps[i])->combining_class]++] = cps[i];
    memcpy(cps, copy, count * sizeof *cps);
    free(copy);
}

static bool marks_ordered(const utf8proc_int32_t *cps, size_t count)
{
    for (size_t i = 1; i < count; i++)
        if (utf8proc_get_property(cps[i - 1])->combining_class >
            utf8proc_get_property(cps[i])->combining_class)
            return false;
    return true;
}

static void form_order(utf8proc_int32_t *cps, size_t count)
{
    for (size_t i = 0; i < count;) {
        size_t end = i;

        while (end < count && utf8proc_get_property(cps[end])->combining_class)
            end++;
        if (end - i > 1 && !marks_ordered(cps + i, end - i))
            marks_order(cps + i, end - i);
        i = end > i ? end : i + 1;
    }
}

/* Writes the collected code points in the wanted form. */
static void form_flush(struct form *f)
{
    utf8proc_int32_t *cps = (utf8proc_int32_t *)(void *)f->cps.data;
    utf8proc_ssize_t count = (utf8proc_ssize_t)(f->cps.len / sizeof *cps);

    if (!count)
        return;
    form_order(cps, (size_t)count);
    if (f->rule->compose)
        count = utf8proc_normalize_utf32(cps, count, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    for (utf8proc_ssize_t i = 0; i < count; i++) {
        char utf8[4];

        buf_append(f->out, utf8, (size_t)utf8_encode((uint32_t)cps[i], utf8));
    }
    buf_clear(&f->cps);
}

static void form_collect(struct form *f, uint32_t cp)
{
    utf8proc_option_t options = f->rule->compat
                                    ? UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT | UTF8PROC_STABLE
                                    : UTF8PROC_DECOMPOSE | UTF8PROC_STABLE;
    utf8proc_int32_t parts[32];
    int boundary = UTF8PROC_BOUNDCLASS_START;
    utf8proc_ssize_t n =
        utf8proc_decompose_char((utf8proc_int32_t)cp, parts, 32, options, &boundary);

    if (n > 0 && n <= 32)
        buf_append(&f->cps, parts, (size_t)n * sizeof *parts);
}

/* Bytes at the start that surely stay as they are. */
static size_t form_stable(const struct normal *rule, const unsigned char *s, size_t len)
{
    size_t i = 0, before = 0;
    uint32_t cp = 0;

    if (!rule->compose || rule->compat) {
        while (i < len && s[i] < 0x80)
            i++;
        return i == len || i == 0 ? i : i - 1;
    }
    while (i < len) {
        size_t n;

        if (s[i] < 0xcc) { /* below U+0300 all is stable */
            before = i;
            i += s[i] < 0x80 ? 1 : 2;
            continue;
        }
        n = unicode_read(s, len, i, &cp);
        if (unicode_flags(cp) & UNICODE_NFC_UNSAFE)
            return before;
        before = i;
        i += n;
    }
    return len;
}

static void form_run(const struct normal *rule, const char *text, size_t len, struct buf *out)
{
    const unsigned char *s = (const unsigned char *)text;
    unsigned unknown = rule->compat ? UNICODE_NFKC_UNKNOWN : UNICODE_NFC_UNKNOWN;
    struct form f = {rule, out, {0}};

    for (size_t i = 0; i < len;) {
        size_t n = form_stable(rule, s + i, len - i);
        uint32_t cp;

        if (n) {
            form_flush(&f);
            buf_append(out, text + i, n);
            i += n;
        }
        /* The last stable one before an unstable one may compose with it, so it comes along. */
        do {
            if (i >= len)
                break;
            n = unicode_read(s, len, i, &cp);
            if (unicode_flags(cp) & unknown) {
                form_flush(&f);
                buf_append(out, text + i, n);
            } else {
                form_collect(&f, cp);
            }
            i += n;
        } while (i < len && s[i] >= 0xcc &&
                 (unicode_read(s, len, i, &cp), unicode_flags(cp) & UNICODE_NFC_UNSAFE));
    }
    form_flush(&f);
    buf_fini(&f.cps);
}

/* --- the others --- */

static int replace_run(const struct normal *rule, const char *s, size_t len, struct buf *out,
                       struct err *err)
{
    size_t at = 0, from = 0;

    while (from <= len) {
        size_t start, end;

        if (rule->regex) {
            int found = regex_next(rule->regex, s, len, from, &start, &end);

            if (found < 0)
                return err_set(err, ERR_LIMIT, "normalizer: pattern takes too long on this text");
            if (!found)
                break;
        } else {
            const char *hit = rule->from.len
                                  ? memmem(s + from, len - from, rule->from.data, rule->from.len)
                                  : NULL;

            if (!hit)
                break;
            start = (size_t)(hit - s);
            end = start + rule->from.len;
        }
        buf_append(out, s + at, start - at);
        buf_append(out, rule->to.data, rule->to.len);
        at = end;
        from = end > start ? end : end + 1;
    }
    buf_append(out, s + at, len - at);
    return 0;
}

static void strip_run(const struct normal *rule, const char **s, size_t *len)
{
    const unsigned char *bytes = (const unsigned char *)*s;
    size_t start = 0, end = 0;

    for (size_t i = 0; i < *len;) {
        uint32_t cp;
        size_t n = unicode_read(bytes, *len, i, &cp);

        i += n;
        if (!(unicode_flags(cp) & UNICODE_SPACE))
            end = i;
        else if (!end)
            start = i;
    }
    if (!rule->right)
        end = *len;
    if (!rule->left)
        start = 0;
    *s += start < end ? start : end;
    *len = start < end ? end - start : 0;
}

int normals_run(const struct normals *n, const char **s, size_t *len, bool prepend,
                struct buf work[2], struct err *err)
{
    for (size_t i = 0; i < n->count; i++) {
        const struct normal *rule = &n->list[i];
        struct buf *out = &work[work[0].data == *s];
        int rc = 0;

        if (rule->kind == NORMAL_PREPEND && (!prepend || !*len))
            continue;
        if (rule->kind == NORMAL_FORM && form_stable(rule, (const unsigned char *)*s, *len) == *len)
            continue;
        buf_clear(out);
        if (rule->kind == NORMAL_FORM) {
            form_run(rule, *s, *len, out);
        } else if (rule->kind == NORMAL_PREPEND) {
            buf_append(out, rule->to.data, rule->to.len);
            buf_append(out, *s, *len);
        } else if (rule->kind == NORMAL_STRIP) {
            strip_run(rule, s, len);
            buf_append(out, *s, *len);
        } else {
            rc = replace_run(rule, *s, *len, out, err);
        }
        if (rc)
            return rc;
        buf_reserve(out, 0);
        *s = out->data;
        *len = out->len;
    }
    return 0;
}

/* --- loading --- */

static int replace_load(struct normal *rule, const json_t *def, struct err *err)
{
    const json_t *pattern = json_object_get(def, "pattern");
    const json_t *string = json_object_get(pattern, "String");
    const json_t *regex = json_object_get(pattern, "Regex");
    const json_t *content = json_object_get(def, "content");

    if (!json_is_string(content) || (!json_is_string(string) && !json_is_string(regex)))
        return err_set(err, ERR_INVALID, "normalizer Replace: pattern or content is missing");
    rule->kind = NORMAL_REPLACE;
    buf_append(&rule->to, json_string_value(content), json_string_length(content));
    if (json_is_string(string)) {
        buf_append(&rule->from, json_string_value(string), json_string_length(string));
        return 0;
    }
    return regex_new(json_string_value(regex), json_string_length(regex), &rule->regex, err);
}

static int normal_load(struct normal *rule, const json_t *def, const char *type, struct err *err)
{
    static const struct {
        const char *type;
        bool compose, compat;
    } forms[] = {
        {"NFC", true, false}, {"NFD", false, false}, {"NFKC", true, true}, {"NFKD", false, true}};

    for (size_t i = 0; i < 4; i++)
        if (!strcmp(type, forms[i].type)) {
            rule->kind = NORMAL_FORM;
            rule->compose = forms[i].compose;
            rule->compat = forms[i].compat;
            return 0;
        }
    if (!strcmp(type, "Prepend")) {
        const json_t *prepend = json_object_get(def, "prepend");

        if (!json_is_string(prepend))
            return err_set(err, ERR_INVALID, "normalizer Prepend: prepend is no string");
        rule->kind = NORMAL_PREPEND;
        buf_append(&rule->to, json_string_value(prepend), json_string_length(prepend));
        return 0;
    }
    if (!strcmp(type, "Replace"))
        return replace_load(rule, def, err);
    if (!strcmp(type, "Strip")) {
        rule->kind = NORMAL_STRIP;
        rule->left = json_is_true(json_object_get(def, "strip_left"));
        rule->right = json_is_true(json_object_get(def, "strip_right"));
        return 0;
    }
    return err_set(err, ERR_UNSUPPORTED, "normalizer %.80s is not supported", type);
}

/* A Sequence inside a Sequence is refused: it would have no bound. */
int normals_load(struct normals *n, const json_t *def, struct err *err)
{
    const char *type = json_string_value(json_object_get(def, "type"));
    const json_t *list = json_object_get(def, "normalizers");

    if (!def || json_is_null(def))
        return 0;
    if (!type)
        return err_set(err, ERR_INVALID, "normalizer without a type");
    if (strcmp(type, "Sequence") != 0) {
        n->count = 1;
        return normal_load(&n->list[0], def, type, err);
    }
    if (json_array_size(list) > STAGES_MAX)
        return err_set(err, ERR_LIMIT, "normalizer Sequence: more than %d", STAGES_MAX);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *part = json_array_get(list, i);
        int rc;

        type = json_string_value(json_object_get(part, "type"));
        if (!type)
            return err_set(err, ERR_INVALID, "normalizer without a type");
        rc = normal_load(&n->list[n->count++], part, type, err);
        if (rc)
            return rc;
    }
    return 0;
}

void normals_fini(struct normals *n)
{
    for (size_t i = 0; i < n->count; i++) {
        buf_fini(&n->list[i].from);
        buf_fini(&n->list[i].to);
        regex_free(&n->list[i].regex);
    }
}

/* PCRE2 for patterns without a scanner of their own. Its Unicode tables differ from the
 * reference's, so classes are spelled out from ours before the pattern is compiled. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "common/mem.h"
#include "services/tokenizer/internal.h"
#include "services/tokenizer/unicode.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#define REGEX_BYTES_MAX 4096
#define REGEX_MATCH_LIMIT 10000000
#define REGEX_HEAP_KIB (256 * 1024)

struct regex {
    pcre2_code *code;
    pcre2_match_context *limits;
};

/* Appends the code points with (or without) one of the flags as the inside of a class. */
static void class_ranges(struct buf *out, unsigned flags, bool negate)
{
    for (uint32_t cp = 0; cp <= 0x10ffff; cp++) {
        uint32_t first = cp;

        while (cp <= 0x10ffff && (cp < 0xd800 || cp > 0xdfff) &&
               ((unicode_flags(cp) & flags) != 0) != negate)
            cp++;
        if (cp > first)
            buf_printf(out, "\\x{%x}-\\x{%x}", first, cp - 1);
    }
}

/* Flags of the class escape at s (behind the backslash); its length, 0 when it stays as it is. */
static size_t class_escape(const char *s, size_t len, unsigned *flags, bool *negate)
{
    static const struct {
        const char *name;
        unsigned flags;
    } known[] = {{"L}", UNICODE_LETTER},
                 {"N}", UNICODE_NUMBER},
                 {"M}", UNICODE_MARK},
                 {"P}", UNICODE_PUNCT},
                 {"S}", UNICODE_SYMBOL}};

    if (len && (s[0] == 's' || s[0] == 'S')) {
        *flags = UNICODE_SPACE;
        *negate = s[0] == 'S';
        return 1;
    }
    if (len < 4 || (s[0] != 'p' && s[0] != 'P') || s[1] != '{')
        return 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!memcmp(s + 2, known[i].name, 2)) {
            *flags = known[i].flags;
            *negate = s[0] == 'P';
            return 4;
        }
    return 0;
}

static void pattern_expand(const char *s, size_t len, struct buf *out)
{
    bool in_class = false;

    for (size_t i = 0; i < len; i++) {
        unsigned flags = 0;
        bool negate = false;
        size_t n;

        if (s[i] == '\\' && i + 1 < len) {
            n = class_escape(s + i + 1, len - i - 1, &flags, &negate);
            if (n) {
                buf_puts(out, in_class ? "" : "[");
                class_ranges(out, flags, negate);
                buf_puts(out, in_class ? "" : "]");
                i += n;
            } else {
                buf_append(out, s + i, 2);
                i++;
            }
            continue;
        }
        if (s[i] == '[')
            in_class = true;
        else if (s[i] == ']')
            in_class = false;
        buf_putc(out, s[i]);
    }
}

int regex_new(const char *pattern, size_t len, struct regex **out, struct err *err)
{
    struct regex *r;
    struct buf full = {0};
    int code;
    PCRE2_SIZE at;

    *out = NULL;
    if (len > REGEX_BYTES_MAX)
        return err_set(err, ERR_LIMIT, "pattern longer than %d bytes", REGEX_BYTES_MAX);
    r = mem_zalloc(sizeof *r);
    pattern_expand(pattern, len, &full);
    buf_reserve(&full, 0);
    r->code =
        pcre2_compile((PCRE2_SPTR)full.data, full.len, PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
    buf_fini(&full);
    if (!r->code) {
        PCRE2_UCHAR text[128];

        (void)pcre2_get_error_message(code, text, sizeof text);
        free(r);
        return err_set(err, ERR_UNSUPPORTED, "pattern %.200s: %s", pattern, (char *)text);
    }
    (void)pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE); /* the interpreter does without */
    r->limits = pcre2_match_context_create(NULL);
    if (r->limits) {
        (void)pcre2_set_match_limit(r->limits, REGEX_MATCH_LIMIT);
        (void)pcre2_set_heap_limit(r->limits, REGEX_HEAP_KIB);
    }
    *out = r;
    return 0;
}

void regex_free(struct regex **self)
{
    if (!*self)
        return;
    pcre2_code_free((*self)->code);
    pcre2_match_context_free((*self)->limits);
    free(*self);
    *self = NULL;
}

int regex_next(const struct regex *r, const char *s, size_t len, size_t from, size_t *start,
               size_t *end)
{
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    int rc;

    if (!data)
        return -1;
    rc = pcre2_match(r->code, (PCRE2_SPTR)s, len, from, PCRE2_NO_UTF_CHECK, data, r->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter works on the heap */
        rc = pcre2_match(r->code, (PCRE2_SPTR)s, len, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data,
                         r->limits);
    if (rc >= 0) {
        const PCRE2_SIZE *span = pcre2_get_ovector_pointer(data);

        *start = span[0];
        *end = span[1];
    }
    pcre2_match_data_free(data);
    return rc >= 0 ? 1 : rc == PCRE2_ERROR_NOMATCH ? 0 : -1;
}

/* Hand-written scanners of the pre-tokenizer patterns that models ship, found by their exact text.
 *
 * Each pattern is a list of alternatives in order; where an alternative gives back what it took
 * (backtracking), the code says which. */
#include "services/tokenizer/internal.h"
#include "services/tokenizer/unicode.h"

#include <string.h>

#define L UNICODE_LETTER
#define N UNICODE_NUMBER
#define S UNICODE_SPACE

struct cursor {
    uint32_t cp;
    unsigned flags; /* 0 at the end: such a "code point" is in no class */
    size_t next;    /* where the following one starts */
    bool end;
};

static struct cursor look(const unsigned char *s, size_t len, size_t i)
{
    struct cursor c = {0, 0, i, true};

    if (i >= len)
        return c;
    c.end = false;
    c.next = i + unicode_read(s, len, i, &c.cp);
    c.flags = unicode_flags(c.cp);
    return c;
}

/* End of the run of code points with one of the flags. */
static size_t run(const unsigned char *s, size_t len, size_t i, unsigned flags)
{
    while (i < len) {
        uint32_t cp;
        size_t n = unicode_read(s, len, i, &cp);

        if (!(unicode_flags(cp) & flags))
            break;
        i += n;
    }
    return i;
}

/* End of the run of at most max code points with one of the flags. */
static size_t run_max(const unsigned char *s, size_t len, size_t i, unsigned flags, int max)
{
    while (max-- > 0) {
        struct cursor c = look(s, len, i);

        if (!(c.flags & flags))
            break;
        i = c.next;
    }
    return i;
}

/* End of the run of code points with none of the flags. */
static size_t run_not(const unsigned char *s, size_t len, size_t i, unsigned flags)
{
    while (i < len) {
        uint32_t cp;
        size_t n = unicode_read(s, len, i, &cp);

        if (unicode_flags(cp) & flags)
            break;
        i += n;
    }
    return i;
}

static size_t run_bytes(const unsigned char *s, size_t len, size_t i, const char *set)
{
    while (i < len && s[i] && strchr(set, s[i]))
        i++;
    return i;
}

static bool is_newline(uint32_t cp)
{
    return cp == '\r' || cp == '\n';
}

static unsigned char lower(unsigned char c)
{
    return c >= 'A' && c <= 'Z' ? (unsigned char)(c | 0x20) : c;
}

/* 's|'t|'re|'ve|'m|'ll|'d, in either case when fold is set (then U+017F is an s as well). */
static size_t contraction(const unsigned char *s, size_t len, size_t i, bool fold)
{
    unsigned char a, b;

    if (i + 1 >= len || s[i] != '\'')
        return i;
    a = fold ? lower(s[i + 1]) : s[i + 1];
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return i + 2;
    if (i + 2 >= len)
        return i;
    if (fold && a == 0xc5 && s[i + 2] == 0xbf)
        return i + 3;
    b = fold ? lower(s[i + 2]) : s[i + 2];
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l'))
        return i + 3;
    return i;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ at a space; without newlines the first alternative is left out. */
static size_t spaces(const unsigned char *s, size_t len, size_t i, bool newlines)
{
    size_t end = i, last = i, newline = 0;

    while (end < len) {
        uint32_t cp;
        size_t n = unicode_read(s, len, end, &cp);

        if (!(unicode_flags(cp) & S))
            break;
        last = end;
        end += n;
        if (is_newline(cp))
            newline = end;
    }
    if (newlines && newline)
        return newline;
    if (end < len && last > i)
        return last; /* the last space goes with what follows */
    return end;
}

/* [^\r\n\p{L}\p{N}]?\p{L}+ */
static size_t word(const unsigned char *s, size_t len, size_t i, const struct cursor *first)
{
    if (first->flags & L)
        return run(s, len, first->next, L);
    if ((first->flags & N) || is_newline(first->cp) || first->end)
        return i;
    if (look(s, len, first->next).flags & L)
        return run(s, len, first->next, L);
    return i;
}

/*  ?[^\s\p{L}\p{N}]+ followed by any of trail */
static size_t others(const unsigned char *s, size_t len, size_t i, const char *trail)
{
    size_t start = i + (s[i] == ' ');
    size_t end = run_not(s, len, start, S | L | N);

    return end == start ? i : run_bytes(s, len, end, trail);
}

static size_t scan_cl100k(const unsigned char *s, size_t len, size_t i, int digits)
{
    struct cursor first = look(s, len, i);
    size_t end = contraction(s, len, i, true);

    if (end > i)
        return end;
    end = word(s, len, i, &first);
    if (end > i)
        return end;
    if (first.flags & N)
        return run_max(s, len, i, N, digits);
    end = others(s, len, i, "\r\n");
    return end > i ? end : spaces(s, len, i, true);
}

static size_t scan_llama3(const unsigned char *s, size_t len, size_t i)
{
    return scan_cl100k(s, len, i, 3);
}

static size_t scan_qwen2(const unsigned char *s, size_t len, size_t i)
{
    return scan_cl100k(s, len, i, 1);
}

static size_t scan_gpt2(const unsigned char *s, size_t len, size_t i)
{
    size_t end = contraction(s, len, i, false);
    size_t start = i + (s[i] == ' ');
    struct cursor first;

    if (end > i)
        return end;
    first = look(s, len, start);
    if (!first.end) {
        if (first.flags & L)
            return run(s, len, start, L);
        if (first.flags & N)
            return run(s, len, start, N);
        if (!(first.flags & S))
            return run_not(s, len, start, S | L | N);
    }
    return spaces(s, len, i, false);
}

#define U UNICODE_UPPER
#define W UNICODE_LOWER

/* U*W+ at i: U* takes all it can, then gives back up to the last code point that is a W too. */
static size_t cased_lower(const unsigned char *s, size_t len, size_t i)
{
    size_t at = i, after = i;

    for (;;) {
        struct cursor c = look(s, len, at);

        if (!(c.flags & U)) {
            if (c.flags & W)
                return run(s, len, c.next, W);
            return after;
        }
        if (c.flags & W)
            after = c.next;
        at = c.next;
    }
}

/* U+W* at i */
static size_t cased_upper(const unsigned char *s, size_t len, size_t i)
{
    size_t end = run(s, len, i, U);

    return end == i ? i : run(s, len, end, W);
}

/* The two word alternatives of o200k, each with and without the character in front. */
static size_t cased_word(const unsigned char *s, size_t len, size_t i, const struct cursor *first)
{
    bool prefix = !(first->flags & (L | N)) && !is_newline(first->cp);
    size_t end = first->next;

    if (prefix && (end = cased_lower(s, len, first->next)) > first->next)
        return end;
    if ((end = cased_lower(s, len, i)) > i)
        return end;
    if (prefix && (end = cased_upper(s, len, first->next)) > first->next)
        return end;
    return cased_upper(s, len, i);
}

static size_t scan_cased(const unsigned char *s, size_t len, size_t i, int digits, bool suffix)
{
    struct cursor first = look(s, len, i);
    size_t end = cased_word(s, len, i, &first);

    if (end > i)
        return suffix ? contraction(s, len, end, true) : end;
    if (first.flags & N)
        return run_max(s, len, i, N, digits);
    end = others(s, len, i, "\r\n/");
    return end > i ? end : spaces(s, len, i, true);
}

static size_t scan_o200k(const unsigned char *s, size_t len, size_t i)
{
    return scan_cased(s, len, i, 3, true);
}

static size_t scan_tekken(const unsigned char *s, size_t len, size_t i)
{
    return scan_cased(s, len, i, 1, false);
}

static bool is_ascii_letter(unsigned char c)
{
    return lower(c) >= 'a' && lower(c) <= 'z';
}

static size_t scan_deepseek_words(const unsigned char *s, size_t len, size_t i)
{
    const unsigned lm = L | UNICODE_MARK, ps = UNICODE_PUNCT | UNICODE_SYMBOL;
    struct cursor first = look(s, len, i);
    size_t start, end;

    if (s[i] > ' ' && s[i] < 0x7f && (first.flags & ps) && i + 1 < len &&
        is_ascii_letter(s[i + 1])) {
        for (end = i + 1; end < len && is_ascii_letter(s[end]);)
            end++;
        return end;
    }
    if (!(first.flags & (L | ps)) && !is_newline(first.cp) && (look(s, len, first.next).flags & lm))
        return run(s, len, first.next, lm);
    if (first.flags & lm)
        return run(s, len, i, lm);
    start = i + (s[i] == ' ');
    end = run(s, len, start, ps);
    if (end > start)
        return run_bytes(s, len, end, "\r\n");
    return first.flags & S ? spaces(s, len, i, true) : i;
}

static size_t scan_digits3(const unsigned char *s, size_t len, size_t i)
{
    return run_max(s, len, i, N, 3);
}

static size_t scan_digit(const unsigned char *s, size_t len, size_t i)
{
    return run_max(s, len, i, N, 1);
}

static size_t scan_ascii_digits3(const unsigned char *s, size_t len, size_t i)
{
    for (size_t at = i; at < i + 3; at++)
        if (at >= len || s[at] < '0' || s[at] > '9')
            return i;
    return i + 3;
}

/* [一-龥぀-ゟ゠-ヿ]+ */
static size_t scan_deepseek_cjk(const unsigned char *s, size_t len, size_t i)
{
    for (;;) {
        struct cursor c = look(s, len, i);

        if (!(c.cp >= 0x4e00 && c.cp <= 0x9fa5) && !(c.cp >= 0x3040 && c.cp <= 0x30ff))
            return i;
        i = c.next;
    }
}

#define CONTRACTIONS "'s|'t|'re|'ve|'m|'ll|'d"
#define CL100K(digits)                                                                             \
    "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits                                  \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define CASED(suffix, digits)                                                                      \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"     \
    "+" suffix                                                                                     \
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"    \
    "*" suffix "|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static const struct {
    const char *pattern;
    scan_fn scan;
} known[] = {
    {CL100K("\\p{N}{1,3}"), scan_llama3},
    {CL100K("\\p{N}"), scan_qwen2},
    {CONTRACTIONS "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", scan_gpt2},
    {CASED("(?i:" CONTRACTIONS ")?", "\\p{N}{1,3}"), scan_o200k},
    {CASED("", "\\p{N}"), scan_tekken},
    {"[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?"
     "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     scan_deepseek_words},
    {"[\xe4\xb8\x80-\xe9\xbe\xa5\xe3\x81\x80-\xe3\x82\x9f\xe3\x82\xa0-\xe3\x83\xbf]+",
     scan_deepseek_cjk},
    {"\\p{N}{1,3}", scan_digits3},
    {"\\p{N}", scan_digit},
    {"[0-9][0-9][0-9]", scan_ascii_digits3},
};

scan_fn scan_known(const char *pattern, size_t len)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].pattern) == len && !memcmp(known[i].pattern, pattern, len))
            return known[i].scan;
    return NULL;
}

#include "services/tokenizer/template/text.h"

#include "common/utf8.h"

#include <string.h>

#define SHIELD ((unsigned char)0xff)

struct text text_of(const char *c_string)
{
    return (struct text){c_string, strlen(c_string)};
}

struct text text_sub(struct text t, size_t from, size_t to)
{
    if (to > t.len)
        to = t.len;
    if (from >= to)
        return (struct text){t.data, 0};
    return (struct text){t.data + from, to - from};
}

static unsigned char byte_at(struct text t, size_t i)
{
    return (unsigned char)t.data[i];
}

bool text_next(struct text *rest, struct text *unit, uint32_t *cp)
{
    size_t n = 0, shields;
    int taken;

    while (n < rest->len && byte_at(*rest, n) == SHIELD)
        n++;
    if (n == rest->len)
        return false;
    taken = utf8_decode(rest->data + n, rest->len - n, cp);
    if (taken <= 0) {
        *cp = 0xfffd;
        taken = 1;
    }
    n += (size_t)taken;
    shields = n;
    while (shields < rest->len && byte_at(*rest, shields) == SHIELD)
        shields++;
    if (shields == rest->len)
        n = shields;
    *unit = text_sub(*rest, 0, n);
    *rest = text_sub(*rest, n, rest->len);
    return true;
}

bool text_prev(struct text *rest, struct text *unit, uint32_t *cp)
{
    size_t end = rest->len, start;

    while (end > 0 && byte_at(*rest, end - 1) == SHIELD)
        end--;
    if (end == 0)
        return false;
    start = end - 1;
    while (start > 0 && end - start < 4 && (byte_at(*rest, start) & 0xc0) == 0x80)
        start--;
    if (utf8_decode(rest->data + start, end - start, cp) != (int)(end - start)) {
        start = end - 1;
        *cp = 0xfffd;
    }
    *unit = text_sub(*rest, start, rest->len);
    rest->len = start;
    return true;
}

size_t text_length(struct text t)
{
    size_t count = 0;

    for (size_t i = 0; i < t.len; i++)
        count += byte_at(t, i) != SHIELD && (byte_at(t, i) & 0xc0) != 0x80;
    return count;
}

size_t text_offset(struct text t, size_t at)
{
    struct text rest = t, unit;
    uint32_t cp;

    while (at-- > 0) {
        if (!text_next(&rest, &unit, &cp))
            return t.len;
    }
    return t.len - rest.len;
}

bool text_shielded(struct text t)
{
    return t.len && memchr(t.data, SHIELD, t.len);
}

static size_t skip_shields(struct text t, size_t i)
{
    while (i < t.len && byte_at(t, i) == SHIELD)
        i++;
    return i;
}

int text_compare(struct text a, struct text b)
{
    size_t i = 0, j = 0;

    for (;;) {
        i = skip_shields(a, i);
        j = skip_shields(b, j);
        if (i == a.len || j == b.len)
            return (i < a.len) - (j < b.len);
        if (byte_at(a, i) != byte_at(b, j))
            return byte_at(a, i) < byte_at(b, j) ? -1 : 1;
        i++;
        j++;
    }
}

bool text_equal(struct text a, struct text b)
{
    if (a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0))
        return true;
    if (!text_shielded(a) && !text_shielded(b))
        return false;
    return text_compare(a, b) == 0;
}

bool text_is(struct text a, const char *c_string)
{
    return text_equal(a, text_of(c_string));
}

bool text_starts(struct text t, struct text prefix, size_t *bytes)
{
    size_t i = 0, j = 0;

    for (;;) {
        j = skip_shields(prefix, j);
        if (j == prefix.len)
            break;
        i = skip_shields(t, i);
        if (i == t.len || byte_at(t, i) != byte_at(prefix, j))
            return false;
        i++;
        j++;
    }
    *bytes = i;
    return true;
}

bool text_ends(struct text t, struct text suffix, size_t *bytes)
{
    size_t i = t.len, j = suffix.len;

    for (;;) {
        while (j > 0 && byte_at(suffix, j - 1) == SHIELD)
            j--;
        if (j == 0)
            break;
        while (i > 0 && byte_at(t, i - 1) == SHIELD)
            i--;
        if (i == 0 || byte_at(t, i - 1) != byte_at(suffix, j - 1))
            return false;
        i--;
        j--;
    }
    *bytes = t.len - i;
    return true;
}

struct text text_plain(struct arena *a, struct text t)
{
    char *copy;
    size_t n = 0;

    if (!text_shielded(t))
        return t;
    copy = arena_alloc(a, t.len);
    for (size_t i = 0; i < t.len; i++) {
        if (byte_at(t, i) != SHIELD)
            copy[n++] = t.data[i];
    }
    return (struct text){copy, n};
}

void text_finder_init(struct text_finder *f, struct arena *a, struct text hay, struct text needle)
{
    *f = (struct text_finder){
        .raw = hay, .plain = text_plain(a, hay), .needle = text_plain(a, needle)};
}

/* Moves both positions forward to `plain` bytes of the text without shields. */
static size_t finder_move(struct text_finder *f, size_t plain)
{
    if (f->raw.len == f->plain.len) {
        f->raw_at = plain;
    } else {
        while (f->plain_at < plain) {
            f->raw_at = skip_shields(f->raw, f->raw_at) + 1;
            f->plain_at++;
        }
    }
    f->plain_at = plain;
    return f->raw_at;
}

bool text_find(struct text_finder *f, size_t *start, size_t *end)
{
    struct text left = text_sub(f->plain, f->plain_at, f->plain.len);
    const char *hit;
    size_t at;

    if (f->needle.len == 0 || left.len < f->needle.len)
        return false;
    hit = memmem(left.data, left.len, f->needle.data, f->needle.len);
    if (!hit)
        return false;
    at = (size_t)(hit - f->plain.data);
    *start = finder_move(f, at);
    if (f->overlap)
        finder_move(f, at + 1);
    else
        finder_move(f, at + f->needle.len);
    *end = f->raw_at;
    return true;
}

bool text_space(uint32_t cp)
{
    if (cp < 0x80)
        return (cp >= 0x09 && cp <= 0x0d) || (cp >= 0x1c && cp <= 0x20);
    return cp == 0x85 || cp == 0xa0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200a) ||
           cp == 0x2028 || cp == 0x2029 || cp == 0x202f || cp == 0x205f || cp == 0x3000;
}

bool text_line_end(uint32_t cp)
{
    return (cp >= 0x0a && cp <= 0x0d) || (cp >= 0x1c && cp <= 0x1e) || cp == 0x85 || cp == 0x2028 ||
           cp == 0x2029;
}

static bool in_set(uint32_t cp, const struct text *set)
{
    struct text rest, unit;
    uint32_t member;

    if (!set)
        return text_space(cp);
    rest = *set;
    while (text_next(&rest, &unit, &member)) {
        if (member == cp)
            return true;
    }
    return false;
}

struct text text_strip(struct text t, const struct text *set, enum text_side sides)
{
    struct text rest, unit;
    uint32_t cp;

    for (rest = t; (sides & TEXT_LEFT) && text_next(&rest, &unit, &cp) && in_set(cp, set);)
        t = rest;
    for (rest = t; (sides & TEXT_RIGHT) && text_prev(&rest, &unit, &cp) && in_set(cp, set);)
        t = rest;
    return t;
}

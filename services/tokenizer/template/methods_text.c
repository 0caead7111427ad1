/* Methods of strings. */
#include "services/tokenizer/template/filters.h"

#include <utf8proc.h>

#define METHOD(name)                                                                               \
    static int name(struct render *r, const struct value *self, struct bound *b, struct value *out)

static bool given(const struct value *v)
{
    return v->kind != VALUE_MISSING && v->kind != VALUE_NONE;
}

static int strip(struct render *r, const struct value *self, struct bound *b, enum text_side sides,
                 struct value *out)
{
    struct text set;
    int rc = given(&b->v[0]) ? argument_text(r, &b->v[0], "strip: chars", &set) : 0;

    if (rc == 0)
        rc = render_tick(r, self->u.text.len / 64 + (given(&b->v[0]) ? set.len : 0));
    if (rc == 0)
        *out = value_text(text_strip(self->u.text, given(&b->v[0]) ? &set : NULL, sides));
    return rc;
}

METHOD(str_strip)
{
    return strip(r, self, b, TEXT_BOTH, out);
}

METHOD(str_lstrip)
{
    return strip(r, self, b, TEXT_LEFT, out);
}

METHOD(str_rstrip)
{
    return strip(r, self, b, TEXT_RIGHT, out);
}

/* split() without a separator: words between white space; the rest stays whole after max words. */
static int split_space(struct render *r, struct text t, int64_t max, struct list *l)
{
    struct text unit;
    uint32_t cp;
    int rc = 0;

    for (t = text_strip(t, NULL, TEXT_LEFT); rc == 0 && t.len; max -= max > 0) {
        struct text rest = t, word = t;

        if (max == 0) {
            list_push(r, l, value_text(t));
            break;
        }
        word.len = 0;
        while (text_next(&rest, &unit, &cp) && !text_space(cp))
            word.len = t.len - rest.len;
        list_push(r, l, value_text(word));
        t = text_strip(text_sub(t, word.len, t.len), NULL, TEXT_LEFT);
        rc = render_tick(r, 2 + word.len / 32);
    }
    return rc;
}

static int split_text(struct render *r, struct text t, struct text separator, int64_t max,
                      struct list *l)
{
    struct text_finder f;
    size_t start, end, from = 0;
    int rc = render_tick(r, t.len / 64);

    text_finder_init(&f, &r->arena, t, separator);
    if (rc == 0 && f.needle.len == 0)
        return render_fail(r, "empty separator");
    for (; rc == 0 && max != 0 && text_find(&f, &start, &end); max -= max > 0) {
        list_push(r, l, value_text(text_sub(t, from, start)));
        from = end;
        rc = render_tick(r, 2);
    }
    list_push(r, l, value_text(text_sub(t, from, t.len)));
    return rc;
}

static int split_arguments(struct render *r, struct bound *b, struct text *separator, int64_t *max)
{
    int rc = given(&b->v[0]) ? argument_text(r, &b->v[0], "split: sep", separator) : 0;

    *max = -1;
    if (rc == 0 && b->v[1].kind != VALUE_MISSING)
        rc = argument_int(r, &b->v[1], "split: maxsplit", max);
    return rc;
}

METHOD(str_split)
{
    struct list *l = list_new(r);
    struct text separator;
    int64_t max;
    int rc = split_arguments(r, b, &separator, &max);

    if (rc == 0)
        rc = given(&b->v[0]) ? split_text(r, self->u.text, separator, max, l)
                             : split_space(r, self->u.text, max, l);
    *out = value_list(VALUE_LIST, l);
    return rc;
}

/* rsplit: all pieces, of which those at the front that are too many are put back together. */
METHOD(str_rsplit)
{
    struct list *all = list_new(r), *l = list_new(r);
    struct text separator, t = self->u.text, head;
    size_t joined;
    int64_t max;
    int rc = split_arguments(r, b, &separator, &max);

    if (rc == 0)
        rc = given(&b->v[0]) ? split_text(r, t, separator, -1, all) : split_space(r, t, -1, all);
    if (rc < 0)
        return rc;
    joined = max >= 0 && all->len > (size_t)max + 1 ? all->len - (size_t)max : 0;
    if (joined) {
        struct text first = all->items[0].u.text, last = all->items[joined - 1].u.text;

        /* Without a separator, white space at the front stays as well. */
        head.data = given(&b->v[0]) ? first.data : t.data;
        head.len = (size_t)(last.data + last.len - head.data);
        list_push(r, l, value_text(head));
    }
    for (size_t i = joined; i < all->len; i++)
        list_push(r, l, all->items[i]);
    *out = value_list(VALUE_LIST, l);
    return 0;
}

METHOD(str_splitlines)
{
    struct list *l = list_new(r);
    int rc = text_lines(r, self->u.text, bound_flag(r, &b->v[0], false), l);

    *out = value_list(VALUE_LIST, l);
    return rc;
}

/* The part of t between the optional start and end arguments. */
static int window(struct render *r, struct text t, const struct bound *b, struct text *out)
{
    struct value parts[3] = {b->v[1], b->v[2], value_none()}, whole = value_text(t), v;
    int rc = get_slice(r, &whole, parts, &v);

    if (rc == 0)
        *out = v.u.text;
    return rc;
}

static int affix(struct render *r, const struct value *self, struct bound *b,
                 bool (*match)(struct text, struct text, size_t *), struct value *out)
{
    struct list one = {.items = &b->v[0], .len = 1}, *choices = &one;
    struct text t, wanted;
    size_t bytes;
    int rc = window(r, self->u.text, b, &t);

    if (b->v[0].kind == VALUE_TUPLE)
        choices = b->v[0].u.list;
    *out = value_bool(false);
    for (size_t i = 0; rc == 0 && i < choices->len; i++) {
        rc = argument_text(r, &choices->items[i], "the first argument", &wanted);
        if (rc == 0 && match(t, wanted, &bytes))
            *out = value_bool(true);
    }
    return rc;
}

METHOD(str_startswith)
{
    return affix(r, self, b, text_starts, out);
}

METHOD(str_endswith)
{
    return affix(r, self, b, text_ends, out);
}

METHOD(str_removeprefix)
{
    struct text t = self->u.text, prefix;
    size_t bytes = 0;
    int rc = argument_text(r, &b->v[0], "removeprefix: prefix", &prefix);

    if (rc == 0 && text_starts(t, prefix, &bytes))
        t = text_sub(t, bytes, t.len);
    *out = value_text(t);
    return rc;
}

METHOD(str_removesuffix)
{
    struct text t = self->u.text, suffix;
    size_t bytes = 0;
    int rc = argument_text(r, &b->v[0], "removesuffix: suffix", &suffix);

    if (rc == 0 && text_ends(t, suffix, &bytes))
        t.len -= bytes;
    *out = value_text(t);
    return rc;
}

static int recase(struct render *r, const struct value *self, enum text_case how, struct value *out)
{
    struct text t;
    int rc = text_recase(r, self->u.text, how, &t);

    *out = value_text(t);
    return rc;
}

METHOD(str_lower)
{
    (void)b;
    return recase(r, self, CASE_LOWER, out);
}

METHOD(str_upper)
{
    (void)b;
    return recase(r, self, CASE_UPPER, out);
}

METHOD(str_title)
{
    (void)b;
    return recase(r, self, CASE_TITLE, out);
}

METHOD(str_capitalize)
{
    (void)b;
    return recase(r, self, CASE_CAPITALIZE, out);
}

METHOD(str_swapcase)
{
    (void)b;
    return recase(r, self, CASE_SWAP, out);
}

METHOD(str_replace)
{
    struct text old, new_text, t;
    int64_t count = -1;
    int rc = argument_text(r, &b->v[0], "replace: old", &old);

    if (rc == 0)
        rc = argument_text(r, &b->v[1], "replace: new", &new_text);
    if (rc == 0 && b->v[2].kind != VALUE_MISSING)
        rc = argument_int(r, &b->v[2], "replace: count", &count);
    if (rc == 0)
        rc = text_replace(r, self->u.text, old, new_text, count, &t);
    if (rc == 0)
        *out = value_text(t);
    return rc;
}

METHOD(str_join)
{
    struct text t;
    int rc = text_join(r, &b->v[0], self->u.text, true, &t);

    *out = value_text(t);
    return rc;
}

METHOD(str_format)
{
    return format_braces(r, self->u.text, b->args, out);
}

/* Finds needle within start and end; last: from the right. In code points; -1 when missing. */
static int find(struct render *r, const struct value *self, struct bound *b, bool last,
                int64_t *out)
{
    struct text_finder f;
    struct text t, needle;
    size_t start, end, at = SIZE_MAX;
    int rc = argument_text(r, &b->v[0], "find: sub", &needle);

    *out = -1;
    if (rc == 0)
        rc = window(r, self->u.text, b, &t);
    if (rc < 0)
        return rc;
    text_finder_init(&f, &r->arena, t, needle);
    if (f.needle.len == 0)
        at = last ? t.len : 0;
    f.overlap = last;
    while (f.needle.len && text_find(&f, &start, &end)) {
        at = start;
        if (!last)
            break;
        rc = render_tick(r, 1 + f.needle.len / 64);
        if (rc < 0)
            return rc;
    }
    if (at != SIZE_MAX)
        *out = (int64_t)text_length(
            (struct text){self->u.text.data, (size_t)(t.data - self->u.text.data) + at});
    return render_tick(r, self->u.text.len / 32);
}

static int find_value(struct render *r, const struct value *self, struct bound *b, bool last,
                      bool must, struct value *out)
{
    int64_t at;
    int rc = find(r, self, b, last, &at);

    *out = value_int(at);
    return rc == 0 && must && at < 0 ? render_fail(r, "substring not found") : rc;
}

METHOD(str_find)
{
    return find_value(r, self, b, false, false, out);
}

METHOD(str_rfind)
{
    return find_value(r, self, b, true, false, out);
}

METHOD(str_index)
{
    return find_value(r, self, b, false, true, out);
}

METHOD(str_rindex)
{
    return find_value(r, self, b, true, true, out);
}

METHOD(str_count)
{
    struct text_finder f;
    struct text t, needle;
    size_t start, end;
    int64_t count = 0;
    int rc = argument_text(r, &b->v[0], "count: sub", &needle);

    if (rc == 0)
        rc = window(r, self->u.text, b, &t);
    if (rc == 0)
        rc = render_tick(r, t.len / 32);
    if (rc < 0)
        return rc;
    text_finder_init(&f, &r->arena, t, needle);
    while (text_find(&f, &start, &end))
        count++;
    *out = value_int(f.needle.len ? count : (int64_t)text_length(t) + 1);
    return 0;
}

static int partition(struct render *r, const struct value *self, struct bound *b, bool last,
                     struct value *out)
{
    struct list *l = list_new(r);
    struct text_finder f;
    struct text t = self->u.text, separator;
    size_t start, end, from = 0, to = 0;
    bool found = false;
    int rc = argument_text(r, &b->v[0], "partition: sep", &separator);

    if (rc < 0)
        return rc;
    text_finder_init(&f, &r->arena, t, separator);
    if (f.needle.len == 0)
        return render_fail(r, "empty separator");
    f.overlap = last;
    while ((!found || last) && text_find(&f, &start, &end)) {
        found = true;
        from = start;
        rc = render_tick(r, 1 + f.needle.len / 64);
        if (rc < 0)
            return rc;
    }
    if (found)
        text_starts(text_sub(t, from, t.len), separator, &to);
    else
        from = last ? 0 : t.len;
    to += from;
    list_push(r, l, value_text(text_sub(t, 0, from)));
    list_push(r, l, found ? value_text(separator) : value_string(""));
    list_push(r, l, value_text(text_sub(t, to, t.len)));
    *out = value_list(VALUE_TUPLE, l);
    return render_tick(r, t.len / 64);
}

METHOD(str_partition)
{
    return partition(r, self, b, false, out);
}

METHOD(str_rpartition)
{
    return partition(r, self, b, true, out);
}

static int pad(struct render *r, const struct value *self, struct bound *b, enum pad_side side,
               struct value *out)
{
    struct text fill = TEXT(" ");
    int64_t width;
    int rc = argument_int(r, &b->v[0], "width", &width);

    if (rc == 0 && b->v[1].kind != VALUE_MISSING)
        rc = argument_text(r, &b->v[1], "fillchar", &fill);
    if (rc == 0 && text_length(fill) != 1)
        rc = render_fail(r, "the fill character must be exactly one character long");
    return rc < 0 ? rc : text_pad(r, self->u.text, width, fill, side, out);
}

METHOD(str_ljust)
{
    return pad(r, self, b, PAD_RIGHT, out);
}

METHOD(str_rjust)
{
    return pad(r, self, b, PAD_LEFT, out);
}

METHOD(str_center)
{
    return pad(r, self, b, PAD_CENTER, out);
}

METHOD(str_zfill)
{
    struct text t = self->u.text, sign = {t.data, 0};
    struct value digits;
    struct sink s = {0};
    int64_t width;
    int rc = argument_int(r, &b->v[0], "zfill: width", &width);

    if (t.len && (t.data[0] == '+' || t.data[0] == '-'))
        sign.len = 1;
    if (rc == 0)
        rc = text_pad(r, text_sub(t, sign.len, t.len), width - (int64_t)sign.len, TEXT("0"),
                      PAD_LEFT, &digits);
    if (rc == 0)
        rc = sink_put(r, &s, sign);
    if (rc == 0)
        rc = sink_put(r, &s, digits.u.text);
    *out = value_text(sink_text(&s));
    return rc;
}

enum letters { LETTERS_DIGIT, LETTERS_ALPHA, LETTERS_ALNUM, LETTERS_SPACE };

/* There are code points and all are of the class. */
static int all_of(struct render *r, const struct value *self, enum letters class, struct value *out)
{
    struct text t = self->u.text, unit;
    bool all = true, any = false;
    uint32_t cp;
    int rc = 0;

    while (rc == 0 && all && text_next(&t, &unit, &cp)) {
        utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
        bool alpha = c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
        bool digit = c == UTF8PROC_CATEGORY_ND;

        any = true;
        all = class == LETTERS_DIGIT   ? digit
              : class == LETTERS_ALPHA ? alpha
              : class == LETTERS_ALNUM ? alpha || digit
                                       : text_space(cp);
        rc = render_tick(r, 1);
    }
    *out = value_bool(any && all);
    return rc;
}

METHOD(str_isdigit)
{
    (void)b;
    return all_of(r, self, LETTERS_DIGIT, out);
}

METHOD(str_isalpha)
{
    (void)b;
    return all_of(r, self, LETTERS_ALPHA, out);
}

METHOD(str_isalnum)
{
    (void)b;
    return all_of(r, self, LETTERS_ALNUM, out);
}

METHOD(str_isspace)
{
    (void)b;
    return all_of(r, self, LETTERS_SPACE, out);
}

static int case_test(struct render *r, const struct value *self, struct text name,
                     struct value *out)
{
    struct args none = {0};
    bool result = false;
    int rc = test_call(r, name, self, &none, &result);

    *out = value_bool(result);
    return rc;
}

METHOD(str_islower)
{
    (void)b;
    return case_test(r, self, TEXT("lower"), out);
}

METHOD(str_isupper)
{
    (void)b;
    return case_test(r, self, TEXT("upper"), out);
}

const struct native string_methods[] = {
    {"capitalize", "", str_capitalize},
    {"center", "!width fillchar", str_center},
    {"count", "!sub start end", str_count},
    {"endswith", "!suffix start end", str_endswith},
    {"find", "!sub start end", str_find},
    {"format", "*", str_format},
    {"index", "!sub start end", str_index},
    {"isalnum", "", str_isalnum},
    {"isalpha", "", str_isalpha},
    {"isdecimal", "", str_isdigit},
    {"isdigit", "", str_isdigit},
    {"islower", "", str_islower},
    {"isnumeric", "", str_isdigit},
    {"isspace", "", str_isspace},
    {"isupper", "", str_isupper},
    {"join", "!iterable", str_join},
    {"ljust", "!width fillchar", str_ljust},
    {"lower", "", str_lower},
    {"lstrip", "chars", str_lstrip},
    {"partition", "!sep", str_partition},
    {"removeprefix", "!prefix", str_removeprefix},
    {"removesuffix", "!suffix", str_removesuffix},
    {"replace", "!old !new count", str_replace},
    {"rfind", "!sub start end", str_rfind},
    {"rindex", "!sub start end", str_rindex},
    {"rjust", "!width fillchar", str_rjust},
    {"rpartition", "!sep", str_rpartition},
    {"rsplit", "sep maxsplit", str_rsplit},
    {"rstrip", "chars", str_rstrip},
    {"split", "sep maxsplit", str_split},
    {"splitlines", "keepends", str_splitlines},
    {"startswith", "!prefix start end", str_startswith},
    {"strip", "chars", str_strip},
    {"swapcase", "", str_swapcase},
    {"title", "", str_title},
    {"upper", "", str_upper},
    {"zfill", "!width", str_zfill},
    {NULL, NULL, NULL},
};

/* Filters on sequences. Those that jinja2 makes generators of give iterators here as well. */
#include "services/tokenizer/template/filters.h"

#include <string.h>

static bool given(const struct value *v)
{
    return v->kind != VALUE_MISSING;
}

static struct value iterator(struct list *l)
{
    l->view = "generator";
    return value_list(VALUE_ITERATOR, l);
}

/* "a.b.0" of an item, as attribute= means it. */
static int attribute_path(struct render *r, const struct value *item, const struct value *path,
                          struct value *out)
{
    struct text rest, name;
    int64_t index;
    int rc = 0;

    if (path->kind == VALUE_INT)
        return get_item(r, item, path, out);
    rc = argument_text(r, path, "attribute", &rest);
    *out = *item;
    while (rc == 0) {
        const char *dot = rest.len ? memchr(rest.data, '.', rest.len) : NULL;
        size_t len = dot ? (size_t)(dot - rest.data) : rest.len;
        struct value subject = *out, key;

        name = text_sub(rest, 0, len);
        key = value_text(name);
        if (len && name.data[0] >= '0' && name.data[0] <= '9' && text_to_int(name, 10, &index))
            key = value_int(index);
        rc = get_item(r, &subject, &key, out);
        if (!dot)
            break;
        rest = text_sub(rest, len + 1, rest.len);
    }
    return rc;
}

/* What an item is compared by: its attribute, without case unless that counts. */
struct sort_key {
    const struct value *attribute;
    bool case_sensitive;
};

static int key_fold(struct render *r, const struct sort_key *k, struct value *v)
{
    if (v->kind != VALUE_STRING || k->case_sensitive)
        return 0;
    return text_recase(r, v->u.text, CASE_LOWER, &v->u.text);
}

static int key_of(struct render *r, const struct sort_key *k, const struct value *item,
                  struct value *out)
{
    int rc = 0;

    *out = *item;
    if (given(k->attribute) && k->attribute->kind != VALUE_NONE)
        rc = attribute_path(r, item, k->attribute, out);
    return rc < 0 ? rc : key_fold(r, k, out);
}

/* sort takes several attributes, separated by commas: the key is a list then. */
static int key_of_many(struct render *r, const struct sort_key *k, const struct value *item,
                       struct value *out)
{
    struct text rest, name;
    struct list *l;
    int rc = 0;

    if (k->attribute->kind != VALUE_STRING ||
        !memchr(k->attribute->u.text.data, ',', k->attribute->u.text.len))
        return key_of(r, k, item, out);
    l = list_new(r);
    for (rest = k->attribute->u.text; rc == 0;) {
        const char *comma = rest.len ? memchr(rest.data, ',', rest.len) : NULL;
        struct value path, v;

        name = text_sub(rest, 0, comma ? (size_t)(comma - rest.data) : rest.len);
        path = value_text(name);
        rc = key_of(r, &(struct sort_key){&path, k->case_sensitive}, item, &v);
        list_push(r, l, v);
        if (!comma)
            break;
        rest = text_sub(rest, name.len + 1, rest.len);
    }
    *out = value_list(VALUE_LIST, l);
    return rc;
}

struct keyed {
    struct value key, item;
};

/* Stable, bottom-up merge sort; comparisons may fail. */
static int sort_keyed(struct render *r, struct keyed *items, size_t count, bool reverse)
{
    struct keyed *from = items, *to = arena_alloc(&r->arena, (count + 1) * sizeof *to), *swap;

    for (size_t width = 1; width < count; width *= 2) {
        for (size_t low = 0; low < count; low += 2 * width) {
            size_t middle = low + width < count ? low + width : count;
            size_t high = low + 2 * width < count ? low + 2 * width : count;
            size_t i = low, j = middle;

            for (size_t k = low; k < high; k++) {
                bool right = i >= middle;
                int order, rc;

                if (i < middle && j < high) {
                    rc = value_compare(r, &from[j].key, &from[i].key, "<", &order);
                    if (rc < 0)
                        return rc;
                    right = reverse ? order > 0 && order != 2 : order < 0;
                }
                to[k] = right ? from[j++] : from[i++];
            }
        }
        swap = from;
        from = to;
        to = swap;
    }
    if (from != items)
        memcpy(items, from, count * sizeof *items);
    return 0;
}

typedef int key_fn(struct render *r, const struct sort_key *k, const struct value *item,
                   struct value *out);

/* The items of v with their keys. */
static int keyed_items(struct render *r, const struct value *v, const struct sort_key *k,
                       key_fn *key, struct keyed **out, size_t *count)
{
    struct list *l;
    int rc = value_to_list(r, v, &l);

    if (rc < 0)
        return rc;
    *count = l->len;
    *out = arena_alloc(&r->arena, (l->len + 1) * sizeof **out);
    for (size_t i = 0; rc == 0 && i < l->len; i++) {
        (*out)[i].item = l->items[i];
        rc = key(r, k, &l->items[i], &(*out)[i].key);
        if (rc == 0)
            rc = render_tick(r, 1);
    }
    return rc;
}

int filter_sort(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    struct sort_key k = {&b->v[2], bound_flag(r, &b->v[1], false)};
    struct list *l = list_new(r);
    struct keyed *items;
    size_t count;
    int rc = keyed_items(r, self, &k, key_of_many, &items, &count);

    if (rc == 0)
        rc = sort_keyed(r, items, count, bound_flag(r, &b->v[0], false));
    for (size_t i = 0; rc == 0 && i < count; i++)
        list_push(r, l, items[i].item);
    *out = value_list(VALUE_LIST, l);
    return rc;
}

static int dict_pair_key(struct render *r, const struct sort_key *k, const struct value *item,
                         struct value *out)
{
    *out = item->u.list->items[text_is(k->attribute->u.text, "value")];
    return key_fold(r, k, out);
}

static int dict_pairs(struct render *r, const struct value *v, struct list **out)
{
    int rc = 0;

    *out = list_new(r);
    for (size_t i = 0; rc == 0 && i < v->u.dict->len; i++) {
        struct list *pair = list_new(r);

        list_push(r, pair, v->u.dict->entries[i].key);
        list_push(r, pair, v->u.dict->entries[i].value);
        list_push(r, *out, value_list(VALUE_TUPLE, pair));
        rc = render_tick(r, 2);
    }
    return rc;
}

int filter_dictsort(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    struct value by = given(&b->v[1]) ? b->v[1] : value_string("key"), pairs;
    struct sort_key k = {&by, bound_flag(r, &b->v[0], false)};
    struct list *l;
    struct keyed *items;
    size_t count;
    int rc;

    if (self->kind != VALUE_DICT)
        return render_fail(r, "dictsort: '%s' is no mapping", value_type_name(self));
    if (by.kind != VALUE_STRING || (!text_is(by.u.text, "key") && !text_is(by.u.text, "value")))
        return render_fail(r, "dictsort: you can only sort by either \"key\" or \"value\"");
    rc = dict_pairs(r, self, &l);
    pairs = value_list(VALUE_LIST, l);
    if (rc == 0)
        rc = keyed_items(r, &pairs, &k, dict_pair_key, &items, &count);
    if (rc == 0)
        rc = sort_keyed(r, items, count, bound_flag(r, &b->v[2], false));
    for (size_t i = 0; rc == 0 && i < count; i++)
        l->items[i] = items[i].item;
    *out = pairs;
    return rc;
}

int filter_items(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    struct list *l = list_new(r);
    int rc = 0;

    (void)b;
    if (self->kind == VALUE_DICT)
        rc = dict_pairs(r, self, &l);
    else if (self->kind != VALUE_UNDEFINED)
        return render_fail(r, "can only get item pairs from a mapping");
    *out = iterator(l);
    return rc;
}

int filter_first(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    struct iter it;
    int rc = iter_init(r, &it, self);

    (void)b;
    *out = value_undefined(TEXT("first item of an empty sequence"));
    if (rc == 0)
        rc = iter_next(r, &it, out);
    return rc < 0 ? rc : 0;
}

int filter_last(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    struct text rest, unit;
    uint32_t cp;
    struct list *l;
    int rc;

    (void)b;
    *out = value_undefined(TEXT("last item of an empty sequence"));
    if (self->kind == VALUE_STRING) {
        rest = self->u.text;
        if (text_prev(&rest, &unit, &cp))
            *out = value_text(unit);
        return 0;
    }
    if (self->kind == VALUE_ITERATOR)
        return render_fail(r, "'%s' object is not reversible", value_type_name(self));
    rc = value_to_list(r, self, &l);
    if (rc == 0 && l->len)
        *out = l->items[l->len - 1];
    return rc;
}

int filter_reverse(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    struct value parts[3] = {value_none(), value_none(), value_int(-1)};
    struct list *l;
    int rc;

    (void)b;
    if (self->kind == VALUE_STRING)
        return get_slice(r, self, parts, out);
    rc = value_to_list(r, self, &l);
    for (size_t i = 0; rc == 0 && i < l->len / 2; i++) {
        struct value swap = l->items[i];

        l->items[i] = l->items[l->len - 1 - i];
        l->items[l->len - 1 - i] = swap;
    }
    *out = self->kind == VALUE_ITERATOR ? value_list(VALUE_LIST, l) : iterator(l);
    return rc;
}

int filter_list(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    struct list *l;
    int rc = value_to_list(r, self, &l);

    (void)b;
    *out = value_list(VALUE_LIST, l);
    return rc;
}

int filter_join(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    struct text separator = {0}, t;
    struct value items = *self;
    struct list *l = list_new(r);
    struct iter it;
    struct value v;
    int rc = given(&b->v[0]) ? value_str(r, &b->v[0], &separator) : 0;

    if (rc == 0 && given(&b->v[1]) && b->v[1].kind != VALUE_NONE) {
        rc = iter_init(r, &it, self);
        while (rc >= 0 && (rc = iter_next(r, &it, &v)) > 0) {
            struct value attribute;

            rc = attribute_path(r, &v, &b->v[1], &attribute);
            list_push(r, l, attribute);
        }
        items = value_list(VALUE_LIST, l);
    }
    if (rc == 0)
        rc = text_join(r, &items, separator, false, &t);
    if (rc == 0)
        *out = value_text(t);
    return rc;
}

/* min (sign -1) and max (sign 1); the first of equal items. */
static int extreme(struct render *r, const struct value *self, struct bound *b, int sign,
                   struct value *out)
{
    struct sort_key k = {&b->v[1], bound_flag(r, &b->v[0], false)};
    struct keyed *items;
    size_t count, best = 0;
    int rc = keyed_items(r, self, &k, key_of, &items, &count);

    *out = value_undefined(TEXT("item of an empty sequence"));
    for (size_t i = 1; rc == 0 && i < count; i++) {
        int order;

        rc = value_compare(r, &items[i].key, &items[best].key, sign > 0 ? ">" : "<", &order);
        if (rc == 0 && order != 2 && order * sign > 0)
            best = i;
    }
    if (rc == 0 && count)
        *out = items[best].item;
    return rc;
}

int filter_min(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    return extreme(r, self, b, -1, out);
}

int filter_max(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    return extreme(r, self, b, 1, out);
}

int filter_sum(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    struct value item, total = given(&b->v[1]) ? b->v[1] : value_int(0), next;
    struct iter it;
    int rc = iter_init(r, &it, self);

    if (rc == 0 && total.kind == VALUE_STRING)
        return render_fail(r, "sum() can't sum strings");
    while (rc >= 0 && (rc = iter_next(r, &it, &item)) > 0) {
        rc = 0;
        if (given(&b->v[0]) && b->v[0].kind != VALUE_NONE) {
            struct value whole = item;

            rc = attribute_path(r, &whole, &b->v[0], &item);
        }
        if (rc == 0)
            rc = binary(r, TOKEN_ADD, &total, &item, &next);
        total = next;
    }
    *out = total;
    return rc;
}

int filter_unique(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    struct sort_key k = {&b->v[1], bound_flag(r, &b->v[0], false)};
    struct dict *seen = dict_new(r);
    struct list *l = list_new(r);
    struct keyed *items;
    size_t count;
    int rc = keyed_items(r, self, &k, key_of, &items, &count);

    for (size_t i = 0; rc == 0 && i < count; i++) {
        struct entry *e;

        rc = dict_find(r, seen, &items[i].key, &e);
        if (rc < 0 || e)
            continue;
        rc = dict_set(r, seen, items[i].key, value_none());
        list_push(r, l, items[i].item);
    }
    *out = iterator(l);
    return rc;
}

/* A list of (grouper, list) pairs, sorted by the grouper. */
int filter_groupby(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    struct sort_key k = {&b->v[0], bound_flag(r, &b->v[2], false)};
    struct list *groups = list_new(r), *members = NULL;
    struct keyed *items;
    size_t count;
    int rc = keyed_items(r, self, &k, key_of, &items, &count);

    for (size_t i = 0; rc == 0 && given(&b->v[1]) && i < count; i++) {
        if (items[i].key.kind == VALUE_UNDEFINED)
            items[i].key = b->v[1];
    }
    if (rc == 0)
        rc = sort_keyed(r, items, count, false);
    for (size_t i = 0; rc == 0 && i < count; i++) {
        struct value original = items[i].key;
        bool same = false;

        if (i > 0)
            rc = value_equal(r, &items[i - 1].key, &items[i].key, &same);
        if (rc == 0 && !same) {
            struct list *pair = list_new(r);

            rc = key_of(r, &(struct sort_key){&b->v[0], true}, &items[i].item, &original);
            if (original.kind == VALUE_UNDEFINED)
                original = items[i].key;
            members = list_new(r);
            list_push(r, pair, original);
            list_push(r, pair, value_list(VALUE_LIST, members));
            list_push(r, groups, value_list(VALUE_TUPLE, pair));
        }
        if (members)
            list_push(r, members, items[i].item);
    }
    *out = value_list(VALUE_LIST, groups);
    return rc;
}

int filter_batch(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    struct list *all, *rows = list_new(r), *row = NULL;
    int64_t width;
    int rc = argument_int(r, &b->v[0], "batch: linecount", &width);

    if (rc == 0)
        rc = value_to_list(r, self, &all);
    for (size_t i = 0; rc == 0 && i < all->len; i++) {
        if (!row || (int64_t)row->len == width) {
            row = list_new(r);
            list_push(r, rows, value_list(VALUE_LIST, row));
        }
        list_push(r, row, all->items[i]);
    }
    while (rc == 0 && row && given(&b->v[1]) && b->v[1].kind != VALUE_NONE &&
           (int64_t)row->len < width) {
        list_push(r, row, b->v[1]);
        rc = render_tick(r, 1);
    }
    *out = iterator(rows);
    return rc;
}

int filter_slice(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    struct list *all, *rows = list_new(r);
    size_t at = 0, per, more;
    int64_t slices;
    int rc = argument_int(r, &b->v[0], "slice: slices", &slices);

    if (rc == 0)
        rc = value_to_list(r, self, &all);
    if (rc == 0 && slices <= 0)
        rc = render_fail(r, "slice: slices must be positive");
    if (rc < 0)
        return rc;
    per = all->len / (size_t)slices;
    more = all->len % (size_t)slices;
    for (size_t i = 0; rc == 0 && i < (size_t)slices; i++) {
        struct list *row = list_new(r);

        for (size_t n = per + (i < more); n > 0; n--)
            list_push(r, row, all->items[at++]);
        if (given(&b->v[1]) && b->v[1].kind != VALUE_NONE && i >= more)
            list_push(r, row, b->v[1]);
        list_push(r, rows, value_list(VALUE_LIST, row));
        rc = render_tick(r, 2);
    }
    *out = iterator(rows);
    return rc;
}

static const struct value *keyword_of(const struct args *args, const char *name)
{
    for (size_t i = 0; i < args->keywords_count; i++) {
        if (text_is(args->keywords[i].name, name))
            return &args->keywords[i].value;
    }
    return NULL;
}

static int map_one(struct render *r, const struct value *item, const struct args *args,
                   struct value *out)
{
    const struct value *attribute = keyword_of(args, "attribute");
    const struct value *fallback = keyword_of(args, "default");
    struct args rest = *args;
    struct text name;
    int rc;

    if (args->positional_count == 0) {
        rc = attribute_path(r, item, attribute, out);
        if (rc == 0 && fallback && out->kind == VALUE_UNDEFINED)
            *out = *fallback;
        return rc;
    }
    rc = argument_text(r, &args->positional[0], "map: the name of the filter", &name);
    rest.positional++;
    rest.positional_count--;
    return rc < 0 ? rc : filter_call(r, name, item, &rest, out);
}

/* map, select and the like take anything false for an empty sequence, and look no further. */
static bool nothing(struct render *r, const struct value *v, struct value *out)
{
    bool truth = true;

    value_truth(r, v, &truth);
    if (!truth)
        *out = iterator(list_new(r));
    return !truth;
}

int filter_map(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    struct list *l = list_new(r);
    struct value item, v;
    struct iter it;
    int rc = 0;

    if (nothing(r, self, out))
        return 0;
    if (b->args->positional_count == 0 && !keyword_of(b->args, "attribute"))
        return render_fail(r, "map requires a filter argument");
    for (size_t i = 0; b->args->positional_count == 0 && i < b->args->keywords_count; i++) {
        if (!text_is(b->args->keywords[i].name, "attribute") &&
            !text_is(b->args->keywords[i].name, "default"))
            return render_fail(r, "map: unexpected keyword argument");
    }
    rc = iter_init(r, &it, self);
    while (rc >= 0 && (rc = iter_next(r, &it, &item)) > 0) {
        rc = map_one(r, &item, b->args, &v);
        list_push(r, l, v);
    }
    *out = iterator(l);
    return rc;
}

/* Keeps the items whose test gives `keep`; by_attribute: the first argument names what is tested.
 */
static int choose(struct render *r, const struct value *self, const struct args *given_args,
                  bool by_attribute, bool keep, struct value *out)
{
    struct args args = *given_args;
    struct list *l = list_new(r);
    struct value item, subject, path = {0};
    struct text name = {0};
    struct iter it;
    int rc;

    if (nothing(r, self, out))
        return 0;
    if (by_attribute) {
        if (args.positional_count == 0)
            return render_fail(r, "missing parameter for attribute name");
        path = args.positional[0];
        args.positional++;
        args.positional_count--;
    }
    if (args.positional_count) {
        rc = argument_text(r, &args.positional[0], "the name of the test", &name);
        if (rc < 0)
            return rc;
        args.positional++;
        args.positional_count--;
    }
    rc = iter_init(r, &it, self);
    while (rc >= 0 && (rc = iter_next(r, &it, &item)) > 0) {
        bool pass = false;

        subject = item;
        rc = by_attribute ? attribute_path(r, &item, &path, &subject) : 0;
        if (rc == 0)
            rc = name.data ? test_call(r, name, &subject, &args, &pass)
                           : value_truth(r, &subject, &pass);
        if (rc == 0 && pass == keep)
            list_push(r, l, item);
    }
    *out = iterator(l);
    return rc;
}

int filter_select(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    return choose(r, self, b->args, false, true, out);
}

int filter_reject(struct render *r, const struct value *self, struct bound *b, struct value *out)
{
    return choose(r, self, b->args, false, false, out);
}

int filter_selectattr(struct render *r, const struct value *self, struct bound *b,
                      struct value *out)
{
    return choose(r, self, b->args, true, true, out);
}

int filter_rejectattr(struct render *r, const struct value *self, struct bound *b,
                      struct value *out)
{
    return choose(r, self, b->args, true, false, out);
}

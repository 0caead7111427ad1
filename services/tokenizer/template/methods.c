/* Methods of lists and dicts, and the lookup of all methods. */
#include "services/tokenizer/template/filters.h"

#define METHOD(name)                                                                               \
    static int name(struct render *r, const struct value *self, struct bound *b, struct value *out)

METHOD(list_append)
{
    list_push(r, self->u.list, b->v[0]);
    *out = value_none();
    return 0;
}

METHOD(list_pop)
{
    struct list *l = self->u.list;
    int64_t at = -1;
    int rc = b->v[0].kind != VALUE_MISSING ? argument_int(r, &b->v[0], "pop: index", &at) : 0;

    if (rc < 0)
        return rc;
    if (at < 0)
        at += (int64_t)l->len;
    if (at < 0 || (size_t)at >= l->len)
        return render_fail(r, "pop index out of range");
    *out = l->items[at];
    for (size_t i = (size_t)at; i + 1 < l->len; i++)
        l->items[i] = l->items[i + 1];
    l->len--;
    return render_tick(r, l->len / 8);
}

METHOD(list_index)
{
    struct list *l = self->u.list;
    bool equal = false;

    for (size_t i = 0; i < l->len; i++) {
        int rc = value_equal(r, &l->items[i], &b->v[0], &equal);

        *out = value_int((int64_t)i);
        if (rc < 0 || equal)
            return rc;
    }
    return render_fail(r, "value is not in the list");
}

METHOD(list_count)
{
    struct list *l = self->u.list;
    int64_t count = 0;
    bool equal;
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < l->len; i++) {
        rc = value_equal(r, &l->items[i], &b->v[0], &equal);
        count += rc == 0 && equal;
    }
    *out = value_int(count);
    return rc;
}

METHOD(list_copy)
{
    (void)b;
    *out = value_list(VALUE_LIST, NULL);
    return value_to_list(r, self, &out->u.list);
}

METHOD(dict_get)
{
    struct entry *e;
    int rc = dict_find(r, self->u.dict, &b->v[0], &e);

    *out = b->v[1].kind == VALUE_MISSING ? value_none() : b->v[1];
    if (rc == 0 && e)
        *out = e->value;
    return rc;
}

METHOD(dict_pop)
{
    struct dict *d = self->u.dict;
    struct entry *e;
    int rc = dict_find(r, d, &b->v[0], &e);

    if (rc < 0)
        return rc;
    *out = b->v[1];
    if (!e)
        return b->v[1].kind == VALUE_MISSING ? render_fail(r, "no such key") : 0;
    *out = e->value;
    for (; e + 1 < d->entries + d->len; e++)
        e[0] = e[1];
    d->len--;
    return render_tick(r, d->len / 8);
}

static int view(struct render *r, const struct value *self, const char *name, struct value *out)
{
    struct list *l = list_new(r);
    int rc = render_tick(r, self->u.dict->len);

    for (size_t i = 0; rc == 0 && i < self->u.dict->len; i++) {
        const struct entry *e = &self->u.dict->entries[i];
        struct list *pair;

        if (name[5] == 'i') {
            pair = list_new(r);
            list_push(r, pair, e->key);
            list_push(r, pair, e->value);
            list_push(r, l, value_list(VALUE_TUPLE, pair));
        } else {
            list_push(r, l, name[5] == 'k' ? e->key : e->value);
        }
    }
    l->view = name;
    *out = value_list(VALUE_VIEW, l);
    return rc;
}

METHOD(dict_items)
{
    (void)b;
    return view(r, self, "dict_items", out);
}

METHOD(dict_keys)
{
    (void)b;
    return view(r, self, "dict_keys", out);
}

METHOD(dict_values)
{
    (void)b;
    return view(r, self, "dict_values", out);
}

METHOD(dict_copy)
{
    struct dict *d = dict_new(r);
    int rc = 0;

    (void)b;
    for (size_t i = 0; rc == 0 && i < self->u.dict->len; i++)
        rc = dict_set(r, d, self->u.dict->entries[i].key, self->u.dict->entries[i].value);
    *out = value_dict(VALUE_DICT, d);
    return rc;
}

static const struct native list_methods[] = {
    {"append", "!object", list_append}, {"copy", "", list_copy},    {"count", "!value", list_count},
    {"index", "!value", list_index},    {"pop", "index", list_pop}, {NULL, NULL, NULL},
};

static const struct native tuple_methods[] = {
    {"count", "!value", list_count},
    {"index", "!value", list_index},
    {NULL, NULL, NULL},
};

static const struct native dict_methods[] = {
    {"copy", "", dict_copy}, {"get", "!key default", dict_get}, {"items", "", dict_items},
    {"keys", "", dict_keys}, {"pop", "!key default", dict_pop}, {"values", "", dict_values},
    {NULL, NULL, NULL},
};

const struct native *method_find(const struct value *v, struct text name)
{
    const struct native *table = v->kind == VALUE_STRING  ? string_methods
                                 : v->kind == VALUE_LIST  ? list_methods
                                 : v->kind == VALUE_TUPLE ? tuple_methods
                                 : v->kind == VALUE_DICT  ? dict_methods
                                                          : NULL;

    for (; table && table->name; table++) {
        if (text_is(name, table->name))
            return table;
    }
    return NULL;
}

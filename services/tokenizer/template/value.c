#include "services/tokenizer/template/value.h"

#include "services/tokenizer/template/render.h"

#include <math.h>
#include <string.h>

struct value value_undefined(struct text name)
{
    return (struct value){.kind = VALUE_UNDEFINED, .u.text = name};
}

struct value value_none(void)
{
    return (struct value){.kind = VALUE_NONE};
}

struct value value_bool(bool b)
{
    return (struct value){.kind = VALUE_BOOL, .u.boolean = b};
}

struct value value_int(int64_t i)
{
    return (struct value){.kind = VALUE_INT, .u.integer = i};
}

struct value value_float(double d)
{
    return (struct value){.kind = VALUE_FLOAT, .u.number = d};
}

struct value value_text(struct text t)
{
    return (struct value){.kind = VALUE_STRING, .u.text = t};
}

struct value value_string(const char *c_string)
{
    return value_text(text_of(c_string));
}

struct value value_list(enum value_kind kind, struct list *l)
{
    return (struct value){.kind = kind, .u.list = l};
}

struct value value_dict(enum value_kind kind, struct dict *d)
{
    return (struct value){.kind = kind, .u.dict = d};
}

bool value_integral(const struct value *v, int64_t *i)
{
    if (v->kind == VALUE_BOOL)
        *i = v->u.boolean;
    else if (v->kind == VALUE_INT)
        *i = v->u.integer;
    else
        return false;
    return true;
}

bool value_number(const struct value *v)
{
    return v->kind == VALUE_BOOL || v->kind == VALUE_INT || v->kind == VALUE_FLOAT;
}

bool value_sequence(const struct value *v)
{
    return v->kind >= VALUE_LIST && v->kind <= VALUE_ITERATOR;
}

const char *value_type_name(const struct value *v)
{
    static const char *const names[] = {
        [VALUE_MISSING] = "missing",   [VALUE_UNDEFINED] = "Undefined",
        [VALUE_NONE] = "NoneType",     [VALUE_BOOL] = "bool",
        [VALUE_INT] = "int",           [VALUE_FLOAT] = "float",
        [VALUE_STRING] = "str",        [VALUE_LIST] = "list",
        [VALUE_TUPLE] = "tuple",       [VALUE_RANGE] = "range",
        [VALUE_VIEW] = "dict view",    [VALUE_ITERATOR] = "generator",
        [VALUE_DICT] = "dict",         [VALUE_NAMESPACE] = "Namespace",
        [VALUE_LOOP] = "LoopContext",  [VALUE_MACRO] = "Macro",
        [VALUE_FUNCTION] = "function",
    };

    return names[v->kind];
}

int value_truth(struct render *r, const struct value *v, bool *out)
{
    switch (v->kind) {
    case VALUE_MISSING:
    case VALUE_UNDEFINED:
    case VALUE_NONE:
        *out = false;
        return 0;
    case VALUE_BOOL:
        *out = v->u.boolean;
        return 0;
    case VALUE_INT:
        *out = v->u.integer != 0;
        return 0;
    case VALUE_FLOAT:
        *out = v->u.number != 0;
        return 0;
    case VALUE_STRING:
        *out = text_length(text_sub(v->u.text, 0, 64)) > 0 || text_length(v->u.text) > 0;
        return render_tick(r, v->u.text.len > 64 ? 1 : 0);
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
    case VALUE_VIEW:
        *out = v->u.list->len > 0;
        return 0;
    case VALUE_DICT:
        *out = v->u.dict->len > 0;
        return 0;
    default:
        *out = true;
        return 0;
    }
}

struct list *list_new(struct render *r)
{
    return arena_zalloc(&r->arena, sizeof(struct list));
}

void list_push(struct render *r, struct list *l, struct value v)
{
    if (l->len == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 4;

        l->items = arena_grow(&r->arena, l->items, l->len * sizeof v, cap * sizeof v);
        l->cap = cap;
    }
    l->items[l->len++] = v;
}

struct dict *dict_new(struct render *r)
{
    return arena_zalloc(&r->arena, sizeof(struct dict));
}

static bool hashable(const struct value *v)
{
    if (v->kind == VALUE_TUPLE) {
        for (size_t i = 0; i < v->u.list->len; i++) {
            if (v->u.list->items[i].kind == VALUE_LIST || v->u.list->items[i].kind == VALUE_DICT)
                return false;
        }
    }
    return v->kind != VALUE_LIST && v->kind != VALUE_DICT;
}

int dict_find(struct render *r, const struct dict *d, const struct value *key, struct entry **out)
{
    int rc;

    *out = NULL;
    if (!hashable(key))
        return render_fail(r, "unhashable type: '%s'", value_type_name(key));
    rc = render_tick(r, d->len / 8);
    for (size_t i = 0; rc == 0 && i < d->len; i++) {
        struct entry *e = &d->entries[i];
        bool equal;

        if (key->kind == VALUE_STRING && e->key.kind == VALUE_STRING)
            equal = text_equal(key->u.text, e->key.u.text);
        else
            rc = value_equal(r, key, &e->key, &equal);
        if (rc == 0 && equal) {
            *out = e;
            return 0;
        }
    }
    return rc;
}

static void dict_push(struct render *r, struct dict *d, struct value key, struct value v)
{
    if (d->len == d->cap) {
        size_t cap = d->cap ? d->cap * 2 : 4, size = sizeof *d->entries;

        d->entries = arena_grow(&r->arena, d->entries, d->len * size, cap * size);
        d->cap = cap;
    }
    d->entries[d->len++] = (struct entry){key, v};
}

int dict_set(struct render *r, struct dict *d, struct value key, struct value v)
{
    struct entry *e;
    int rc = dict_find(r, d, &key, &e);

    if (rc < 0)
        return rc;
    if (e)
        e->value = v;
    else
        dict_push(r, d, key, v);
    return 0;
}

struct value *dict_get_text(const struct dict *d, struct text key)
{
    for (size_t i = 0; i < d->len; i++) {
        if (d->entries[i].key.kind == VALUE_STRING && text_equal(d->entries[i].key.u.text, key))
            return &d->entries[i].value;
    }
    return NULL;
}

int value_length(struct render *r, const struct value *v, size_t *out)
{
    switch (v->kind) {
    case VALUE_UNDEFINED:
        *out = 0;
        return 0;
    case VALUE_STRING:
        *out = text_length(v->u.text);
        return render_tick(r, v->u.text.len / 64);
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
    case VALUE_VIEW:
        *out = v->u.list->len;
        return 0;
    case VALUE_DICT:
        *out = v->u.dict->len;
        return 0;
    default:
        return render_fail(r, "object of type '%s' has no len()", value_type_name(v));
    }
}

bool value_iterable(const struct value *v)
{
    return v->kind == VALUE_UNDEFINED || v->kind == VALUE_STRING || v->kind == VALUE_DICT ||
           value_sequence(v);
}

int iter_init(struct render *r, struct iter *it, const struct value *v)
{
    if (!value_iterable(v))
        return render_fail(r, "'%s' object is not iterable", value_type_name(v));
    *it = (struct iter){.subject = *v};
    if (v->kind == VALUE_STRING)
        it->rest = v->u.text;
    return 0;
}

int iter_next(struct render *r, struct iter *it, struct value *out)
{
    struct list *l = it->subject.u.list;
    struct dict *d = it->subject.u.dict;
    struct text unit;
    uint32_t cp;
    int rc = render_tick(r, 1);

    if (rc < 0)
        return rc;
    switch (it->subject.kind) {
    case VALUE_STRING:
        if (!text_next(&it->rest, &unit, &cp))
            return 0;
        *out = value_text(unit);
        return 1;
    case VALUE_DICT:
        if (it->at >= d->len)
            return 0;
        *out = d->entries[it->at++].key;
        return 1;
    case VALUE_ITERATOR:
        if (l->next >= l->len)
            return 0;
        *out = l->items[l->next++];
        return 1;
    case VALUE_UNDEFINED:
        return 0;
    default:
        if (it->at >= l->len)
            return 0;
        *out = l->items[it->at++];
        return 1;
    }
}

int value_to_list(struct render *r, const struct value *v, struct list **out)
{
    struct iter it;
    struct value item;
    int rc = iter_init(r, &it, v);

    *out = list_new(r);
    if (rc < 0)
        return rc;
    while ((rc = iter_next(r, &it, &item)) > 0)
        list_push(r, *out, item);
    return rc;
}

int value_from_json(struct render *r, json_t *json, struct value *out)
{
    int rc = render_enter(r);
    size_t i;
    json_t *item;
    const char *key;

    if (rc == 0 && (rc = render_tick(r, 1)) < 0)
        render_leave(r);
    if (rc < 0)
        return rc;
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        *out = value_dict(VALUE_DICT, dict_new(r));
        json_object_foreach(json, key, item)
        {
            struct value v;

            rc = value_from_json(r, item, &v);
            if (rc < 0)
                break;
            dict_push(r, out->u.dict, value_string(key), v);
        }
        break;
    case JSON_ARRAY:
        *out = value_list(VALUE_LIST, list_new(r));
        json_array_foreach(json, i, item)
        {
            struct value v;

            rc = value_from_json(r, item, &v);
            if (rc < 0)
                break;
            list_push(r, out->u.list, v);
        }
        break;
    case JSON_STRING:
        *out = value_text((struct text){json_string_value(json), json_string_length(json)});
        break;
    case JSON_INTEGER:
        *out = value_int(json_integer_value(json));
        break;
    case JSON_REAL:
        *out = value_float(json_real_value(json));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        *out = value_bool(json_is_true(json));
        break;
    default:
        *out = value_none();
        break;
    }
    render_leave(r);
    return rc;
}

/* Values of a render, as Python sees them. All memory is the render's arena (or borrowed). */
#ifndef PHALANX_TOKENIZER_TEMPLATE_VALUE_H
#define PHALANX_TOKENIZER_TEMPLATE_VALUE_H

#include "common/json.h"
#include "services/tokenizer/template/text.h"

#include <stdbool.h>
#include <stdint.h>

struct render;

enum value_kind {
    VALUE_MISSING, /* an argument that was not given; never seen by a template */
    VALUE_UNDEFINED,
    VALUE_NONE,
    VALUE_BOOL,
    VALUE_INT,
    VALUE_FLOAT,
    VALUE_STRING,
    VALUE_LIST,
    VALUE_TUPLE,
    VALUE_RANGE,
    VALUE_VIEW,     /* dict.keys() and the like */
    VALUE_ITERATOR, /* a generator: can be walked once */
    VALUE_DICT,
    VALUE_NAMESPACE,
    VALUE_LOOP,
    VALUE_MACRO,
    VALUE_FUNCTION, /* a global or a bound method */
};

struct value {
    enum value_kind kind;
    bool markup; /* strings: result of |safe or |escape */
    union {
        bool boolean;
        int64_t integer;
        double number;
        struct text text; /* VALUE_STRING; the name for VALUE_UNDEFINED */
        struct list *list;
        struct dict *dict;
        struct loop *loop;
        struct macro *macro;
        struct function *function;
    } u;
};

struct list {
    struct value *items;
    size_t len, cap;
    size_t next;               /* iterators: the next item */
    int64_t start, stop, step; /* ranges */
    const char *view;          /* views: "dict_items"; iterators: "generator" */
};

struct entry {
    struct value key, value;
};

struct dict { /* in order of insertion */
    struct entry *entries;
    size_t len, cap;
};

/* Constructors. */
struct value value_undefined(struct text name);
struct value value_none(void);
struct value value_bool(bool b);
struct value value_int(int64_t i);
struct value value_float(double d);
struct value value_text(struct text t);
struct value value_string(const char *c_string); /* borrowed */
struct value value_list(enum value_kind kind, struct list *l);
struct value value_dict(enum value_kind kind, struct dict *d);

bool value_number(const struct value *v);               /* bool, int or float */
bool value_integral(const struct value *v, int64_t *i); /* bool or int */
bool value_sequence(const struct value *v);             /* has a struct list */
const char *value_type_name(const struct value *v);
int value_truth(struct render *r, const struct value *v, bool *out);

struct list *list_new(struct render *r);
void list_push(struct render *r, struct list *l, struct value v);
struct dict *dict_new(struct render *r);

/* NULL when there is no such key. Charges fuel, hence the error. */
int dict_find(struct render *r, const struct dict *d, const struct value *key, struct entry **out);
int dict_set(struct render *r, struct dict *d, struct value key, struct value v);
struct value *dict_get_text(const struct dict *d, struct text key);

/* ==, and < as -1, 0, 1; op names the operator in the error of types that have no order. */
int value_equal(struct render *r, const struct value *a, const struct value *b, bool *out);
int value_compare(struct render *r, const struct value *a, const struct value *b, const char *op,
                  int *out);

/* len(v); an error when it has none. */
int value_length(struct render *r, const struct value *v, size_t *out);

/* Walks anything iterable. */
struct iter {
    struct value subject;
    struct text rest;
    size_t at;
};
bool value_iterable(const struct value *v);
int iter_init(struct render *r, struct iter *it, const struct value *v);
int iter_next(struct render *r, struct iter *it, struct value *out); /* 1, 0 at the end, error */
int value_to_list(struct render *r, const struct value *v, struct list **out);

/* Strings of json are borrowed: it has to live as long as the render. */
int value_from_json(struct render *r, json_t *json, struct value *out);

#endif

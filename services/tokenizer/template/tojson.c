/* json.dumps of Python. */
#include "services/tokenizer/template/render.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct dumper {
    struct render *r;
    struct sink out;
    bool ascii, sort_keys, indented;
    struct text indent, comma, colon;
    int level;
};

static int put(struct dumper *d, struct text t)
{
    return sink_put(d->r, &d->out, t);
}

static int put_string(struct dumper *d, struct text t)
{
    struct text rest = t, unit;
    size_t from = 0;
    uint32_t cp;
    int rc = put(d, TEXT("\""));

    while (rc == 0 && text_next(&rest, &unit, &cp)) {
        static const char named[] = "\"\\\n\r\t\b\f", letters[] = "\"\\nrtbf";
        const char *name = cp && cp < 0x80 ? strchr(named, (int)cp) : NULL;
        size_t end = t.len - rest.len, start = end - unit.len;
        char escape[16];

        rc = render_tick(d->r, 1);
        if (name)
            snprintf(escape, sizeof escape, "\\%c", letters[name - named]);
        else if (d->ascii && cp >= 0x10000)
            snprintf(escape, sizeof escape, "\\u%04x\\u%04x", 0xd7c0 + (cp >> 10),
                     0xdc00 + (cp & 0x3ff));
        else if (cp < 0x20 || (d->ascii && cp >= 0x7f && cp != 0x7f))
            snprintf(escape, sizeof escape, "\\u%04x", cp);
        else
            continue;
        while (start < end && (unsigned char)t.data[start] == 0xff)
            start++;
        if (rc == 0)
            rc = put(d, text_sub(t, from, start));
        if (rc == 0)
            rc = put(d, text_of(escape));
        from = end;
    }
    if (rc == 0)
        rc = put(d, text_sub(t, from, t.len));
    return rc < 0 ? rc : put(d, TEXT("\""));
}

static struct text float_json(double number, char out[40])
{
    if (isnan(number))
        return TEXT("NaN");
    if (isinf(number))
        return number < 0 ? TEXT("-Infinity") : TEXT("Infinity");
    return (struct text){out, float_repr(number, out)};
}

/* A scalar without quotes; false when v is none. */
static bool scalar(const struct value *v, char out[40], struct text *t)
{
    if (v->kind == VALUE_NONE)
        *t = TEXT("null");
    else if (v->kind == VALUE_BOOL)
        *t = v->u.boolean ? TEXT("true") : TEXT("false");
    else if (v->kind == VALUE_FLOAT)
        *t = float_json(v->u.number, out);
    else if (v->kind == VALUE_INT)
        *t = (struct text){out, (size_t)snprintf(out, 40, "%" PRId64, v->u.integer)};
    else
        return false;
    return true;
}

static int new_line(struct dumper *d)
{
    int rc = d->indented ? put(d, TEXT("\n")) : 0;

    for (int i = 0; rc == 0 && d->indented && i < d->level; i++)
        rc = put(d, d->indent);
    return rc;
}

static int dump(struct dumper *d, const struct value *v);

static int dump_list(struct dumper *d, const struct list *l)
{
    int rc = put(d, TEXT("["));

    if (rc < 0 || l->len == 0)
        return rc < 0 ? rc : put(d, TEXT("]"));
    d->level++;
    for (size_t i = 0; rc == 0 && i < l->len; i++) {
        if (i)
            rc = put(d, d->comma);
        if (rc == 0)
            rc = new_line(d);
        if (rc == 0)
            rc = dump(d, &l->items[i]);
    }
    d->level--;
    if (rc == 0)
        rc = new_line(d);
    return rc < 0 ? rc : put(d, TEXT("]"));
}

static int compare_keys(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;

    return text_compare(x->key.u.text, y->key.u.text);
}

/* Entries in the order of their keys, which have to be strings. */
static int sorted(struct dumper *d, const struct dict *in, struct dict *out)
{
    *out = *in;
    out->entries = arena_alloc(&d->r->arena, (in->len + 1) * sizeof *in->entries);
    for (size_t i = 0; i < in->len; i++) {
        out->entries[i] = in->entries[i];
        if (in->entries[i].key.kind != VALUE_STRING)
            return render_fail(d->r, "tojson: sort_keys takes string keys only");
    }
    qsort(out->entries, in->len, sizeof *in->entries, compare_keys);
    return render_tick(d->r, in->len);
}

static int dump_key(struct dumper *d, const struct value *key)
{
    char out[40];
    struct text t;

    if (key->kind == VALUE_STRING)
        return put_string(d, key->u.text);
    if (!scalar(key, out, &t))
        return render_fail(d->r, "tojson: keys must not be '%s'", value_type_name(key));
    return put_string(d, t);
}

static int dump_dict(struct dumper *d, const struct dict *in)
{
    struct dict ordered = *in;
    int rc = put(d, TEXT("{"));

    if (rc < 0 || in->len == 0)
        return rc < 0 ? rc : put(d, TEXT("}"));
    if (d->sort_keys)
        rc = sorted(d, in, &ordered);
    d->level++;
    for (size_t i = 0; rc == 0 && i < ordered.len; i++) {
        if (i)
            rc = put(d, d->comma);
        if (rc == 0)
            rc = new_line(d);
        if (rc == 0)
            rc = dump_key(d, &ordered.entries[i].key);
        if (rc == 0)
            rc = put(d, d->colon);
        if (rc == 0)
            rc = dump(d, &ordered.entries[i].value);
    }
    d->level--;
    if (rc == 0)
        rc = new_line(d);
    return rc < 0 ? rc : put(d, TEXT("}"));
}

static int dump(struct dumper *d, const struct value *v)
{
    char out[40];
    struct text t;
    int rc = render_enter(d->r);

    if (rc < 0)
        return rc;
    rc = render_tick(d->r, 1);
    if (rc < 0)
        goto out;
    if (v->kind == VALUE_STRING)
        rc = put_string(d, v->u.text);
    else if (v->kind == VALUE_LIST || v->kind == VALUE_TUPLE)
        rc = dump_list(d, v->u.list);
    else if (v->kind == VALUE_DICT)
        rc = dump_dict(d, v->u.dict);
    else if (scalar(v, out, &t))
        rc = put(d, t);
    else
        rc = render_fail(d->r, "tojson: object of type %s is not JSON serializable",
                         value_type_name(v));
out:
    render_leave(d->r);
    return rc;
}

static int flag(struct render *r, const struct value *v, bool *out)
{
    return v->kind == VALUE_MISSING ? 0 : value_truth(r, v, out);
}

static int indent_of(struct dumper *d, const struct value *v)
{
    int64_t n;
    char *spaces;
    int rc;

    if (v->kind == VALUE_MISSING || v->kind == VALUE_NONE)
        return 0;
    d->indented = true;
    d->comma = TEXT(",");
    if (v->kind == VALUE_STRING) {
        d->indent = v->u.text;
        return 0;
    }
    rc = argument_int(d->r, v, "tojson: indent", &n);
    if (rc == 0)
        rc = text_new(d->r, n > 0 ? (size_t)n : 0, &spaces);
    if (rc < 0)
        return rc;
    d->indent = (struct text){spaces, n > 0 ? (size_t)n : 0};
    memset(spaces, ' ', d->indent.len);
    return 0;
}

/* options: ensure_ascii, indent, separators, sort_keys. */
int value_tojson(struct render *r, const struct value *v, struct bound *options, struct value *out)
{
    struct dumper d = {.r = r, .comma = TEXT(", "), .colon = TEXT(": ")};
    const struct value *separators = &options->v[2];
    int rc = flag(r, &options->v[0], &d.ascii);

    if (rc == 0)
        rc = flag(r, &options->v[3], &d.sort_keys);
    if (rc == 0)
        rc = indent_of(&d, &options->v[1]);
    if (rc == 0 && separators->kind != VALUE_MISSING && separators->kind != VALUE_NONE) {
        const struct list *pair = separators->u.list;

        if ((separators->kind != VALUE_TUPLE && separators->kind != VALUE_LIST) || pair->len != 2)
            return render_fail(r, "tojson: separators must be a pair of strings");
        rc = argument_text(r, &pair->items[0], "tojson: separators", &d.comma);
        if (rc == 0)
            rc = argument_text(r, &pair->items[1], "tojson: separators", &d.colon);
    }
    if (rc == 0)
        rc = dump(&d, v);
    *out = value_text(sink_text(&d.out));
    return rc;
}

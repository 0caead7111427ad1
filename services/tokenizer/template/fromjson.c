/* JSON text to values. Not jansson: text from a request may hold shield bytes, which stay. */
#include "common/utf8.h"
#include "services/tokenizer/template/render.h"

#include <string.h>

struct reader {
    struct render *r;
    struct text t;
    size_t at;
};

static int parse_value(struct reader *x, struct value *out);

static int bad(struct reader *x)
{
    return render_fail(x->r, "from_json: no valid JSON at byte %zu", x->at);
}

static int peek(struct reader *x)
{
    while (x->at < x->t.len && strchr(" \t\r\n\xff", x->t.data[x->at]) && x->t.data[x->at])
        x->at++;
    return x->at < x->t.len ? (unsigned char)x->t.data[x->at] : -1;
}

static bool take(struct reader *x, char c)
{
    bool found = peek(x) == c;

    x->at += found;
    return found;
}

static bool hex4(struct text t, size_t at, uint32_t *cp)
{
    int64_t value;

    if (at + 4 > t.len || !text_to_int(text_sub(t, at, at + 4), 16, &value) || value < 0 ||
        strcspn(t.data + at, " +-_xX") < 4)
        return false;
    *cp = (uint32_t)value;
    return true;
}

/* After "\u": writes the code point, joining a surrogate pair. */
static bool unicode_escape(struct reader *x, char *out, size_t *n)
{
    uint32_t cp, low;

    if (!hex4(x->t, x->at, &cp))
        return false;
    x->at += 4;
    if (cp >= 0xd800 && cp < 0xdc00 && x->at + 6 <= x->t.len && x->t.data[x->at] == '\\' &&
        x->t.data[x->at + 1] == 'u' && hex4(x->t, x->at + 2, &low) && low >= 0xdc00 &&
        low <= 0xdfff) {
        cp = 0x10000 + ((cp - 0xd800) << 10) + (low - 0xdc00);
        x->at += 6;
    }
    if (cp >= 0xd800 && cp <= 0xdfff)
        return false;
    *n += (size_t)utf8_encode(cp, out + *n);
    return true;
}

static int parse_string(struct reader *x, struct text *out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *quote = NULL;
    size_t n = 0, end = x->at;
    char *data;
    int rc;

    while (end < x->t.len && !quote) {
        if (x->t.data[end] == '"')
            quote = x->t.data + end;
        end += x->t.data[end] == '\\' ? 2 : 1;
    }
    if (!quote)
        return bad(x);
    rc = text_new(x->r, end - x->at, &data);
    if (rc < 0)
        return rc;
    while (x->t.data[x->at] != '"') {
        char c = x->t.data[x->at++];
        const char *escape;

        if ((unsigned char)c < 0x20)
            return bad(x);
        if (c != '\\') {
            data[n++] = c;
            continue;
        }
        c = x->t.data[x->at++];
        escape = c ? strchr(from, c) : NULL;
        if (escape)
            data[n++] = to[escape - from];
        else if (c != 'u' || !unicode_escape(x, data, &n))
            return bad(x);
    }
    x->at++;
    *out = (struct text){data, n};
    return render_tick(x->r, n / 16);
}

static int parse_number(struct reader *x, struct value *out)
{
    size_t start = x->at, n;
    struct text t;
    int64_t i;
    double d;

    n = strspn(x->t.data + start, "+-0123456789.eE");
    if (n > x->t.len - start)
        n = x->t.len - start;
    t = text_sub(x->t, start, start + n);
    if (n == 0 || t.data[0] == '+')
        return bad(x);
    if (text_to_int(t, 10, &i))
        *out = value_int(i);
    else if (text_to_float(t, &d))
        *out = value_float(d);
    else
        return bad(x);
    x->at += n;
    return 0;
}

static int parse_array(struct reader *x, struct value *out)
{
    int rc = 0;

    *out = value_list(VALUE_LIST, list_new(x->r));
    if (take(x, ']'))
        return 0;
    do {
        struct value v;

        rc = parse_value(x, &v);
        if (rc < 0)
            return rc;
        list_push(x->r, out->u.list, v);
    } while (take(x, ','));
    return take(x, ']') ? 0 : bad(x);
}

static int parse_object(struct reader *x, struct value *out)
{
    int rc = 0;

    *out = value_dict(VALUE_DICT, dict_new(x->r));
    if (take(x, '}'))
        return 0;
    do {
        struct value key = value_string(""), v;

        if (!take(x, '"'))
            return bad(x);
        rc = parse_string(x, &key.u.text);
        if (rc == 0 && !take(x, ':'))
            rc = bad(x);
        if (rc == 0)
            rc = parse_value(x, &v);
        if (rc == 0)
            rc = dict_set(x->r, out->u.dict, key, v);
        if (rc < 0)
            return rc;
    } while (take(x, ','));
    return take(x, '}') ? 0 : bad(x);
}

static int parse_word(struct reader *x, struct value *out)
{
    static const char *const words[] = {"true", "false", "null"};
    const struct value values[] = {value_bool(true), value_bool(false), value_none()};

    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t n = strlen(words[i]);

        if (x->t.len - x->at >= n && memcmp(x->t.data + x->at, words[i], n) == 0) {
            x->at += n;
            *out = values[i];
            return 0;
        }
    }
    return parse_number(x, out);
}

static int parse_value(struct reader *x, struct value *out)
{
    int rc = render_enter(x->r);

    if (rc < 0)
        return rc;
    rc = render_tick(x->r, 1);
    *out = value_string("");
    if (rc < 0)
        goto out;
    if (peek(x) < 0)
        rc = bad(x);
    else if (take(x, '"'))
        rc = parse_string(x, &out->u.text);
    else if (take(x, '['))
        rc = parse_array(x, out);
    else if (take(x, '{'))
        rc = parse_object(x, out);
    else
        rc = parse_word(x, out);
out:
    render_leave(x->r);
    return rc;
}

int value_parse_json(struct render *r, struct text t, struct value *out)
{
    struct reader x = {.r = r, .t = {arena_copy(&r->arena, t.data, t.len), t.len}};
    int rc = parse_value(&x, out);

    return rc == 0 && peek(&x) >= 0 ? bad(&x) : rc;
}

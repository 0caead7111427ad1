/* The table of filters, and those that look at one value. */
#include "services/tokenizer/template/filters.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define FILTER(name)                                                                               \
    static int filter_##name(struct render *r, const struct value *self, struct bound *b,          \
                             struct value *out)

static bool given(const struct value *v)
{
    return v->kind != VALUE_MISSING;
}

bool bound_flag(struct render *r, const struct value *v, bool fallback)
{
    bool truth = fallback;

    if (given(v))
        value_truth(r, v, &truth);
    return truth;
}

FILTER(default)
{
    bool falsy = bound_flag(r, &b->v[1], false), truth = true;

    if (falsy)
        value_truth(r, self, &truth);
    if (self->kind == VALUE_UNDEFINED || !truth)
        *out = given(&b->v[0]) ? b->v[0] : value_string("");
    else
        *out = *self;
    return 0;
}

FILTER(length)
{
    size_t n = 0;
    int rc = value_length(r, self, &n);

    (void)b;
    *out = value_int((int64_t)n);
    return rc;
}

FILTER(string)
{
    struct text t;
    int rc = value_str(r, self, &t);

    (void)b;
    *out = value_text(t);
    out->markup = self->kind == VALUE_STRING && self->markup;
    return rc;
}

FILTER(safe)
{
    int rc = filter_string(r, self, b, out);

    out->markup = true;
    return rc;
}

FILTER(escape)
{
    struct text t;
    int rc = value_str(r, self, &t);

    (void)b;
    if (rc == 0 && !(self->kind == VALUE_STRING && self->markup))
        rc = text_escape(r, t, &t);
    *out = value_text(t);
    out->markup = true;
    return rc;
}

static int recase(struct render *r, const struct value *self, enum text_case how, struct value *out)
{
    struct text t;
    int rc = value_str(r, self, &t);

    if (rc == 0)
        rc = text_recase(r, t, how, &t);
    *out = value_text(t);
    return rc;
}

FILTER(lower)
{
    (void)b;
    return recase(r, self, CASE_LOWER, out);
}

FILTER(upper)
{
    (void)b;
    return recase(r, self, CASE_UPPER, out);
}

FILTER(capitalize)
{
    (void)b;
    return recase(r, self, CASE_CAPITALIZE, out);
}

static bool title_break(uint32_t cp)
{
    return text_space(cp) || (cp < 0x80 && cp && strchr("-({[<", (int)cp));
}

/* Words are what stands between white space, hyphens and opening brackets. */
FILTER(title)
{
    struct sink s = {0};
    struct text t, rest, unit, word;
    uint32_t cp;
    int rc = value_str(r, self, &t);

    (void)b;
    for (rest = t; rc == 0 && rest.len;) {
        size_t start = t.len - rest.len, end = start;
        bool broken = false;

        while (!broken && text_next(&rest, &unit, &cp)) {
            broken = title_break(cp);
            if (!broken)
                end = t.len - rest.len;
        }
        rc = text_recase(r, text_sub(t, start, end), CASE_CAPITALIZE, &word);
        if (rc == 0)
            rc = sink_put(r, &s, word);
        if (rc == 0 && broken)
            rc = sink_put(r, &s, unit);
        if (!broken)
            break;
    }
    *out = value_text(sink_text(&s));
    return rc;
}

FILTER(trim)
{
    struct text t, set;
    int rc = value_str(r, self, &t);
    bool chars = given(&b->v[0]) && b->v[0].kind != VALUE_NONE;

    if (rc == 0 && chars)
        rc = argument_text(r, &b->v[0], "trim: chars", &set);
    if (rc == 0)
        rc = render_tick(r, t.len / 64 + (chars ? set.len : 0));
    if (rc == 0)
        *out = value_text(text_strip(t, chars ? &set : NULL, TEXT_BOTH));
    out->markup = self->kind == VALUE_STRING && self->markup;
    return rc;
}

FILTER(replace)
{
    struct text t, old, new_text;
    int64_t count = -1;
    int rc = value_str(r, self, &t);

    if (rc == 0)
        rc = value_str(r, &b->v[0], &old);
    if (rc == 0)
        rc = value_str(r, &b->v[1], &new_text);
    if (rc == 0 && given(&b->v[2]) && b->v[2].kind != VALUE_NONE)
        rc = argument_int(r, &b->v[2], "replace: count", &count);
    if (rc == 0)
        rc = text_replace(r, t, old, new_text, count, &t);
    if (rc == 0)
        *out = value_text(t);
    return rc;
}

/* The indentation that a width (a number of spaces, or the text itself) means. */
static int indentation(struct render *r, const struct value *width, struct text *out)
{
    int64_t n = 4;
    char *data;
    int rc;

    if (width->kind == VALUE_STRING) {
        *out = width->u.text;
        return 0;
    }
    rc = given(width) ? argument_int(r, width, "indent: width", &n) : 0;
    if (rc < 0)
        return rc;
    rc = text_new(r, n > 0 ? (size_t)n : 0, &data);
    if (rc < 0)
        return rc;
    *out = (struct text){data, n > 0 ? (size_t)n : 0};
    memset(data, ' ', out->len);
    return 0;
}

FILTER(indent)
{
    bool first = bound_flag(r, &b->v[1], false), blank = bound_flag(r, &b->v[2], false);
    struct list *lines = list_new(r);
    struct sink s = {0};
    struct text t, indent;
    int rc;

    if (self->kind != VALUE_STRING)
        return render_fail(r, "indent: the value must be a string");
    t = self->u.text;
    rc = indentation(r, &b->v[0], &indent);
    if (rc == 0)
        rc = text_lines(r, t, false, lines);
    /* A newline is put at the end before lines are split, so text that ends in one has a last,
     * empty line. */
    if (t.len == 0 || t.data[t.len - 1] == '\n')
        list_push(r, lines, value_string(""));
    if (rc == 0 && first)
        rc = sink_put(r, &s, indent);
    for (size_t i = 0; rc == 0 && i < lines->len; i++) {
        struct text line = lines->items[i].u.text;

        if (i > 0)
            rc = sink_puts(r, &s, "\n");
        if (rc == 0 && i > 0 && (blank || line.len))
            rc = sink_put(r, &s, indent);
        if (rc == 0)
            rc = sink_put(r, &s, line);
    }
    *out = value_text(sink_text(&s));
    return rc;
}

FILTER(int)
{
    int64_t base = 10, i;
    double d;
    int rc = given(&b->v[1]) ? argument_int(r, &b->v[1], "int: base", &base) : 0;

    if (rc < 0)
        return rc;
    if (self->kind == VALUE_UNDEFINED)
        return render_undefined(r, self);
    *out = given(&b->v[0]) ? b->v[0] : value_int(0);
    if (value_integral(self, &i)) {
        *out = value_int(i);
    } else if (self->kind == VALUE_STRING && base >= 0 && base <= 36 &&
               text_to_int(self->u.text, (int)base, &i)) {
        *out = value_int(i);
    } else if (self->kind == VALUE_FLOAT ||
               (self->kind == VALUE_STRING && text_to_float(self->u.text, &d))) {
        if (self->kind == VALUE_FLOAT)
            d = self->u.number;
        if (isnan(d) || isinf(d))
            return 0;
        if (fabs(d) >= 9.2e18)
            return render_fail(r, "integer overflow");
        *out = value_int((int64_t)d);
    }
    return 0;
}

FILTER(float)
{
    double d;
    int64_t i;

    if (self->kind == VALUE_UNDEFINED)
        return render_undefined(r, self);
    *out = given(&b->v[0]) ? b->v[0] : value_float(0);
    if (value_integral(self, &i))
        *out = value_float((double)i);
    else if (self->kind == VALUE_FLOAT)
        *out = *self;
    else if (self->kind == VALUE_STRING && text_to_float(self->u.text, &d))
        *out = value_float(d);
    return 0;
}

FILTER(abs)
{
    int64_t i;

    (void)b;
    if (self->kind == VALUE_FLOAT) {
        *out = value_float(fabs(self->u.number));
        return 0;
    }
    if (!value_integral(self, &i))
        return self->kind == VALUE_UNDEFINED ? render_undefined(r, self)
                                             : render_fail(r, "bad operand type for abs()");
    if (i < 0 && __builtin_sub_overflow(0, i, &i))
        return render_fail(r, "integer overflow");
    *out = value_int(i);
    return 0;
}

/* Rounds half to even on the exact value, as Python's round does: printf's rounding is the same. */
static double round_common(double d, int precision)
{
    char text[400];
    double scale, result;

    if (precision >= 0) {
        snprintf(text, sizeof text, "%.*f", precision, d);
        return text_to_float(text_of(text), &result) ? result : d;
    }
    scale = pow(10, -precision);
    return nearbyint(d / scale) * scale;
}

FILTER(round)
{
    struct text method = TEXT("common");
    int64_t precision = 0, i;
    double d, scale;
    int rc = given(&b->v[0]) ? argument_int(r, &b->v[0], "round: precision", &precision) : 0;

    if (rc == 0 && given(&b->v[1]))
        rc = argument_text(r, &b->v[1], "round: method", &method);
    if (rc < 0)
        return rc;
    if (!value_number(self))
        return self->kind == VALUE_UNDEFINED ? render_undefined(r, self)
                                             : render_fail(r, "round: not a number");
    if (precision > 30 || precision < -18)
        return render_fail(r, "round: precision out of range");
    d = value_integral(self, &i) ? (double)i : self->u.number;
    if (text_is(method, "common")) {
        *out = value_integral(self, &i) && precision >= 0
                   ? value_int(i)
                   : value_float(round_common(d, (int)precision));
        return 0;
    }
    scale = pow(10, (double)precision);
    if (!text_is(method, "ceil") && !text_is(method, "floor"))
        return render_fail(r, "round: method must be common, ceil or floor");
    d = text_is(method, "ceil") ? ceil(d * scale) : floor(d * scale);
    *out = value_float(d / scale);
    return 0;
}

FILTER(tojson)
{
    return value_tojson(r, self, b, out);
}

FILTER(from_json)
{
    struct text t;
    int rc = argument_text(r, self, "from_json: the value", &t);

    (void)b;
    return rc < 0 ? rc : value_parse_json(r, t, out);
}

FILTER(format)
{
    struct text t;
    int rc = value_str(r, self, &t);

    return rc < 0 ? rc : format_percent(r, t, b->args, true, out);
}

FILTER(attr)
{
    struct text name;
    int rc = value_str(r, &b->v[0], &name);

    if (rc < 0)
        return rc;
    if (self->kind == VALUE_UNDEFINED)
        return render_undefined(r, self);
    /* Attributes alone, no items: a dict has its methods here. */
    if (self->kind != VALUE_DICT)
        return get_attribute(r, self, name, out);
    *out = value_undefined(name);
    if (method_find(self, name))
        rc = get_attribute(r, self, name, out);
    return rc;
}

FILTER(wordcount)
{
    struct text t, unit;
    int64_t count = 0;
    bool inside = false;
    uint32_t cp;
    int rc = value_str(r, self, &t);

    (void)b;
    while (rc == 0 && text_next(&t, &unit, &cp)) {
        bool word = text_word(cp);

        count += word && !inside;
        inside = word;
        rc = render_tick(r, 1);
    }
    *out = value_int(count);
    return rc;
}

FILTER(center)
{
    int64_t width = 80;
    struct text t;
    int rc = value_str(r, self, &t);

    if (rc == 0 && given(&b->v[0]))
        rc = argument_int(r, &b->v[0], "center: width", &width);
    return rc < 0 ? rc : text_pad(r, t, width, TEXT(" "), PAD_CENTER, out);
}

FILTER(truncate)
{
    int64_t length = 255, leeway = 5, end_length, have;
    bool kill = bound_flag(r, &b->v[1], false);
    struct text t, end = TEXT("..."), head;
    struct sink s = {0};
    int rc = value_str(r, self, &t);

    if (rc == 0 && given(&b->v[0]))
        rc = argument_int(r, &b->v[0], "truncate: length", &length);
    if (rc == 0 && given(&b->v[2]))
        rc = argument_text(r, &b->v[2], "truncate: end", &end);
    if (rc == 0 && given(&b->v[3]) && b->v[3].kind != VALUE_NONE)
        rc = argument_int(r, &b->v[3], "truncate: leeway", &leeway);
    if (rc < 0)
        return rc;
    have = (int64_t)text_length(t);
    end_length = (int64_t)text_length(end);
    if (length < end_length || leeway < 0 || length > INT32_MAX || leeway > INT32_MAX)
        return render_fail(r, "truncate: length or leeway out of range");
    *out = value_text(t);
    if (have <= length + leeway)
        return 0;
    head = text_sub(t, 0, text_offset(t, (size_t)(length - end_length)));
    if (!kill) {
        const char *space = head.len ? memrchr(head.data, ' ', head.len) : NULL;

        head.len = space ? (size_t)(space - head.data) : head.len;
    }
    rc = sink_put(r, &s, head);
    if (rc == 0)
        rc = sink_put(r, &s, end);
    *out = value_text(sink_text(&s));
    return rc;
}

static const struct native filters[] = {
    {"abs", "", filter_abs},
    {"attr", "!name", filter_attr},
    {"batch", "!linecount fill_with", filter_batch},
    {"capitalize", "", filter_capitalize},
    {"center", "width", filter_center},
    {"count", "", filter_length},
    {"d", "default_value boolean", filter_default},
    {"default", "default_value boolean", filter_default},
    {"dictsort", "case_sensitive by reverse", filter_dictsort},
    {"e", "", filter_escape},
    {"escape", "", filter_escape},
    {"first", "", filter_first},
    {"float", "default", filter_float},
    {"format", "*", filter_format},
    {"from_json", "", filter_from_json},
    {"fromjson", "", filter_from_json},
    {"groupby", "!attribute default case_sensitive", filter_groupby},
    {"indent", "width first blank", filter_indent},
    {"int", "default base", filter_int},
    {"items", "", filter_items},
    {"join", "d attribute", filter_join},
    {"last", "", filter_last},
    {"length", "", filter_length},
    {"list", "", filter_list},
    {"lower", "", filter_lower},
    {"map", "*", filter_map},
    {"max", "case_sensitive attribute", filter_max},
    {"min", "case_sensitive attribute", filter_min},
    {"reject", "*", filter_reject},
    {"rejectattr", "*", filter_rejectattr},
    {"replace", "!old !new count", filter_replace},
    {"reverse", "", filter_reverse},
    {"round", "precision method", filter_round},
    {"safe", "", filter_safe},
    {"select", "*", filter_select},
    {"selectattr", "*", filter_selectattr},
    {"slice", "!slices fill_with", filter_slice},
    {"sort", "reverse case_sensitive attribute", filter_sort},
    {"string", "", filter_string},
    {"sum", "attribute start", filter_sum},
    {"title", "", filter_title},
    {"tojson", "ensure_ascii indent separators sort_keys", filter_tojson},
    {"trim", "chars", filter_trim},
    {"truncate", "length killwords end leeway", filter_truncate},
    {"unique", "case_sensitive attribute", filter_unique},
    {"upper", "", filter_upper},
    {"wordcount", "", filter_wordcount},
};

const struct native *filter_find(struct text name)
{
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++) {
        if (text_is(name, filters[i].name))
            return &filters[i];
    }
    return NULL;
}

int filter_call(struct render *r, struct text name, const struct value *v, const struct args *args,
                struct value *out)
{
    const struct native *filter = filter_find(name);

    if (!filter)
        return render_fail(r, "no filter named '%.*s'", (int)(name.len > 64 ? 64 : name.len),
                           name.data);
    return call_native(r, filter, v, args, out);
}

/* Functions that every template sees. */
#include "services/tokenizer/template/render.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define GLOBAL(name)                                                                               \
    static int global_##name(struct render *r, const struct value *self, struct bound *b,          \
                             struct value *out)

GLOBAL(range)
{
    int64_t bounds[3] = {0, 0, 1}, at;
    size_t given = b->args->positional_count;
    struct list *l = list_new(r);

    (void)self;
    if (given < 1 || given > 3 || b->args->keywords_count)
        return render_fail(r, "range() takes 1 to 3 arguments");
    for (size_t i = 0; i < given; i++) {
        int rc = argument_int(r, &b->args->positional[i], "range: argument",
                              &bounds[given == 1 ? 1 : i]);

        if (rc < 0)
            return rc;
    }
    if (bounds[2] == 0)
        return render_fail(r, "range() arg 3 must not be zero");
    l->start = bounds[0];
    l->stop = bounds[1];
    l->step = bounds[2];
    for (at = l->start; l->step > 0 ? at < l->stop : at > l->stop;) {
        int rc = render_tick(r, 1);

        if (rc < 0)
            return rc;
        if (l->len >= r->limits->range)
            return err_set(r->err, ERR_LIMIT,
                           "line %d: the chat template passes its limit of range (%zu elements)",
                           r->line, r->limits->range);
        list_push(r, l, value_int(at));
        if (__builtin_add_overflow(at, l->step, &at))
            break;
    }
    *out = value_list(VALUE_RANGE, l);
    return 0;
}

/* dict() and namespace(): from a mapping or pairs, and keywords. */
static int fill_dict(struct render *r, const struct args *args, struct dict *d)
{
    struct value pair, key, v;
    struct iter it;
    int rc = 0;

    if (args->positional_count > 1)
        return render_fail(r, "dict expected at most 1 argument, got %zu", args->positional_count);
    if (args->positional_count && args->positional[0].kind == VALUE_DICT) {
        const struct dict *from = args->positional[0].u.dict;

        for (size_t i = 0; rc == 0 && i < from->len; i++)
            rc = dict_set(r, d, from->entries[i].key, from->entries[i].value);
    } else if (args->positional_count) {
        rc = iter_init(r, &it, &args->positional[0]);
        while (rc >= 0 && (rc = iter_next(r, &it, &pair)) > 0) {
            struct list *l;

            rc = value_to_list(r, &pair, &l);
            if (rc == 0 && l->len != 2)
                rc = render_fail(r, "dict: an element has length %zu; 2 is required", l->len);
            if (rc == 0) {
                key = l->items[0];
                v = l->items[1];
                rc = dict_set(r, d, key, v);
            }
        }
    }
    for (size_t i = 0; rc == 0 && i < args->keywords_count; i++)
        rc = dict_set(r, d, value_text(args->keywords[i].name), args->keywords[i].value);
    return rc;
}

GLOBAL(dict)
{
    struct dict *d = dict_new(r);

    (void)self;
    *out = value_dict(VALUE_DICT, d);
    return fill_dict(r, b->args, d);
}

GLOBAL(namespace)
{
    struct dict *d = dict_new(r);

    (void)self;
    *out = value_dict(VALUE_NAMESPACE, d);
    return fill_dict(r, b->args, d);
}

GLOBAL(raise_exception)
{
    struct text t;
    int rc = value_str(r, &b->v[0], &t);

    (void)self;
    (void)out;
    t = text_plain(&r->arena, t);
    return rc < 0 ? rc
                  : err_set(r->err, ERR_INVALID, "%.*s", (int)(t.len > 500 ? 500 : t.len), t.data);
}

GLOBAL(strftime_now)
{
    struct text format;
    int rc = argument_text(r, &b->v[0], "strftime_now: format", &format);

    (void)self;
    return rc < 0 ? rc : format_time(r, format, out);
}

/* joiner(sep): empty at the first call, sep afterwards. */
static int joiner_next(struct render *r, const struct value *self, struct bound *b,
                       struct value *out)
{
    struct list *state = self->u.list;

    (void)r;
    (void)b;
    *out = state->next ? state->items[0] : value_string("");
    state->next = 1;
    return 0;
}

GLOBAL(joiner)
{
    static const struct native next = {"joiner", "", joiner_next};
    struct list *state = list_new(r);
    struct function *f = arena_alloc(&r->arena, sizeof *f);

    (void)self;
    list_push(r, state, b->v[0].kind == VALUE_MISSING ? value_string(", ") : b->v[0]);
    *f = (struct function){&next, value_list(VALUE_LIST, state)};
    *out = (struct value){.kind = VALUE_FUNCTION, .u.function = f};
    return 0;
}

static const struct native globals[] = {
    {"dict", "*", global_dict},           {"joiner", "sep", global_joiner},
    {"namespace", "*", global_namespace}, {"raise_exception", "!message", global_raise_exception},
    {"range", "*", global_range},         {"strftime_now", "!format", global_strftime_now},
};

void globals_define(struct render *r, struct scope *s)
{
    for (size_t i = 0; i < sizeof globals / sizeof *globals; i++) {
        struct function *f = arena_alloc(&r->arena, sizeof *f);

        *f = (struct function){&globals[i], value_none()};
        scope_set(r, s, text_of(globals[i].name),
                  (struct value){.kind = VALUE_FUNCTION, .u.function = f});
    }
}

/* One conversion of strftime; -1 for one that is not known. */
static int time_piece(char conversion, const struct tm *tm, char *out, size_t size)
{
    switch (conversion) {
#define PIECE(letter, format)                                                                      \
    case letter:                                                                                   \
        return (int)strftime(out, size, format, tm);
        PIECE('a', "%a")
        PIECE('A', "%A")
        PIECE('b', "%b")
        PIECE('h', "%b")
        PIECE('B', "%B")
        PIECE('c', "%a %b %e %H:%M:%S %Y")
        PIECE('C', "%C")
        PIECE('d', "%d")
        PIECE('e', "%e")
        PIECE('F', "%Y-%m-%d")
        PIECE('G', "%G")
        PIECE('H', "%H")
        PIECE('I', "%I")
        PIECE('j', "%j")
        PIECE('m', "%m")
        PIECE('M', "%M")
        PIECE('n', "\n")
        PIECE('p', "%p")
        PIECE('R', "%H:%M")
        PIECE('S', "%S")
        PIECE('t', "\t")
        PIECE('T', "%H:%M:%S")
        PIECE('u', "%u")
        PIECE('U', "%U")
        PIECE('V', "%V")
        PIECE('w', "%w")
        PIECE('W', "%W")
        PIECE('X', "%H:%M:%S")
        PIECE('Y', "%Y")
        PIECE('%', "%%")
#undef PIECE
    case 'D':
    case 'x':
        return snprintf(out, size, "%02d/%02d/%02d", tm->tm_mon + 1, tm->tm_mday,
                        tm->tm_year % 100);
    case 'y':
        return snprintf(out, size, "%02d", tm->tm_year % 100);
    case 'f':
        return snprintf(out, size, "000000");
    case 'z': /* a time without a zone, as datetime.now() gives it */
    case 'Z':
        out[0] = '\0';
        return 0;
    default:
        return -1;
    }
}

int format_time(struct render *r, struct text format, struct value *out)
{
    struct sink s = {0};
    struct tm tm;
    time_t now = (time_t)r->now;
    int rc = 0;

    if (!gmtime_r(&now, &tm))
        return render_fail(r, "strftime_now: the time is out of range");
    for (size_t i = 0; rc == 0 && i < format.len; i++) {
        char piece[64], *p = piece;
        bool bare;
        int n;

        if (format.data[i] != '%' || i + 1 >= format.len) {
            rc = sink_put(r, &s, text_sub(format, i, i + 1));
            continue;
        }
        /* "%-d": without leading zeros. */
        bare = format.data[i + 1] == '-' && i + 2 < format.len;
        i += bare ? 2 : 1;
        n = time_piece(format.data[i], &tm, piece, sizeof piece);
        if (n < 0)
            return render_fail(r, "strftime_now: unknown conversion '%%%c'", format.data[i]);
        while (bare && n > 1 && (*p == '0' || *p == ' ')) {
            p++;
            n--;
        }
        rc = sink_put(r, &s, (struct text){p, (size_t)n});
    }
    *out = value_text(sink_text(&s));
    return rc;
}

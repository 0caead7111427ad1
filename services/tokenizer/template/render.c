#include "services/tokenizer/template/render.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { CLOCK_EVERY = 512 };

/* Memory of a render for each byte that the output may have. */
enum { MEMORY_FACTOR = 16 };

/* Nested expressions and statements for each nested call that the limit allows. */
enum { NESTING_FACTOR = 8 };

static int limit_passed(struct render *r, const char *what, uint64_t limit, const char *unit)
{
    return err_set(r->err, ERR_LIMIT, "line %d: the chat template passes its limit of %s (%llu%s)",
                   r->line, what, (unsigned long long)limit, unit);
}

/* CPU time of this thread: a busy machine must not make honest requests fail. */
static int64_t cpu_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

void render_start(struct render *r)
{
    r->fuel = r->clock_due = r->limits->fuel;
    r->deadline_us = cpu_us() + r->limits->time_us;
}

int render_tick(struct render *r, uint64_t work)
{
    if (r->fuel < work)
        return limit_passed(r, "fuel", r->limits->fuel, " steps");
    r->fuel -= work;
    if (r->fuel > r->clock_due)
        return 0;
    r->clock_due = r->fuel > CLOCK_EVERY ? r->fuel - CLOCK_EVERY : 0;
    if (r->arena.used / MEMORY_FACTOR > r->limits->output + 65536)
        return limit_passed(r, "memory", (uint64_t)r->limits->output * MEMORY_FACTOR, " bytes");
    if (r->limits->time_us > 0 && cpu_us() > r->deadline_us)
        return limit_passed(r, "time", (uint64_t)r->limits->time_us, " us");
    return 0;
}

int render_enter(struct render *r)
{
    if (r->depth >= r->limits->depth * NESTING_FACTOR || r->calls > r->limits->depth)
        return limit_passed(r, "depth", (uint64_t)r->limits->depth, " calls");
    r->depth++;
    return 0;
}

void render_leave(struct render *r)
{
    r->depth--;
}

int render_fail(struct render *r, const char *fmt, ...)
{
    char message[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    return err_set(r->err, ERR_INVALID, "chat template, line %d: %s", r->line, message);
}

int render_undefined(struct render *r, const struct value *v)
{
    size_t len = v->u.text.len > 64 ? 64 : v->u.text.len;

    return render_fail(r, "'%.*s' is undefined", (int)len, len ? v->u.text.data : "");
}

int text_new(struct render *r, size_t len, char **out)
{
    int rc;

    if (len > r->limits->output)
        return limit_passed(r, "output", r->limits->output, " bytes");
    rc = render_tick(r, 1 + len / 64);
    if (rc < 0)
        return rc;
    *out = arena_alloc(&r->arena, len + 1);
    return 0;
}

int sink_put(struct render *r, struct sink *s, struct text t)
{
    if (t.len > r->limits->output - s->len)
        return limit_passed(r, "output", r->limits->output, " bytes");
    if (t.len > s->cap - s->len) {
        size_t cap = s->cap * 2 > s->len + t.len ? s->cap * 2 : s->len + t.len + 64;

        s->data = arena_grow(&r->arena, s->data, s->len, cap);
        s->cap = cap;
    }
    if (t.len)
        memcpy(s->data + s->len, t.data, t.len);
    s->len += t.len;
    return render_tick(r, t.len / 64);
}

int sink_puts(struct render *r, struct sink *s, const char *c_string)
{
    return sink_put(r, s, text_of(c_string));
}

struct text sink_text(const struct sink *s)
{
    return (struct text){s->data, s->len};
}

struct scope *scope_new(struct render *r, struct scope *parent)
{
    struct scope *s = arena_zalloc(&r->arena, sizeof *s);

    s->parent = parent;
    return s;
}

void scope_set(struct render *r, struct scope *s, struct text name, struct value v)
{
    for (size_t i = 0; i < s->count; i++) {
        if (text_equal(s->bindings[i].name, name)) {
            s->bindings[i].value = v;
            return;
        }
    }
    if (s->count == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 4, size = sizeof *s->bindings;

        s->bindings = arena_grow(&r->arena, s->bindings, s->count * size, cap * size);
        s->cap = cap;
    }
    s->bindings[s->count++] = (struct binding){name, v};
}

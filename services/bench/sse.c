#include "services/bench/sse.h"

#include <stdio.h>
#include <string.h>

void sse_fini(struct sse *s)
{
    buf_fini(&s->line);
    buf_fini(&s->data);
    memset(s, 0, sizeof *s);
}

static int sse_dispatch(struct sse *s, sse_event_fn *on_event, void *ctx)
{
    bool more = true;

    if (s->has_data) {
        buf_append(&s->data, "", 0); /* so that there is a NUL */
        more = on_event(ctx, s->name, s->data.data, s->data.len);
    }
    buf_clear(&s->data);
    s->has_data = false;
    s->name[0] = '\0';
    return more ? 0 : ERR_BUSY;
}

static bool is_field(const char *line, size_t name_len, const char *name)
{
    return name_len == strlen(name) && memcmp(line, name, name_len) == 0;
}

/* One line without its end. */
static int sse_line(struct sse *s, const char *line, size_t len, sse_event_fn *on_event, void *ctx)
{
    const char *colon;
    const char *value;
    size_t name_len, value_len;

    if (!s->begun && len >= 3 && memcmp(line, "\xef\xbb\xbf", 3) == 0) {
        line += 3;
        len -= 3;
    }
    s->begun = true;
    if (!len)
        return sse_dispatch(s, on_event, ctx);
    colon = memchr(line, ':', len);
    name_len = colon ? (size_t)(colon - line) : len;
    value = line + name_len + (colon ? 1 : 0);
    value_len = len - (size_t)(value - line);
    if (value_len && *value == ' ') {
        value++;
        value_len--;
    }
    if (is_field(line, name_len, "data")) {
        if (s->data.len + value_len >= SSE_EVENT_BYTES_MAX)
            return ERR_LIMIT;
        if (s->has_data)
            buf_putc(&s->data, '\n');
        buf_append(&s->data, value, value_len);
        s->has_data = true;
    } else if (is_field(line, name_len, "event")) {
        (void)snprintf(s->name, sizeof s->name, "%.*s", (int)(value_len < 16 ? value_len : 15),
                       value);
    }
    return 0; /* comments and other fields mean nothing here */
}

/* Where the line that begins at bytes ends; NULL when it does not. */
static const char *line_end(const char *bytes, size_t len)
{
    const char *lf = memchr(bytes, '\n', len);
    const char *cr = memchr(bytes, '\r', lf ? (size_t)(lf - bytes) : len);

    return cr ? cr : lf;
}

int sse_feed(struct sse *s, const char *bytes, size_t len, sse_event_fn *on_event, void *ctx)
{
    int rc = 0;

    while (len && !rc) {
        const char *end;
        size_t n;

        if (s->after_cr && *bytes == '\n') { /* the second half of CR LF */
            s->after_cr = false;
            bytes++;
            len--;
            continue;
        }
        s->after_cr = false;
        end = line_end(bytes, len);
        n = end ? (size_t)(end - bytes) : len;
        if (!end || s->line.len) {
            if (s->line.len + n > SSE_EVENT_BYTES_MAX)
                return ERR_LIMIT;
            buf_append(&s->line, bytes, n);
        }
        if (!end)
            break;
        s->after_cr = *end == '\r';
        if (s->line.len)
            rc = sse_line(s, s->line.data, s->line.len, on_event, ctx);
        else
            rc = sse_line(s, bytes, n, on_event, ctx);
        buf_clear(&s->line);
        bytes += n + 1;
        len -= n + 1;
    }
    return rc;
}

int sse_end(struct sse *s, sse_event_fn *on_event, void *ctx)
{
    int rc = s->line.len ? sse_line(s, s->line.data, s->line.len, on_event, ctx) : 0;

    buf_clear(&s->line);
    return rc ? rc : sse_dispatch(s, on_event, ctx);
}

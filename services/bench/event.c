#include "services/bench/event.h"

#include <ctype.h>
#include <string.h>

/* A place in the document. Containers come first; the rest are values that are kept. */
enum node {
    NODE_OTHER,
    NODE_ROOT,
    NODE_CHOICES,
    NODE_CHOICE,
    NODE_DELTA,
    NODE_USAGE,
    NODE_FINISH, /* a string, or SGLang's object with a type */
    NODE_ERROR,  /* an object with a message, or a string */
    NODE_TEXT,
    NODE_PROMPT_TOKENS,
    NODE_COMPLETION_TOKENS,
    NODE_MESSAGE,
    NODE_OBJECT,
};

/* Members that mean something. A list's elements have the name "". */
static const struct {
    enum node parent;
    const char *name;
    enum node node;
} members[] = {
    {NODE_ROOT, "choices", NODE_CHOICES},
    {NODE_CHOICES, "", NODE_CHOICE},
    {NODE_CHOICE, "text", NODE_TEXT},
    {NODE_CHOICE, "delta", NODE_DELTA},
    {NODE_CHOICE, "finish_reason", NODE_FINISH},
    {NODE_DELTA, "content", NODE_TEXT},
    {NODE_DELTA, "reasoning_content", NODE_TEXT},
    {NODE_DELTA, "reasoning", NODE_TEXT},
    {NODE_ROOT, "usage", NODE_USAGE},
    {NODE_ROOT, "meta_info", NODE_USAGE},
    {NODE_USAGE, "prompt_tokens", NODE_PROMPT_TOKENS},
    {NODE_USAGE, "completion_tokens", NODE_COMPLETION_TOKENS},
    {NODE_USAGE, "finish_reason", NODE_FINISH},
    {NODE_FINISH, "type", NODE_FINISH},
    {NODE_ROOT, "text", NODE_TEXT},
    {NODE_ROOT, "object", NODE_OBJECT},
    {NODE_ROOT, "message", NODE_MESSAGE},
    {NODE_ROOT, "error", NODE_ERROR},
    {NODE_ERROR, "message", NODE_MESSAGE},
};

struct scan {
    const char *at, *end;
    struct event *out;
    enum node stack[EVENT_DEPTH_MAX]; /* the open containers */
    bool list[EVENT_DEPTH_MAX];
    int depth;
};

static bool same(const char *text, size_t len, const char *word)
{
    return len == strlen(word) && memcmp(text, word, len) == 0;
}

static enum node node_find(enum node parent, const char *name, size_t len)
{
    if (parent == NODE_OTHER)
        return NODE_OTHER;
    for (size_t i = 0; i < sizeof members / sizeof *members; i++)
        if (members[i].parent == parent && same(name, len, members[i].name))
            return members[i].node;
    return NODE_OTHER;
}

static void skip_blank(struct scan *s)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\t' || *s->at == '\n' || *s->at == '\r'))
        s->at++;
}

/* Takes c, blanks before it; false when something else is there. */
static bool take(struct scan *s, char c)
{
    skip_blank(s);
    if (s->at == s->end || *s->at != c)
        return false;
    s->at++;
    return true;
}

/* The inside of a string, escapes as written. */
static bool take_string(struct scan *s, const char **text, size_t *len)
{
    if (!take(s, '"'))
        return false;
    *text = s->at;
    for (;;) {
        const char *quote = memchr(s->at, '"', (size_t)(s->end - s->at));
        size_t slashes = 0;

        if (!quote)
            return false;
        while (quote - slashes > *text && quote[-1 - (ptrdiff_t)slashes] == '\\')
            slashes++;
        s->at = quote + 1;
        if (slashes % 2 == 0) {
            *len = (size_t)(quote - *text);
            return true;
        }
    }
}

static bool is_word(char c)
{
    return isalnum((unsigned char)c) || c == '+' || c == '-' || c == '.';
}

static void found_string(struct event *e, enum node node, const char *text, size_t len)
{
    switch (node) {
    case NODE_TEXT:
        e->text_len += len;
        break;
    case NODE_FINISH:
        e->finished = true;
        e->aborted = e->aborted || same(text, len, "abort") || same(text, len, "error");
        break;
    case NODE_OBJECT:
        e->failed = e->failed || same(text, len, "error");
        break;
    case NODE_ERROR:
        e->failed = true; /* and its text is the message */
        e->message = text;
        e->message_len = len;
        break;
    case NODE_MESSAGE:
        e->message = text;
        e->message_len = len;
        break;
    default:
        break;
    }
}

/* A number, true, false or null. */
static bool take_word(struct scan *s, enum node node)
{
    const char *start = s->at;
    int64_t value = 0;
    bool digits = true;

    while (s->at < s->end && is_word(*s->at)) {
        digits = digits && isdigit((unsigned char)*s->at) && value < INT32_MAX;
        if (digits)
            value = value * 10 + (*s->at - '0');
        s->at++;
    }
    if (s->at == start || !(isdigit((unsigned char)*start) || (*start && strchr("-tfn", *start))))
        return false;
    if (digits && node == NODE_PROMPT_TOKENS)
        s->out->prompt_tokens = value;
    if (digits && node == NODE_COMPLETION_TOKENS)
        s->out->completion_tokens = value;
    return true;
}

static bool open_container(struct scan *s, enum node node)
{
    if (s->depth == EVENT_DEPTH_MAX)
        return false;
    if (node == NODE_ERROR)
        s->out->failed = true;
    s->list[s->depth] = *s->at++ == '[';
    s->stack[s->depth++] = node;
    return true;
}

/* One value; a container is only opened. */
static bool take_value(struct scan *s, enum node node, bool *opened)
{
    const char *text;
    size_t len;

    *opened = false;
    skip_blank(s);
    if (s->at == s->end)
        return false;
    if (*s->at == '{' || *s->at == '[') {
        *opened = true;
        return open_container(s, node);
    }
    if (*s->at != '"')
        return take_word(s, node);
    if (!take_string(s, &text, &len))
        return false;
    found_string(s->out, node, text, len);
    return true;
}

/* A member's name and colon, or nothing before an element of a list; what it is. */
static bool take_name(struct scan *s, enum node *node)
{
    enum node parent = s->stack[s->depth - 1];
    const char *name = "";
    size_t len = 0;

    if (!s->list[s->depth - 1] && (!take_string(s, &name, &len) || !take(s, ':')))
        return false;
    *node = node_find(parent, name, len);
    return true;
}

bool event_read(const char *data, size_t len, struct event *out)
{
    struct scan s = {.at = data, .end = data + len, .out = out};
    bool opened = false;

    memset(out, 0, sizeof *out);
    out->prompt_tokens = out->completion_tokens = -1;
    skip_blank(&s);
    if (s.at == s.end || *s.at != '{' || !take_value(&s, NODE_ROOT, &opened))
        return false;
    while (s.depth) { /* at the start of a container (opened) or behind a value */
        enum node node;

        if (take(&s, s.list[s.depth - 1] ? ']' : '}')) {
            s.depth--;
            opened = false;
            continue;
        }
        if (!opened && !take(&s, ','))
            return false;
        if (!take_name(&s, &node) || !take_value(&s, node, &opened))
            return false;
    }
    skip_blank(&s);
    return s.at == s.end;
}

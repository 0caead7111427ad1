#include "services/tokenizer/template/lexer.h"

#include "common/utf8.h"

#include <string.h>

enum { NESTING_MAX = 256 };

struct lexer {
    struct arena *arena;
    struct err *err;
    struct text source;
    size_t at;
    int line;
    bool line_starting; /* what was taken last ended with a newline, or nothing was taken yet */
    struct token *tokens;
    size_t count, cap;
    char nesting[NESTING_MAX]; /* closing brackets that are due */
    int depth;
};

static const struct operator_row {
    const char *spelling;
    enum token_kind kind;
} operators[] = {
    /* longer spellings first */
    {"//", TOKEN_FLOORDIV}, {"**", TOKEN_POW},   {"==", TOKEN_EQ},       {"!=", TOKEN_NE},
    {"<=", TOKEN_LE},       {">=", TOKEN_GE},    {"+", TOKEN_ADD},       {"-", TOKEN_SUB},
    {"*", TOKEN_MUL},       {"/", TOKEN_DIV},    {"%", TOKEN_MOD},       {"~", TOKEN_TILDE},
    {"<", TOKEN_LT},        {">", TOKEN_GT},     {"=", TOKEN_ASSIGN},    {".", TOKEN_DOT},
    {",", TOKEN_COMMA},     {":", TOKEN_COLON},  {";", TOKEN_SEMICOLON}, {"|", TOKEN_PIPE},
    {"(", TOKEN_LPAREN},    {")", TOKEN_RPAREN}, {"[", TOKEN_LBRACKET},  {"]", TOKEN_RBRACKET},
    {"{", TOKEN_LBRACE},    {"}", TOKEN_RBRACE},
};

const char *token_name(enum token_kind kind)
{
    switch (kind) {
    case TOKEN_END:
        return "end of template";
    case TOKEN_DATA:
        return "text";
    case TOKEN_BLOCK_BEGIN:
        return "'{%'";
    case TOKEN_BLOCK_END:
        return "'%}'";
    case TOKEN_PRINT_BEGIN:
        return "'{{'";
    case TOKEN_PRINT_END:
        return "'}}'";
    case TOKEN_NAME:
        return "name";
    case TOKEN_STRING:
        return "string";
    case TOKEN_INT:
    case TOKEN_FLOAT:
        return "number";
    default:
        break;
    }
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        if (operators[i].kind == kind)
            return operators[i].spelling;
    }
    return "operator";
}

static struct token *token_add(struct lexer *x, enum token_kind kind)
{
    struct token *t;

    if (x->count == x->cap) {
        size_t cap = x->cap ? x->cap * 2 : 64;

        x->tokens = arena_grow(x->arena, x->tokens, x->count * sizeof *t, cap * sizeof *t);
        x->cap = cap;
    }
    t = &x->tokens[x->count++];
    *t = (struct token){.kind = kind, .line = x->line};
    return t;
}

static struct text rest_of(const struct lexer *x)
{
    return text_sub(x->source, x->at, x->source.len);
}

static bool looking_at(const struct lexer *x, size_t at, const char *what)
{
    size_t n = strlen(what);

    return x->source.len - at >= n && memcmp(x->source.data + at, what, n) == 0;
}

static void take(struct lexer *x, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        x->line += x->source.data[x->at + i] == '\n';
    x->at += bytes;
    if (bytes)
        x->line_starting = x->source.data[x->at - 1] == '\n';
}

static size_t space_end(const struct lexer *x, size_t at)
{
    struct text rest = text_sub(x->source, at, x->source.len), unit;
    uint32_t cp;
    size_t end = at;

    while (text_next(&rest, &unit, &cp) && text_space(cp))
        end = x->source.len - rest.len;
    return end;
}

/* Emits text that stands before a tag, after what the tag's sign and lstrip_blocks remove. */
static void data_add(struct lexer *x, struct text data, char sign, bool lstrip)
{
    if (sign == '-') {
        data = text_strip(data, NULL, TEXT_RIGHT);
    } else if (sign != '+' && lstrip) {
        const char *newline = data.len ? memrchr(data.data, '\n', data.len) : NULL;
        size_t start = newline ? (size_t)(newline - data.data) + 1 : 0;
        struct text tail = text_sub(data, start, data.len);

        if ((newline || x->line_starting) && text_strip(tail, NULL, TEXT_BOTH).len == 0)
            data.len = start;
    }
    if (data.len)
        token_add(x, TOKEN_DATA)->text = data;
}

/* Length of the end of a block at `at` ("%}", "-%}" with the space after it, "+%}"), 0 if none.
 * close is the second-last character: '%', or '#' for comments. */
static size_t block_end(const struct lexer *x, size_t at, char close)
{
    const char plain[] = {close, '}', '\0'}, minus[] = {'-', close, '}', '\0'};
    const char plus[] = {'+', close, '}', '\0'};

    if (looking_at(x, at, minus))
        return space_end(x, at + 3) - at;
    if (looking_at(x, at, plus))
        return 3;
    if (!looking_at(x, at, plain))
        return 0;
    return looking_at(x, at + 2, "\n") ? 3 : 2;
}

static int lex_comment(struct lexer *x)
{
    int line = x->line;

    for (size_t at = x->at; at < x->source.len; at++) {
        size_t end = block_end(x, at, '#');

        if (end) {
            take(x, at + end - x->at);
            return 0;
        }
    }
    return err_set(x->err, ERR_INVALID, "line %d: comment without an end, expected '#}'", line);
}

/* Bytes of "{%" sign, space, word, space, from x->at on; 0 when something else stands there. */
static size_t tag_word(const struct lexer *x, size_t at, const char *word, char *sign)
{
    size_t i;

    if (!looking_at(x, at, "{%"))
        return 0;
    i = at + 2;
    *sign = i < x->source.len ? x->source.data[i] : '\0';
    if (*sign == '-' || *sign == '+')
        i++;
    i = space_end(x, i);
    if (!looking_at(x, i, word))
        return 0;
    return space_end(x, i + strlen(word)) - at;
}

static int lex_raw(struct lexer *x)
{
    int line = x->line;

    for (size_t at = x->at; at < x->source.len; at++) {
        char sign;
        size_t word = x->source.data[at] == '{' ? tag_word(x, at, "endraw", &sign) : 0;
        size_t end = word ? block_end(x, at + word, '%') : 0;

        if (end) {
            data_add(x, text_sub(x->source, x->at, at), sign, true);
            take(x, at + word + end - x->at);
            return 0;
        }
    }
    return err_set(x->err, ERR_INVALID, "line %d: raw block without an end, expected 'endraw'",
                   line);
}

/* "{% raw %}" at x->at: its length, else 0. */
static size_t raw_begin(const struct lexer *x, size_t at)
{
    char sign;
    size_t word = tag_word(x, at, "raw", &sign);

    if (!word)
        return 0;
    if (looking_at(x, at + word, "-%}"))
        return space_end(x, at + word + 3) - at;
    return looking_at(x, at + word, "%}") ? word + 2 : 0;
}

static bool name_start(unsigned char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c >= 0x80;
}

static int lex_name(struct lexer *x)
{
    struct text rest = rest_of(x), unit;
    size_t n = 0;
    uint32_t cp;

    while (text_next(&rest, &unit, &cp) && !text_space(cp) &&
           (name_start((unsigned char)unit.data[0]) || (cp >= '0' && cp <= '9')))
        n += unit.len;
    token_add(x, TOKEN_NAME)->text = text_sub(x->source, x->at, x->at + n);
    take(x, n);
    return 0;
}

static int lex_string(struct lexer *x)
{
    char quote = x->source.data[x->at];
    size_t end = x->at + 1;
    struct token *t;
    struct text literal;
    int line = x->line;

    while (end < x->source.len && x->source.data[end] != quote)
        end += x->source.data[end] == '\\' ? 2 : 1;
    if (end >= x->source.len)
        return err_set(x->err, ERR_INVALID, "line %d: string without an end, expected %c", line,
                       quote);
    literal = text_sub(x->source, x->at + 1, end);
    t = token_add(x, TOKEN_STRING);
    take(x, end + 1 - x->at);
    return lex_unescape(x->arena, literal, line, &t->text, x->err);
}

static int nesting_update(struct lexer *x, enum token_kind kind)
{
    char due = kind == TOKEN_LPAREN     ? ')'
               : kind == TOKEN_LBRACKET ? ']'
               : kind == TOKEN_LBRACE   ? '}'
                                        : '\0';
    char closes = kind == TOKEN_RPAREN     ? ')'
                  : kind == TOKEN_RBRACKET ? ']'
                  : kind == TOKEN_RBRACE   ? '}'
                                           : '\0';

    if (due) {
        if (x->depth == NESTING_MAX)
            return err_set(x->err, ERR_LIMIT, "line %d: brackets nest deeper than %d", x->line,
                           NESTING_MAX);
        x->nesting[x->depth++] = due;
    } else if (closes) {
        if (x->depth == 0)
            return err_set(x->err, ERR_INVALID, "line %d: unexpected '%c'", x->line, closes);
        if (x->nesting[--x->depth] != closes)
            return err_set(x->err, ERR_INVALID, "line %d: unexpected '%c', expected '%c'", x->line,
                           closes, x->nesting[x->depth]);
    }
    return 0;
}

static int lex_operator(struct lexer *x)
{
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        if (looking_at(x, x->at, operators[i].spelling)) {
            int rc = nesting_update(x, operators[i].kind);

            if (rc < 0)
                return rc;
            token_add(x, operators[i].kind);
            take(x, strlen(operators[i].spelling));
            return 0;
        }
    }
    return err_set(x->err, ERR_INVALID, "line %d: unexpected character '%c'", x->line,
                   x->source.data[x->at]);
}

static int lex_one(struct lexer *x)
{
    struct token number = {0};
    char c = x->source.data[x->at];
    int n;

    if (c == '"' || c == '\'')
        return lex_string(x);
    if (name_start((unsigned char)c))
        return lex_name(x);
    if (c >= '0' && c <= '9') {
        n = lex_number(rest_of(x), &number, x->err);
        if (n < 0)
            return err_prefix(x->err, "line %d", x->line);
        if (n > 0) {
            /* "a.0.1" is two subscripts, no fraction. */
            bool after_dot = x->at > 0 && x->source.data[x->at - 1] == '.';

            if (number.kind == TOKEN_FLOAT && after_dot) {
                size_t digits = strspn(x->source.data + x->at, "0123456789");

                n = lex_number(text_sub(x->source, x->at, x->at + digits), &number, x->err);
                if (n <= 0)
                    return err_set(x->err, ERR_INVALID, "line %d: bad number", x->line);
            }
            number.line = x->line;
            *token_add(x, number.kind) = number;
            take(x, (size_t)n);
            return 0;
        }
    }
    return lex_operator(x);
}

/* The inside of "{% %}" or "{{ }}". */
static int lex_tag(struct lexer *x, bool print)
{
    int line = x->line;

    x->depth = 0;
    for (;;) {
        size_t end = 0;
        int rc;

        take(x, space_end(x, x->at) - x->at);
        if (x->at >= x->source.len)
            return err_set(x->err, ERR_INVALID, "line %d: tag without an end, expected '%s'", line,
                           print ? "}}" : "%}");
        if (x->depth == 0 && !print)
            end = block_end(x, x->at, '%');
        else if (x->depth == 0 && looking_at(x, x->at, "-}}"))
            end = space_end(x, x->at + 3) - x->at;
        else if (x->depth == 0 && looking_at(x, x->at, "}}"))
            end = 2;
        if (end) {
            token_add(x, print ? TOKEN_PRINT_END : TOKEN_BLOCK_END);
            take(x, end);
            return 0;
        }
        rc = lex_one(x);
        if (rc < 0)
            return rc;
    }
}

/* Text up to the next tag, and the tag. */
static int lex_root(struct lexer *x)
{
    size_t at = x->at, raw;
    char kind, sign;

    while (at < x->source.len && !looking_at(x, at, "{%") && !looking_at(x, at, "{{") &&
           !looking_at(x, at, "{#")) {
        const char *brace = memchr(x->source.data + at + 1, '{', x->source.len - at - 1);

        at = brace ? (size_t)(brace - x->source.data) : x->source.len;
    }
    if (at >= x->source.len) {
        data_add(x, rest_of(x), '+', false);
        take(x, x->source.len - x->at);
        return 0;
    }
    kind = x->source.data[at + 1];
    sign = at + 2 < x->source.len ? x->source.data[at + 2] : '\0';
    raw = raw_begin(x, at);
    data_add(x, text_sub(x->source, x->at, at), sign, kind != '{');
    take(x, at - x->at);
    if (raw) {
        take(x, raw);
        return lex_raw(x);
    }
    if (kind != '#')
        token_add(x, kind == '%' ? TOKEN_BLOCK_BEGIN : TOKEN_PRINT_BEGIN);
    take(x, sign == '-' || sign == '+' ? 3 : 2);
    return kind == '#' ? lex_comment(x) : lex_tag(x, kind == '{');
}

/* Newlines as '\n', one of them at the very end removed (keep_trailing_newline is off). */
static struct text normalise(struct arena *a, struct text source)
{
    char *copy = arena_alloc(a, source.len + 1);
    size_t n = 0;

    for (size_t i = 0; i < source.len; i++) {
        char c = source.data[i];

        if (c == '\r') {
            c = '\n';
            if (i + 1 < source.len && source.data[i + 1] == '\n')
                i++;
        }
        copy[n++] = c;
    }
    if (n && copy[n - 1] == '\n')
        n--;
    copy[n] = '\0';
    return (struct text){copy, n};
}

int lex_source(struct arena *a, struct text source, struct token **out, struct err *err)
{
    struct lexer x = {.arena = a, .err = err, .line = 1, .line_starting = true};

    x.source = normalise(a, source);
    while (x.at < x.source.len) {
        int rc = lex_root(&x);

        if (rc < 0)
            return rc;
    }
    token_add(&x, TOKEN_END);
    *out = x.tokens;
    return 0;
}

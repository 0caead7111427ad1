#include "services/tokenizer/template/parse.h"

#include <string.h>

static int parse_body(struct parser *p, const char *const *ends, struct body *out);

struct node *node_new(struct parser *p, enum node_kind kind)
{
    struct node *n = arena_zalloc(p->arena, sizeof *n);

    n->kind = kind;
    n->line = p->token->line;
    return n;
}

void node_push(struct parser *p, struct node_list *list, struct node *n)
{
    if (list->count == list->cap) {
        size_t cap = list->cap ? list->cap * 2 : 4;

        list->nodes = arena_grow(p->arena, list->nodes, list->count * sizeof n, cap * sizeof n);
        list->cap = cap;
    }
    list->nodes[list->count++] = n;
}

bool at_name(const struct parser *p, const char *name)
{
    return p->token->kind == TOKEN_NAME && text_is(p->token->text, name);
}

bool skip_name(struct parser *p, const char *name)
{
    bool found = at_name(p, name);

    p->token += found;
    return found;
}

bool skip_token(struct parser *p, enum token_kind kind)
{
    bool found = p->token->kind == kind;

    p->token += found;
    return found;
}

int parse_unexpected(struct parser *p, const char *expected)
{
    const struct token *t = p->token;

    if (t->kind == TOKEN_NAME)
        return err_set(p->err, ERR_INVALID, "line %d: unexpected '%.*s', expected %s", t->line,
                       (int)(t->text.len > 64 ? 64 : t->text.len), t->text.data, expected);
    return err_set(p->err, ERR_INVALID, "line %d: unexpected %s, expected %s", t->line,
                   token_name(t->kind), expected);
}

int expect_token(struct parser *p, enum token_kind kind)
{
    return skip_token(p, kind) ? 0 : parse_unexpected(p, token_name(kind));
}

int expect_name(struct parser *p, struct text *name)
{
    if (p->token->kind != TOKEN_NAME)
        return parse_unexpected(p, "a name");
    *name = p->token->text;
    p->token++;
    return 0;
}

int parse_enter(struct parser *p)
{
    if (p->depth == PARSE_DEPTH_MAX)
        return err_set(p->err, ERR_LIMIT, "line %d: the template nests too deeply", p->token->line);
    p->depth++;
    return 0;
}

void parse_leave(struct parser *p)
{
    p->depth--;
}

/* Body up to one of ends; which one is left as the current token. */
static int parse_block(struct parser *p, const char *const *ends, struct body *out)
{
    int rc;

    skip_token(p, TOKEN_COLON); /* "{% if x: %}" is allowed */
    rc = expect_token(p, TOKEN_BLOCK_END);
    if (rc == 0)
        rc = parse_enter(p);
    if (rc < 0)
        return rc;
    rc = parse_body(p, ends, out);
    parse_leave(p);
    return rc;
}

/* A body with a single end, which is taken. */
static int parse_simple_block(struct parser *p, const char *end, struct node *n)
{
    const char *const ends[] = {end, NULL};
    int rc;

    n->bodies = arena_zalloc(p->arena, sizeof *n->bodies);
    rc = parse_block(p, ends, n->bodies);
    p->token += rc == 0;
    return rc;
}

static int check_target(struct parser *p, const struct node *n)
{
    static const char *const reserved[] = {"true", "false", "none", "True", "False", "None"};

    if (n->kind == NODE_TUPLE && n->count) {
        for (size_t i = 0; i < n->count; i++) {
            if (n->items[i]->kind != NODE_NAME && n->items[i]->kind != NODE_ATTR)
                return err_set(p->err, ERR_INVALID, "line %d: cannot assign to this", n->line);
        }
        return 0;
    }
    if (n->kind != NODE_NAME)
        return err_set(p->err, ERR_INVALID, "line %d: cannot assign to this", n->line);
    for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++) {
        if (text_is(n->name, reserved[i]))
            return err_set(p->err, ERR_INVALID, "line %d: cannot assign to '%s'", n->line,
                           reserved[i]);
    }
    return 0;
}

/* name, name.attribute (with_attributes), parenthesised or not: what can stand left of "=". */
static int parse_target_item(struct parser *p, bool with_attributes, struct node **out)
{
    int rc = parse_primary(p, out);

    if (rc == 0 && with_attributes && (*out)->kind == NODE_NAME && skip_token(p, TOKEN_DOT)) {
        struct node *n = node_new(p, NODE_ATTR);

        n->a = *out;
        *out = n;
        rc = expect_name(p, &n->name);
    }
    return rc;
}

static int parse_target(struct parser *p, bool with_attributes, struct node **out)
{
    struct node *n = node_new(p, NODE_TUPLE), *item;
    struct node_list list = {0};
    bool is_tuple = false;
    int rc;

    for (;;) {
        rc = parse_target_item(p, with_attributes, &item);
        if (rc < 0)
            return rc;
        node_push(p, &list, item);
        if (!skip_token(p, TOKEN_COMMA))
            break;
        is_tuple = true;
        if (p->token->kind == TOKEN_ASSIGN || p->token->kind == TOKEN_BLOCK_END || at_name(p, "in"))
            break;
    }
    n->items = list.nodes;
    n->count = list.count;
    *out = is_tuple ? n : list.nodes[0];
    if (!is_tuple && with_attributes && (*out)->kind == NODE_ATTR)
        return 0;
    return check_target(p, *out);
}

static int parse_for(struct parser *p, struct node **out)
{
    static const char *const ends[] = {"endfor", "else", NULL};
    struct node *n = node_new(p, NODE_FOR);
    int rc = parse_target(p, false, &n->a);

    *out = n;
    if (rc == 0 && !skip_name(p, "in"))
        rc = parse_unexpected(p, "'in'");
    if (rc == 0)
        rc = parse_tuple(p, 0, &n->b);
    if (rc == 0 && skip_name(p, "if"))
        rc = parse_expression(p, &n->c);
    if (rc < 0)
        return rc;
    n->recursive = skip_name(p, "recursive");
    n->bodies = arena_zalloc(p->arena, sizeof *n->bodies);
    p->loops++;
    rc = parse_block(p, ends, n->bodies);
    p->loops--;
    if (rc == 0 && skip_name(p, "else"))
        rc = parse_block(p, &(const char *const[]){"endfor", NULL}[0], &n->else_body);
    p->token += rc == 0;
    return rc;
}

static int parse_if(struct parser *p, struct node **out)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    static const char *const last[] = {"endif", NULL};
    struct node *n = node_new(p, NODE_IF), *condition;
    struct node_list conditions = {0};
    size_t cap = 0;
    int rc;

    *out = n;
    do {
        rc = parse_tuple(p, 0, &condition);
        if (rc < 0)
            return rc;
        if (conditions.count == cap) {
            size_t size = sizeof *n->bodies;

            n->bodies = arena_grow(p->arena, n->bodies, cap * size, (cap * 2 + 2) * size);
            cap = cap * 2 + 2;
        }
        rc = parse_block(p, ends, &n->bodies[conditions.count]);
        if (rc < 0)
            return rc;
        node_push(p, &conditions, condition);
    } while (skip_name(p, "elif"));
    n->items = conditions.nodes;
    n->count = conditions.count;
    if (skip_name(p, "else"))
        rc = parse_block(p, last, &n->else_body);
    p->token += rc == 0;
    return rc;
}

static int parse_set(struct parser *p, struct node **out)
{
    struct node *n = node_new(p, NODE_SET);
    int rc = parse_target(p, true, &n->a);

    *out = n;
    if (rc < 0)
        return rc;
    if (skip_token(p, TOKEN_ASSIGN))
        return parse_tuple(p, PARSE_CONDITIONAL, &n->b);
    n->kind = NODE_SET_BLOCK;
    rc = parse_filters(p, NULL, false, &n->b);
    return rc < 0 ? rc : parse_simple_block(p, "endset", n);
}

static int parse_params(struct parser *p, struct params **out)
{
    struct params *params = arena_zalloc(p->arena, sizeof *params);
    int rc = expect_token(p, TOKEN_LPAREN);

    *out = params;
    while (rc == 0 && p->token->kind != TOKEN_RPAREN) {
        size_t n = params->count;
        struct node *fallback = NULL;
        struct text name;

        if (n && (rc = expect_token(p, TOKEN_COMMA)) < 0)
            return rc;
        if ((rc = expect_name(p, &name)) < 0)
            return rc;
        if (skip_token(p, TOKEN_ASSIGN))
            rc = parse_expression(p, &fallback);
        else if (n && params->defaults[n - 1])
            rc = parse_unexpected(p, "a default, as the argument before has one");
        if (rc < 0)
            return rc;
        params->names = arena_grow(p->arena, params->names, n * sizeof name, (n + 1) * sizeof name);
        params->defaults =
            arena_grow(p->arena, params->defaults, n * sizeof fallback, (n + 1) * sizeof fallback);
        params->names[n] = name;
        params->defaults[n] = fallback;
        params->count++;
    }
    return rc < 0 ? rc : expect_token(p, TOKEN_RPAREN);
}

/* The body of a macro or a call block: loops around it do not reach into it. */
static int parse_macro_body(struct parser *p, const char *end, struct node *n)
{
    struct params *outer = p->macro;
    int loops = p->loops, rc;

    p->macro = n->params;
    p->loops = 0;
    rc = parse_simple_block(p, end, n);
    p->loops = loops;
    p->macro = outer;
    return rc;
}

static int parse_macro(struct parser *p, struct node **out)
{
    struct node *n = node_new(p, NODE_MACRO);
    int rc = expect_name(p, &n->name);

    *out = n;
    if (rc == 0)
        rc = parse_params(p, &n->params);
    return rc < 0 ? rc : parse_macro_body(p, "endmacro", n);
}

static int parse_call_block(struct parser *p, struct node **out)
{
    struct node *n = node_new(p, NODE_CALL_BLOCK);
    int rc = 0;

    *out = n;
    if (p->token->kind == TOKEN_LPAREN)
        rc = parse_params(p, &n->params);
    else
        n->params = arena_zalloc(p->arena, sizeof *n->params);
    if (rc == 0)
        rc = parse_expression(p, &n->a);
    if (rc < 0)
        return rc;
    if (n->a->kind != NODE_CALL)
        return err_set(p->err, ERR_INVALID, "line %d: expected a call", n->line);
    return parse_macro_body(p, "endcall", n);
}

static int parse_filter_block(struct parser *p, struct node **out)
{
    struct node *n = node_new(p, NODE_FILTER_BLOCK);
    int rc = parse_filters(p, NULL, true, &n->a);

    *out = n;
    return rc < 0 ? rc : parse_simple_block(p, "endfilter", n);
}

static int parse_with(struct parser *p, struct node **out)
{
    struct node *n = node_new(p, NODE_WITH), *target, *value;
    struct node_list list = {0};
    int rc;

    *out = n;
    while (p->token->kind != TOKEN_BLOCK_END) {
        if (list.count && (rc = expect_token(p, TOKEN_COMMA)) < 0)
            return rc;
        if ((rc = parse_primary(p, &target)) < 0 || (rc = check_target(p, target)) < 0 ||
            (rc = expect_token(p, TOKEN_ASSIGN)) < 0 || (rc = parse_expression(p, &value)) < 0)
            return rc;
        node_push(p, &list, target);
        node_push(p, &list, value);
    }
    n->items = list.nodes;
    n->count = list.count;
    return parse_simple_block(p, "endwith", n);
}

static int parse_generation(struct parser *p, struct node **out)
{
    *out = node_new(p, NODE_SCOPE);
    return parse_simple_block(p, "endgeneration", *out);
}

static int parse_jump(struct parser *p, enum node_kind kind, const char *name, struct node **out)
{
    *out = node_new(p, kind);
    if (p->loops == 0)
        return err_set(p->err, ERR_INVALID, "line %d: '%s' outside of a loop", p->token->line,
                       name);
    return 0;
}

static int parse_break(struct parser *p, struct node **out)
{
    return parse_jump(p, NODE_BREAK, "break", out);
}

static int parse_continue(struct parser *p, struct node **out)
{
    return parse_jump(p, NODE_CONTINUE, "continue", out);
}

static int parse_print_block(struct parser *p, struct node **out)
{
    struct node *n = node_new(p, NODE_PRINT);

    *out = n;
    return parse_expression(p, &n->a);
}

static const struct statement_row {
    const char *name;
    int (*parse)(struct parser *p, struct node **out);
} statements[] = {
    {"for", parse_for},           {"if", parse_if},
    {"set", parse_set},           {"macro", parse_macro},
    {"call", parse_call_block},   {"filter", parse_filter_block},
    {"with", parse_with},         {"generation", parse_generation},
    {"break", parse_break},       {"continue", parse_continue},
    {"print", parse_print_block},
};

static int parse_statement(struct parser *p, struct node **out)
{
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++) {
        if (skip_name(p, statements[i].name)) {
            int rc = statements[i].parse(p, out);

            return rc < 0 ? rc : expect_token(p, TOKEN_BLOCK_END);
        }
    }
    return parse_unexpected(p, "a statement that chat templates use");
}

static int parse_print(struct parser *p, struct node **out)
{
    struct node *n = node_new(p, NODE_PRINT);
    int rc = parse_tuple(p, PARSE_CONDITIONAL, &n->a);

    *out = n;
    return rc < 0 ? rc : expect_token(p, TOKEN_PRINT_END);
}

static bool at_end(const struct parser *p, const char *const *ends)
{
    for (; ends && *ends; ends++) {
        if (at_name(p, *ends))
            return true;
    }
    return false;
}

static int parse_body(struct parser *p, const char *const *ends, struct body *out)
{
    struct node_list list = {0};
    int rc = 0;

    while (rc == 0 && p->token->kind != TOKEN_END) {
        struct node *n = NULL;

        if (p->token->kind == TOKEN_DATA) {
            n = node_new(p, NODE_DATA);
            n->constant = value_text(p->token->text);
            p->token++;
        } else if (skip_token(p, TOKEN_PRINT_BEGIN)) {
            rc = parse_print(p, &n);
        } else {
            p->token++; /* the lexer gives nothing but "{%" here */
            if (at_end(p, ends))
                goto out;
            rc = parse_statement(p, &n);
        }
        node_push(p, &list, n);
    }
    if (rc == 0 && ends)
        rc = err_set(p->err, ERR_INVALID, "line %d: end of template, expected '%s'", p->token->line,
                     *ends);
out:
    out->nodes = list.nodes;
    out->count = list.count;
    return rc;
}

int parse_tokens(struct arena *a, const struct token *tokens, struct body *root, struct err *err)
{
    struct parser p = {.arena = a, .token = tokens, .err = err};

    return parse_body(&p, NULL, root);
}

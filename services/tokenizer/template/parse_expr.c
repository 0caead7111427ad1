#include "services/tokenizer/template/parse.h"

#include <string.h>

static int parse_condition(struct parser *p, struct node **out);
static int parse_unary(struct parser *p, bool with_filters, struct node **out);
static int parse_postfix(struct parser *p, struct node *n, struct node **out);

int parse_expression(struct parser *p, struct node **out)
{
    return parse_condition(p, out);
}

/* A left-associative level of binary operators from first to last. */
struct level {
    enum token_kind first, last;
    int (*operand)(struct parser *p, struct node **out);
};

static int parse_level(struct parser *p, const struct level *level, struct node **out)
{
    int rc = level->operand(p, out);

    while (rc == 0 && p->token->kind >= level->first && p->token->kind <= level->last) {
        struct node *n = node_new(p, NODE_BINARY);

        n->op = p->token->kind;
        n->a = *out;
        p->token++;
        rc = level->operand(p, &n->b);
        *out = n;
    }
    return rc;
}

static int parse_signed(struct parser *p, struct node **out)
{
    return parse_unary(p, true, out);
}

static int parse_power(struct parser *p, struct node **out)
{
    return parse_level(p, &(const struct level){TOKEN_POW, TOKEN_POW, parse_signed}, out);
}

static int parse_product(struct parser *p, struct node **out)
{
    return parse_level(p, &(const struct level){TOKEN_MUL, TOKEN_MOD, parse_power}, out);
}

static int parse_concat(struct parser *p, struct node **out)
{
    struct node_list list = {0};
    struct node *n;
    int rc = parse_product(p, out);

    if (rc < 0 || p->token->kind != TOKEN_TILDE)
        return rc;
    n = node_new(p, NODE_CONCAT);
    node_push(p, &list, *out);
    while (rc == 0 && skip_token(p, TOKEN_TILDE)) {
        rc = parse_product(p, out);
        node_push(p, &list, *out);
    }
    n->items = list.nodes;
    n->count = list.count;
    *out = n;
    return rc;
}

static int parse_sum(struct parser *p, struct node **out)
{
    return parse_level(p, &(const struct level){TOKEN_ADD, TOKEN_SUB, parse_concat}, out);
}

/* The comparison operator at the current token (taken), or TOKEN_END. */
static enum token_kind take_comparison(struct parser *p)
{
    enum token_kind kind = p->token->kind;

    if (kind >= TOKEN_EQ && kind <= TOKEN_GE) {
        p->token++;
        return kind;
    }
    if (skip_name(p, "in"))
        return TOKEN_IN;
    if (at_name(p, "not") && p->token[1].kind == TOKEN_NAME && text_is(p->token[1].text, "in")) {
        p->token += 2;
        return TOKEN_NOT_IN;
    }
    return TOKEN_END;
}

static int parse_compare(struct parser *p, struct node **out)
{
    struct node_list list = {0};
    struct node *n = NULL;
    enum token_kind ops[32], op;
    int rc = parse_sum(p, out);

    while (rc == 0 && (op = take_comparison(p)) != TOKEN_END) {
        struct node *operand = NULL;

        if (!n)
            n = node_new(p, NODE_COMPARE);
        if (list.count == sizeof ops / sizeof *ops)
            return err_set(p->err, ERR_LIMIT, "line %d: more than %zu comparisons in a chain",
                           p->token->line, list.count);
        ops[list.count] = op;
        rc = parse_sum(p, &operand);
        node_push(p, &list, operand);
    }
    if (!n || rc < 0)
        return rc;
    n->a = *out;
    n->items = list.nodes;
    n->count = list.count;
    n->ops = arena_alloc(p->arena, list.count * sizeof *ops);
    memcpy(n->ops, ops, list.count * sizeof *ops);
    *out = n;
    return 0;
}

static int parse_not(struct parser *p, struct node **out)
{
    struct node *n;
    int rc;

    if (!at_name(p, "not"))
        return parse_compare(p, out);
    n = node_new(p, NODE_NOT);
    p->token++;
    rc = parse_enter(p);
    if (rc < 0)
        return rc;
    rc = parse_not(p, &n->a);
    parse_leave(p);
    *out = n;
    return rc;
}

static int parse_and(struct parser *p, struct node **out)
{
    int rc = parse_not(p, out);

    while (rc == 0 && skip_name(p, "and")) {
        struct node *n = node_new(p, NODE_AND);

        n->a = *out;
        rc = parse_not(p, &n->b);
        *out = n;
    }
    return rc;
}

static int parse_or(struct parser *p, struct node **out)
{
    int rc = parse_and(p, out);

    while (rc == 0 && skip_name(p, "or")) {
        struct node *n = node_new(p, NODE_OR);

        n->a = *out;
        rc = parse_and(p, &n->b);
        *out = n;
    }
    return rc;
}

static int parse_condition(struct parser *p, struct node **out)
{
    int rc = parse_enter(p);

    if (rc < 0)
        return rc;
    rc = parse_or(p, out);
    while (rc == 0 && at_name(p, "if")) {
        struct node *n = node_new(p, NODE_COND);

        p->token++;
        n->b = *out;
        rc = parse_or(p, &n->a);
        if (rc == 0 && skip_name(p, "else"))
            rc = parse_condition(p, &n->c);
        *out = n;
    }
    parse_leave(p);
    return rc;
}

static int parse_constant(struct parser *p, struct node **out)
{
    static const struct {
        const char *name;
        enum value_kind kind;
        bool boolean;
    } names[] = {
        {"true", VALUE_BOOL, true},   {"True", VALUE_BOOL, true},  {"false", VALUE_BOOL, false},
        {"False", VALUE_BOOL, false}, {"none", VALUE_NONE, false}, {"None", VALUE_NONE, false},
    };
    struct node *n = node_new(p, NODE_CONST);

    *out = n;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (skip_name(p, names[i].name)) {
            n->constant = names[i].kind == VALUE_BOOL ? value_bool(names[i].boolean) : value_none();
            return 0;
        }
    }
    n->kind = NODE_NAME;
    n->name = p->token->text;
    if (p->macro) {
        p->macro->uses_varargs |= at_name(p, "varargs");
        p->macro->uses_kwargs |= at_name(p, "kwargs");
        p->macro->uses_caller |= at_name(p, "caller");
    }
    p->token++;
    return 0;
}

/* Adjacent strings are one. */
static int parse_string(struct parser *p, struct node **out)
{
    struct node *n = node_new(p, NODE_CONST);
    struct text whole = p->token->text;
    char *joined = NULL;

    for (p->token++; p->token->kind == TOKEN_STRING; p->token++) {
        size_t len = whole.len + p->token->text.len;

        joined = arena_grow(p->arena, joined, joined ? whole.len : 0, len + 1);
        if (whole.len && whole.data != joined)
            memmove(joined, whole.data, whole.len);
        if (p->token->text.len)
            memcpy(joined + whole.len, p->token->text.data, p->token->text.len);
        whole = (struct text){joined, len};
    }
    n->constant = value_text(whole);
    *out = n;
    return 0;
}

static int parse_list(struct parser *p, struct node **out)
{
    struct node *n = node_new(p, NODE_LIST);
    struct node_list list = {0};
    int rc;

    for (p->token++; p->token->kind != TOKEN_RBRACKET;) {
        struct node *item;

        if (list.count) {
            rc = expect_token(p, TOKEN_COMMA);
            if (rc < 0)
                return rc;
        }
        if (p->token->kind == TOKEN_RBRACKET)
            break;
        rc = parse_expression(p, &item);
        if (rc < 0)
            return rc;
        node_push(p, &list, item);
    }
    p->token++;
    n->items = list.nodes;
    n->count = list.count;
    *out = n;
    return 0;
}

static int parse_dict(struct parser *p, struct node **out)
{
    struct node *n = node_new(p, NODE_DICT), *key, *value;
    struct node_list list = {0};
    int rc;

    for (p->token++; p->token->kind != TOKEN_RBRACE;) {
        if (list.count) {
            rc = expect_token(p, TOKEN_COMMA);
            if (rc < 0)
                return rc;
        }
        if (p->token->kind == TOKEN_RBRACE)
            break;
        if ((rc = parse_expression(p, &key)) < 0 || (rc = expect_token(p, TOKEN_COLON)) < 0 ||
            (rc = parse_expression(p, &value)) < 0)
            return rc;
        node_push(p, &list, key);
        node_push(p, &list, value);
    }
    p->token++;
    n->items = list.nodes;
    n->count = list.count;
    *out = n;
    return 0;
}

int parse_primary(struct parser *p, struct node **out)
{
    int rc;

    switch (p->token->kind) {
    case TOKEN_NAME:
        return parse_constant(p, out);
    case TOKEN_STRING:
        return parse_string(p, out);
    case TOKEN_INT:
    case TOKEN_FLOAT:
        *out = node_new(p, NODE_CONST);
        (*out)->constant = p->token->kind == TOKEN_INT ? value_int(p->token->integer)
                                                       : value_float(p->token->number);
        p->token++;
        return 0;
    case TOKEN_LPAREN:
        p->token++;
        rc = parse_tuple(p, PARSE_CONDITIONAL | PARSE_PARENTHESISED, out);
        return rc < 0 ? rc : expect_token(p, TOKEN_RPAREN);
    case TOKEN_LBRACKET:
        return parse_list(p, out);
    case TOKEN_LBRACE:
        return parse_dict(p, out);
    default:
        return parse_unexpected(p, "an expression");
    }
}

static bool tuple_end(const struct parser *p, int flags)
{
    return p->token->kind == TOKEN_PRINT_END || p->token->kind == TOKEN_BLOCK_END ||
           p->token->kind == TOKEN_RPAREN || ((flags & PARSE_UNTIL_IN) && at_name(p, "in"));
}

int parse_tuple(struct parser *p, int flags, struct node **out)
{
    struct node *n = node_new(p, NODE_TUPLE), *item;
    struct node_list list = {0};
    bool is_tuple = false;

    for (;;) {
        int rc = list.count ? expect_token(p, TOKEN_COMMA) : 0;

        if (rc < 0)
            return rc;
        if (tuple_end(p, flags))
            break;
        rc = (flags & PARSE_CONDITIONAL) ? parse_expression(p, &item) : parse_or(p, &item);
        if (rc < 0)
            return rc;
        node_push(p, &list, item);
        if (p->token->kind != TOKEN_COMMA)
            break;
        is_tuple = true;
    }
    if (!is_tuple && list.count) {
        *out = list.nodes[0];
        return 0;
    }
    if (!is_tuple && !(flags & PARSE_PARENTHESISED))
        return parse_unexpected(p, "an expression");
    n->items = list.nodes;
    n->count = list.count;
    *out = n;
    return 0;
}

/* "[" expression or slice "]", at "[". */
static int parse_index(struct parser *p, struct node *subject, struct node **out)
{
    struct node *n = node_new(p, NODE_ITEM), **part;
    int rc = 0;

    n->a = subject;
    *out = n;
    p->token++;
    if (p->token->kind != TOKEN_COLON) {
        rc = parse_expression(p, &n->b);
        if (rc < 0 || p->token->kind != TOKEN_COLON)
            return rc < 0 ? rc : expect_token(p, TOKEN_RBRACKET);
    }
    n->kind = NODE_SLICE;
    for (part = &n->c; part && skip_token(p, TOKEN_COLON); part = part == &n->c ? &n->d : NULL) {
        if (p->token->kind != TOKEN_COLON && p->token->kind != TOKEN_RBRACKET)
            rc = parse_expression(p, part);
        if (rc < 0)
            return rc;
    }
    return expect_token(p, TOKEN_RBRACKET);
}

static int parse_attribute(struct parser *p, struct node *subject, struct node **out)
{
    struct node *n = node_new(p, NODE_ATTR);

    p->token++;
    n->a = subject;
    *out = n;
    if (p->token->kind == TOKEN_INT) {
        n->kind = NODE_ITEM;
        return parse_primary(p, &n->b);
    }
    return expect_name(p, &n->name);
}

static int parse_argument(struct parser *p, struct call_args *args, struct node_list *positional)
{
    struct node *value;
    bool star_star = p->token->kind == TOKEN_POW;
    int rc;

    if (p->token->kind == TOKEN_MUL || star_star) {
        struct node **slot = star_star ? &args->star_star : &args->star;

        if (*slot || (!star_star && args->star_star))
            return parse_unexpected(p, "another argument");
        p->token++;
        return parse_expression(p, slot);
    }
    if (p->token->kind == TOKEN_NAME && p->token[1].kind == TOKEN_ASSIGN) {
        struct text name = p->token->text;
        size_t n = args->keywords_count, size = sizeof *args->keywords;

        if (args->star_star)
            return parse_unexpected(p, "no argument after **");
        p->token += 2;
        rc = parse_expression(p, &value);
        args->keywords = arena_grow(p->arena, args->keywords, n * size, (n + 1) * size);
        args->keywords[args->keywords_count++] = (struct keyword){name, value};
        return rc;
    }
    if (args->star || args->star_star || args->keywords_count)
        return parse_unexpected(p, "a keyword argument");
    rc = parse_expression(p, &value);
    node_push(p, positional, value);
    return rc;
}

/* "(" arguments ")", at "(". */
static int parse_call_args(struct parser *p, struct call_args **out)
{
    struct call_args *args = arena_zalloc(p->arena, sizeof *args);
    struct node_list positional = {0};
    bool first = true;
    int rc = 0;

    for (p->token++; p->token->kind != TOKEN_RPAREN; first = false) {
        if (!first)
            rc = expect_token(p, TOKEN_COMMA);
        if (rc < 0)
            return rc;
        if (!first && p->token->kind == TOKEN_RPAREN)
            break;
        rc = parse_argument(p, args, &positional);
        if (rc < 0)
            return rc;
    }
    p->token++;
    args->positional = positional.nodes;
    args->positional_count = positional.count;
    *out = args;
    return 0;
}

int parse_call(struct parser *p, struct node *callee, struct node **out)
{
    struct node *n = node_new(p, NODE_CALL);

    n->a = callee;
    *out = n;
    return parse_call_args(p, &n->args);
}

static int parse_postfix(struct parser *p, struct node *n, struct node **out)
{
    int rc = 0;

    for (*out = n; rc == 0; n = *out) {
        if (p->token->kind == TOKEN_DOT)
            rc = parse_attribute(p, n, out);
        else if (p->token->kind == TOKEN_LBRACKET)
            rc = parse_index(p, n, out);
        else if (p->token->kind == TOKEN_LPAREN)
            rc = parse_call(p, n, out);
        else
            break;
    }
    return rc;
}

static int parse_dotted(struct parser *p, struct text *name)
{
    int rc = expect_name(p, name);

    while (rc == 0 && skip_token(p, TOKEN_DOT)) {
        struct text more;

        rc = expect_name(p, &more);
        if (rc == 0) {
            char *joined = arena_alloc(p->arena, name->len + more.len + 1);

            memcpy(joined, name->data, name->len);
            joined[name->len] = '.';
            memcpy(joined + name->len + 1, more.data, more.len);
            *name = (struct text){joined, name->len + more.len + 1};
        }
    }
    return rc;
}

int parse_filters(struct parser *p, struct node *subject, bool inline_start, struct node **out)
{
    int rc = 0;

    *out = subject;
    while (rc == 0 && (inline_start || skip_token(p, TOKEN_PIPE))) {
        struct node *n = node_new(p, NODE_FILTER);

        inline_start = false;
        n->a = *out;
        *out = n;
        rc = parse_dotted(p, &n->name);
        if (rc == 0 && p->token->kind == TOKEN_LPAREN)
            rc = parse_call_args(p, &n->args);
    }
    return rc;
}

/* Tests take one argument without parentheses: "x is divisibleby 3". */
static bool at_test_argument(const struct parser *p)
{
    switch (p->token->kind) {
    case TOKEN_NAME:
        return !at_name(p, "else") && !at_name(p, "or") && !at_name(p, "and");
    case TOKEN_STRING:
    case TOKEN_INT:
    case TOKEN_FLOAT:
    case TOKEN_LBRACKET:
    case TOKEN_LBRACE:
        return true;
    default:
        return false;
    }
}

static int parse_test(struct parser *p, struct node *subject, struct node **out)
{
    struct node *n = node_new(p, NODE_TEST), *not = NULL, *argument;
    int rc;

    p->token++;
    if (at_name(p, "not")) {
        not = node_new(p, NODE_NOT);
        not ->a = n;
        p->token++;
    }
    n->a = subject;
    *out = not ? not : n;
    rc = parse_dotted(p, &n->name);
    if (rc < 0)
        return rc;
    if (p->token->kind == TOKEN_LPAREN)
        return parse_call_args(p, &n->args);
    if (!at_test_argument(p))
        return 0;
    if (at_name(p, "is"))
        return parse_unexpected(p, "no chain of tests with 'is'");
    rc = parse_primary(p, &argument);
    if (rc == 0)
        rc = parse_postfix(p, argument, &argument);
    n->args = arena_zalloc(p->arena, sizeof *n->args);
    n->args->positional = arena_alloc(p->arena, sizeof *n->args->positional);
    n->args->positional[0] = argument;
    n->args->positional_count = 1;
    return rc;
}

static int parse_filter_expr(struct parser *p, struct node *n, struct node **out)
{
    int rc = 0;

    for (*out = n; rc == 0; n = *out) {
        if (p->token->kind == TOKEN_PIPE)
            rc = parse_filters(p, n, false, out);
        else if (at_name(p, "is"))
            rc = parse_test(p, n, out);
        else if (p->token->kind == TOKEN_LPAREN)
            rc = parse_call(p, n, out);
        else
            break;
    }
    return rc;
}

static int parse_unary(struct parser *p, bool with_filters, struct node **out)
{
    bool minus = p->token->kind == TOKEN_SUB;
    int rc = parse_enter(p);

    if (rc < 0)
        return rc;
    if (minus || p->token->kind == TOKEN_ADD) {
        struct node *n = node_new(p, minus ? NODE_NEG : NODE_POS);

        p->token++;
        rc = parse_unary(p, false, &n->a);
        *out = n;
    } else {
        rc = parse_primary(p, out);
    }
    if (rc == 0)
        rc = parse_postfix(p, *out, out);
    if (rc == 0 && with_filters)
        rc = parse_filter_expr(p, *out, out);
    parse_leave(p);
    return rc;
}

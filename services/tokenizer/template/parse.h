/* Shared by the two halves of the parser: statements (parser.c) and expressions (parse_expr.c). */
#ifndef PHALANX_TOKENIZER_TEMPLATE_PARSE_H
#define PHALANX_TOKENIZER_TEMPLATE_PARSE_H

#include "services/tokenizer/template/ast.h"

/* What may nest before a template counts as hostile; a pair of parentheses counts three times. */
enum { PARSE_DEPTH_MAX = 450 };

struct parser {
    struct arena *arena;
    const struct token *token; /* the current one */
    struct params *macro;      /* of the macro being parsed, or NULL */
    int depth;
    int loops; /* enclosing for blocks: break and continue need one */
    struct err *err;
};

struct node *node_new(struct parser *p, enum node_kind kind);

/* Growable array of nodes. */
struct node_list {
    struct node **nodes;
    size_t count, cap;
};
void node_push(struct parser *p, struct node_list *list, struct node *n);

bool at_name(const struct parser *p, const char *name);
bool skip_name(struct parser *p, const char *name);
bool skip_token(struct parser *p, enum token_kind kind);
int expect_token(struct parser *p, enum token_kind kind);
int expect_name(struct parser *p, struct text *name);
int parse_unexpected(struct parser *p, const char *expected);
int parse_enter(struct parser *p);
void parse_leave(struct parser *p);

enum { PARSE_CONDITIONAL = 1, PARSE_UNTIL_IN = 2, PARSE_PARENTHESISED = 4 };

int parse_expression(struct parser *p, struct node **out);

/* An expression or a tuple without parentheses. flags: PARSE_*. */
int parse_tuple(struct parser *p, int flags, struct node **out);
int parse_primary(struct parser *p, struct node **out);

/* node "|" filter ..., at "|"; inline_start: at the name of the first filter. */
int parse_filters(struct parser *p, struct node *subject, bool inline_start, struct node **out);
int parse_call(struct parser *p, struct node *callee, struct node **out);

#endif

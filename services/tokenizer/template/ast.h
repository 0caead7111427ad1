/* The parsed form of a template. Nodes live in the template's arena and never change. */
#ifndef PHALANX_TOKENIZER_TEMPLATE_AST_H
#define PHALANX_TOKENIZER_TEMPLATE_AST_H

#include "services/tokenizer/template/lexer.h"
#include "services/tokenizer/template/value.h"

enum node_kind {
    /* expressions */
    NODE_CONST,   /* constant */
    NODE_NAME,    /* name */
    NODE_LIST,    /* items */
    NODE_TUPLE,   /* items */
    NODE_DICT,    /* items: key, value, key, value ... */
    NODE_ATTR,    /* a.name */
    NODE_ITEM,    /* a[b] */
    NODE_SLICE,   /* a[b:c:d], each may be NULL */
    NODE_CALL,    /* a(args) */
    NODE_FILTER,  /* a | name(args); a is NULL in a filter block */
    NODE_TEST,    /* a is name(args) */
    NODE_NEG,     /* -a */
    NODE_POS,     /* +a */
    NODE_NOT,     /* not a */
    NODE_AND,     /* a and b */
    NODE_OR,      /* a or b */
    NODE_BINARY,  /* a op b */
    NODE_CONCAT,  /* items joined by ~ */
    NODE_COMPARE, /* a, then ops[i] items[i] */
    NODE_COND,    /* b if a else c; c may be NULL */
    /* statements */
    NODE_DATA,         /* constant */
    NODE_PRINT,        /* a */
    NODE_IF,           /* items: condition, ...; bodies: one each; else_body */
    NODE_FOR,          /* for a in b if c; d: recursive; bodies[0]; else_body */
    NODE_SET,          /* a = b */
    NODE_SET_BLOCK,    /* a; b: filters or NULL; bodies[0] */
    NODE_MACRO,        /* name, params, bodies[0] */
    NODE_CALL_BLOCK,   /* a: the call; params, bodies[0] */
    NODE_FILTER_BLOCK, /* a: filters; bodies[0] */
    NODE_WITH,         /* items: target, value, ...; bodies[0] */
    NODE_SCOPE,        /* bodies[0] (generation blocks) */
    NODE_BREAK,
    NODE_CONTINUE,
};

struct body {
    struct node **nodes;
    size_t count;
};

struct keyword {
    struct text name;
    struct node *value;
};

struct call_args {
    struct node **positional;
    size_t positional_count;
    struct keyword *keywords;
    size_t keywords_count;
    struct node *star, *star_star;
};

struct params { /* of a macro */
    struct text *names;
    struct node **defaults; /* NULL where there is none */
    size_t count;
    bool uses_varargs, uses_kwargs, uses_caller;
};

struct node {
    enum node_kind kind;
    int line;
    enum token_kind op; /* NODE_BINARY */
    bool recursive;     /* NODE_FOR */
    struct node *a, *b, *c, *d;
    struct node **items;
    size_t count;
    enum token_kind *ops; /* NODE_COMPARE */
    struct call_args *args;
    struct params *params;
    struct text name;
    struct value constant;
    struct body *bodies;
    struct body else_body;
};

struct template
{
    struct arena arena;
    struct body root;
};

/* Fills t->root from tokens. */
int parse_tokens(struct arena *a, const struct token *tokens, struct body *root, struct err *err);

#endif

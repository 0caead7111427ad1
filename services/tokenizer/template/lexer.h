/* Template source to tokens, with white-space control as trim_blocks and lstrip_blocks give it. */
#ifndef PHALANX_TOKENIZER_TEMPLATE_LEXER_H
#define PHALANX_TOKENIZER_TEMPLATE_LEXER_H

#include "common/err.h"
#include "services/tokenizer/template/text.h"

enum token_kind {
    TOKEN_END, /* of the source */
    TOKEN_DATA,
    TOKEN_BLOCK_BEGIN,
    TOKEN_BLOCK_END,
    TOKEN_PRINT_BEGIN,
    TOKEN_PRINT_END,
    TOKEN_NAME,
    TOKEN_STRING, /* text: the value, escapes resolved */
    TOKEN_INT,
    TOKEN_FLOAT,
    TOKEN_ADD,
    TOKEN_SUB,
    TOKEN_MUL,
    TOKEN_DIV,
    TOKEN_FLOORDIV,
    TOKEN_MOD,
    TOKEN_POW,
    TOKEN_TILDE,
    TOKEN_EQ,
    TOKEN_NE,
    TOKEN_LT,
    TOKEN_LE,
    TOKEN_GT,
    TOKEN_GE,
    TOKEN_IN,     /* from the parser only: x in y */
    TOKEN_NOT_IN, /* from the parser only: x not in y */
    TOKEN_ASSIGN,
    TOKEN_DOT,
    TOKEN_COMMA,
    TOKEN_COLON,
    TOKEN_SEMICOLON,
    TOKEN_PIPE,
    TOKEN_LPAREN,
    TOKEN_RPAREN,
    TOKEN_LBRACKET,
    TOKEN_RBRACKET,
    TOKEN_LBRACE,
    TOKEN_RBRACE,
};

struct token {
    enum token_kind kind;
    int line;
    struct text text;
    int64_t integer;
    double number;
};

/* Tokens in the arena, the last one TOKEN_END. Texts point into the arena as well. */
int lex_source(struct arena *a, struct text source, struct token **out, struct err *err);

/* The text of a string literal (between its quotes) with its escapes resolved. */
int lex_unescape(struct arena *a, struct text literal, int line, struct text *out, struct err *err);

/* A numeric literal at the start of t. Returns its bytes, 0 when there is none, negative with err
 * set when it does not fit. */
int lex_number(struct text t, struct token *out, struct err *err);

/* What a token is called in errors. */
const char *token_name(enum token_kind kind);

#endif

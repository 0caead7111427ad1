/* A JSON body into what the tokenizer is asked: one table of fields an endpoint. No sockets. */
#ifndef PHALANX_GATEWAY_PARAMS_H
#define PHALANX_GATEWAY_PARAMS_H

#include "common/json.h"
#include "proto/proto.h"
#include "services/gateway/problem.h"

#include <stdbool.h>
#include <stddef.h>

/* What the server knows and a request is checked against. */
struct params_context {
    const char *model;              /* served name */
    struct proto_sampling defaults; /* of the model's generation_config.json */
    uint32_t vocab_size;            /* width of the logits; 0: not known */
    bool priorities;                /* the scheduler minds them */
};

struct prompt {
    struct proto_str text; /* borrowed from the body, or from params.messages */
    uint32_t *ids;         /* owned; NULL: text */
    uint32_t ids_count;
};

/* One request. Strings of `generate` point into the body, which must outlive it. */
struct params {
    const struct params_context *context;
    struct proto_generate generate; /* what all prompts share */
    struct prompt *prompts;         /* owned */
    size_t prompts_count;
    bool prompts_listed;   /* given as a list, even if of one */
    struct buf messages;   /* JSON text of a chat's messages */
    char *template_kwargs; /* owned JSON text, or NULL */

    bool stream;
    bool stream_options; /* was given */
    bool include_usage;
    bool return_ids;               /* the ids of the tokens besides their text */
    bool logprobs;                 /* chat, /generate: asked for */
    int64_t top_logprobs;          /* chat, /generate; -1: not given */
    int64_t logprobs_count;        /* completions; -1: not given */
    int64_t logprob_start;         /* /generate; -1: none of the prompt */
    int64_t max_tokens;            /* 0: not given */
    int64_t max_completion_tokens; /* 0: not given */
    int64_t best_of;               /* 0: not given */
    int64_t seed;
    bool seeded;
    const char *rid;    /* /generate: the client's id, borrowed from the body; or NULL */
    const char *prefix; /* of the names in messages while a nested object is read */
};

struct field;
typedef int field_parser(struct params *params, const struct field *field, const json_t *value,
                         struct problem *problem);

/* A row: a field that is read, or one that is known and refused unless it says nothing. */
struct field {
    const char *name; /* NULL ends a table */
    field_parser *parse;
    size_t offset;               /* of the member in struct params */
    int range;                   /* reals: row of proto/limits.def (enum in fields.h) */
    int64_t low, high;           /* whole numbers: inclusive */
    const char *noop;            /* refused fields: JSON array of values that ask for nothing */
    const struct field *members; /* objects: their table */
};

/* What an endpoint brings. */
struct params_kind {
    const struct field *fields;
    int64_t max_tokens; /* default; 0: as many as the context allows */
    bool chat;
    /* Checks between fields and what becomes of them in generate. */
    int (*finish)(struct params *params, struct problem *problem);
};

/* Fills *out from a body. On failure problem says why (out is still to be released). */
int params_parse(const struct params_kind *kind, const struct params_context *context,
                 const json_t *body, struct params *out, struct problem *problem);
void params_fini(struct params *p);

/* Fields every endpoint has: checks them and fills generate.sampling. */
int params_finish(struct params *p, struct problem *problem);

#endif

/* Parsers of single fields, for the tables of the endpoints. */
#ifndef PHALANX_GATEWAY_FIELDS_H
#define PHALANX_GATEWAY_FIELDS_H

#include "services/gateway/params.h"

/* Rows of proto/limits.def: RANGE_x names one, HIGH_x is its upper end. */
enum {
#define SAMPLING(field, low, high, what) RANGE_##field,
#include "proto/limits.def"
    RANGES_COUNT
};
enum {
#define SAMPLING(field, low, high, what) HIGH_##field = (int)(high),
#include "proto/limits.def"
};
enum {
#define COUNT(NAME, high, what) NAME = high,
#include "proto/limits.def"
};

/* Reads the object's members by the table: unknown names are refused, null is absent. prefix
 * ("sampling_params.") goes before the names in messages. */
int fields_apply(const struct field *table, const char *prefix, struct params *p,
                 const json_t *object, struct problem *problem);

/* A value as messages show it: at most a line's part. */
const char *field_show(const json_t *value, char out[static 64]);

/* 400 for the field, unless more is known: "<name> is <value>: <must>". Returns -1. */
int field_refuse(const struct params *p, const struct field *f, const json_t *value,
                 const char *must, struct problem *problem);

/* True when value is a whole number within int64; 1.0 and 1e3 are. */
bool field_whole(const json_t *value, int64_t *out);

field_parser field_bool;    /* member: bool */
field_parser field_f64;     /* member: double, by range */
field_parser field_i64;     /* member: int64_t, by low and high */
field_parser field_u32;     /* member: uint32_t, by low and high */
field_parser field_string;  /* member: const char *, borrowed */
field_parser field_checked; /* must be a string; says nothing to the model ("user") */
field_parser field_seed;
field_parser field_model;
field_parser field_stop; /* a string or strings */
field_parser field_stop_ids;
field_parser field_bias;
field_parser field_kwargs;
field_parser field_members; /* an object with a table of its own */
field_parser field_stream_options;
field_parser field_priority;
field_parser field_max_tokens; /* max_tokens, where 0 asks for the prompt alone */
field_parser field_refused;    /* known, not supported: only its no-op values pass */

/* prompt.c */
field_parser field_prompt;      /* string, strings, ids, lists of ids */
field_parser field_prompt_text; /* string, strings */
field_parser field_prompt_ids;  /* ids, lists of ids */
field_parser field_messages;

/* Rows of tables. */
#define FIELD_AT(member) offsetof(struct params, member)
#define FIELD_BOOL(text, member)                                                                   \
    {                                                                                              \
        .name = text, .parse = field_bool, .offset = FIELD_AT(member)                              \
    }
#define FIELD_F64(text, member, row)                                                               \
    {                                                                                              \
        .name = text, .parse = field_f64, .offset = FIELD_AT(member), .range = row                 \
    }
#define FIELD_I64(text, member, lo, hi)                                                            \
    {                                                                                              \
        .name = text, .parse = field_i64, .offset = FIELD_AT(member), .low = lo, .high = hi        \
    }
#define FIELD_U32(text, member, lo, hi)                                                            \
    {                                                                                              \
        .name = text, .parse = field_u32, .offset = FIELD_AT(member), .low = lo, .high = hi        \
    }
#define FIELD_OWN(text, parser)                                                                    \
    {                                                                                              \
        .name = text, .parse = parser                                                              \
    }
#define FIELD_REFUSED(text, values)                                                                \
    {                                                                                              \
        .name = text, .parse = field_refused, .noop = values                                       \
    }

#define FIELD_PRIORITY                                                                             \
    {                                                                                              \
        .name = "priority", .parse = field_priority,                                               \
        .offset = FIELD_AT(generate.sampling.priority), .low = -HIGH_priority,                     \
        .high = HIGH_priority, .noop = "[0]"                                                       \
    }

/* Sampling fields that every endpoint spells alike. */
#define FIELDS_SAMPLING                                                                            \
    FIELD_F64("temperature", generate.sampling.temperature, RANGE_temperature),                    \
        FIELD_F64("top_p", generate.sampling.top_p, RANGE_top_p),                                  \
        FIELD_I64("top_k", generate.sampling.top_k, -1, HIGH_top_k),                               \
        FIELD_F64("min_p", generate.sampling.min_p, RANGE_min_p),                                  \
        FIELD_F64("presence_penalty", generate.sampling.presence_penalty, RANGE_presence_penalty), \
        FIELD_F64("frequency_penalty", generate.sampling.frequency_penalty,                        \
                  RANGE_frequency_penalty),                                                        \
        FIELD_F64("repetition_penalty", generate.sampling.repetition_penalty,                      \
                  RANGE_repetition_penalty),                                                       \
        FIELD_U32("n", generate.n, 1, LIMIT_N),                                                    \
        FIELD_BOOL("ignore_eos", generate.sampling.ignore_eos),                                    \
        FIELD_BOOL("skip_special_tokens", generate.skip_special_tokens),                           \
        FIELD_OWN("stop", field_stop), FIELD_OWN("stop_token_ids", field_stop_ids),                \
        FIELD_OWN("logit_bias", field_bias)

#endif

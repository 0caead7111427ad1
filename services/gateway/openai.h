/* What the two OpenAI endpoints share. */
#ifndef PHALANX_GATEWAY_OPENAI_H
#define PHALANX_GATEWAY_OPENAI_H

#include "services/gateway/call.h"
#include "services/gateway/fields.h"

/* Fields of both endpoints: rows of their tables. */
#define FIELDS_OPENAI                                                                              \
    FIELD_OWN("model", field_model), FIELDS_SAMPLING,                                              \
        FIELD_I64("max_tokens", max_tokens, 1, HIGH_max_tokens),                                   \
        FIELD_U32("min_tokens", generate.sampling.min_tokens, 0, HIGH_min_tokens),                 \
        FIELD_OWN("seed", field_seed), FIELD_BOOL("stream", stream),                               \
        FIELD_OWN("stream_options", field_stream_options), FIELD_OWN("user", field_checked),       \
        FIELD_BOOL("return_token_ids", return_ids), FIELD_I64("best_of", best_of, 1, LIMIT_N)

/* Known to OpenAI's clients or to those of SGLang and vLLM: refused by name, unless they ask for
 * what happens anyway. */
#define FIELDS_OPENAI_REFUSED                                                                      \
    FIELD_REFUSED("response_format", "[{\"type\":\"text\"}]"), FIELD_PRIORITY,                     \
        FIELD_REFUSED("metadata", "[{}]"), FIELD_REFUSED("store", "[false]"),                      \
        FIELD_REFUSED("service_tier", "[\"auto\",\"default\"]"),                                   \
        FIELD_REFUSED("safety_identifier", "[]"), FIELD_REFUSED("prompt_cache_key", "[]"),         \
        FIELD_REFUSED("length_penalty", "[1]"), FIELD_REFUSED("early_stopping", "[false]"),        \
        FIELD_REFUSED("use_beam_search", "[false]"), FIELD_REFUSED("bad_words", "[[]]"),           \
        FIELD_REFUSED("allowed_token_ids", "[]"), FIELD_REFUSED("prompt_logprobs", "[]"),          \
        FIELD_REFUSED("include_stop_str_in_output", "[false]"),                                    \
        FIELD_REFUSED("no_stop_trim", "[false]"),                                                  \
        FIELD_REFUSED("spaces_between_special_tokens", "[true]"),                                  \
        FIELD_REFUSED("truncate_prompt_tokens", "[]"), FIELD_REFUSED("guided_json", "[]"),         \
        FIELD_REFUSED("guided_regex", "[]"), FIELD_REFUSED("guided_choice", "[]"),                 \
        FIELD_REFUSED("guided_grammar", "[]"), FIELD_REFUSED("structured_outputs", "[]"),          \
        FIELD_REFUSED("regex", "[]"), FIELD_REFUSED("ebnf", "[]"),                                 \
        FIELD_REFUSED("json_schema", "[]"), FIELD_REFUSED("lora_path", "[]"),                      \
        FIELD_REFUSED("session_params", "[]"), FIELD_REFUSED("return_hidden_states", "[false]"),   \
        FIELD_REFUSED("return_tokens_as_token_ids", "[false]"),                                    \
        FIELD_REFUSED("custom_logit_processor", "[]"), FIELD_REFUSED("logits_processors", "[]")

/* Fills call->head: `{"id":...,"object":...,"system_fingerprint":...` without a brace at the end.
 */
void openai_open(struct call *call, const char *object, const char *model, const char *fingerprint);

/* "stop", "length" or "abort". */
const char *openai_finish(uint32_t finish);

/* Appends `,"usage":{...}`. */
void openai_usage(const struct call *call, struct buf *out);

/* Begins an event with one choice: ...,"choices":[{"index":i, and ends it. */
void openai_event_begin(const struct call *call, uint32_t index, struct buf *out);
void openai_event_end(const struct call *call, struct buf *out);

/* Appends `,"token_ids":[...]` when they were asked for. */
void openai_ids(const struct call *call, const struct call_choice *choice, struct buf *out);

/* The end of a stream: the usage event where asked for, [DONE]. */
void openai_tail(const struct call *call, struct buf *out);

/* The whole answer, its choices as the dialect writes them. */
void openai_result(const struct call *call, struct buf *out);

/* A log probability as JSON: minus infinity becomes -9999. */
void openai_logprob(double value, struct buf *out);

/* Appends a comma unless the list is empty. */
void openai_comma(struct buf *list);

#endif

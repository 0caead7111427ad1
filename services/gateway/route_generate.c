/* POST /generate, SGLang's own endpoint. */
#include "services/gateway/call.h"
#include "services/gateway/fields.h"
#include "services/gateway/openai.h"
#include "services/gateway/routes.h"

#include <string.h>

#define MAX_TOKENS_DEFAULT 128 /* SGLang's */
#define LISTS_OUTPUT 2         /* of a choice's lists: those before are the prompt's */

static const struct field sampling_fields[] = {
    FIELDS_SAMPLING,
    FIELD_OWN("max_new_tokens", field_max_tokens),
    FIELD_U32("min_new_tokens", generate.sampling.min_tokens, 0, HIGH_min_tokens),
    FIELD_OWN("sampling_seed", field_seed),
    FIELD_OWN("seed", field_seed),
    FIELD_REFUSED("spaces_between_special_tokens", "[true]"),
    FIELD_REFUSED("no_stop_trim", "[false]"),
    FIELD_REFUSED("stop_regex", "[]"),
    FIELD_REFUSED("json_schema", "[]"),
    FIELD_REFUSED("regex", "[]"),
    FIELD_REFUSED("ebnf", "[]"),
    FIELD_REFUSED("structural_tag", "[]"),
    FIELD_REFUSED("custom_params", "[]"),
    FIELD_REFUSED("stream_interval", "[]"),
    {0},
};

static const struct field fields[] = {
    FIELD_OWN("text", field_prompt_text),
    FIELD_OWN("input_ids", field_prompt_ids),
    {.name = "sampling_params", .parse = field_members, .members = sampling_fields},
    FIELD_BOOL("stream", stream),
    FIELD_BOOL("return_logprob", logprobs),
    FIELD_I64("top_logprobs_num", top_logprobs, 0, HIGH_logprobs),
    {.name = "rid", .parse = field_string, .offset = FIELD_AT(rid)},
    FIELD_I64("logprob_start_len", logprob_start, -1, 0),
    FIELD_REFUSED("token_ids_logprob", "[]"),
    FIELD_REFUSED("return_text_in_logprobs", "[true]"),
    FIELD_REFUSED("input_embeds", "[]"),
    FIELD_REFUSED("image_data", "[]"),
    FIELD_REFUSED("video_data", "[]"),
    FIELD_REFUSED("audio_data", "[]"),
    FIELD_REFUSED("modalities", "[]"),
    FIELD_REFUSED("lora_path", "[]"),
    FIELD_REFUSED("session_params", "[]"),
    FIELD_REFUSED("custom_logit_processor", "[]"),
    FIELD_REFUSED("return_hidden_states", "[false]"),
    FIELD_PRIORITY,
    FIELD_REFUSED("log_metrics", "[true]"),
    FIELD_REFUSED("background", "[false]"),
    {0},
};

static int generate_finish(struct params *p, struct problem *problem)
{
    if (!p->prompts)
        return problem_set(problem, 400, "missing_field", "text", "text or input_ids is required");
    if (p->rid && p->prompts_listed)
        return problem_set(problem, 400, "invalid_value", "rid", "rid is for a single prompt");
    if (p->logprobs)
        p->generate.sampling.logprobs = p->top_logprobs > 0 ? p->top_logprobs : 0;
    p->generate.sampling.prompt_logprobs = p->logprobs && p->logprob_start == 0;
    return 0;
}

static void render_token(double logprob, uint32_t id, struct proto_str text, bool known,
                         struct buf *out)
{
    buf_putc(out, '[');
    if (known)
        openai_logprob(logprob, out);
    else
        buf_puts(out, "null");
    buf_printf(out, ",%u,", (unsigned)id);
    buf_json_string(out, text.data, text.len);
    buf_putc(out, ']');
}

static void add_token(struct buf *tokens, struct buf *top, const struct proto_logprob *lp,
                      bool known)
{
    openai_comma(tokens);
    render_token(lp->logprob, lp->id, lp->text, known, tokens);
    openai_comma(top);
    if (!lp->top_count)
        buf_puts(top, "null");
    for (uint32_t k = 0; k < lp->top_count; k++) {
        buf_putc(top, k ? ',' : '[');
        render_token(lp->top[k].logprob, lp->top[k].id, lp->top[k].text, true, top);
    }
    if (lp->top_count)
        buf_putc(top, ']');
}

/* Lists: tokens and alternatives of the prompt, then those of the output. */
static void generate_logprobs(const struct call *call, struct call_choice *choice,
                              const struct proto_logprob *logprobs, uint32_t count)
{
    (void)call;
    for (uint32_t i = 0; i < count; i++)
        add_token(&choice->lists[LISTS_OUTPUT], &choice->lists[LISTS_OUTPUT + 1], &logprobs[i],
                  true);
}

static void generate_prompt(const struct call *call, struct call_choice *choice,
                            const struct proto_logprob *logprobs, uint32_t count)
{
    (void)call;
    for (uint32_t i = 0; i < count; i++)
        add_token(&choice->lists[0], &choice->lists[1], &logprobs[i], choice->prompt_seen + i > 0);
}

static void render_finish(const struct call_choice *choice, struct buf *out)
{
    buf_puts(out, ",\"finish_reason\":");
    if (!choice->ended) {
        buf_puts(out, "null");
        return;
    }
    buf_printf(out, "{\"type\":\"%s\"", openai_finish(choice->finish));
    if (choice->finish == FINISH_LENGTH) {
        buf_printf(out, ",\"length\":%u", (unsigned)choice->tokens);
    } else if (choice->stop_text) {
        buf_puts(out, ",\"matched\":");
        buf_json_string(out, choice->stop_text, strlen(choice->stop_text));
    } else if (choice->finish == FINISH_STOP && choice->stop_id >= 0) {
        buf_printf(out, ",\"matched\":%lld", (long long)choice->stop_id);
    }
    buf_putc(out, '}');
}

static void render_choice(const struct call *call, uint32_t index, struct buf *out)
{
    static const char *const names[CALL_LISTS] = {"input_token_logprobs", "input_top_logprobs",
                                                  "output_token_logprobs", "output_top_logprobs"};
    const struct call_choice *choice = &call->choices[index];
    const struct call_part *part = &call->parts[index / call->n];

    buf_puts(out, "{\"text\":");
    buf_json_string(out, choice->text.data, choice->text.len);
    buf_puts(out, ",\"output_ids\":[");
    buf_append(out, choice->ids.data, choice->ids.len);
    buf_puts(out, "],\"meta_info\":{\"id\":");
    buf_json_string(out, call->id, strlen(call->id));
    render_finish(choice, out);
    buf_printf(out, ",\"prompt_tokens\":%u,\"completion_tokens\":%u,\"cached_tokens\":%u",
               (unsigned)part->prompt_tokens, (unsigned)choice->tokens,
               (unsigned)part->cached_tokens);
    for (int k = 0; call->logprobs && k < CALL_LISTS; k++) {
        buf_printf(out, ",\"%s\":[", names[k]);
        if (k >= LISTS_OUTPUT || !choice->begun) /* the prompt's are in the first event alone */
            buf_append(out, choice->lists[k].data, choice->lists[k].len);
        buf_putc(out, ']');
    }
    buf_putc(out, '}');
    if (call->listed && call->stream)
        buf_printf(out, ",\"index\":%u", (unsigned)index);
    buf_putc(out, '}');
}

static void generate_event(const struct call *call, uint32_t index, struct buf *out)
{
    buf_puts(out, "data: ");
    render_choice(call, index, out);
    buf_puts(out, "\n\n");
}

static void generate_tail(const struct call *call, struct buf *out)
{
    (void)call;
    buf_puts(out, "data: [DONE]\n\n");
}

static void generate_result(const struct call *call, struct buf *out)
{
    if (call->listed)
        buf_putc(out, '[');
    for (uint32_t i = 0; i < call->choices_count; i++) {
        if (i)
            buf_putc(out, ',');
        render_choice(call, i, out);
    }
    if (call->listed)
        buf_putc(out, ']');
}

const struct dialect dialect_generate = {
    .params = {.fields = fields, .max_tokens = MAX_TOKENS_DEFAULT, .finish = generate_finish},
    .id_prefix = "gen-",
    .cumulative = true,
    .logprobs = generate_logprobs,
    .prompt_logprobs = generate_prompt,
    .event = generate_event,
    .tail = generate_tail,
    .result = generate_result,
};

void route_generate(struct conn *c, const char *rest)
{
    (void)rest;
    call_serve(c, &dialect_generate);
}

/* POST /v1/chat/completions. */
#include "services/gateway/openai.h"
#include "services/gateway/routes.h"

#include <string.h>

static const struct field fields[] = {
    FIELDS_OPENAI,
    FIELD_OWN("messages", field_messages),
    FIELD_I64("max_completion_tokens", max_completion_tokens, 1, HIGH_max_tokens),
    FIELD_BOOL("logprobs", logprobs),
    FIELD_I64("top_logprobs", top_logprobs, 0, HIGH_logprobs),
    FIELD_OWN("chat_template_kwargs", field_kwargs),
    FIELD_BOOL("add_generation_prompt", generate.add_generation_prompt),
    FIELD_BOOL("continue_final_message", generate.continue_final_message),
    FIELDS_OPENAI_REFUSED,
    FIELD_REFUSED("tools", "[[]]"),
    FIELD_REFUSED("tool_choice", "[\"none\"]"),
    FIELD_REFUSED("parallel_tool_calls", "[true,false]"),
    FIELD_REFUSED("functions", "[[]]"),
    FIELD_REFUSED("function_call", "[\"none\"]"),
    FIELD_REFUSED("modalities", "[[\"text\"]]"),
    FIELD_REFUSED("audio", "[]"),
    FIELD_REFUSED("prediction", "[]"),
    FIELD_REFUSED("reasoning_effort", "[]"),
    FIELD_REFUSED("verbosity", "[]"),
    FIELD_REFUSED("web_search_options", "[]"),
    FIELD_REFUSED("echo", "[false]"),
    FIELD_REFUSED("add_special_tokens", "[false]"),
    FIELD_REFUSED("chat_template", "[]"),
    FIELD_REFUSED("documents", "[[]]"),
    FIELD_REFUSED("separate_reasoning", "[false]"),
    FIELD_REFUSED("stream_reasoning", "[true,false]"),
    {0},
};

static int chat_finish(struct params *p, struct problem *problem)
{
    if (!p->prompts)
        return problem_set(problem, 400, "missing_field", "messages", "messages is required");
    if (p->top_logprobs >= 0 && !p->logprobs)
        return problem_set(problem, 400, "invalid_value", "top_logprobs",
                           "top_logprobs needs \"logprobs\": true");
    if (p->generate.continue_final_message && p->generate.add_generation_prompt)
        return problem_set(problem, 400, "invalid_value", "continue_final_message",
                           "continue_final_message needs \"add_generation_prompt\": false");
    if (p->logprobs)
        p->generate.sampling.logprobs = p->top_logprobs > 0 ? p->top_logprobs : 0;
    if (p->max_completion_tokens)
        p->max_tokens = p->max_completion_tokens;
    return 0;
}

static void chat_open(struct call *call, const char *model, const char *fingerprint)
{
    openai_open(call, call->stream ? "chat.completion.chunk" : "chat.completion", model,
                fingerprint);
}

static void render_token(const char *text, size_t len, double logprob, struct buf *out)
{
    buf_puts(out, "{\"token\":");
    buf_json_string(out, text, len);
    buf_puts(out, ",\"logprob\":");
    openai_logprob(logprob, out);
    buf_puts(out, ",\"bytes\":[");
    for (size_t i = 0; i < len; i++)
        buf_printf(out, "%s%u", i ? "," : "", (unsigned)(unsigned char)text[i]);
    buf_puts(out, "]");
}

static void chat_logprobs(const struct call *call, struct call_choice *choice,
                          const struct proto_logprob *logprobs, uint32_t count)
{
    struct buf *out = &choice->lists[0];

    (void)call;
    for (uint32_t i = 0; i < count; i++) {
        const struct proto_logprob *lp = &logprobs[i];

        openai_comma(out);
        render_token(lp->text.data, lp->text.len, lp->logprob, out);
        buf_puts(out, ",\"top_logprobs\":[");
        for (uint32_t k = 0; k < lp->top_count; k++) {
            if (k)
                buf_putc(out, ',');
            render_token(lp->top[k].text.data, lp->top[k].text.len, lp->top[k].logprob, out);
            buf_putc(out, '}');
        }
        buf_puts(out, "]}");
    }
}

static void render_logprobs(const struct call *call, const struct call_choice *choice,
                            struct buf *out)
{
    buf_puts(out, ",\"logprobs\":");
    if (!call->logprobs) {
        buf_puts(out, "null");
        return;
    }
    buf_puts(out, "{\"content\":[");
    buf_append(out, choice->lists[0].data, choice->lists[0].len);
    buf_puts(out, "],\"refusal\":null}");
}

static void chat_event(const struct call *call, uint32_t index, struct buf *out)
{
    const struct call_choice *choice = &call->choices[index];

    if (!choice->begun) {
        openai_event_begin(call, index, out);
        buf_puts(out, "\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                      "\"finish_reason\":null");
        openai_event_end(call, out);
    }
    if (choice->text.len || choice->lists[0].len || choice->ids.len) {
        openai_event_begin(call, index, out);
        buf_puts(out, "\"delta\":{\"content\":");
        buf_json_string(out, choice->text.data, choice->text.len);
        buf_putc(out, '}');
        render_logprobs(call, choice, out);
        openai_ids(call, choice, out);
        buf_puts(out, ",\"finish_reason\":null");
        openai_event_end(call, out);
    }
    if (choice->ended) {
        openai_event_begin(call, index, out);
        buf_printf(out, "\"delta\":{},\"logprobs\":null,\"finish_reason\":\"%s\"",
                   openai_finish(choice->finish));
        openai_event_end(call, out);
    }
}

static void chat_choice(const struct call *call, const struct call_choice *choice, struct buf *out)
{
    buf_puts(out, "\"message\":{\"role\":\"assistant\",\"content\":");
    buf_json_string(out, choice->text.data, choice->text.len);
    buf_puts(out, ",\"refusal\":null}");
    render_logprobs(call, choice, out);
}

const struct dialect dialect_chat = {
    .params = {.fields = fields, .chat = true, .finish = chat_finish},
    .id_prefix = "chatcmpl-",
    .open = chat_open,
    .logprobs = chat_logprobs,
    .event = chat_event,
    .tail = openai_tail,
    .choice = chat_choice,
    .result = openai_result,
};

void route_chat(struct conn *c, const char *rest)
{
    (void)rest;
    call_serve(c, &dialect_chat);
}

/* POST /v1/completions. */
#include "services/gateway/openai.h"
#include "services/gateway/routes.h"

#include <stdio.h>
#include <string.h>

#define MAX_TOKENS_DEFAULT 16 /* OpenAI's */

static const struct field fields[] = {
    FIELD_OWN("max_tokens", field_max_tokens), /* the first row of a name counts */
    FIELDS_OPENAI,
    FIELD_OWN("prompt", field_prompt),
    FIELD_I64("logprobs", logprobs_count, 0, HIGH_logprobs),
    FIELD_BOOL("echo", generate.echo),
    FIELDS_OPENAI_REFUSED,
    FIELD_REFUSED("suffix", "[\"\"]"),
    FIELD_REFUSED("max_completion_tokens", "[]"),
    FIELD_REFUSED("top_logprobs", "[]"),
    FIELD_REFUSED("add_special_tokens", "[true]"),
    FIELD_REFUSED("prompt_embeds", "[]"),
    {0},
};

static int completions_finish(struct params *p, struct problem *problem)
{
    if (!p->prompts)
        return problem_set(problem, 400, "missing_field", "prompt", "prompt is required");
    if (p->generate.prompt_only && !p->generate.echo)
        return problem_set(problem, 400, "invalid_value", "max_tokens",
                           "max_tokens is 0: must be from 1 to %d without \"echo\": true",
                           HIGH_max_tokens);
    p->generate.sampling.logprobs = p->logprobs_count;
    p->generate.sampling.prompt_logprobs = p->generate.echo && p->logprobs_count >= 0;
    return 0;
}

static void completions_open(struct call *call, const char *model, const char *fingerprint)
{
    openai_open(call, "text_completion", model, fingerprint);
}

static uint32_t code_points(struct proto_str text)
{
    uint32_t count = 0;

    for (size_t i = 0; i < text.len; i++)
        count += (text.data[i] & 0xc0) != 0x80;
    return count;
}

static bool same_text(struct proto_str a, struct proto_str b)
{
    return a.len == b.len && (!a.len || memcmp(a.data, b.data, a.len) == 0);
}

static void render_pair(struct proto_str text, double logprob, bool first, struct buf *out)
{
    if (!first)
        buf_putc(out, ',');
    buf_json_string(out, text.data, text.len);
    buf_putc(out, ':');
    openai_logprob(logprob, out);
}

/* {"token": logprob}: the alternatives, best first, and the chosen one. A text that two tokens
 * share stands once. */
static void render_top(const struct proto_logprob *lp, struct buf *out)
{
    bool chosen = false, first = true;

    buf_putc(out, '{');
    for (uint32_t k = 0; k < lp->top_count; k++) {
        bool again = false;

        for (uint32_t j = 0; j < k && !again; j++)
            again = same_text(lp->top[j].text, lp->top[k].text);
        if (again)
            continue;
        render_pair(lp->top[k].text, lp->top[k].logprob, first, out);
        chosen = chosen || same_text(lp->top[k].text, lp->text);
        first = false;
    }
    if (!chosen)
        render_pair(lp->text, lp->logprob, first, out);
    buf_putc(out, '}');
}

/* Lists: tokens, token_logprobs, top_logprobs, text_offset. */
static void add_token(struct call_choice *choice, const struct proto_logprob *lp, bool known)
{
    for (int k = 0; k < CALL_LISTS; k++)
        openai_comma(&choice->lists[k]);
    buf_json_string(&choice->lists[0], lp->text.data, lp->text.len);
    if (known) {
        openai_logprob(lp->logprob, &choice->lists[1]);
        render_top(lp, &choice->lists[2]);
    } else {
        buf_puts(&choice->lists[1], "null");
        buf_puts(&choice->lists[2], "null");
    }
    buf_printf(&choice->lists[3], "%u", (unsigned)choice->chars);
    choice->chars += code_points(lp->text);
}

static void completions_logprobs(const struct call *call, struct call_choice *choice,
                                 const struct proto_logprob *logprobs, uint32_t count)
{
    (void)call;
    for (uint32_t i = 0; i < count; i++)
        add_token(choice, &logprobs[i], true);
}

static void completions_prompt(const struct call *call, struct call_choice *choice,
                               const struct proto_logprob *logprobs, uint32_t count)
{
    (void)call;
    for (uint32_t i = 0; i < count; i++)
        add_token(choice, &logprobs[i], choice->prompt_seen + i > 0);
}

static void render_logprobs(const struct call *call, const struct call_choice *choice,
                            struct buf *out)
{
    static const char *const names[CALL_LISTS] = {"tokens", "token_logprobs", "top_logprobs",
                                                  "text_offset"};

    buf_puts(out, ",\"logprobs\":");
    if (!call->logprobs) {
        buf_puts(out, "null");
        return;
    }
    for (int k = 0; k < CALL_LISTS; k++) {
        buf_printf(out, "%c\"%s\":[", k ? ',' : '{', names[k]);
        buf_append(out, choice->lists[k].data, choice->lists[k].len);
        buf_putc(out, ']');
    }
    buf_putc(out, '}');
}

static void completions_event(const struct call *call, uint32_t index, struct buf *out)
{
    const struct call_choice *choice = &call->choices[index];

    if (choice->text.len || choice->lists[0].len || choice->ids.len) {
        openai_event_begin(call, index, out);
        buf_puts(out, "\"text\":");
        buf_json_string(out, choice->text.data, choice->text.len);
        render_logprobs(call, choice, out);
        openai_ids(call, choice, out);
        buf_puts(out, ",\"finish_reason\":null");
        openai_event_end(call, out);
    }
    if (choice->ended) {
        openai_event_begin(call, index, out);
        buf_printf(out, "\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"%s\"",
                   openai_finish(choice->finish));
        openai_event_end(call, out);
    }
}

static void completions_choice(const struct call *call, const struct call_choice *choice,
                               struct buf *out)
{
    buf_puts(out, "\"text\":");
    buf_json_string(out, choice->text.data, choice->text.len);
    render_logprobs(call, choice, out);
}

const struct dialect dialect_completions = {
    .params = {.fields = fields, .max_tokens = MAX_TOKENS_DEFAULT, .finish = completions_finish},
    .id_prefix = "cmpl-",
    .open = completions_open,
    .logprobs = completions_logprobs,
    .prompt_logprobs = completions_prompt,
    .event = completions_event,
    .tail = openai_tail,
    .choice = completions_choice,
    .result = openai_result,
};

void route_completions(struct conn *c, const char *rest)
{
    (void)rest;
    call_serve(c, &dialect_completions);
}

#include "services/gateway/openai.h"

#include <math.h>
#include <string.h>

void openai_open(struct call *call, const char *object, const char *model, const char *fingerprint)
{
    struct buf *head = &call->head;

    buf_puts(head, "{\"id\":");
    buf_json_string(head, call->id, strlen(call->id));
    buf_printf(head, ",\"object\":\"%s\",\"created\":%lld,\"model\":", object,
               (long long)call->created_s);
    buf_json_string(head, model, strlen(model));
    buf_printf(head, ",\"system_fingerprint\":\"%s\"", fingerprint);
}

const char *openai_finish(uint32_t finish)
{
    if (finish == FINISH_STOP)
        return "stop";
    return finish == FINISH_LENGTH ? "length" : "abort";
}

void openai_usage(const struct call *call, struct buf *out)
{
    unsigned long long prompt = 0, cached = 0, completion = 0;

    for (uint32_t i = 0; i < call->parts_count; i++) {
        prompt += call->parts[i].prompt_tokens;
        cached += call->parts[i].cached_tokens;
    }
    for (uint32_t i = 0; i < call->choices_count; i++)
        completion += call->choices[i].tokens;
    buf_printf(out,
               ",\"usage\":{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":"
               "%llu,\"prompt_tokens_details\":{\"cached_tokens\":%llu}}",
               prompt, completion, prompt + completion, cached);
}

void openai_event_begin(const struct call *call, uint32_t index, struct buf *out)
{
    buf_puts(out, "data: ");
    buf_append(out, call->head.data, call->head.len);
    buf_puts(out, ",\"choices\":[{\"index\":");
    buf_uint(out, index);
    buf_putc(out, ',');
}

void openai_event_end(const struct call *call, struct buf *out)
{
    buf_puts(out, call->include_usage ? "}],\"usage\":null}\n\n" : "}]}\n\n");
}

void openai_ids(const struct call *call, const struct call_choice *choice, struct buf *out)
{
    if (!call->return_ids)
        return;
    buf_puts(out, ",\"token_ids\":[");
    buf_append(out, choice->ids.data, choice->ids.len);
    buf_putc(out, ']');
}

void openai_tail(const struct call *call, struct buf *out)
{
    if (call->include_usage) {
        buf_puts(out, "data: ");
        buf_append(out, call->head.data, call->head.len);
        buf_puts(out, ",\"choices\":[]");
        openai_usage(call, out);
        buf_puts(out, "}\n\n");
    }
    buf_puts(out, "data: [DONE]\n\n");
}

void openai_result(const struct call *call, struct buf *out)
{
    buf_append(out, call->head.data, call->head.len);
    buf_puts(out, ",\"choices\":[");
    for (uint32_t i = 0; i < call->choices_count; i++) {
        buf_printf(out, "%s{\"index\":%u,", i ? "," : "", (unsigned)i);
        call->dialect->choice(call, &call->choices[i], out);
        openai_ids(call, &call->choices[i], out);
        buf_printf(out, ",\"finish_reason\":\"%s\"}", openai_finish(call->choices[i].finish));
    }
    buf_putc(out, ']');
    openai_usage(call, out);
    buf_putc(out, '}');
}

void openai_logprob(double value, struct buf *out)
{
    buf_json_number(out, isfinite(value) ? value : -9999.0);
}

void openai_comma(struct buf *list)
{
    if (list->len)
        buf_putc(list, ',');
}

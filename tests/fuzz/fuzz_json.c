/* A body into the request parsers of every endpoint, and what they say into an error's JSON. What
 * is accepted must be within the limits that the scheduler enforces again. */
#include "services/gateway/call.h"
#include "services/gateway/defaults.h"
#include "services/gateway/params.h"

#include <stdint.h>
#include <stdlib.h>

static void check_range(double value, double low, double high)
{
    if (!(value >= low && value <= high))
        abort();
}

static void check_accepted(const struct params *p)
{
    const struct proto_sampling *s = &p->generate.sampling;

#define SAMPLING(field, low, high, what) check_range((double)s->field, low, high);
#include "proto/limits.def"
    if (!p->prompts_count || p->prompts_count > 256 || !p->generate.n || p->generate.n > 128)
        abort();
    if (s->max_tokens && s->min_tokens > s->max_tokens)
        abort();
    for (uint32_t i = 0; i < s->stop_token_ids_count; i++)
        check_range(s->stop_token_ids[i], 0, 999);
    for (uint32_t i = 0; i < s->logit_bias_count; i++)
        check_range(s->logit_bias[i].id, 0, 999);
    for (size_t i = 0; i < p->prompts_count; i++)
        for (uint32_t k = 0; k < p->prompts[i].ids_count; k++)
            check_range(p->prompts[i].ids[k], 0, 999);
}

static void check_refused(const struct problem *problem)
{
    struct buf out = {0};
    json_t *parsed;

    if (problem->status < 400 || problem->status > 499 || !problem->message[0])
        abort();
    problem_render(problem, &out);
    parsed = json_loadb(out.data, out.len, 0, NULL);
    if (!parsed)
        abort();
    json_decref(parsed);
    buf_fini(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct dialect *const dialects[] = {&dialect_chat, &dialect_completions,
                                              &dialect_generate};
    struct params_context context = {.model = "m", .vocab_size = 1000};
    struct err err = {0};
    json_t *body = NULL;

    if (json_parse((const char *)data, size, 64, &body, &err))
        return 0;
    defaults_init(&context.defaults);
    for (size_t i = 0; i < 3; i++) {
        struct params params;
        struct problem problem = {0};

        if (params_parse(&dialects[i]->params, &context, body, &params, &problem))
            check_refused(&problem);
        else
            check_accepted(&params);
        params_fini(&params);
    }
    json_decref(body);
    return 0;
}

#include "services/gateway/params.h"

#include "services/gateway/fields.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

static void params_init(struct params *p, const struct params_kind *kind,
                        const struct params_context *context)
{
    memset(p, 0, sizeof *p);
    p->context = context;
    p->prefix = "";
    p->generate.sampling = context->defaults;
    p->generate.n = 1;
    p->generate.skip_special_tokens = true;
    p->generate.add_generation_prompt = kind->chat;
    p->max_tokens = 0;
    p->top_logprobs = -1;
    p->logprobs_count = -1;
    p->logprob_start = -1;
}

int params_parse(const struct params_kind *kind, const struct params_context *context,
                 const json_t *body, struct params *out, struct problem *problem)
{
    params_init(out, kind, context);
    if (!json_is_object(body))
        return problem_set(problem, 400, NULL, NULL, "the body must be a JSON object");
    if (fields_apply(kind->fields, "", out, body, problem))
        return -1;
    if (!out->max_tokens)
        out->max_tokens = kind->max_tokens;
    out->generate.sampling.logprobs = -1;
    if (kind->finish(out, problem))
        return -1;
    return params_finish(out, problem);
}

void params_fini(struct params *p)
{
    for (size_t i = 0; i < p->prompts_count; i++)
        free(p->prompts[i].ids);
    free(p->prompts);
    free(p->generate.stops);
    free(p->generate.sampling.stop_token_ids);
    free(p->generate.sampling.logit_bias);
    free(p->template_kwargs);
    buf_fini(&p->messages);
    memset(p, 0, sizeof *p);
}

int params_finish(struct params *p, struct problem *problem)
{
    struct proto_sampling *s = &p->generate.sampling;

    if (p->stream_options && !p->stream)
        return problem_set(problem, 400, "invalid_value", "stream_options",
                           "stream_options needs \"stream\": true");
    if (p->best_of && p->best_of != 1 && p->best_of != (int64_t)p->generate.n)
        return problem_set(problem, 400, "unsupported_field", "best_of",
                           "best_of is %lld: only 1 and n are supported", (long long)p->best_of);
    s->max_tokens = (uint32_t)p->max_tokens;
    if (s->max_tokens && s->min_tokens > s->max_tokens)
        return problem_set(problem, 400, "invalid_value", "min_tokens",
                           "min_tokens is %u: must be at most max_tokens, which is %u",
                           (unsigned)s->min_tokens, (unsigned)s->max_tokens);
    if (!s->top_k)
        s->top_k = -1;
    if (p->seeded)
        s->seed = (uint64_t)p->seed;
    else if (getrandom(&s->seed, sizeof s->seed, 0) != (ssize_t)sizeof s->seed)
        return problem_set(problem, 500, NULL, NULL, "no random numbers from the system");
    return 0;
}

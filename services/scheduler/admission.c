#include "services/scheduler/admission.h"

#include <math.h>

static int refuse(struct scheduler_refusal *refusal, const char *param)
{
    refusal->param = param;
    return ERR_INVALID;
}

static int check_sampling(const struct proto_sampling *s, struct scheduler_refusal *refusal,
                          struct err *err)
{
/* Written so that NaN fails too. */
#define SAMPLING(field, low, high, what)                                                           \
    if (!((double)s->field >= (double)(low) && (double)s->field <= (double)(high)))                \
        return err_set(err, refuse(refusal, #field), "%s %g is outside of %g .. %g (%s)", #field,  \
                       (double)s->field, (double)(low), (double)(high), what);
#include "proto/limits.def"
    if (s->max_tokens && s->min_tokens > s->max_tokens)
        return err_set(err, refuse(refusal, "min_tokens"), "min_tokens %u is above max_tokens %u",
                       s->min_tokens, s->max_tokens);
    return 0;
}

static int check_ids(const struct scheduler_config *config, const uint32_t *ids, uint32_t count,
                     const char *field, struct scheduler_refusal *refusal, struct err *err)
{
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] >= config->vocab_size)
            return err_set(err, refuse(refusal, field),
                           "%s: token id %u is outside of the vocabulary (%u)", field, ids[i],
                           config->vocab_size);
    return 0;
}

static int check_count(uint32_t count, uint32_t high, const char *field,
                       struct scheduler_refusal *refusal, struct err *err)
{
    if (count > high)
        return err_set(err, refuse(refusal, field), "%s: %u entries, at most %u", field, count,
                       high);
    return 0;
}

static int check_stop_ids(const struct scheduler_config *config, const struct proto_sampling *s,
                          struct scheduler_refusal *refusal, struct err *err)
{
    if (check_count(s->stop_token_ids_count, LIMIT_STOP_IDS, "stop_token_ids", refusal, err))
        return ERR_INVALID;
    return check_ids(config, s->stop_token_ids, s->stop_token_ids_count, "stop_token_ids", refusal,
                     err);
}

static int check_bias(const struct scheduler_config *config, const struct proto_sampling *s,
                      struct scheduler_refusal *refusal, struct err *err)
{
    if (check_count(s->logit_bias_count, LIMIT_BIASES, "logit_bias", refusal, err))
        return ERR_INVALID;
    for (uint32_t i = 0; i < s->logit_bias_count; i++) {
        const struct proto_bias *bias = &s->logit_bias[i];

        if (check_ids(config, &bias->id, 1, "logit_bias", refusal, err))
            return ERR_INVALID;
        if (!isfinite(bias->value))
            return err_set(err, refuse(refusal, "logit_bias"), "logit_bias of %u is not a number",
                           bias->id);
    }
    return 0;
}

static int check_prompt(const struct scheduler_config *config,
                        const struct scheduler_request *request, struct scheduler_refusal *refusal,
                        struct err *err)
{
    if (request->prompt_count == 0)
        return err_set(err, refuse(refusal, "prompt"), "the prompt is empty");
    if (request->prompt_count >= config->context_length) {
        *refusal = (struct scheduler_refusal){"prompt", "context_length_exceeded"};
        return err_set(err, ERR_LIMIT,
                       "the prompt has %u tokens, the model's context holds %u and one of them is "
                       "for the output",
                       request->prompt_count, config->context_length);
    }
    if (check_count(request->prompt_count, LIMIT_PROMPT_IDS, "prompt", refusal, err))
        return ERR_INVALID;
    return check_ids(config, request->prompt, request->prompt_count, "prompt", refusal, err);
}

static int check_prompt_logprobs(const struct scheduler_config *config,
                                 const struct scheduler_request *request,
                                 struct scheduler_refusal *refusal, struct err *err)
{
    const struct proto_sampling *s = request->sampling;

    if (!s->prompt_logprobs)
        return 0;
    if (!config->prompt_logprobs) {
        *refusal = (struct scheduler_refusal){"logprobs", "unsupported_field"};
        return err_set(err, ERR_INVALID,
                       "log probabilities of the prompt's tokens are not supported on this "
                       "server's device");
    }
    if (s->logprobs < 0)
        return err_set(err, refuse(refusal, "logprobs"),
                       "prompt_logprobs without a number of logprobs");
    if ((uint64_t)request->prompt_count * (uint64_t)(s->logprobs + 1) > LIMIT_PROMPT_LOGPROBS)
        return err_set(err, refuse(refusal, "logprobs"),
                       "%u prompt tokens with %u log probabilities each, at most %d in all",
                       request->prompt_count, (uint32_t)s->logprobs + 1, LIMIT_PROMPT_LOGPROBS);
    return 0;
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* max_tokens as far as the pool goes; where it was asked for it is not cut. */
static int fit_pool(const struct scheduler_config *config, uint32_t prompt_count, bool asked,
                    struct proto_sampling *s, struct err *err)
{
    uint64_t pool = (uint64_t)config->num_pages * config->page_size;
    uint32_t pages;

    if (!asked && pool > prompt_count && s->max_tokens > pool - prompt_count)
        s->max_tokens = (uint32_t)(pool - prompt_count);
    pages = admission_pages(config, prompt_count, s);
    if (pages > config->num_pages)
        return err_set(err, ERR_LIMIT,
                       "%u prompt tokens and %u new ones need %u KV pages of %u tokens, there are "
                       "%u",
                       prompt_count, s->max_tokens, pages, config->page_size, config->num_pages);
    s->min_tokens = min_u32(s->min_tokens, s->max_tokens);
    return 0;
}

static int fit_resumed(uint32_t resumed_count, uint32_t max_tokens, struct err *err)
{
    if (resumed_count >= max_tokens)
        return err_set(err, ERR_LIMIT, "%u tokens came already, there is room for %u",
                       resumed_count, max_tokens);
    return 0;
}

static int resolve_lengths(const struct scheduler_config *config,
                           const struct scheduler_request *request, struct proto_sampling *s,
                           struct scheduler_refusal *refusal, struct err *err)
{
    uint32_t room = config->context_length - request->prompt_count;
    bool asked = s->max_tokens > 0;

    s->max_tokens = asked ? min_u32(s->max_tokens, room) : room;
    *refusal =
        (struct scheduler_refusal){asked ? "max_tokens" : "prompt", "context_length_exceeded"};
    if (fit_pool(config, request->prompt_count, asked, s, err))
        return ERR_LIMIT;
    *refusal = (struct scheduler_refusal){"resumed", "context_length_exceeded"};
    if (fit_resumed(request->resumed_count, s->max_tokens, err))
        return ERR_LIMIT;
    *refusal = (struct scheduler_refusal){"", ""};
    return 0;
}

int admission_refit(const struct scheduler_config *config, struct sequence *seq, struct err *err)
{
    int rc = fit_pool(config, seq->prompt_count, seq->max_asked, &seq->sampling, err);

    return rc ? rc : fit_resumed(seq->generated, seq->sampling.max_tokens, err);
}

static int check_resumed(const struct scheduler_config *config,
                         const struct scheduler_request *request, struct scheduler_refusal *refusal,
                         struct err *err)
{
    if (request->replays > LIMIT_REPLAYS) {
        *refusal = (struct scheduler_refusal){"", "replays_exhausted"};
        return err_set(err, ERR_PEER, "the request was begun anew %u times, at most %d",
                       request->replays, LIMIT_REPLAYS);
    }
    return check_ids(config, request->resumed, request->resumed_count, "resumed", refusal, err);
}

int admission_check(const struct scheduler_config *config, const struct scheduler_request *request,
                    struct proto_sampling *resolved, struct scheduler_refusal *refusal,
                    struct err *err)
{
    const struct proto_sampling *s = request->sampling;
    int rc;

    *refusal = (struct scheduler_refusal){"", ""};
    *resolved = *s;
    if ((rc = check_prompt(config, request, refusal, err)) ||
        (rc = check_sampling(s, refusal, err)) || (rc = check_stop_ids(config, s, refusal, err)) ||
        (rc = check_bias(config, s, refusal, err)) ||
        (rc = check_resumed(config, request, refusal, err)) ||
        (rc = check_prompt_logprobs(config, request, refusal, err)))
        return rc;
    return resolve_lengths(config, request, resolved, refusal, err);
}

uint32_t admission_pages(const struct scheduler_config *config, uint32_t prompt_count,
                         const struct proto_sampling *resolved)
{
    uint64_t tokens = (uint64_t)prompt_count + resolved->max_tokens;

    return (uint32_t)((tokens + config->page_size - 1) / config->page_size);
}

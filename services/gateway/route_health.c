/* Health: live is that the loop turns; ready is what the last STATE said while its sender is up;
 * /health_generate makes a token pass through every process. */
#include "services/gateway/call.h"
#include "services/gateway/defaults.h"
#include "services/gateway/reply.h"
#include "services/gateway/routes.h"

static void reply_ok(struct conn *c)
{
    static const char body[] = "{\"status\":\"ok\"}";

    reply_send(
        c, &(struct reply){
               .status = 200, .type = "application/json", .data = body, .len = sizeof body - 1});
}

void route_live(struct conn *c, const char *rest)
{
    (void)rest;
    reply_ok(c);
}

static bool refuse_unready(struct conn *c)
{
    struct problem problem = {0};
    const char *why = "draining";

    if (!c->gw->draining && backend_ready(&c->gw->backend, &why))
        return false;
    (void)problem_set(&problem, 503, "not_ready", NULL, "the server is not ready: %s", why);
    reply_problem(c, &problem);
    return true;
}

void route_health(struct conn *c, const char *rest)
{
    (void)rest;
    if (!refuse_unready(c))
        reply_ok(c);
}

static void probe_logprobs(const struct call *call, struct call_choice *choice,
                           const struct proto_logprob *logprobs, uint32_t count)
{
    (void)call;
    (void)choice;
    (void)logprobs;
    (void)count;
}

static void probe_result(const struct call *call, struct buf *out)
{
    (void)call;
    buf_puts(out, "{\"status\":\"ok\"}");
}

static const struct dialect probe = {
    .id_prefix = "probe-",
    .probe = true,
    .logprobs = probe_logprobs,
    .result = probe_result,
};

void route_health_generate(struct conn *c, const char *rest)
{
    uint32_t id = 0;
    struct prompt prompt = {.ids = &id, .ids_count = 1};
    struct params params = {.prompts = &prompt, .prompts_count = 1};

    (void)rest;
    if (refuse_unready(c))
        return;
    defaults_init(&params.generate.sampling);
    params.generate.n = 1;
    params.generate.sampling.temperature = 0.0;
    params.generate.sampling.max_tokens = 1;
    params.generate.sampling.ignore_eos = true;
    call_start(c, &probe, &params);
}

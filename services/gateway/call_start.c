/* The beginning of a call: from a request's body to GENERATE messages. */
#include "services/gateway/call.h"

#include "common/mem.h"
#include "services/gateway/reply.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bound of what is accepted: what runs and what may wait. */
static int call_admit(const struct gateway *gw, const struct params *params,
                      struct problem *problem)
{
    size_t wanted = params->prompts_count * params->generate.n;
    size_t bound = (size_t)gw->queued_max + backend_max_running(&gw->backend);

    if (wanted > bound)
        return problem_set(
            problem, 400, "too_many_choices", "n",
            "the request asks for %zu choices: this server takes at most %zu at once", wanted,
            bound);
    if (gw->choices_open + wanted > bound)
        return problem_set(problem, 429, "queue_full", NULL,
                           "%zu choices are being generated or wait: the limit is %zu",
                           gw->choices_open, bound);
    return 0;
}

static struct call *call_new(struct conn *c, const struct dialect *dialect,
                             const struct params *params)
{
    struct gateway *gw = c->gw;
    struct call *call = mem_zalloc(sizeof *call);
    int64_t us_max = dialect->probe ? HTTP_PROBE_MS_MAX * INT64_C(1000) : gw->request_us_max;
    char id[48];

    if (params->rid)
        (void)snprintf(id, sizeof id, "%.47s", params->rid);
    else
        (void)snprintf(id, sizeof id, "%s%016llx%08x", dialect->id_prefix,
                       (unsigned long long)gateway_random(gw), (unsigned)gateway_random(gw));
    call_init(call, dialect, params, id, gw->model, gw->fingerprint);
    call->gw = gw;
    call->conn = c;
    call->deadline_us = call->started_us + us_max;
    c->call = call;
    gw->calls_count++;
    gw->choices_open += call->open;
    metric_set(&gw->metrics, METRIC_REQUESTS_IN_FLIGHT, (double)gw->calls_count);
    return call;
}

void call_start(struct conn *c, const struct dialect *dialect, struct params *params)
{
    struct problem problem = {0};
    struct call *call;

    if (call_admit(c->gw, params, &problem)) {
        reply_problem(c, &problem);
        return;
    }
    call = call_new(c, dialect, params);
    for (uint32_t i = 0; i < call->parts_count; i++) {
        if (call_send(call, params, i, &problem)) {
            call_fail(call, &problem);
            return;
        }
    }
    if (call->waiting) {
        call->queued = true;
        c->gw->queued_count++;
    }
    conn_request_release(c);
}

/* A tree costs up to a hundred times its text: what it is made of is counted before one is built,
 * so that no body holds the loop or the memory for long. */
static int body_count(const struct buf *text, struct problem *problem)
{
    size_t containers = 0, keys = 0, values = 0;
    bool in_string = false;

    for (size_t i = 0; i < text->len; i++) {
        char c = text->data[i];

        if (in_string && c == '\\')
            i++;
        else if (c == '"')
            in_string = !in_string;
        else if (!in_string) {
            containers += c == '[' || c == '{';
            keys += c == ':';
            values += c == ',';
        }
    }
    if (containers > HTTP_JSON_CONTAINERS_MAX)
        return problem_set(problem, 400, "invalid_json", NULL,
                           "the body has %zu objects and lists: at most %d are allowed", containers,
                           HTTP_JSON_CONTAINERS_MAX);
    if (keys > HTTP_JSON_KEYS_MAX)
        return problem_set(problem, 400, "invalid_json", NULL,
                           "the body has %zu keys: at most %d are allowed", keys,
                           HTTP_JSON_KEYS_MAX);
    if (values > HTTP_JSON_VALUES_MAX)
        return problem_set(problem, 400, "invalid_json", NULL,
                           "the body has %zu values: at most %d are allowed", values,
                           HTTP_JSON_VALUES_MAX);
    return 0;
}

static int body_parse(struct conn *c, json_t **body, struct problem *problem)
{
    const struct buf *text = &c->http.body;
    struct err err = {0};

    if (!text->len)
        return problem_set(problem, 400, NULL, NULL, "the body is empty: must be a JSON object");
    if (body_count(text, problem))
        return -1;
    if (json_parse(text->data, text->len, HTTP_JSON_DEPTH_MAX, body, &err))
        return problem_set(problem, 400, "invalid_json", NULL, "%s", err.msg);
    return 0;
}

/* Before the model was ready once there is nothing to wait for; afterwards a few may wait until it
 * is again. */
static bool may_wait(const struct gateway *gw, struct problem *problem)
{
    const char *why;

    if (backend_ready(&gw->backend, &why))
        return true;
    if (!gw->announced)
        (void)problem_set(problem, 503, "not_ready", NULL, "the server is not ready: %s", why);
    else if (gw->queued_count >= gw->recovery_queue_max)
        (void)problem_set(problem, 503, "not_ready", NULL,
                          "the server is not ready: %s (%zu requests wait: the limit is %zu)", why,
                          gw->queued_count, gw->recovery_queue_max);
    return !problem->status;
}

void call_serve(struct conn *c, const struct dialect *dialect)
{
    struct problem problem = {0};
    struct params params = {0};
    json_t *body = NULL;
    bool large = c->http.body.len >= HTTP_TRIM_BYTES;

    if (may_wait(c->gw, &problem) && !body_parse(c, &body, &problem))
        (void)params_parse(&dialect->params, &c->gw->context, body, &params, &problem);
    if (problem.status)
        reply_problem(c, &problem);
    else
        call_start(c, dialect, &params);
    params_fini(&params);
    json_decref(body);
    if (large)
        (void)malloc_trim(0);
}

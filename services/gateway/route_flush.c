/* POST /flush_cache: what is cached for later requests is forgotten. Pages that sequences use at
 * that moment stay. One tokenizer is told, which tells all schedulers. */
#include "services/gateway/gateway.h"
#include "services/gateway/reply.h"
#include "services/gateway/routes.h"

void route_flush_cache(struct conn *c, const char *rest)
{
    static const char body[] = "{\"status\":\"ok\"}";
    struct proto_flush m = {.trace_id = proto_str(c->trace)};
    struct problem problem = {0};
    struct backend_link *link = backend_choose(&c->gw->backend);
    struct err err = {0};
    const char *why;

    (void)rest;
    if (!link) {
        (void)backend_ready(&c->gw->backend, &why);
        (void)problem_set(&problem, 503, "not_ready", NULL, "the server is not ready: %s", why);
    } else if (bus_send(link->peer, PROTO_FLUSH, 0, &m, &err)) {
        (void)problem_set(&problem, 503, NULL, NULL, "the tokenizer can not be told: %s", err.msg);
    }
    if (problem.status) {
        reply_problem(c, &problem);
        return;
    }
    reply_send(
        c, &(struct reply){
               .status = 200, .type = "application/json", .data = body, .len = sizeof body - 1});
}

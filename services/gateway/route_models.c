#include "services/gateway/reply.h"
#include "services/gateway/routes.h"

#include <string.h>

static void model_render(const struct gateway *gw, struct buf *out)
{
    buf_puts(out, "{\"id\":");
    buf_json_string(out, gw->model, strlen(gw->model));
    buf_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"phalanx\",\"root\":",
               (long long)gw->created_s);
    buf_json_string(out, gw->model, strlen(gw->model));
    buf_puts(out, ",\"parent\":null,\"max_model_len\":");
    if (backend_context_length(&gw->backend))
        buf_printf(out, "%u}", (unsigned)backend_context_length(&gw->backend));
    else
        buf_puts(out, "null}");
}

void route_models(struct conn *c, const char *rest)
{
    struct buf body = {0};

    (void)rest;
    buf_puts(&body, "{\"object\":\"list\",\"data\":[");
    model_render(c->gw, &body);
    buf_puts(&body, "]}");
    reply_json(c, 200, &body);
    buf_fini(&body);
}

void route_model(struct conn *c, const char *rest)
{
    struct buf body = {0};
    struct problem problem = {0};

    if (strcmp(rest, c->gw->model) != 0) {
        (void)problem_set(&problem, 404, "model_not_found", "model",
                          "model \"%.200s\" does not exist; this server has \"%.200s\"", rest,
                          c->gw->model);
        reply_problem(c, &problem);
        return;
    }
    model_render(c->gw, &body);
    reply_json(c, 200, &body);
    buf_fini(&body);
}

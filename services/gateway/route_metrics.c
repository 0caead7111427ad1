#include "services/gateway/reply.h"
#include "services/gateway/routes.h"

#include "common/mem.h"

#include <stdlib.h>

/* Own metrics and the last ones of every process behind the tokenizer. */
void route_metrics(struct conn *c, const char *rest)
{
    struct gateway *gw = c->gw;
    size_t count = gw->backend.sources_count + 1;
    const struct metrics **all = mem_array(count, sizeof(struct metrics *));
    const char **names = mem_array(count, sizeof *names);
    struct buf body = {0};

    (void)rest;
    metrics_sample_process(&gw->metrics);
    all[0] = &gw->metrics;
    names[0] =
        options_str(gw->options, OPT_NAME)[0] ? options_str(gw->options, OPT_NAME) : "gateway-0";
    for (size_t i = 1; i < count; i++) {
        all[i] = &gw->backend.sources[i - 1].metrics;
        names[i] = gw->backend.sources[i - 1].name;
    }
    metrics_print(all, names, count, &body);
    reply_send(c, &(struct reply){.status = 200,
                                  .type = "text/plain; version=0.0.4; charset=utf-8",
                                  .data = body.data,
                                  .len = body.len});
    buf_fini(&body);
    free(names);
    free(all);
}

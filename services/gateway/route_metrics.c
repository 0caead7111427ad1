#include "services/gateway/reply.h"
#include "services/gateway/routes.h"

#include "common/mem.h"

#include <stdlib.h>
#include <string.h>

/* True when a tokenizer before that one has told of a process of the same name: schedulers and
 * their ranks tell every tokenizer. */
static bool told_before(const struct backend *b, size_t links, const char *name)
{
    for (size_t l = 0; l < links; l++)
        for (size_t i = 0; b->links[l].peer && i < b->links[l].sources_count; i++)
            if (!strcmp(b->links[l].sources[i].name, name))
                return true;
    return false;
}

/* Own metrics and the last ones of every process behind the tokenizers that are up. Other gateways
 * are not behind them: their pages are their own. */
void route_metrics(struct conn *c, const char *rest)
{
    struct gateway *gw = c->gw;
    const struct backend *b = &gw->backend;
    size_t count = 1;
    const struct metrics **all;
    const char **names;
    struct buf body = {0};

    (void)rest;
    for (size_t l = 0; l < b->links_count; l++)
        count += b->links[l].sources_count;
    all = mem_array(count, sizeof(struct metrics *));
    names = mem_array(count, sizeof *names);
    count = 1;
    metrics_sample_process(&gw->metrics);
    all[0] = &gw->metrics;
    names[0] =
        options_str(gw->options, OPT_NAME)[0] ? options_str(gw->options, OPT_NAME) : "gateway-0";
    for (size_t l = 0; l < b->links_count; l++) {
        for (size_t i = 0; b->links[l].peer && i < b->links[l].sources_count; i++) {
            const struct backend_source *source = &b->links[l].sources[i];

            if (told_before(b, l, source->name))
                continue;
            all[count] = &source->metrics;
            names[count++] = source->name;
        }
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

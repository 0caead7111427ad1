#include "services/launcher/node_serve.h"

#include "common/buf.h"
#include "services/launcher/fingerprint.h"

#include <stdio.h>
#include <string.h>

int node_serve_init(struct node_serve *n, struct options *o, struct err *err)
{
    int rc = node_place_init(&n->place, o, err);

    if (rc || n->place.count == 1)
        return rc;
    rc = bus_security_init(&n->security, o, err);
    if (!rc)
        rc = options_set(o, OPT_DIST_INTERFACE, n->place.interface, err);
    if (!rc)
        rc = options_set(o, OPT_DISABLE_CUSTOM_ALL_REDUCE, "true", err);
    return rc;
}

void node_serve_fini(struct node_serve *n)
{
    bus_security_fini(&n->security);
}

/* Random weights are the same everywhere, and need no files. */
static bool has_weights(const struct options *o)
{
    return !options_bool(o, OPT_DUMMY_WEIGHT) &&
           strcmp(options_str(o, OPT_LOAD_FORMAT), "dummy") != 0;
}

int node_serve_model(struct node_serve *n, const struct options *o, const char *model_path,
                     struct err *err)
{
    uint64_t model = 0;
    int rc;

    if (n->place.count == 1)
        return 0;
    rc = model_fingerprint(model_path, has_weights(o), &model, err);
    node_self_init(&n->self, &n->place, o, model);
    return rc;
}

char *node_serve_endpoint(const struct node_serve *n, struct err *err)
{
    struct buf text = {0};
    uint16_t port;

    if (node_free_port(n->place.host, &port, err))
        return NULL;
    buf_printf(&text, "tcp://%s:%u", n->place.host, (unsigned)port);
    return buf_take(&text);
}

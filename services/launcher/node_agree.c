#include "services/launcher/node_agree.h"

#include "common/buf.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEVICES_MAX 1024

/* Options of the ranks that may differ from node to node; the model is compared by its content. */
static const enum option own_options[] = {
    OPT_MODEL_PATH,   OPT_DIST_INTERFACE, OPT_DIST_TIMEOUT, OPT_CLUSTER_KEY_FILE, OPT_CLUSTER_KEY,
    OPT_INSECURE_BUS, OPT_LOG_LEVEL,      OPT_HELP,         OPT_VERSION};

static bool is_common(enum option id)
{
    if (id == OPT_DP_SIZE)
        return true;
    if (!option_taken_by(id, 'S') || !option_taken_by(id, 'w'))
        return false;
    for (size_t i = 0; i < sizeof own_options / sizeof *own_options; i++)
        if (own_options[i] == id)
            return false;
    return true;
}

/* GPUs that the ranks of this node will see. */
static uint32_t devices_count(void)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    uint32_t count = 0;
    char path[32];

    if (visible) {
        count = *visible != '\0';
        for (const char *at = visible; *at; at++)
            count += *at == ',';
        return count;
    }
    for (uint32_t i = 0; i < DEVICES_MAX; i++) {
        (void)snprintf(path, sizeof path, "/dev/nvidia%" PRIu32, i);
        count += access(path, F_OK) == 0;
    }
    return count;
}

void node_self_init(struct node_self *s, const struct node_place *place, const struct options *o,
                    uint64_t model)
{
    struct proto_node_join *join = &s->join;

    memset(s, 0, sizeof *s);
    for (int i = 0; i < OPTIONS_COUNT; i++)
        if (is_common((enum option)i) && join->options_count < NODE_OPTIONS_MAX)
            s->options[join->options_count++] =
                (struct proto_node_option){.name = proto_str(option_name((enum option)i)),
                                           .value = proto_str(options_str(o, (enum option)i))};
    if (gethostname(s->host, sizeof s->host - 1))
        (void)snprintf(s->host, sizeof s->host, "?");
    join->node = place->rank;
    join->nodes = place->count;
    join->version = proto_str(PHALANX_VERSION);
    join->model = model;
    join->options = s->options;
    join->devices = devices_count();
    join->host = proto_str(s->host);
    join->interface = proto_str(place->interface);
    join->address = proto_str(place->address);
}

void node_describe(const struct proto_node_join *j, char *text, size_t size)
{
    (void)snprintf(text, size, "node %" PRIu32 " (%.*s, %.*s %.*s)", j->node, (int)j->host.len,
                   j->host.data ? j->host.data : "", (int)j->interface.len,
                   j->interface.data ? j->interface.data : "", (int)j->address.len,
                   j->address.data ? j->address.data : "");
}

static bool same(struct proto_str a, struct proto_str b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

static const struct proto_node_option *option_of(const struct proto_node_join *j,
                                                 struct proto_str name)
{
    for (uint32_t i = 0; i < j->options_count; i++)
        if (same(j->options[i].name, name))
            return &j->options[i];
    return NULL;
}

/* Appends " --name value". */
static void say_option(struct buf *to, struct proto_str name, const struct proto_node_option *o)
{
    buf_printf(to, " --%.*s %.*s", (int)name.len, name.data,
               o ? (int)(o->value.len < 80 ? o->value.len : 80) : 6,
               o ? (o->value.len ? o->value.data : "") : "(none)");
}

static int compare_options(const struct proto_node_join *ours, const struct proto_node_join *theirs,
                           const char *who, struct err *err)
{
    struct buf here = {0}, there = {0};
    int rc = 0;

    for (uint32_t i = 0; i < ours->options_count && here.len < 160; i++) {
        const struct proto_node_option *mine = &ours->options[i];
        const struct proto_node_option *other = option_of(theirs, mine->name);

        if (other && same(mine->value, other->value))
            continue;
        say_option(&here, mine->name, mine);
        say_option(&there, mine->name, other);
    }
    if (here.len)
        rc = err_set(err, ERR_INVALID, "%s was started with%s, node 0 with%s", who, there.data,
                     here.data);
    buf_fini(&here);
    buf_fini(&there);
    return rc;
}

static bool is_loopback(struct proto_str address)
{
    return (address.len > 4 && memcmp(address.data, "127.", 4) == 0) ||
           proto_str_is(address, "::1");
}

int node_agree(const struct node_self *self, const struct proto_node_join *theirs, struct err *err)
{
    const struct proto_node_join *ours = &self->join;
    char who[400];

    node_describe(theirs, who, sizeof who);
    if (!same(theirs->version, ours->version))
        return err_set(err, ERR_INVALID, "%s runs Phalanx %.*s, node 0 runs " PHALANX_VERSION, who,
                       (int)theirs->version.len, theirs->version.data ? theirs->version.data : "");
    if (theirs->nodes != ours->nodes)
        return err_set(err, ERR_INVALID,
                       "%s was started with --nnodes %" PRIu32 ", node 0 with %" PRIu32, who,
                       theirs->nodes, ours->nodes);
    if (theirs->node < 1 || theirs->node >= ours->nodes)
        return err_set(err, ERR_INVALID,
                       "%s: its --node-rank is out of range, the other nodes are 1 to %" PRIu32,
                       who, ours->nodes - 1);
    if (compare_options(ours, theirs, who, err))
        return err->code;
    if (theirs->model != ours->model)
        return err_set(err, ERR_INVALID,
                       "%s has another model than node 0: config.json, tokenizer.json or headers "
                       "of the weights differ (fingerprint %016" PRIx64 ", not %016" PRIx64 ")",
                       who, theirs->model, ours->model);
    if (is_loopback(theirs->address) && !is_loopback(ours->address))
        return err_set(err, ERR_INVALID,
                       "%s gives a loopback address for its ranks, which no other node reaches: "
                       "--dist-interface",
                       who);
    return 0;
}

/* What the nodes of one server must have in common. */
#ifndef PHALANX_LAUNCHER_NODE_AGREE_H
#define PHALANX_LAUNCHER_NODE_AGREE_H

#include "proto/proto.h"
#include "services/launcher/node_place.h"

#define NODE_OPTIONS_MAX 128

/* This node, as NODE_JOIN says it. */
struct node_self {
    struct proto_node_join join; /* points into what follows, and into options and place */
    struct proto_node_option options[NODE_OPTIONS_MAX];
    char host[256];
};

/* place and options are borrowed until the end; model: model_fingerprint's. */
void node_self_init(struct node_self *s, const struct node_place *place, const struct options *o,
                    uint64_t model);

/* Whether the node that said `theirs` can serve with node 0, which is `self`; the error names what
 * differs, on both sides. */
int node_agree(const struct node_self *self, const struct proto_node_join *theirs, struct err *err);

/* "node 1 (gpu2, eth0 10.0.0.2)" */
void node_describe(const struct proto_node_join *join, char *text, size_t size);

#endif

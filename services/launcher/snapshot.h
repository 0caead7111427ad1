/* What `phalanx status` shows, taken from a running server. */
#ifndef PHALANX_LAUNCHER_SNAPSHOT_H
#define PHALANX_LAUNCHER_SNAPSHOT_H

#include "proto/proto.h"
#include "services/launcher/recovery.h"

struct snapshot {
    struct proto_node_status message;
    struct proto_process_status processes[CHILDREN_MAX + 1]; /* the launcher is the first */
    struct proto_replica_status replicas[GROUPS_MAX];
};

/* Its strings are those of r: to be used before the loop goes on. */
void snapshot_take(struct snapshot *s, struct recovery *r);

#endif

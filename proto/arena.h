/* Memory of decoded messages (struct proto_arena is in proto/proto.h). */
#ifndef PHALANX_PROTO_ARENA_H
#define PHALANX_PROTO_ARENA_H

#include "proto/proto.h"

/* size zeroed bytes, aligned for any of the messages' members. The caller has checked size. */
void *arena_take(struct proto_arena *a, size_t size);

#endif

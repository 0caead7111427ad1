/* phalanx status: what a running server consists of, asked at its control endpoint. */
#ifndef PHALANX_LAUNCHER_STATUS_H
#define PHALANX_LAUNCHER_STATUS_H

#include "common/buf.h"
#include "proto/proto.h"

/* argv[0] is the subcommand. Returns the exit status. */
int status_main(const char *program, const char *summary, int argc, char **argv);

/* A table, and the same as JSON, each with a newline at its end. */
void status_table(const struct proto_node_status *m, struct buf *out);
void status_json(const struct proto_node_status *m, struct buf *out);

#endif

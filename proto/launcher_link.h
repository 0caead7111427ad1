/* The link of a gateway or tokenizer to its launcher, which hears that the process lives and kills
 * one that hangs. Nothing but the bus's own heartbeat goes over it. */
#ifndef PHALANX_PROTO_LAUNCHER_LINK_H
#define PHALANX_PROTO_LAUNCHER_LINK_H

#include "proto/bus.h"

/* Of shared loop, role, name and silence_ms_max are used. endpoint: --control-endpoint; when it is
 * empty there is no launcher, and *out stays NULL. To be closed with bus_close. */
int launcher_link_open(const struct bus_config *shared, const char *endpoint, struct bus **out,
                       struct err *err);

#endif

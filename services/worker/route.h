/* Over which of this machine's networks a rank is reached. */
#ifndef PHALANX_WORKER_ROUTE_H
#define PHALANX_WORKER_ROUTE_H

#include "common/err.h"

#include <net/if.h>

/* The interface that leads to an endpoint of the bus, "" when that is on this machine by name: ipc
 * or loopback. Nothing is sent, but a name may be asked of DNS. */
int route_interface(const char *endpoint, char name[IF_NAMESIZE], struct err *err);

#endif

/* Asks a server whether it is ready, without ever blocking: GET /health/ready, again and again. */
#ifndef PHALANX_LAUNCHER_PROBE_H
#define PHALANX_LAUNCHER_PROBE_H

#include "common/err.h"

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define PROBE_PERIOD_MS 50

struct probe {
    struct sockaddr_storage address;
    socklen_t address_len;
    int fd; /* -1: between two attempts */
    bool sent;
    int64_t next_us; /* the next attempt, or the end of this one */
    char reply[16];
    size_t reply_len;
    bool ready;
};

/* host as given to --host: a name or an address; an unspecified one is asked on loopback. */
int probe_init(struct probe *p, const char *host, int port, struct err *err);
void probe_fini(struct probe *p);

/* ERR_BUSY when another program listens there. */
int probe_port_free(const struct probe *p, const char *host, int port, struct err *err);

/* What to poll for, and for how long; then probe_step. p->ready says that the answer was 200. */
int probe_poll(const struct probe *p, struct pollfd *fd);
void probe_step(struct probe *p);

#endif

/* Asks a server whether it is ready, without ever blocking: GET /health/ready, again and again
 * until it is. */
#ifndef PHALANX_LAUNCHER_PROBE_H
#define PHALANX_LAUNCHER_PROBE_H

#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <uv.h>

#define PROBE_PERIOD_MS 50

typedef void probe_fn(void *ctx);

enum probe_kind {
    PROBE_READY, /* GET /health/ready: what the gateway has heard */
    PROBE_TOKEN, /* GET /health_generate: true also when somebody has just died, and it has not */
};

struct probe {
    enum probe_kind kind;
    struct sockaddr_storage address;
    socklen_t address_len;
    int fd; /* -1: between two attempts */
    bool sent;
    int64_t next_us; /* the next attempt, or the end of this one */
    char reply[16];
    size_t reply_len;
    uv_timer_t timer;
    probe_fn *on_ready;
    void *ctx;
};

/* host as given to --host: a name or an address; an unspecified one is asked on loopback. */
int probe_init(struct probe *p, const char *host, int port, struct err *err);
void probe_fini(struct probe *p); /* the loop must run once more */

/* ERR_BUSY when another program listens there. */
int probe_port_free(const struct probe *p, const char *host, int port, struct err *err);

/* Asks until the answer is 200: then on_ready is called, once. Asks anew when it does already. */
void probe_start(struct probe *p, uv_loop_t *loop, enum probe_kind kind, probe_fn *on_ready,
                 void *ctx);
void probe_stop(struct probe *p);

#endif

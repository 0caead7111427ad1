/* The server: where it is, and the head of every request to it. */
#ifndef PHALANX_BENCH_TARGET_H
#define PHALANX_BENCH_TARGET_H

#include "common/buf.h"
#include "common/err.h"

#include <stddef.h>
#include <sys/socket.h>

struct target {
    struct sockaddr_storage address;
    char *base;      /* owned; "http://host:port/prefix" */
    char *authority; /* owned; for the Host field */
    char *prefix;    /* owned; path before /v1, without a slash at its end */
    char *key;       /* owned; "" without one */
};

/* url: "http://host[:port][/path]", "" to use host and port. A path's end "/v1" is dropped, since
 * people write it both ways. The name is looked up. ERR_INVALID says what is wrong with it. */
int target_init(struct target *t, const char *url, const char *host, int port, const char *key,
                struct err *err);
void target_fini(struct target *t);

/* Appends the head of a request and, when it is not NULL, its JSON body. */
void target_request(const struct target *t, const char *method, const char *path,
                    const struct buf *body, struct buf *out);

#endif

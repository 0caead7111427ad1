/* Communicator between the ranks of a group, as the host sees it. A new one is one file comm_x and
 * one row in its backend's comms table. Calls block; every rank makes the same calls. */
#ifndef PHALANX_KERNELS_COMM_H
#define PHALANX_KERNELS_COMM_H

#include "common/err.h"

#include <stddef.h>
#include <stdint.h>

#define COMM_BLOB_MAX 65536

struct comm; /* private to the implementation */

struct comm_blob {
    const void *data;
    size_t len;
};

/* How ranks exchange a few bytes (addresses, ids) before they have a communicator. */
struct comm_meet {
    /* An all-gather: every rank gives a blob of at most COMM_BLOB_MAX bytes, of its own length, and
     * gets those of all by rank, valid until the next call. Blocks until the last has come or the
     * group is given up. All ranks make the same calls. */
    int (*gather)(void *ctx, const void *blob, size_t len, struct comm_blob *blobs,
                  struct err *err);
    void *ctx;
};

struct comm_kind {
    const char *name;
    /* Ranks talk over the network interface of that name (NULL or "": loopback). */
    int (*open)(uint32_t rank, uint32_t size, const struct comm_meet *meet, const char *interface,
                double timeout_s, struct comm **out, struct err *err);
    /* recv gets size * bytes: rank 0's bytes, rank 1's, ... ERR_PEER or ERR_TIMEOUT when a rank is
     * gone; the communicator is then of no further use. */
    int (*all_gather)(struct comm *c, const void *send, size_t bytes, void *recv, struct err *err);
    void (*close)(struct comm **self);
};

#endif

/* Communicator between the ranks of a group, as the host sees it. A new one is one file comm_x and
 * one row in its backend's comms table. Calls block; every rank makes the same calls. */
#ifndef PHALANX_KERNELS_COMM_H
#define PHALANX_KERNELS_COMM_H

#include "common/err.h"

#include <stddef.h>
#include <stdint.h>

struct comm; /* private to the implementation */

struct comm_kind {
    const char *name;
    /* Meets the other ranks in the folder `store` (the same for all, fresh for each epoch); they
     * talk over the network interface of that name (NULL or "": loopback). */
    int (*open)(uint32_t rank, uint32_t size, const char *store, const char *interface,
                double timeout_s, struct comm **out, struct err *err);
    /* recv gets size * bytes: rank 0's bytes, rank 1's, ... ERR_PEER or ERR_TIMEOUT when a rank is
     * gone; the communicator is then of no further use. */
    int (*all_gather)(struct comm *c, const void *send, size_t bytes, void *recv, struct err *err);
    void (*close)(struct comm **self);
};

#endif

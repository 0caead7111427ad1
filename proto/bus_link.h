/* One direction pair of a link: numbering, what is kept until acknowledged, repeats and gaps.
 * No sockets and no time here. */
#ifndef PHALANX_PROTO_BUS_LINK_H
#define PHALANX_PROTO_BUS_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <zmq.h>

/* At most so much is on its way (handed to the socket, not acknowledged); the rest waits here. The
 * count stays below the sockets' high-water mark, so that sending never blocks on it. */
#define LINK_WINDOW_MESSAGES 4096
#define LINK_WINDOW_BYTES ((size_t)32 << 20)
/* What has been received is acknowledged at the latest after so much. */
#define LINK_ACK_MESSAGES 256
#define LINK_ACK_BYTES ((size_t)1 << 20)

struct bus_kept;

struct bus_link {
    struct bus_kept *head; /* oldest not acknowledged */
    struct bus_kept *tail;
    struct bus_kept *unsent; /* first not handed to the socket since the last rewind */
    size_t kept_bytes;       /* all from head on, bookkeeping included */
    size_t window_messages;  /* head .. before unsent */
    size_t window_bytes;
    uint64_t sent;     /* last number given out */
    uint64_t received; /* last number received in order */
    uint64_t told;     /* last number acknowledged to the other side */
    size_t untold_bytes;
};

enum link_arrival { LINK_NEW, LINK_REPEAT, LINK_GAP };

void link_fini(struct bus_link *l); /* frees what is kept, zeroes */

/* What a message of len bytes adds to kept_bytes. */
size_t link_cost(size_t len);

/* Keeps a copy of data as number sent + 1. False: out of memory. */
bool link_push(struct bus_link *l, const void *data, size_t len);

/* The next message to hand to the socket (borrowed), NULL when none is waiting or the window is
 * full; link_advance after it was handed over. */
zmq_msg_t *link_next(struct bus_link *l);
void link_advance(struct bus_link *l);

/* A new connection: all that is kept is to be sent again. */
void link_rewind(struct bus_link *l);

/* The other side has received everything up to seq. False when that was never sent. */
bool link_acknowledged(struct bus_link *l, uint64_t seq);

enum link_arrival link_arrived(struct bus_link *l, uint64_t seq, size_t len);
bool link_ack_due(const struct bus_link *l);
/* The number to acknowledge; counts as told. */
uint64_t link_tell(struct bus_link *l);

#endif

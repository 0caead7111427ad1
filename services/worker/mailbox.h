/* A bounded queue of encoded messages between two threads. Encoding is the deep copy: neither side
 * keeps pointers into the other's memory. */
#ifndef PHALANX_WORKER_MAILBOX_H
#define PHALANX_WORKER_MAILBOX_H

#include "proto/proto.h"

#include <pthread.h>

#define MAILBOX_MAX 64 /* messages; a scheduler has a few steps in flight */

struct mailbox {
    pthread_mutex_t lock;
    pthread_cond_t filled;
    struct buf items[MAILBOX_MAX];
    uint32_t head, count;
    bool closed;
    void (*notify)(void *ctx); /* called under the lock after a push; may be NULL */
    void *ctx;
};

void mailbox_init(struct mailbox *m, void (*notify)(void *ctx), void *ctx);
void mailbox_fini(struct mailbox *m);

/* ERR_BUSY when it is full, ERR_LIMIT when the message does not encode; dropped when closed. */
int mailbox_push(struct mailbox *m, enum proto_type type, const void *message, struct err *err);

/* The oldest message; the caller ends out with buf_fini. wait: blocks, false once it is closed;
 * wait_until: false when there is none by then (clock_mono_us), closed or not; poll: false when
 * there is none. */
bool mailbox_wait(struct mailbox *m, struct buf *out);
bool mailbox_wait_until(struct mailbox *m, struct buf *out, int64_t until_us);
bool mailbox_poll(struct mailbox *m, struct buf *out);

/* Nothing goes in or out afterwards, and notify is not called again. */
void mailbox_close(struct mailbox *m);

#endif

#include "services/worker/mailbox.h"

#include <errno.h>
#include <time.h>

void mailbox_init(struct mailbox *m, void (*notify)(void *ctx), void *ctx)
{
    *m = (struct mailbox){.notify = notify, .ctx = ctx};
    (void)pthread_mutex_init(&m->lock, NULL);
    (void)pthread_cond_init(&m->filled, NULL);
}

void mailbox_fini(struct mailbox *m)
{
    while (m->count) {
        buf_fini(&m->items[m->head]);
        m->head = (m->head + 1) % MAILBOX_MAX;
        m->count--;
    }
    (void)pthread_cond_destroy(&m->filled);
    (void)pthread_mutex_destroy(&m->lock);
}

int mailbox_push(struct mailbox *m, enum proto_type type, const void *message, struct err *err)
{
    const struct proto_header header = {.type = type};
    struct buf bytes = {0};
    int rc = proto_encode(&header, message, &bytes, err);

    if (rc)
        return rc;
    (void)pthread_mutex_lock(&m->lock);
    if (m->closed) {
        buf_fini(&bytes);
    } else if (m->count == MAILBOX_MAX) {
        rc = err_set(err, ERR_BUSY, "%s: %d messages are waiting already", proto_type_name(type),
                     MAILBOX_MAX);
        buf_fini(&bytes);
    } else {
        m->items[(m->head + m->count++) % MAILBOX_MAX] = bytes;
        (void)pthread_cond_signal(&m->filled);
        if (m->notify)
            m->notify(m->ctx);
    }
    (void)pthread_mutex_unlock(&m->lock);
    return rc;
}

static bool mailbox_take(struct mailbox *m, struct buf *out)
{
    if (m->closed || m->count == 0)
        return false;
    *out = m->items[m->head];
    m->items[m->head] = (struct buf){0};
    m->head = (m->head + 1) % MAILBOX_MAX;
    m->count--;
    return true;
}

bool mailbox_wait(struct mailbox *m, struct buf *out)
{
    bool taken;

    (void)pthread_mutex_lock(&m->lock);
    while (!m->closed && m->count == 0)
        (void)pthread_cond_wait(&m->filled, &m->lock);
    taken = mailbox_take(m, out);
    (void)pthread_mutex_unlock(&m->lock);
    return taken;
}

bool mailbox_wait_until(struct mailbox *m, struct buf *out, int64_t until_us)
{
    const struct timespec until = {until_us / 1000000, until_us % 1000000 * 1000};
    bool taken, late = false;

    (void)pthread_mutex_lock(&m->lock);
    while (!(taken = mailbox_take(m, out)) && !late)
        late = pthread_cond_clockwait(&m->filled, &m->lock, CLOCK_MONOTONIC, &until) == ETIMEDOUT;
    (void)pthread_mutex_unlock(&m->lock);
    return taken;
}

bool mailbox_poll(struct mailbox *m, struct buf *out)
{
    bool taken;

    (void)pthread_mutex_lock(&m->lock);
    taken = mailbox_take(m, out);
    (void)pthread_mutex_unlock(&m->lock);
    return taken;
}

void mailbox_close(struct mailbox *m)
{
    (void)pthread_mutex_lock(&m->lock);
    m->closed = true;
    (void)pthread_cond_broadcast(&m->filled);
    (void)pthread_mutex_unlock(&m->lock);
}

#include "services/worker/ahead.h"

#include "common/mem.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

struct slot {
    char *buffer;
    struct err err;
    int rc;
    bool filled;
};

struct ahead {
    struct ahead_config config;
    pthread_t threads[AHEAD_THREADS_MAX];
    uint32_t threads_count;
    pthread_mutex_t lock; /* over what follows */
    pthread_cond_t filled, given;
    struct slot *slots; /* the i'th result is in slot i % buffers */
    uint64_t begun;     /* results a thread has taken on */
    uint64_t taken;     /* by the caller */
    uint64_t back;      /* whose buffers the caller has given back */
    bool stop;
};

static struct slot *slot_of(const struct ahead *a, uint64_t i)
{
    return &a->slots[i % a->config.buffers];
}

/* The next result to fill, or false: there is none. */
static bool next_begin(struct ahead *a, uint64_t *i)
{
    while (!a->stop && a->begun < a->config.count && a->begun >= a->back + a->config.buffers)
        (void)pthread_cond_wait(&a->given, &a->lock);
    if (a->stop || a->begun == a->config.count)
        return false;
    *i = a->begun++;
    return true;
}

static void *fill_main(void *ctx)
{
    struct ahead *a = ctx;
    uint64_t i;

    (void)pthread_mutex_lock(&a->lock);
    while (next_begin(a, &i)) {
        struct slot *slot = slot_of(a, i);
        int rc;

        (void)pthread_mutex_unlock(&a->lock);
        rc = a->config.fill(a->config.ctx, i, slot->buffer, &slot->err);
        (void)pthread_mutex_lock(&a->lock);
        slot->rc = rc;
        slot->filled = true;
        a->stop = a->stop || rc; /* nobody gets past it */
        (void)pthread_cond_broadcast(&a->filled);
    }
    (void)pthread_mutex_unlock(&a->lock);
    return NULL;
}

int ahead_start(const struct ahead_config *config, struct ahead **out, struct err *err)
{
    struct ahead *a = mem_zalloc(sizeof *a);

    a->config = *config;
    a->slots = mem_array(config->buffers, sizeof *a->slots);
    for (uint32_t i = 0; i < config->buffers; i++)
        a->slots[i] = (struct slot){.buffer = mem_alloc(config->buffer_bytes)};
    (void)pthread_mutex_init(&a->lock, NULL);
    (void)pthread_cond_init(&a->filled, NULL);
    (void)pthread_cond_init(&a->given, NULL);
    *out = a;
    for (uint32_t i = 0; i < config->threads && i < AHEAD_THREADS_MAX; i++) {
        errno = pthread_create(&a->threads[i], NULL, fill_main, a);
        if (errno)
            break;
        a->threads_count++;
    }
    if (a->threads_count)
        return 0;
    ahead_stop(out);
    return err_errno(err, ERR_INTERNAL, "a thread that reads ahead");
}

int ahead_next(struct ahead *a, void **buffer, struct err *err)
{
    struct slot *slot;
    int rc;

    (void)pthread_mutex_lock(&a->lock);
    a->back = a->taken;
    (void)pthread_cond_broadcast(&a->given);
    slot = slot_of(a, a->taken++);
    while (!slot->filled)
        (void)pthread_cond_wait(&a->filled, &a->lock);
    slot->filled = false;
    rc = slot->rc;
    if (rc)
        *err = slot->err;
    *buffer = slot->buffer;
    (void)pthread_mutex_unlock(&a->lock);
    return rc;
}

void ahead_stop(struct ahead **self)
{
    struct ahead *a = *self;

    *self = NULL;
    if (!a)
        return;
    (void)pthread_mutex_lock(&a->lock);
    a->stop = true;
    (void)pthread_cond_broadcast(&a->given);
    (void)pthread_mutex_unlock(&a->lock);
    for (uint32_t i = 0; i < a->threads_count; i++)
        (void)pthread_join(a->threads[i], NULL);
    (void)pthread_mutex_destroy(&a->lock);
    (void)pthread_cond_destroy(&a->filled);
    (void)pthread_cond_destroy(&a->given);
    for (uint32_t i = 0; i < a->config.buffers; i++)
        free(a->slots[i].buffer);
    free(a->slots);
    free(a);
}

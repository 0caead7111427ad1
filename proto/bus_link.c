#include "proto/bus_link.h"

#include "common/mem.h"

#include <stdlib.h>
#include <string.h>

struct bus_kept {
    struct bus_kept *next;
    uint64_t seq;
    size_t cost;
    zmq_msg_t msg;
};

size_t link_cost(size_t len)
{
    return len + sizeof(struct bus_kept);
}

static void kept_drop_head(struct bus_link *l)
{
    struct bus_kept *k = l->head;
    l->head = k->next;
    if (!l->head)
        l->tail = NULL;
    l->kept_bytes -= k->cost;
    zmq_msg_close(&k->msg);
    free(k);
}

void link_fini(struct bus_link *l)
{
    while (l->head)
        kept_drop_head(l);
    *l = (struct bus_link){0};
}

bool link_push(struct bus_link *l, const void *data, size_t len)
{
    struct bus_kept *k = mem_zalloc(sizeof(*k));
    k->cost = link_cost(len);
    if (zmq_msg_init_size(&k->msg, len) != 0) {
        free(k);
        return false;
    }
    memcpy(zmq_msg_data(&k->msg), data, len);
    k->seq = ++l->sent;
    if (l->tail)
        l->tail->next = k;
    else
        l->head = k;
    l->tail = k;
    l->kept_bytes += k->cost;
    if (!l->unsent)
        l->unsent = k;
    return true;
}

zmq_msg_t *link_next(struct bus_link *l)
{
    struct bus_kept *k = l->unsent;
    if (!k)
        return NULL;
    if (l->window_messages > 0 && (l->window_messages >= LINK_WINDOW_MESSAGES ||
                                   l->window_bytes + k->cost > LINK_WINDOW_BYTES))
        return NULL;
    return &k->msg;
}

void link_advance(struct bus_link *l)
{
    l->window_messages++;
    l->window_bytes += l->unsent->cost;
    l->unsent = l->unsent->next;
}

void link_rewind(struct bus_link *l)
{
    l->unsent = l->head;
    l->window_messages = 0;
    l->window_bytes = 0;
}

bool link_acknowledged(struct bus_link *l, uint64_t seq)
{
    if (seq > l->sent)
        return false;
    while (l->head && l->head->seq <= seq) {
        if (l->unsent == l->head) {
            l->unsent = l->head->next;
        } else {
            l->window_messages--;
            l->window_bytes -= l->head->cost;
        }
        kept_drop_head(l);
    }
    return true;
}

enum link_arrival link_arrived(struct bus_link *l, uint64_t seq, size_t len)
{
    if (seq <= l->received)
        return LINK_REPEAT;
    if (seq != l->received + 1)
        return LINK_GAP;
    l->received = seq;
    l->untold_bytes += len;
    return LINK_NEW;
}

bool link_ack_due(const struct bus_link *l)
{
    return l->received - l->told >= LINK_ACK_MESSAGES || l->untold_bytes >= LINK_ACK_BYTES;
}

uint64_t link_tell(struct bus_link *l)
{
    l->told = l->received;
    l->untold_bytes = 0;
    return l->received;
}

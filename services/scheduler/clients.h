/* The tokenizers that are connected, and the tokens gathered for each. */
#ifndef PHALANX_SCHEDULER_CLIENTS_H
#define PHALANX_SCHEDULER_CLIENTS_H

#include "proto/bus.h"
#include "services/scheduler/core.h"

#include <stdint.h>

#define CLIENTS_MAX 64u

struct client {
    struct bus_peer *peer; /* NULL: not in use */
    uint64_t owner;        /* in the core; never used again for another tokenizer */
    struct proto_token *tokens;
    uint32_t tokens_count;
};

struct clients {
    struct client list[CLIENTS_MAX];
    uint64_t next;
    uint32_t tokens_max; /* of one step */
};

void clients_init(struct clients *c, uint32_t tokens_max);
void clients_fini(struct clients *c);

/* The client of a new peer; NULL when there are too many. */
struct client *clients_add(struct clients *c, struct bus_peer *peer);
void client_remove(struct client *client);

/* The client of an owner that has sequences in the core. */
struct client *clients_find(struct clients *c, uint64_t owner);

/* Sends the outputs of a step, one TOKENS message to each tokenizer and what was
 * scored before it. One that can not take any
 * more loses its sequences: what it misses can not be made up for. */
void clients_send(struct clients *c, struct scheduler *core, const struct scheduler_output *out,
                  uint32_t count);

#endif

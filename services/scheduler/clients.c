#include "services/scheduler/clients.h"

#include "common/log.h"
#include "common/mem.h"

#include <stdlib.h>

void clients_init(struct clients *c, uint32_t tokens_max)
{
    *c = (struct clients){.tokens_max = tokens_max};
}

void clients_fini(struct clients *c)
{
    for (size_t i = 0; i < CLIENTS_MAX; i++)
        free(c->list[i].tokens);
    *c = (struct clients){0};
}

struct client *clients_add(struct clients *c, struct bus_peer *peer)
{
    for (uint64_t i = 0; i < CLIENTS_MAX; i++) {
        struct client *client = &c->list[i];

        if (client->peer)
            continue;
        client->peer = peer;
        client->owner = ++c->next * CLIENTS_MAX + i; /* says which row of the table it is */
        client->tokens_count = 0;
        if (!client->tokens)
            client->tokens = mem_array(c->tokens_max, sizeof *client->tokens);
        return client;
    }
    return NULL;
}

void client_remove(struct client *client)
{
    client->peer = NULL;
}

struct client *clients_find(struct clients *c, uint64_t owner)
{
    return &c->list[owner % CLIENTS_MAX];
}

static void client_send(struct client *client, struct scheduler *core, enum proto_type type,
                        uint64_t sid, const void *message)
{
    struct err err;
    uint32_t aborted;

    if (bus_send(client->peer, type, sid, message, &err) == 0)
        return;
    aborted = scheduler_abort_owner(core, client->owner);
    log_warn("tokenizer=%s aborted=%u it takes no more tokens: %s", bus_peer_name(client->peer),
             aborted, err.msg);
}

void clients_send(struct clients *c, struct scheduler *core, const struct scheduler_output *out,
                  uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct client *client = clients_find(c, out[i].owner);

        if (out[i].prompt.logprobs_count)
            client_send(client, core, PROTO_SCORED, out[i].token.sid, &out[i].prompt);
        if (out[i].chosen)
            client->tokens[client->tokens_count++] = out[i].token;
    }
    for (size_t i = 0; i < CLIENTS_MAX; i++) {
        struct client *client = &c->list[i];
        struct proto_tokens message = {client->tokens, client->tokens_count};

        if (client->tokens_count == 0)
            continue;
        client->tokens_count = 0;
        client_send(client, core, PROTO_TOKENS, 0, &message);
    }
}

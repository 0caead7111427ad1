#include "tests/sim/sim.h"

void link_reset(struct link *l)
{
    l->sent = l->acked = l->received = 0;
    l->wire_count = 0;
}

void link_send(struct sim *m, struct link *l, const struct letter *letter)
{
    CHECK(m, l->sent - l->acked < LINK_KEPT);
    l->kept[++l->sent % LINK_KEPT] = *letter;
}

static void wire_put(struct link *l, uint64_t number)
{
    if (l->wire_count < LINK_WIRE)
        l->wire[l->wire_count++] = number;
}

bool link_turn(struct sim *m, struct link *l, struct letter *out)
{
    uint32_t event = sim_draw(m, 16);
    uint32_t at;
    uint64_t number;

    if (event < 3)
        l->acked = l->received;
    /* The newest, or from the oldest on again, as after a reconnection. */
    if (l->sent > l->acked)
        wire_put(l, event & 1 ? l->received + 1
                              : l->acked + 1 + sim_draw(m, (uint32_t)(l->sent - l->acked)));
    if (l->wire_count == 0)
        return false;
    at = event < 12 ? 0 : sim_draw(m, l->wire_count);
    number = l->wire[at];
    if (event == 4) {
        m->repeated++;
        wire_put(l, number);
    }
    l->wire[at] = l->wire[--l->wire_count];
    if (event == 5) {
        m->dropped++;
        return false;
    }
    if (number != l->received + 1 || number > l->sent)
        return false;
    l->received = number;
    *out = l->kept[number % LINK_KEPT];
    return true;
}

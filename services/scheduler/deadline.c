#include "services/scheduler/deadline.h"

#include <string.h>

#define FIRST_STEPS 2u /* of a shape */
#define TIMES 10
#define TIMES_LEAST 3
#define LOW_US 2000000
#define HIGH_US 30000000
#define FORGET 1024
/* So that no product below overflows. */
#define LEARN_MAX_US 1000000000
#define SHIFT_MAX 20u

void deadline_init(struct deadline *d, int64_t max_us)
{
    memset(d, 0, sizeof *d);
    d->max_us = max_us;
}

static uint8_t log2_below(uint64_t n, uint32_t count)
{
    uint32_t power = n ? 63u - (uint32_t)__builtin_clzll(n) : 0;

    return (uint8_t)(power < count ? power : count - 1);
}

struct deadline_shape deadline_shape(const struct proto_step *m)
{
    uint64_t tokens = 0, positions = 0;

    for (uint32_t i = 0; i < m->rows_count; i++) {
        tokens += m->rows[i].count;
        positions += (uint64_t)m->rows[i].start + m->rows[i].count;
    }
    return (struct deadline_shape){log2_below(m->rows_count, DEADLINE_ROWS),
                                   log2_below(tokens, DEADLINE_TOKENS),
                                   log2_below(positions, DEADLINE_POSITIONS)};
}

int64_t deadline_us(const struct deadline *d, struct deadline_shape shape)
{
    const struct deadline_seen *cells = d->seen[shape.rows][shape.tokens];
    uint32_t at = shape.positions, shift;
    int64_t slowest_us, us;

    while (at > 0 && cells[at].count < FIRST_STEPS)
        at--;
    if (cells[at].count < FIRST_STEPS)
        return d->max_us;
    /* No more than in proportion to the positions. */
    shift = shape.positions - at < SHIFT_MAX ? shape.positions - at : SHIFT_MAX;
    slowest_us = cells[at].slowest_us << shift;
    us = TIMES * slowest_us;
    if (us < LOW_US)
        us = LOW_US;
    if (us > HIGH_US)
        us = TIMES_LEAST * slowest_us > HIGH_US ? TIMES_LEAST * slowest_us : HIGH_US;
    return us < d->max_us ? us : d->max_us;
}

void deadline_learn(struct deadline *d, struct deadline_shape shape, int64_t step_us)
{
    struct deadline_seen *seen = &d->seen[shape.rows][shape.tokens][shape.positions];

    if (step_us > LEARN_MAX_US)
        step_us = LEARN_MAX_US;
    seen->slowest_us -= seen->slowest_us / FORGET;
    if (step_us > seen->slowest_us && seen->count > 0) /* the very first tells of tuning alone */
        seen->slowest_us = step_us;
    seen->count += seen->count < FIRST_STEPS;
}

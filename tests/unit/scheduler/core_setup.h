/* What tests of the scheduler's core begin with. */
#ifndef PHALANX_TESTS_CORE_SETUP_H
#define PHALANX_TESTS_CORE_SETUP_H

#include "services/scheduler/core.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static inline struct proto_sampling sampling_default(uint32_t max_tokens)
{
    return (struct proto_sampling){.temperature = 1,
                                   .top_p = 1,
                                   .top_k = -1,
                                   .repetition_penalty = 1,
                                   .max_tokens = max_tokens,
                                   .logprobs = -1};
}

static inline struct scheduler *make(const struct scheduler_config *c)
{
    struct scheduler *s = NULL;
    struct err err = {0};

    assert_int_equal(scheduler_new(c, &s, &err), 0);
    return s;
}

/* Applies step with `token` for every sampled row; returns the outputs. */
static inline const struct scheduler_output *
apply(struct scheduler *s, const struct scheduler_step *step, uint32_t token, uint32_t *count)
{
    struct proto_sampled results[256];
    const struct scheduler_output *out;
    struct err err = {0};
    uint32_t n = 0;

    for (uint32_t i = 0; i < step->message.rows_count; i++)
        if (step->message.rows[i].sample)
            results[n++] = (struct proto_sampled){.slot = step->message.rows[i].slot, .id = token};
    if (scheduler_apply(s, step->message.step, results, n, &out, count, &err))
        fail_msg("%s", err.msg);
    return out;
}

#endif

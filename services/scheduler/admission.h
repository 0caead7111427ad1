/* What may come in, and what it will need. */
#ifndef PHALANX_SCHEDULER_ADMISSION_H
#define PHALANX_SCHEDULER_ADMISSION_H

#include "services/scheduler/core.h"
#include "services/scheduler/sequence.h"

#define COUNT(NAME, high, what) NAME = (high),
enum admission_limit {
#include "proto/limits.def"
};

/* Checks a request against proto/limits.def and the configuration. On success *resolved is the
 * request's sampling (arrays borrowed) with max_tokens >= 1: the asked number, or what fits into
 * context and pool when none was asked for, and never more than the context holds, but more than
 * were resumed; and min_tokens <= max_tokens. */
int admission_check(const struct scheduler_config *config, const struct scheduler_request *request,
                    struct proto_sampling *resolved, struct scheduler_refusal *refusal,
                    struct err *err);

/* The same for a sequence that was let in when the pool had another size: ERR_LIMIT, or its
 * max_tokens still fits, cut where it was not asked for. */
int admission_refit(const struct scheduler_config *config, struct sequence *seq, struct err *err);

/* Pages to promise to a sequence before it starts: an upper bound, so that it can always go on. */
uint32_t admission_pages(const struct scheduler_config *config, uint32_t prompt_count,
                         const struct proto_sampling *resolved);

#endif

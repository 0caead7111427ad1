/* KV memory: what is there for the taking, what running sequences are expected to need, and who
 * gives way when it runs out.
 *
 * A sequence starts when an estimate says that it fits: its known tokens, and for each running one
 * and itself a share of the tokens that it may still generate. The share sinks with every step that
 * goes well and rises when the estimate proves too low. Then sequences are retracted: they leave
 * the batch and wait again, in front, with the tokens that they have; most of what they had
 * computed is still in the prefix tree when they come back.
 *
 * Those that are paused give way before all others, to sequences that wait, too, and are not
 * expected to grow.
 *
 * Nothing starves: the first of the running sequences that are not paused (sequence_before) is
 * never retracted, and alone it always fits (admission.h). And nothing gets stuck: what a sequence
 * knows when it starts is in the estimate as a whole, so that the prompts that run fit together;
 * only sequences that decode outgrow it, and they have a row in each step or make others give way.
 */
#ifndef PHALANX_SCHEDULER_MEMORY_H
#define PHALANX_SCHEDULER_MEMORY_H

#include "services/scheduler/state.h"

/* The estimate to begin with. */
void memory_init(struct scheduler *s);

/* Pages that can be taken now: free ones, and those of the tree that nothing keeps. */
uint32_t memory_available(const struct scheduler *s);

/* Takes a page; one must be available. */
uint32_t memory_take(struct scheduler *s);

/* Pages that seq has to take before its position end - 1 can be computed. */
uint32_t memory_missing(const struct scheduler *s, const struct sequence *seq, uint32_t end);

/* Pages expected to be taken by the running sequences until they end. */
uint64_t memory_reserved(const struct scheduler *s);

/* The same for a sequence that waits, when it starts with `depth` pages of the tree. */
uint64_t memory_expected(const struct scheduler *s, const struct sequence *seq, uint32_t depth);

/* Gives the tree the whole pages of seq that are computed, with those of the step being planned.
 * Where another sequence has computed the same page, ours stay ours: kept both by the tree and by
 * us, the pages of one sequence could be more than the pool holds. */
void memory_share(struct scheduler *s, struct sequence *seq, uint64_t step);

/* Gives everything back that seq holds. */
void memory_release(struct scheduler *s, struct sequence *seq);

/* Retracts until each decoding sequence has the page for its next row, now or when the steps in
 * flight are applied. */
void memory_make_room(struct scheduler *s);

/* Retracts the cheapest of the running sequences; false when there is none that may be. */
bool memory_retract(struct scheduler *s);

/* Retracts the cheapest of those that are paused; false: there is none. */
bool memory_retract_paused(struct scheduler *s);

/* Retracts one whose priority is more than the threshold below seq's; false: there is none. */
bool memory_preempt(struct scheduler *s, const struct sequence *seq);

/* A step with decode rows was planned. */
void memory_learn(struct scheduler *s);

#endif

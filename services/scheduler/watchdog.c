#include "services/scheduler/watchdog.h"

#include "common/log.h"

#include <inttypes.h>
#include <stdio.h>

void watchdog_init(struct watchdog *w, uint32_t ranks, int64_t now_us)
{
    *w = (struct watchdog){.ranks = ranks, .moved_us = now_us};
}

static void moved(struct watchdog *w, int64_t now_us)
{
    w->moved_us = now_us;
    w->told = false;
}

void watchdog_sent(struct watchdog *w, uint64_t epoch, const struct proto_step *m, int64_t now_us)
{
    struct watchdog_step *step = &w->steps[w->count++ % WATCHDOG_STEPS];

    *step = (struct watchdog_step){
        .epoch = epoch, .step = m->step, .rows = m->rows_count, .sent_us = now_us};
    for (uint32_t i = 0; i < m->rows_count; i++)
        step->tokens += m->rows[i].count > 1 ? m->rows[i].count : 0;
    moved(w, now_us);
}

void watchdog_answered(struct watchdog *w, uint64_t epoch, uint64_t number, uint32_t rank,
                       int64_t now_us)
{
    for (uint32_t back = 1; back <= WATCHDOG_STEPS && back <= w->count; back++) {
        struct watchdog_step *step = &w->steps[(w->count - back) % WATCHDOG_STEPS];

        if (step->step != number || step->epoch != epoch)
            continue;
        step->answered |= UINT64_C(1) << rank;
        step->answered_us = now_us;
        moved(w, now_us);
        return;
    }
}

void watchdog_look(struct watchdog *w, bool work, int64_t stall_us, int64_t now_us)
{
    char why[64];

    if (!work)
        moved(w, now_us);
    if (w->told || now_us - w->moved_us < stall_us)
        return;
    (void)snprintf(why, sizeof why, "nothing has moved for %.1f s",
                   (double)(now_us - w->moved_us) / 1e6);
    watchdog_dump(w, why, now_us);
    w->told = true;
}

static void step_log(const struct watchdog_step *step, uint32_t ranks, int64_t now_us)
{
    char missing[256] = "";
    size_t used = 0;
    char took[32] = "-";

    for (uint32_t rank = 0; rank < ranks && used < sizeof missing - 4; rank++)
        if (!(step->answered >> rank & 1))
            used += (size_t)snprintf(missing + used, sizeof missing - used, "%s%u",
                                     used ? "," : " missing=", rank);
    if (step->answered_us)
        (void)snprintf(took, sizeof took, "%.3f",
                       (double)(step->answered_us - step->sent_us) / 1e3);
    log_warn("epoch=%" PRIu64 " step=%" PRIu64 " rows=%u prefill_tokens=%u sent_s_ago=%.3f "
             "last_answer_ms=%s%s",
             step->epoch, step->step, step->rows, step->tokens,
             (double)(now_us - step->sent_us) / 1e6, took, missing);
}

void watchdog_dump(const struct watchdog *w, const char *why, int64_t now_us)
{
    uint64_t kept = w->count < WATCHDOG_STEPS ? w->count : WATCHDOG_STEPS;

    log_warn("steps_sent=%" PRIu64 " \"%s: the last %" PRIu64 " steps\"", w->count, why, kept);
    for (uint64_t i = w->count - kept; i < w->count; i++)
        step_log(&w->steps[i % WATCHDOG_STEPS], w->ranks, now_us);
}

#include "services/scheduler/report.h"

#include "common/log.h"
#include "common/mem.h"
#include "proto/stats.h"

#include <stdio.h>
#include <stdlib.h>

void report_init(struct report *r, uint32_t ranks, int64_t now_us)
{
    *r = (struct report){.ranks_count = ranks, .logged_us = now_us};
    metric_add(&r->own, METRIC_RANK_GROUP_LOSSES, 0); /* there before the first one */
    r->sources = mem_array(ranks + 1, sizeof *r->sources);
    r->stats = mem_array((size_t)(ranks + 1) * METRICS_COUNT, sizeof *r->stats);
}

void report_fini(struct report *r)
{
    free(r->sources);
    free(r->stats);
    *r = (struct report){0};
}

void report_worker(struct report *r, uint32_t rank, const char *name, const struct proto_stats *m)
{
    if (m->sources_count == 0)
        return;
    stats_read(&m->sources[0], &r->ranks[rank]);
    (void)snprintf(r->names[rank], sizeof r->names[rank], "%s", name);
    r->changed = true;
}

void report_ranks_lost(struct report *r)
{
    metric_add(&r->own, METRIC_RANK_GROUP_LOSSES, 1);
    for (uint32_t i = 0; i < r->ranks_count; i++)
        r->names[i][0] = '\0';
    r->changed = true;
}

void report_queue_time(struct report *r, int64_t queue_us)
{
    metric_observe(&r->own, METRIC_QUEUE_TIME, (double)queue_us / 1e6);
}

void report_step(struct report *r, int64_t step_us, uint64_t compute_us)
{
    metric_observe(&r->own, METRIC_STEP_TIME, (double)step_us / 1e6);
    metric_observe(&r->own, METRIC_STEP_COMPUTE, (double)compute_us / 1e6);
    r->changed = true;
}

static void report_count(struct report *r, const struct scheduler_stats *now)
{
    struct metrics *m = &r->own;
    const struct scheduler_stats *was = &r->counted;
    uint32_t used = now->pages_total - now->pages_free;

    metric_set(m, METRIC_NUM_REQUESTS_RUNNING, now->running);
    metric_set(m, METRIC_NUM_REQUESTS_WAITING, now->waiting);
    metric_set(m, METRIC_KV_PAGES_TOTAL, now->pages_total);
    metric_set(m, METRIC_KV_PAGES_FREE, now->pages_free);
    metric_set(m, METRIC_KV_CACHE_USAGE, (double)used / now->pages_total);
    metric_add(m, METRIC_PROMPT_TOKENS, (double)(now->prompt_tokens - was->prompt_tokens));
    metric_add(m, METRIC_GENERATION_TOKENS,
               (double)(now->generation_tokens - was->generation_tokens));
    metric_add(m, METRIC_STEPS, (double)(now->steps - was->steps));
    metric_add(m, METRIC_PREFIX_QUERIES, (double)(now->prefix_queries - was->prefix_queries));
    metric_add(m, METRIC_PREFIX_HITS, (double)(now->prefix_hits - was->prefix_hits));
    metric_add(m, METRIC_PREEMPTIONS, (double)(now->preemptions - was->preemptions));
    metric_add(m, METRIC_REPLAYS, (double)(now->replays - was->replays));
    metrics_sample_process(m);
    r->counted = *now;
}

bool report_stats(struct report *r, const struct scheduler_stats *now, const char *name,
                  struct proto_stats *out)
{
    uint32_t count = 0;

    if (!r->changed)
        return false;
    r->changed = false;
    report_count(r, now);
    r->sources[count++] = stats_source(&r->own, name, r->stats);
    for (uint32_t i = 0; i < r->ranks_count; i++) {
        if (!r->names[i][0])
            continue;
        r->sources[count] =
            stats_source(&r->ranks[i], r->names[i], r->stats + (size_t)count * METRICS_COUNT);
        count++;
    }
    *out = (struct proto_stats){.sources = r->sources, .sources_count = count};
    return true;
}

void report_log(struct report *r, const struct scheduler_stats *now, int64_t now_us)
{
    const struct scheduler_stats *was = &r->logged;
    double seconds = (double)(now_us - r->logged_us) / 1e6;
    uint64_t queries = now->prefix_queries - was->prefix_queries;
    uint64_t hits = now->prefix_hits - was->prefix_hits;

    if (seconds > 0 && (now->steps != was->steps || now->running || now->waiting))
        log_info("running=%u queued=%u token_usage=%.2f prefill_tokens_per_s=%.1f "
                 "decode_tokens_per_s=%.1f cache_hit_rate=%.2f",
                 now->running, now->waiting,
                 (double)(now->pages_total - now->pages_free) / now->pages_total,
                 (double)(now->prompt_tokens - was->prompt_tokens) / seconds,
                 (double)(now->generation_tokens - was->generation_tokens) / seconds,
                 queries ? (double)hits / (double)queries : 0.0);
    r->logged = *now;
    r->logged_us = now_us;
}

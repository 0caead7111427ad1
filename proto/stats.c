#include "proto/stats.h"

#include <string.h>

struct proto_source stats_source(const struct metrics *m, const char *name,
                                 struct proto_stat stats[METRICS_COUNT])
{
    struct proto_source source = {.name = proto_str(name), .stats = stats};

    for (enum metric id = 0; id < METRICS_COUNT; id++) {
        struct proto_stat *s = &stats[source.stats_count];

        if (!m->used[id])
            continue;
        *s = (struct proto_stat){.name = proto_str(metric_name(id)), .value = m->value[id]};
        if (metric_kind(id) == METRIC_HISTOGRAM) {
            s->buckets = (uint64_t *)(uintptr_t)m->buckets[id];
            s->buckets_count = METRIC_BUCKETS;
        }
        source.stats_count++;
    }
    return source;
}

void stats_read(const struct proto_source *source, struct metrics *m)
{
    memset(m, 0, sizeof *m);
    for (uint32_t i = 0; i < source->stats_count; i++) {
        const struct proto_stat *s = &source->stats[i];
        enum metric id = metric_find(s->name.data, s->name.len);

        if (id == METRICS_COUNT)
            continue;
        m->used[id] = true;
        m->value[id] = s->value;
        for (uint32_t b = 0; b < s->buckets_count && b < METRIC_BUCKETS; b++)
            m->buckets[id][b] = s->buckets[b];
    }
}

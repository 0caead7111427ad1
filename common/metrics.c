#include "common/metrics.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define PREFIX "phalanx:"

struct metric_row {
    const char *name;
    const char *help;
    enum metric_kind kind;
};

static const struct metric_row rows[METRICS_COUNT] = {
#define METRIC(ID, kind, name, help) {name, help, METRIC_##kind},
#include "common/metrics.def"
#undef METRIC
};

const double metric_bounds[METRIC_BUCKETS - 1] = {
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5,    1,       2.5,    5,     10,     20,    40,   80,    160,  320,
};

void metric_add(struct metrics *m, enum metric id, double value)
{
    assert(rows[id].kind == METRIC_COUNTER);
    m->value[id] += value;
    m->used[id] = true;
}

void metric_set(struct metrics *m, enum metric id, double value)
{
    assert(rows[id].kind == METRIC_GAUGE);
    m->value[id] = value;
    m->used[id] = true;
}

void metric_observe(struct metrics *m, enum metric id, double value)
{
    size_t bucket = 0;

    assert(rows[id].kind == METRIC_HISTOGRAM);
    while (bucket < METRIC_BUCKETS - 1 && value > metric_bounds[bucket])
        bucket++;
    m->buckets[id][bucket]++;
    m->value[id] += value;
    m->used[id] = true;
}

const char *metric_name(enum metric id)
{
    return rows[id].name;
}

enum metric_kind metric_kind(enum metric id)
{
    return rows[id].kind;
}

enum metric metric_find(const char *name, size_t len)
{
    for (size_t i = 0; i < METRICS_COUNT; i++)
        if (strlen(rows[i].name) == len && memcmp(rows[i].name, name, len) == 0)
            return (enum metric)i;
    return METRICS_COUNT;
}

/* Does not move when the clock is set later: it tells one process from the next. */
static void sample_start(struct metrics *m)
{
    FILE *stat = fopen("/proc/self/stat", "re");
    struct timespec wall, boot;
    unsigned long long ticks;

    if (!stat)
        return;
    if (fscanf(stat,
               "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d "
               "%*d %*d %llu",
               &ticks) == 1 &&
        clock_gettime(CLOCK_REALTIME, &wall) == 0 && clock_gettime(CLOCK_BOOTTIME, &boot) == 0)
        metric_set(m, METRIC_START_TIME,
                   (double)(wall.tv_sec - boot.tv_sec) +
                       (double)(wall.tv_nsec - boot.tv_nsec) / 1e9 +
                       (double)ticks / (double)sysconf(_SC_CLK_TCK));
    (void)fclose(stat);
}

void metrics_sample_process(struct metrics *m)
{
    struct rusage usage;
    FILE *statm = fopen("/proc/self/statm", "re");
    long pages;

    if (!m->used[METRIC_START_TIME])
        sample_start(m);
    if (statm) {
        if (fscanf(statm, "%*d %ld", &pages) == 1)
            metric_set(m, METRIC_RESIDENT_BYTES, (double)pages * (double)sysconf(_SC_PAGESIZE));
        (void)fclose(statm);
    }
    if (getrusage(RUSAGE_SELF, &usage) == 0) {
        m->value[METRIC_CPU_SECONDS] =
            (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
            (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
        m->used[METRIC_CPU_SECONDS] = true;
    }
}

/* Length of the name without its label set. */
static size_t family_len(enum metric id)
{
    return strcspn(rows[id].name, "{");
}

static bool same_family(enum metric a, enum metric b)
{
    size_t len = family_len(a);

    return len == family_len(b) && memcmp(rows[a].name, rows[b].name, len) == 0;
}

static void print_head(enum metric id, struct buf *out)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    int len = (int)family_len(id);

    buf_printf(out, "# HELP " PREFIX "%.*s %s\n", len, rows[id].name, rows[id].help);
    buf_printf(out, "# TYPE " PREFIX "%.*s %s\n", len, rows[id].name, kinds[rows[id].kind]);
}

static void print_value(double value, struct buf *out)
{
    buf_putc(out, ' ');
    if (isnan(value))
        buf_puts(out, "NaN");
    else if (isinf(value))
        buf_puts(out, value > 0 ? "+Inf" : "-Inf");
    else
        buf_json_number(out, value);
    buf_putc(out, '\n');
}

/* The name with a suffix, its own labels and the process; the label set is left open. */
static void print_name(enum metric id, const char *suffix, const char *process, struct buf *out)
{
    size_t len = family_len(id);
    const char *labels = rows[id].name + len;

    buf_printf(out, PREFIX "%.*s%s", (int)len, rows[id].name, suffix);
    if (*labels)
        buf_printf(out, "%.*s,", (int)strlen(labels) - 1, labels);
    else
        buf_putc(out, '{');
    buf_puts(out, "process=\"");
    for (const char *c = process; *c; c++) {
        if (*c == '\\' || *c == '"')
            buf_putc(out, '\\');
        if (*c == '\n')
            buf_puts(out, "\\n");
        else
            buf_putc(out, *c);
    }
    buf_putc(out, '"');
}

static void print_histogram(const struct metrics *m, enum metric id, const char *process,
                            struct buf *out)
{
    uint64_t count = 0;

    for (size_t i = 0; i < METRIC_BUCKETS; i++) {
        count += m->buckets[id][i];
        print_name(id, "_bucket", process, out);
        buf_puts(out, ",le=\"");
        if (i < METRIC_BUCKETS - 1)
            buf_json_number(out, metric_bounds[i]);
        else
            buf_puts(out, "+Inf");
        buf_printf(out, "\"} %llu\n", (unsigned long long)count);
    }
    print_name(id, "_sum", process, out);
    buf_putc(out, '}');
    print_value(m->value[id], out);
    print_name(id, "_count", process, out);
    buf_printf(out, "} %llu\n", (unsigned long long)count);
}

void metrics_print(const struct metrics *const *all, const char *const *names, size_t count,
                   struct buf *out)
{
    bool headed = false;

    for (size_t i = 0; i < METRICS_COUNT; i++) {
        enum metric id = (enum metric)i;

        if (i == 0 || !same_family(id, (enum metric)(i - 1)))
            headed = false;
        for (size_t p = 0; p < count; p++) {
            if (!all[p]->used[id])
                continue;
            if (!headed)
                print_head(id, out);
            headed = true;
            if (rows[id].kind == METRIC_HISTOGRAM) {
                print_histogram(all[p], id, names[p], out);
                continue;
            }
            print_name(id, "", names[p], out);
            buf_putc(out, '}');
            print_value(all[p]->value[id], out);
        }
    }
}

#include "services/bench/results.h"

#include "common/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void results_init(struct results *r, size_t count)
{
    memset(r, 0, sizeof *r);
    r->samples = mem_array(count, sizeof *r->samples);
    r->count = count;
}

void results_fini(struct results *r)
{
    free(r->samples);
    free(r->gaps_us);
    memset(r, 0, sizeof *r);
}

void results_fail(struct results *r, struct sample *s, const char *reason)
{
    char text[REASON_BYTES];
    size_t i = 0;

    (void)snprintf(text, sizeof text, "%s", reason);
    while (i < r->reasons_count && strcmp(r->reasons[i].text, text) != 0)
        i++;
    if (i >= REASONS_MAX - 1) {
        i = REASONS_MAX - 1;
        (void)snprintf(text, sizeof text, "other reasons");
    }
    if (i >= r->reasons_count) {
        r->reasons_count = i + 1;
        memcpy(r->reasons[i].text, text, sizeof text);
    }
    r->reasons[i].count++;
    s->reason = (uint8_t)i;
    s->outcome = OUTCOME_FAILED;
}

void results_add_gaps(struct results *r, const uint32_t *gaps_us, size_t count)
{
    if (!count)
        return;
    if (r->gaps_count + count > r->gaps_cap) {
        r->gaps_cap = (r->gaps_count + count) * 2;
        r->gaps_us = mem_resize(r->gaps_us, r->gaps_cap, sizeof *r->gaps_us);
    }
    memcpy(r->gaps_us + r->gaps_count, gaps_us, count * sizeof *gaps_us);
    r->gaps_count += count;
}

static int compare(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

static double percentile(const double *sorted, size_t count, double p)
{
    double at = p / 100 * (double)(count - 1);
    size_t low = (size_t)at;
    size_t high = low + 1 < count ? low + 1 : low;

    return sorted[low] + (sorted[high] - sorted[low]) * (at - (double)low);
}

struct summary summarize(double *values, size_t count)
{
    struct summary s = {.count = count};
    double sum = 0, squares = 0;

    if (!count)
        return s;
    qsort(values, count, sizeof *values, compare);
    for (size_t i = 0; i < count; i++)
        sum += values[i];
    s.mean = sum / (double)count;
    for (size_t i = 0; i < count; i++)
        squares += (values[i] - s.mean) * (values[i] - s.mean);
    s.std = sqrt(squares / (double)count);
    s.p50 = percentile(values, count, 50);
    s.p90 = percentile(values, count, 90);
    s.p99 = percentile(values, count, 99);
    s.max = values[count - 1];
    return s;
}

/* What a completed request adds to each summary; NAN: nothing. */
static double ttft_ms(const struct sample *s)
{
    return (double)(s->first_us - s->start_us) / 1e3;
}

static double e2e_ms(const struct sample *s)
{
    return (double)(s->end_us - s->start_us) / 1e3;
}

static double tpot_ms(const struct sample *s)
{
    if (s->output_tokens < 2)
        return NAN;
    return (double)(s->end_us - s->first_us) / 1e3 / (double)(s->output_tokens - 1);
}

static double late_ms(const struct sample *s)
{
    return (double)(s->start_us - s->due_us) / 1e3;
}

static struct summary summary_of(const struct results *r, double (*value)(const struct sample *),
                                 double *scratch)
{
    size_t count = 0;

    for (size_t i = 0; i < r->count; i++) {
        double v = r->samples[i].outcome == OUTCOME_OK ? value(&r->samples[i]) : NAN;

        if (!isnan(v))
            scratch[count++] = v;
    }
    return summarize(scratch, count);
}

static struct summary summary_of_gaps(const struct results *r)
{
    double *values = mem_array(r->gaps_count + 1, sizeof *values);
    struct summary s;

    for (size_t i = 0; i < r->gaps_count; i++)
        values[i] = r->gaps_us[i] / 1e3;
    s = summarize(values, r->gaps_count);
    free(values);
    return s;
}

static void report_count(const struct results *r, struct report *out)
{
    double busy_us = 0;

    for (size_t i = 0; i < r->count; i++) {
        const struct sample *s = &r->samples[i];

        out->failed += s->outcome == OUTCOME_FAILED;
        if (s->outcome != OUTCOME_OK)
            continue;
        out->completed++;
        out->input_tokens += s->input_tokens;
        out->output_tokens += s->output_tokens;
        out->chunks += s->chunks;
        busy_us += (double)(s->end_us - s->start_us);
    }
    if (r->duration_us > 0)
        out->concurrency = busy_us / (double)r->duration_us;
}

void report_make(const struct results *r, struct report *out)
{
    double *scratch = mem_array(r->count + 1, sizeof *scratch);
    int64_t last_due_us = r->count ? r->samples[r->count - 1].due_us : 0;

    memset(out, 0, sizeof *out);
    report_count(r, out);
    out->duration_s = (double)r->duration_us / 1e6;
    if (r->duration_us > 0) {
        out->request_rate = (double)out->completed / out->duration_s;
        out->input_rate = (double)out->input_tokens / out->duration_s;
        out->output_rate = (double)out->output_tokens / out->duration_s;
        out->cpu_share = (double)r->cpu_us / (double)r->duration_us;
    }
    if (out->output_tokens)
        out->cpu_us_token = (double)r->cpu_us / (double)out->output_tokens;
    out->offered_rate =
        last_due_us > 0 ? (double)(r->count - 1) * 1e6 / (double)last_due_us : (double)INFINITY;
    out->ttft_ms = summary_of(r, ttft_ms, scratch);
    out->tpot_ms = summary_of(r, tpot_ms, scratch);
    out->e2e_ms = summary_of(r, e2e_ms, scratch);
    out->late_ms = summary_of(r, late_ms, scratch);
    out->itl_ms = summary_of_gaps(r);
    free(scratch);
}

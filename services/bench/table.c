/* The table on standard output. */
#include "services/bench/output.h"

#include <math.h>

#define LABEL_WIDTH 34

void output_load_name(const struct bench_config *c, size_t run, struct buf *out)
{
    double rate = bench_config_rate(c, run), limit = bench_config_limit(c, run);

    if (isnan(rate))
        buf_printf(out, "times of the trace x %g", bench_config_scale(c, run));
    else if (isinf(rate))
        buf_puts(out, "all at once");
    else
        buf_printf(out, "%g requests/s", rate);
    if (!isinf(limit))
        buf_printf(out, ", at most %.0f in flight", limit);
}

static void row_count(struct buf *out, const char *label, uint64_t value)
{
    buf_printf(out, "  %-*s %10llu\n", LABEL_WIDTH, label, (unsigned long long)value);
}

static void row_value(struct buf *out, const char *label, double value)
{
    buf_printf(out, "  %-*s %10.2f\n", LABEL_WIDTH, label, value);
}

static void row_summary(struct buf *out, const char *label, const struct summary *s)
{
    if (!s->count) {
        buf_printf(out, "  %-*s %10s\n", LABEL_WIDTH, label, "none");
        return;
    }
    buf_printf(out, "  %-*s %10.2f %10.2f %10.2f %10.2f\n", LABEL_WIDTH, label, s->mean, s->p50,
               s->p90, s->p99);
}

/* What the counts of server and client say about each other. */
static void notes(const struct bench_config *c, const struct results *r, const struct report *p,
                  struct buf *out)
{
    if (r->without_usage)
        buf_printf(out, "  %zu replies without usage: their chunks are counted as tokens\n",
                   r->without_usage);
    if (r->more_chunks)
        buf_printf(out, "  %zu replies with more chunks than tokens in their usage\n",
                   r->more_chunks);
    if (c->ignore_eos && r->shorter)
        buf_printf(out, "  %zu replies shorter than asked for, although ignore_eos was sent\n",
                   r->shorter);
    if (c->shape != SHAPE_CHAT && r->other_inputs)
        buf_printf(out, "  %zu prompts have another length by the server's count\n",
                   r->other_inputs);
    if (p->cpu_share > 0.8)
        buf_printf(out, "  This program used %.0f %% of a core: it may be the bottleneck\n",
                   p->cpu_share * 100);
    if (r->interrupted)
        buf_printf(out, "  Interrupted: %zu requests were not finished\n",
                   r->count - p->completed - p->failed);
}

void output_table(const struct bench_config *c, size_t run, const struct results *r,
                  const struct report *p, struct buf *out)
{
    buf_puts(out, "\nRun: ");
    output_load_name(c, run, out);
    buf_putc(out, '\n');
    row_count(out, "Successful requests", p->completed);
    row_count(out, "Failed requests", p->failed);
    for (size_t i = 0; i < r->reasons_count; i++)
        buf_printf(out, "    %6zu  %s\n", r->reasons[i].count, r->reasons[i].text);
    row_value(out, "Duration (s)", p->duration_s);
    row_count(out, "Input tokens", p->input_tokens);
    row_count(out, "Output tokens", p->output_tokens);
    row_count(out, "Output chunks", p->chunks);
    row_value(out, "Request throughput (req/s)", p->request_rate);
    row_value(out, "Input throughput (tok/s)", p->input_rate);
    row_value(out, "Output throughput (tok/s)", p->output_rate);
    row_value(out, "Concurrency, mean", p->concurrency);
    row_count(out, "Concurrency, peak", r->peak);
    row_value(out, "CPU of the generator (us/token)", p->cpu_us_token);
    row_value(out, "CPU of the generator (% of a core)", p->cpu_share * 100);
    buf_printf(out, "  %-*s %10s %10s %10s %10s\n", LABEL_WIDTH, "Milliseconds", "mean", "p50",
               "p90", "p99");
    row_summary(out, "Time to first token (TTFT)", &p->ttft_ms);
    row_summary(out, "Time per output token (TPOT)", &p->tpot_ms);
    row_summary(out, "Between chunks (ITL)", &p->itl_ms);
    row_summary(out, "End to end (E2E)", &p->e2e_ms);
    row_summary(out, "Sent after due", &p->late_ms);
    notes(c, r, p, out);
}

void output_sweep(const struct bench_config *c, const struct report *reports, size_t count,
                  struct buf *out)
{
    buf_printf(out, "\n%-*s %8s %8s %10s %10s %10s %10s %10s\n", LABEL_WIDTH, "Load", "ok",
               "failed", "tok/s", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99");
    for (size_t i = 0; i < count; i++) {
        const struct report *p = &reports[i];
        struct buf name = {0};

        output_load_name(c, i, &name);
        buf_printf(out, "%-*s %8zu %8zu %10.1f %10.2f %10.2f %10.2f %10.2f\n", LABEL_WIDTH,
                   name.data, p->completed, p->failed, p->output_rate, p->ttft_ms.p50,
                   p->ttft_ms.p99, p->tpot_ms.p50, p->tpot_ms.p99);
        buf_fini(&name);
    }
}

/* The JSON document. Names are those of sglang.bench_serving where it has them. */
#include "common/options_table.h"
#include "services/bench/output.h"

#include <math.h>
#include <string.h>

static void number(struct buf *out, const char *name, double value)
{
    buf_printf(out, ",\"%s\":", name);
    if (isinf(value))
        buf_puts(out, "\"inf\"");
    else
        buf_json_number(out, value);
}

static void count(struct buf *out, const char *name, uint64_t value)
{
    buf_printf(out, ",\"%s\":%llu", name, (unsigned long long)value);
}

static void string(struct buf *out, const char *name, const char *value)
{
    buf_printf(out, ",\"%s\":", name);
    buf_json_string(out, value, strlen(value));
}

static void summary(struct buf *out, const char *name, const struct summary *s)
{
    const struct {
        const char *name;
        double value;
    } parts[] = {{"mean", s->mean}, {"std", s->std}, {"p50", s->p50},
                 {"p90", s->p90},   {"p99", s->p99}, {"max", s->max}};

    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        buf_printf(out, ",\"%s_%s_ms\":", parts[i].name, name);
        buf_json_number(out, s->count ? parts[i].value : (double)NAN);
    }
}

/* ---- configuration ---- */

static void option_write(struct buf *out, const struct options *o, enum option id)
{
    const struct option_row *row = &option_rows[id];
    char name[64];
    size_t n = 0;

    for (const char *c = row->name; *c && n < sizeof name - 1; c++)
        name[n++] = (char)(*c == '-' ? '_' : *c);
    name[n] = '\0';
    if (row->kind == OPTION_INT || row->kind == OPTION_FLOAT)
        number(out, name, options_float(o, id));
    else if (row->kind == OPTION_BOOL)
        buf_printf(out, ",\"%s\":%s", name, options_bool(o, id) ? "true" : "false");
    else
        string(out, name, options_str(o, id));
}

void output_json_begin(const struct bench_config *c, const struct output_facts *f, struct buf *out)
{
    buf_puts(out, "{\"program\":\"phalanx bench\",\"version\":\"" PHALANX_VERSION "\"");
    string(out, "url", f->base_url);
    string(out, "path", c->path);
    string(out, "model_id", f->model);
    count(out, "context_length", f->context);
    count(out, "vocab", f->vocab);
    count(out, "trace_rows_skipped", f->skipped);
    buf_puts(out, ",\"config\":{\"command\":\"bench\"");
    for (size_t i = 0; i < OPTIONS_COUNT; i++) {
        enum option id = (enum option)i;

        if (option_taken_by(id, 'B') && id != OPT_API_KEY && id != OPT_HELP && id != OPT_VERSION)
            option_write(out, c->options, id);
    }
    buf_puts(out, "},\"runs\":[");
}

void output_json_end(struct buf *out)
{
    buf_puts(out, "]}\n");
}

/* ---- a run ---- */

static void reasons_write(struct buf *out, const struct results *r)
{
    buf_puts(out, ",\"errors\":[");
    for (size_t i = 0; i < r->reasons_count; i++) {
        buf_puts(out, i ? ",{\"reason\":" : "{\"reason\":");
        buf_json_string(out, r->reasons[i].text, strlen(r->reasons[i].text));
        buf_printf(out, ",\"count\":%zu}", r->reasons[i].count);
    }
    buf_putc(out, ']');
}

static void samples_write(struct buf *out, const struct results *r)
{
    static const char *const outcomes[] = {"unfinished", "ok", "failed"};

    buf_puts(out, ",\"requests\":[");
    for (size_t i = 0; i < r->count; i++) {
        const struct sample *s = &r->samples[i];
        bool ok = s->outcome == OUTCOME_OK;

        buf_printf(out, "%s{\"outcome\":\"%s\"", i ? "," : "", outcomes[s->outcome]);
        number(out, "due_ms", (double)s->due_us / 1e3);
        number(out, "start_ms", (double)s->start_us / 1e3);
        number(out, "ttft_ms", ok ? (double)(s->first_us - s->start_us) / 1e3 : (double)NAN);
        number(out, "e2e_ms", ok ? (double)(s->end_us - s->start_us) / 1e3 : (double)NAN);
        count(out, "input_asked", s->input_asked);
        count(out, "output_asked", s->output_asked);
        count(out, "input_tokens", s->input_tokens);
        count(out, "output_tokens", s->output_tokens);
        count(out, "chunks", s->chunks);
        if (s->outcome == OUTCOME_FAILED)
            string(out, "error", r->reasons[s->reason].text);
        buf_putc(out, '}');
    }
    buf_putc(out, ']');
}

void output_json_run(const struct bench_config *c, size_t run, const struct results *r,
                     const struct report *p, struct buf *out)
{
    buf_printf(out, "%s{\"run\":%zu", run ? "," : "", run);
    number(out, "request_rate", bench_config_rate(c, run));
    number(out, "trace_scale", bench_config_scale(c, run));
    number(out, "max_concurrency", bench_config_limit(c, run));
    number(out, "offered_rate", p->offered_rate);
    count(out, "completed", p->completed);
    count(out, "failed", p->failed);
    reasons_write(out, r);
    number(out, "duration", p->duration_s);
    count(out, "total_input_tokens", p->input_tokens);
    count(out, "total_output_tokens", p->output_tokens);
    count(out, "total_output_chunks", p->chunks);
    number(out, "request_throughput", p->request_rate);
    number(out, "input_throughput", p->input_rate);
    number(out, "output_throughput", p->output_rate);
    number(out, "concurrency", p->concurrency);
    count(out, "peak_concurrency", r->peak);
    summary(out, "ttft", &p->ttft_ms);
    summary(out, "tpot", &p->tpot_ms);
    summary(out, "itl", &p->itl_ms);
    summary(out, "e2e_latency", &p->e2e_ms);
    summary(out, "late", &p->late_ms);
    number(out, "generator_cpu_us_per_token", p->cpu_us_token);
    number(out, "generator_cpu_share", p->cpu_share);
    count(out, "replies_without_usage", r->without_usage);
    count(out, "replies_shorter", r->shorter);
    count(out, "replies_more_chunks", r->more_chunks);
    count(out, "replies_other_input", r->other_inputs);
    buf_printf(out, ",\"interrupted\":%s", r->interrupted ? "true" : "false");
    if (c->details)
        samples_write(out, r);
    buf_putc(out, '}');
}

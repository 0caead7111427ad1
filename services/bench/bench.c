#include "services/bench/bench.h"

#include "common/buf.h"
#include "common/json.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/options.h"
#include "services/bench/load.h"
#include "services/bench/output.h"
#include "services/bench/plot.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define VOCAB_DEFAULT 10000 /* below that of any model that people serve */
#define WARMUP_OUTPUT_MAX 32
#define FDS_RESERVED 32

struct bench {
    struct options options;
    struct bench_config config;
    struct target target;
    struct workload workload;
    struct output_facts facts;
    char *model;
    int64_t *due_us;
    struct report *reports;
    size_t reports_count;
    size_t connections_max;
    struct buf json;
    bool failed, interrupted;
};

/* ---- the server ---- */

/* The entry of the model asked for, else the first one. */
static const json_t *model_entry(const json_t *list, const char *name)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *id = json_string_value(json_object_get(json_array_get(list, i), "id"));

        if (id && strcmp(id, name) == 0)
            return json_array_get(list, i);
    }
    return json_array_get(list, 0);
}

/* Model, context and vocabulary, as far as /v1/models has them. */
static int bench_ask_server(struct bench *b, struct err *err)
{
    const char *name = options_str(&b->options, OPT_MODEL);
    struct buf body = {0};
    struct err ignored;
    json_t *json = NULL;
    const json_t *entry = NULL;
    const char *id;
    int status = 0;
    int rc = load_get(&b->target, "/v1/models", &body, &status, err);

    if (!rc && status == 200 && body.len &&
        json_parse(body.data, body.len, JSON_DEPTH_REQUEST, &json, &ignored) == 0)
        entry = model_entry(json_object_get(json, "data"), name);
    id = json_string_value(json_object_get(entry, "id"));
    if (!rc && !id && !*name && b->config.shape != SHAPE_GENERATE)
        rc = err_set(err, ERR_NOT_FOUND, "%s/v1/models names no model (status %d), give --model%s",
                     b->target.base, status, status == 401 ? " and --api-key" : "");
    if (!rc) {
        json_int_t context = json_integer_value(json_object_get(entry, "max_model_len"));
        json_int_t vocab = json_integer_value(json_object_get(entry, "vocab_size"));

        b->model = mem_strdup(*name ? name : id ? id : "");
        b->facts.context = context > 0 ? (uint64_t)context : 0;
        b->facts.vocab = b->config.vocab ? b->config.vocab : VOCAB_DEFAULT;
        if (!b->config.vocab && vocab > 0 && vocab <= UINT32_MAX)
            b->facts.vocab = (uint32_t)vocab;
    }
    json_decref(json);
    buf_fini(&body);
    return rc;
}

/* ---- what is sent ---- */

static int check_context(const struct bench *b, struct err *err)
{
    for (size_t i = 0; i < b->workload.count; i++) {
        const struct request *q = &b->workload.requests[i];
        uint64_t tokens = (uint64_t)q->input_tokens + q->output_tokens;

        if (b->facts.context && tokens > b->facts.context)
            return err_set(err, ERR_LIMIT,
                           "--random-input-len and --random-output-len: a request of %llu tokens "
                           "exceeds the server's context of %llu",
                           (unsigned long long)tokens, (unsigned long long)b->facts.context);
    }
    return 0;
}

static int bench_make_workload(struct bench *b, struct err *err)
{
    const struct bench_config *c = &b->config;
    int rc;

    if (!c->trace) {
        workload_random(&b->workload, c->num_prompts, c->input_max, c->output_max, c->range_ratio,
                        c->seed);
        rc = check_context(b, err);
    } else {
        rc = workload_trace(&b->workload, options_str(&b->options, OPT_DATASET_PATH),
                            c->num_prompts, b->facts.context, err);
    }
    if (rc)
        return rc;
    b->facts.skipped = b->workload.skipped;
    if (b->workload.skipped)
        log_say("%zu rows of the trace are longer than the server's context of %llu tokens and "
                "left out",
                b->workload.skipped, (unsigned long long)b->facts.context);
    if (b->workload.count < c->num_prompts)
        log_say("The trace has %zu requests, not %zu", b->workload.count, c->num_prompts);
    b->due_us = mem_array(b->workload.count, sizeof *b->due_us);
    return 0;
}

/* ---- runs ---- */

static struct load_plan bench_plan(const struct bench *b, size_t run)
{
    double limit = bench_config_limit(&b->config, run);

    return (struct load_plan){
        .config = &b->config,
        .target = &b->target,
        .model = b->model,
        .workload = &b->workload,
        .due_us = b->due_us,
        .run = run + 1,
        .vocab = b->facts.vocab,
        .limit = limit < (double)b->connections_max ? (size_t)limit : b->connections_max,
        .progress = b->config.progress,
    };
}

/* A few requests so that nothing is done for the first time while it is measured. One after the
 * other; a failure ends the program, since the runs would fail as well. */
static int bench_warm_up(struct bench *b, struct err *err)
{
    struct request first = b->workload.requests[0];
    struct workload w = {.count = b->config.warmups};
    struct load_plan plan = bench_plan(b, 0);
    struct results results = {0};
    int rc = 0;

    if (!w.count)
        return 0;
    w.requests = mem_array(w.count, sizeof *w.requests);
    if (first.output_tokens > WARMUP_OUTPUT_MAX)
        first.output_tokens = WARMUP_OUTPUT_MAX;
    first.blocks_count = 0;
    first.arrival_us = 0;
    for (size_t i = 0; i < w.count; i++)
        w.requests[i] = first;
    plan.workload = &w;
    plan.due_us = mem_array(w.count, sizeof *plan.due_us);
    plan.limit = 1;
    plan.run = 0;
    plan.progress = false;
    rc = load_run(&plan, &results, err);
    if (!rc && results.reasons_count)
        rc = err_set(err, ERR_PEER, "warm-up at %s%s: %s", b->target.base, b->config.path,
                     results.reasons[0].text);
    b->interrupted = results.interrupted;
    results_fini(&results);
    free((void *)(uintptr_t)plan.due_us);
    free(w.requests);
    return rc;
}

static void print_text(struct buf *text)
{
    (void)fputs(text->data, stdout);
    (void)fflush(stdout);
    buf_fini(text);
}

static int bench_run(struct bench *b, size_t run, struct err *err)
{
    double rate = bench_config_rate(&b->config, run);
    struct load_plan plan = bench_plan(b, run);
    struct report *report = &b->reports[run];
    struct results results = {0};
    struct buf text = {0};
    int rc;

    if (isnan(rate))
        arrivals_trace(&b->workload, bench_config_scale(&b->config, run), b->due_us);
    else
        arrivals_poisson(&b->workload, rate, b->config.seed, b->due_us);
    rc = load_run(&plan, &results, err);
    if (!rc) {
        report_make(&results, report);
        output_table(&b->config, run, &results, report, &text);
        output_json_run(&b->config, run, &results, report, &b->json);
        print_text(&text);
        b->reports_count++;
        b->failed = b->failed || report->failed;
        b->interrupted = results.interrupted;
    }
    results_fini(&results);
    return rc;
}

static int bench_runs(struct bench *b, struct err *err)
{
    size_t runs = b->config.runs_count;
    struct buf text = {0};
    int rc = bench_warm_up(b, err);

    b->reports = mem_array(runs, sizeof *b->reports);
    output_json_begin(&b->config, &b->facts, &b->json);
    for (size_t run = 0; run < runs && !rc && !b->interrupted; run++)
        rc = bench_run(b, run, err);
    output_json_end(&b->json);
    if (!rc && b->reports_count > 1) {
        output_sweep(&b->config, b->reports, b->reports_count, &text);
        print_text(&text);
    }
    return rc;
}

/* ---- files ---- */

static int file_write(const char *name, const char *path, const struct buf *text, struct err *err)
{
    FILE *f = fopen(path, "w");
    bool written = f && fwrite(text->data, 1, text->len, f) == text->len;

    if (f)
        written = fclose(f) == 0 && written;
    return written ? 0 : err_errno(err, ERR_IO, "--%s: %s", name, path);
}

/* Found out before an hour of measuring, not after it. */
static int check_writable(const struct options *o, enum option id, struct err *err)
{
    const char *path = options_str(o, id);
    FILE *f = *path ? fopen(path, "a") : NULL;

    if (*path && !f)
        return err_errno(err, ERR_IO, "--%s: %s", option_name(id), path);
    if (f)
        (void)fclose(f);
    return 0;
}

static int bench_write_files(struct bench *b, struct err *err)
{
    const char *json = options_str(&b->options, OPT_OUTPUT_FILE);
    const char *plot = options_str(&b->options, OPT_PLOT);
    struct buf text = {0};
    int rc = *json ? file_write("output-file", json, &b->json, err) : 0;

    if (!rc && *plot) {
        plot_write(&b->config, b->model, b->reports, b->reports_count, &text);
        rc = file_write("plot", plot, &text, err);
    }
    buf_fini(&text);
    return rc;
}

/* ---- start ---- */

/* As many connections as the system allows this process. */
static void bench_raise_files(struct bench *b)
{
    struct rlimit files = {0};

    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
        (void)getrlimit(RLIMIT_NOFILE, &files);
    }
    b->connections_max =
        files.rlim_cur > FDS_RESERVED * 2 ? (size_t)files.rlim_cur - FDS_RESERVED : FDS_RESERVED;
    if (b->connections_max < b->config.num_prompts)
        log_say("At most %zu requests in flight: this process may not open more files (ulimit -n)",
                b->connections_max);
}

static int bench_prepare(struct bench *b, struct err *err)
{
    const struct options *o = &b->options;
    int rc = bench_config_read(&b->config, o, err);

    if (!rc)
        rc = check_writable(o, OPT_OUTPUT_FILE, err);
    if (!rc)
        rc = check_writable(o, OPT_PLOT, err);
    if (!rc)
        rc = target_init(&b->target, options_str(o, OPT_BASE_URL), options_str(o, OPT_HOST),
                         (int)options_int(o, OPT_PORT), options_str(o, OPT_API_KEY), err);
    if (!rc)
        rc = bench_ask_server(b, err);
    if (!rc)
        rc = bench_make_workload(b, err);
    b->facts.base_url = b->target.base;
    b->facts.model = b->model;
    return rc;
}

int bench_main(const char *program, const char *summary, int argc, char **argv)
{
    struct bench *b = mem_zalloc(sizeof *b);
    struct err err = {0};
    int status;
    int rc;

    options_main(&b->options, 'B', program, summary, argc, argv);
    rc = bench_prepare(b, &err);
    if (!rc) {
        bench_raise_files(b);
        log_say("%zu requests to %s%s, model %s, token ids below %u", b->workload.count,
                b->target.base, b->config.path, b->model, (unsigned)b->facts.vocab);
        rc = bench_runs(b, &err);
    }
    if (!rc)
        rc = bench_write_files(b, &err);
    if (rc)
        log_say("%s: %s", program, err.msg);
    status = rc || b->failed || b->interrupted ? 1 : 0;
    if (rc == ERR_INVALID)
        status = 2;
    options_fini(&b->options);
    bench_config_fini(&b->config);
    target_fini(&b->target);
    workload_fini(&b->workload);
    buf_fini(&b->json);
    free(b->model);
    free(b->due_us);
    free(b->reports);
    free(b);
    return status;
}

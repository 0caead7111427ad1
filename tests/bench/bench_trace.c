/* Replays a trace of requests against the scheduler's core in simulated time:
 * bench_trace [--scale X] [--pages N] [--requests N] TRACE
 *
 * TRACE: one JSON object a line, as published with Mooncake: timestamp (ms), input_length,
 * output_length, hash_ids: one id for each 512 tokens of the prompt, the last for what is left. Two
 * prompts with the same id have the same tokens up to there. The prompts replayed have tokens drawn
 * from the ids, so that they share what those of the trace shared. Requests arrive scale times as
 * fast as in the trace; its clock ticks every 3 s, and those of one tick are spread over it evenly.
 *
 * The scheduler does not know how long an answer will be: all ask for at most OUTPUT_MAX tokens and
 * end by an end token where the trace says so. Nothing here reads a clock or a random number: the
 * same trace gives the same table, on any machine. */
#include "common/json.h"
#include "common/mem.h"
#include "services/scheduler/core.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 512u /* tokens of one id */
#define PAGE_SIZE 16u
#define SLOTS 256u
#define IN_FLIGHT 2u
#define CHUNK 8192
#define CONTEXT 131072u
#define VOCAB 151936u
#define EOS 151645u
#define OUTPUT_MAX 2000u /* most that is in the trace */

/* What a step takes: max(weights / read, FLOP / compute) + KV / read. Qwen3-14B in bf16, and what
 * was measured on one H200 for a plain read and for a large bf16 product: a floor. */
#define WEIGHTS_BYTES 28.0e9
#define TOKEN_FLOP 28.0e9 /* two a weight */
#define PAIR_FLOP                                                                                  \
    (4.0 * 40 * 40 * 128) /* of a token and one before it: layers, heads, head size                \
                           */
#define KV_BYTES                                                                                   \
    (2.0 * 2 * 40 * 8 * 128) /* of a token: K and V, bf16, layers, KV heads, head size */
#define READ_BYTES_US 4.44e6
#define COMPUTE_FLOP_US 804e6

struct request {
    int64_t arrival_us; /* as in the trace, spread */
    uint32_t input, output;
    uint32_t *ids;
    uint32_t ids_count;
    /* this run's */
    int64_t admitted_us, ttft_us;
    uint32_t received;
    bool ended;
};

struct trace {
    struct request *requests;
    uint32_t count, ids_max, input_max;
    uint64_t input;      /* tokens of all prompts */
    uint64_t hits;       /* of them, in blocks seen before: whatever the order of the prompts */
    uint64_t hits_paged; /* in whole pages, the last token of each prompt left out: by arrival */
    uint64_t pages;      /* that hold all prompts and answers, each shared page once */
};

struct flight {
    uint64_t number;
    int64_t end_us;
    struct proto_sampled results[SLOTS];
    uint32_t results_count;
};

struct run {
    struct trace *trace;
    double scale;
    struct scheduler *core;
    struct flight flights[IN_FLIGHT];
    uint32_t first, in_flight;
    int64_t device_free_us;
    double device_busy_us;
    uint32_t slot_request[SLOTS];
    uint32_t *prompt;
    uint32_t arrived, ended;
};

struct variant {
    const char *policy;
    bool prefix_cache;
};

static void die(const char *what, const char *detail)
{
    (void)fprintf(stderr, "bench_trace: %s: %s\n", what, detail);
    exit(1);
}

/* ---- the trace ---- */

static void request_parse(struct request *r, const char *line, size_t len)
{
    json_t *object, *ids;
    json_int_t ms, input, output;
    struct err err = {0};

    if (json_parse(line, len, 4, &object, &err))
        die("trace", err.msg);
    if (json_unpack(object, "{s:I, s:I, s:I, s:o}", "timestamp", &ms, "input_length", &input,
                    "output_length", &output, "hash_ids", &ids) ||
        !json_is_array(ids))
        die("trace", "a line without timestamp, input_length, output_length and hash_ids");
    if (ms < 0 || ms > INT32_MAX || input < 1 || input > (json_int_t)(CONTEXT - OUTPUT_MAX) ||
        output < 1 || output > (json_int_t)OUTPUT_MAX ||
        json_array_size(ids) != ((size_t)input + BLOCK - 1) / BLOCK)
        die("trace", "a number is out of range, or there is not one id for each 512 tokens");
    *r = (struct request){.arrival_us = ms * 1000,
                          .input = (uint32_t)input,
                          .output = (uint32_t)output,
                          .ids = mem_array(json_array_size(ids), sizeof *r->ids),
                          .ids_count = (uint32_t)json_array_size(ids)};
    for (uint32_t i = 0; i < r->ids_count; i++) {
        json_int_t id = json_integer_value(json_array_get(ids, i));

        if (id < 0 || id > 1 << 24)
            die("trace", "an id is out of range");
        r->ids[i] = (uint32_t)id;
    }
    json_decref(object);
}

static void trace_load(struct trace *t, const char *path, uint32_t count_max)
{
    FILE *f = fopen(path, "r");
    char *line = NULL;
    size_t size = 0;
    ssize_t len;

    if (!f)
        die(path, "can not be opened");
    while (t->count < count_max && (len = getline(&line, &size, f)) > 0) {
        struct request *r;

        t->requests = mem_resize(t->requests, t->count + 1, sizeof *t->requests);
        r = &t->requests[t->count++];
        request_parse(r, line, (size_t)len);
        if (t->count > 1 && r->arrival_us < r[-1].arrival_us)
            die("trace", "timestamps are not in order");
        t->input_max = r->input > t->input_max ? r->input : t->input_max;
        for (uint32_t i = 0; i < r->ids_count; i++)
            t->ids_max = r->ids[i] > t->ids_max ? r->ids[i] : t->ids_max;
    }
    free(line);
    (void)fclose(f);
    if (t->count == 0)
        die(path, "is empty");
}

/* Requests of one timestamp arrive evenly until the next one, those of the last within 3 s. */
static void trace_spread(struct trace *t)
{
    for (uint32_t i = 0, next; i < t->count; i = next) {
        int64_t start = t->requests[i].arrival_us, end = start + 3000000;

        for (next = i + 1; next < t->count && t->requests[next].arrival_us == start; next++)
            ;
        if (next < t->count)
            end = t->requests[next].arrival_us;
        for (uint32_t j = i; j < next; j++)
            t->requests[j].arrival_us = start + (end - start) * (j - i) / (next - i);
    }
}

/* What a cache that forgets nothing would find, with a prompt there as a whole when the next one
 * arrives. */
static void trace_count(struct trace *t)
{
    bool *seen = mem_array((size_t)t->ids_max + 1, sizeof *seen);

    for (uint32_t i = 0; i < t->count; i++) {
        const struct request *r = &t->requests[i];
        uint32_t known = 0, hits, paged;

        while (known < r->ids_count && seen[r->ids[known]])
            known++;
        hits = known == r->ids_count ? r->input : known * BLOCK;
        paged = hits < r->input ? hits : r->input - 1;
        paged -= paged % PAGE_SIZE;
        t->input += r->input;
        t->hits += hits;
        t->hits_paged += paged;
        t->pages += (r->input + r->output + PAGE_SIZE - 1 - paged) / PAGE_SIZE;
        for (; known < r->ids_count; known++)
            seen[r->ids[known]] = true;
    }
    free(seen);
}

static uint32_t token_of(uint32_t id, uint32_t position)
{
    uint64_t x = ((uint64_t)id << 32 | position) + 0x9e3779b97f4a7c15u;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((x ^ x >> 31) % EOS); /* never an end token */
}

/* ---- the device ---- */

/* A sequence's KV is read once for each of its rows. */
static double step_cost_us(const struct proto_step *m)
{
    double flop = 0, kv = 0, weights = WEIGHTS_BYTES / READ_BYTES_US;

    for (uint32_t i = 0; i < m->rows_count; i++) {
        double start = m->rows[i].start, count = m->rows[i].count;

        flop += count * TOKEN_FLOP + count * (start + count / 2) * PAIR_FLOP;
        kv += (start + count) * KV_BYTES;
    }
    return fmax(weights, flop / COMPUTE_FLOP_US) + kv / READ_BYTES_US;
}

static void device_run(struct run *run, const struct proto_step *m, int64_t now_us)
{
    struct flight *f = &run->flights[(run->first + run->in_flight++) % IN_FLIGHT];
    double cost = step_cost_us(m);

    for (uint32_t i = 0; i < m->opened_count; i++)
        run->slot_request[m->opened[i].slot] = (uint32_t)m->opened[i].sampling.seed;
    f->number = m->step;
    f->results_count = 0;
    for (uint32_t i = 0; i < m->rows_count; i++) {
        const struct proto_row *row = &m->rows[i];
        const struct request *r = &run->trace->requests[run->slot_request[row->slot]];
        uint32_t index = row->start + row->count - r->input; /* of the token in the answer */

        if (row->sample)
            f->results[f->results_count++] = (struct proto_sampled){
                .slot = row->slot,
                .id = index + 1 == r->output ? EOS : token_of(r->ids[0], ~index)};
    }
    if (run->device_free_us < now_us)
        run->device_free_us = now_us;
    run->device_free_us += (int64_t)llround(cost);
    run->device_busy_us += cost;
    f->end_us = run->device_free_us;
}

/* ---- the replay ---- */

static int64_t arrival_us(const struct run *run, uint32_t index)
{
    return (int64_t)llround((double)run->trace->requests[index].arrival_us / run->scale);
}

static void arrive(struct run *run)
{
    struct request *r = &run->trace->requests[run->arrived];
    struct proto_sampling sampling = {.temperature = 1,
                                      .top_p = 1,
                                      .top_k = -1,
                                      .repetition_penalty = 1,
                                      .max_tokens = OUTPUT_MAX,
                                      .seed = run->arrived,
                                      .logprobs = -1};
    struct scheduler_request request = {.owner = 1,
                                        .id = run->arrived,
                                        .prompt = run->prompt,
                                        .prompt_count = r->input,
                                        .sampling = &sampling};
    struct err err = {0};

    for (uint32_t i = 0; i < r->input; i++)
        run->prompt[i] = token_of(r->ids[i / BLOCK], i % BLOCK);
    r->admitted_us = arrival_us(run, run->arrived++);
    r->received = 0;
    r->ended = false;
    if (scheduler_admit(run->core, &request, r->admitted_us, NULL, &err))
        die("scheduler_admit", err.msg);
}

static void deliver(struct run *run, const struct proto_token *token, int64_t now_us)
{
    struct request *r = &run->trace->requests[token->sid];

    if (r->ended || token->index != r->received++)
        die("replay", "a token after the end, or out of order");
    if (token->index == 0)
        r->ttft_us = now_us - r->admitted_us;
    if (token->finish == FINISH_NONE)
        return;
    if (r->received != r->output)
        die("replay", "an answer of the wrong length");
    r->ended = true;
    run->ended++;
}

static int64_t step_done(struct run *run)
{
    struct flight *f = &run->flights[run->first];
    const struct scheduler_output *out;
    uint32_t count;
    struct err err = {0};

    if (scheduler_apply(run->core, f->number, f->results, f->results_count, &out, &count, &err))
        die("scheduler_apply", err.msg);
    for (uint32_t i = 0; i < count; i++)
        deliver(run, &out[i].token, f->end_us);
    run->first = (run->first + 1) % IN_FLIGHT;
    run->in_flight--;
    return f->end_us;
}

/* Until all that arrive have ended; returns when that was. */
static int64_t replay(struct run *run)
{
    const struct scheduler_step *step;
    int64_t now = 0;

    while (run->ended < run->trace->count) {
        bool more = run->arrived < run->trace->count;
        int64_t next = more ? arrival_us(run, run->arrived) : INT64_MAX;

        if (more && (!run->in_flight || next <= run->flights[run->first].end_us)) {
            now = next;
            arrive(run);
            if (run->arrived < run->trace->count && arrival_us(run, run->arrived) == now)
                continue; /* all of an instant are there before a step is planned */
        } else if (run->in_flight) {
            now = step_done(run);
        } else {
            die("replay", "requests wait and there is no step");
        }
        while (run->in_flight < IN_FLIGHT && (step = scheduler_plan(run->core, now)))
            device_run(run, &step->message, now);
    }
    while (run->in_flight)
        now = step_done(run);
    return now;
}

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static void report_ttft(const struct trace *t)
{
    int64_t *ttft = mem_array(t->count, sizeof *ttft);
    static const uint32_t percent[] = {50, 90, 99};
    double sum = 0;

    for (uint32_t i = 0; i < t->count; i++) {
        ttft[i] = t->requests[i].ttft_us;
        sum += (double)ttft[i];
    }
    qsort(ttft, t->count, sizeof *ttft, compare);
    printf(" %.2f |", sum / t->count / 1e6);
    for (size_t i = 0; i < sizeof percent / sizeof *percent; i++)
        printf(" %.2f |", (double)ttft[(uint64_t)(t->count - 1) * percent[i] / 100] / 1e6);
    free(ttft);
}

static void report(const struct run *run, const struct variant *v, int64_t end_us)
{
    struct scheduler_stats s;
    const struct trace *t = run->trace;

    scheduler_stats(run->core, &s);
    if (s.prefix_queries != t->input || s.prefix_hits > t->hits ||
        (!v->prefix_cache && s.prefix_hits) || s.running || s.waiting ||
        s.pages_free != s.pages_total)
        die("replay", "what the scheduler counts can not be");
    printf("| %g | %u | %s | %s | %.2f %% | %.1f %% |", run->scale, s.pages_total,
           v->prefix_cache ? "radix" : "naive", v->policy,
           100 * (double)s.prefix_hits / (double)t->input,
           t->hits_paged ? 100 * (double)s.prefix_hits / (double)t->hits_paged : 0.0);
    report_ttft(t);
    printf(" %.0f %% | %llu |\n", 100 * run->device_busy_us / (double)end_us,
           (unsigned long long)s.preemptions);
    (void)fflush(stdout);
}

static void bench(struct trace *t, double scale, uint32_t pages, const struct variant *v)
{
    static const uint32_t eos[] = {EOS};
    struct scheduler_config config = {.slots_max = SLOTS,
                                      .queued_max = t->count,
                                      .page_size = PAGE_SIZE,
                                      .num_pages = pages,
                                      .prefill_tokens_max = CHUNK,
                                      .context_length = CONTEXT,
                                      .vocab_size = VOCAB,
                                      .steps_in_flight_max = IN_FLIGHT,
                                      .policy = v->policy,
                                      .prefix_cache = v->prefix_cache,
                                      .hash_seed = 1,
                                      .conservativeness = 1,
                                      .eos_ids = eos,
                                      .eos_ids_count = 1};
    struct run *run = mem_zalloc(sizeof *run);
    struct err err = {0};
    int64_t end;

    run->trace = t;
    run->scale = scale;
    run->prompt = mem_array(t->input_max, sizeof *run->prompt);
    if (scheduler_new(&config, &run->core, &err))
        die("scheduler_new", err.msg);
    end = replay(run);
    report(run, v, end);
    scheduler_free(&run->core);
    free(run->prompt);
    free(run);
}

struct arguments {
    double scale;             /* 0: several */
    uint32_t pages, requests; /* 0: several, all */
    const char *path;
};

/* Of an option; 0 or less than that, too much or no number at all is refused. */
static double number_parse(const char *text, double high)
{
    char *end;
    double value = text ? strtod(text, &end) : 0;

    if (!text || *end || !(value > 0 && value <= high))
        die("not a number in range", text ? text : "(none)");
    return value;
}

static void arguments_parse(struct arguments *a, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--scale") == 0)
            a->scale = number_parse(argv[++i], 1000);
        else if (strcmp(argv[i], "--pages") == 0)
            a->pages = (uint32_t)number_parse(argv[++i], SCHEDULER_PAGES_MAX);
        else if (strcmp(argv[i], "--requests") == 0)
            a->requests = (uint32_t)number_parse(argv[++i], UINT32_MAX);
        else if (argv[i][0] == '-' || a->path)
            die("not understood", argv[i]);
        else
            a->path = argv[i];
    }
    if (!a->path)
        die("usage", "bench_trace [--scale X] [--pages N] [--requests N] TRACE");
}

static void trace_free(struct trace *t)
{
    for (uint32_t i = 0; i < t->count; i++)
        free(t->requests[i].ids);
    free(t->requests);
}

static void bench_scale(struct trace *t, double scale, uint32_t pages)
{
    static const struct variant variants[] = {
        {"fcfs", false}, {"lpm", false}, {"fcfs", true}, {"lpm", true}};
    const uint32_t pools[] = {40960, 163840, 655360, (uint32_t)t->pages};

    for (size_t p = 0; p < (pages ? 1 : sizeof pools / sizeof *pools); p++)
        for (size_t v = 0; v < sizeof variants / sizeof *variants; v++)
            bench(t, scale, pages ? pages : pools[p], &variants[v]);
}

int main(int argc, char **argv)
{
    static const double scales[] = {0.1, 0.2, 0.3, 0.4};
    struct arguments a = {0};
    struct trace t = {0};

    arguments_parse(&a, argc, argv);
    trace_load(&t, a.path, a.requests ? a.requests : UINT32_MAX);
    trace_spread(&t);
    trace_count(&t);
    printf("%u requests, %llu prompt tokens; unbounded cache: %.2f %% of them, %.2f %% in whole "
           "pages of %u; %llu pages hold everything\n\n",
           t.count, (unsigned long long)t.input, 100 * (double)t.hits / (double)t.input,
           100 * (double)t.hits_paged / (double)t.input, PAGE_SIZE, (unsigned long long)t.pages);
    printf("| rate | pages | cache | policy | hit rate | of unbounded | TTFT mean, s | p50 | p90 | "
           "p99 | busy | retracted |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (size_t s = 0; s < (a.scale > 0 ? 1 : sizeof scales / sizeof *scales); s++)
        bench_scale(&t, a.scale > 0 ? a.scale : scales[s], a.pages);
    trace_free(&t);
    return 0;
}

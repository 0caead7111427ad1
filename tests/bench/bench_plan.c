/* What the scheduler's own work costs: bench_plan [pages]
 *
 * For several numbers of running sequences, with a prefix tree that fills the pool: the time of one
 * scheduler_plan and one scheduler_apply of a step in which all decode, pages being evicted as they
 * are needed; and of plans that start a sequence whose prompt is cached. Means, and the slowest of
 * 99 % and of all. */
#include "common/mem.h"
#include "services/scheduler/core.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define PAGE_SIZE 16u
#define PROMPT 512u
#define CONTEXT 32768u
#define VOCAB 150000u
#define STEPS 2000u

struct bench {
    struct scheduler *core;
    uint64_t random, id;
    struct proto_sampled *results;
    int64_t plan_ns[STEPS], apply_ns[STEPS];
};

static int64_t now_ns(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static uint32_t draw(struct bench *b)
{
    b->random = b->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(b->random >> 33);
}

static void fail(const char *what, const struct err *err)
{
    (void)fprintf(stderr, "%s: %s\n", what, err->msg);
    exit(1);
}

/* first: of the prompt's tokens; the same first, the same prompt. */
static void admit(struct bench *b, uint32_t first, uint32_t max_tokens)
{
    static uint32_t prompt[PROMPT];
    struct proto_sampling sampling = {.temperature = 1,
                                      .top_p = 1,
                                      .top_k = -1,
                                      .repetition_penalty = 1,
                                      .max_tokens = max_tokens,
                                      .ignore_eos = true,
                                      .logprobs = -1};
    struct scheduler_request request = {
        .owner = 1, .id = ++b->id, .prompt = prompt, .prompt_count = PROMPT, .sampling = &sampling};
    struct err err = {0};

    for (uint32_t i = 0; i < PROMPT; i++)
        prompt[i] = (first + i * 7) % VOCAB;
    if (scheduler_admit(b->core, &request, 0, NULL, &err))
        fail("admit", &err);
}

/* One step; false when there is none. */
static bool turn(struct bench *b, int64_t *plan_ns, int64_t *apply_ns)
{
    const struct scheduler_step *step;
    const struct scheduler_output *out;
    uint32_t count = 0, out_count;
    struct err err = {0};
    int64_t start = now_ns();

    step = scheduler_plan(b->core, 0);
    *plan_ns = now_ns() - start;
    if (!step)
        return false;
    for (uint32_t i = 0; i < step->message.rows_count; i++)
        if (step->message.rows[i].sample)
            b->results[count++] =
                (struct proto_sampled){.slot = step->message.rows[i].slot, .id = draw(b) % VOCAB};
    start = now_ns();
    if (scheduler_apply(b->core, step->message.step, b->results, count, &out, &out_count, &err))
        fail("apply", &err);
    *apply_ns = now_ns() - start;
    return true;
}

/* Sequences come and go until the tree holds all the pages. */
static void fill_tree(struct bench *b, uint32_t pages)
{
    struct scheduler_stats stats;
    int64_t ns;

    do {
        for (uint32_t i = 0; i < 64; i++)
            admit(b, draw(b), 1);
        while (turn(b, &ns, &ns))
            ;
        scheduler_stats(b->core, &stats);
    } while (stats.pages_cached + 64u * PROMPT / PAGE_SIZE < pages);
}

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static void report(const char *what, uint32_t running, int64_t *ns, uint32_t count)
{
    double sum = 0;

    for (uint32_t i = 0; i < count; i++)
        sum += (double)ns[i];
    qsort(ns, count, sizeof *ns, compare);
    printf("%-14s running=%-5u mean=%7.1f us  p99=%7.1f us  max=%7.1f us\n", what, running,
           sum / count / 1e3, (double)ns[count * 99 / 100] / 1e3, (double)ns[count - 1] / 1e3);
}

static void bench(uint32_t running, uint32_t pages)
{
    struct scheduler_config config = {.slots_max = running + 1,
                                      .queued_max = 4096,
                                      .page_size = PAGE_SIZE,
                                      .num_pages = pages,
                                      .prefill_tokens_max = 8192,
                                      .context_length = CONTEXT,
                                      .vocab_size = VOCAB,
                                      .steps_in_flight_max = 1,
                                      .policy = "fcfs",
                                      .prefix_cache = true,
                                      .hash_seed = 1,
                                      .conservativeness = 1};
    struct bench *b = mem_zalloc(sizeof *b);
    struct scheduler_stats stats;
    struct err err = {0};
    int64_t ns;

    if (scheduler_new(&config, &b->core, &err))
        fail("scheduler_new", &err);
    b->results = mem_array(running + 1, sizeof *b->results);
    fill_tree(b, pages);
    for (uint32_t i = 0; i < running; i++)
        admit(b, draw(b), STEPS * 3 / 2); /* outlives the measurement */
    do
        (void)turn(b, &ns, &ns);
    while (scheduler_stats(b->core, &stats), stats.waiting > 0);
    for (uint32_t i = 0; i < STEPS; i++)
        (void)turn(b, &b->plan_ns[i], &b->apply_ns[i]);
    report("decode plan", running, b->plan_ns, STEPS);
    report("decode apply", running, b->apply_ns, STEPS);
    admit(b, 5, 1);
    (void)turn(b, &ns, &ns);
    for (uint32_t i = 0; i < STEPS / 4; i++) { /* beside the others, its prompt cached */
        admit(b, 5, 1);
        (void)turn(b, &b->plan_ns[i], &b->apply_ns[i]);
    }
    report("start plan", running, b->plan_ns, STEPS / 4);
    scheduler_stats(b->core, &stats);
    printf("%-14s running=%-5u pages=%u cached=%u preemptions=%llu\n", "", stats.running,
           stats.pages_total, stats.pages_cached, (unsigned long long)stats.preemptions);
    scheduler_free(&b->core);
    free(b->results);
    free(b);
}

int main(int argc, char **argv)
{
    uint32_t pages = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 1048576;
    static const uint32_t running[] = {1, 64, 256, 1024, 2048, 4095};

    for (size_t i = 0; i < sizeof running / sizeof *running; i++)
        bench(running[i], pages);
    return 0;
}

/* Runs a model without any service: one process a rank, prompts from a file, greedy tokens and the
 * first and last logits of each prompt as JSON on standard output.
 *
 *   model_cli MODEL PROMPTS.json TP MAX_NEW CHUNK MODE STORE [DTYPE [DEVICE]]
 *
 * PROMPTS.json: a list of lists of ids. CHUNK: prefill tokens of a prompt in one step. MODE:
 * "alone" (one prompt after the other), "together" (all in the same steps), "staggered" (prompt i
 * joins at step 3 i). STORE: a new folder where ranks meet. DTYPE: as --dtype, or "dummy". DEVICE:
 * cpu as a rule. */
#include "common/json.h"
#include "common/mem.h"
#include "services/worker/engine_model.h"
#include "tests/meet_folder.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE_SIZE 16
#define TOKENS_MAX 1024

struct prompt {
    uint32_t *ids; /* (count + max_new) */
    uint32_t count, known, computed;
    bool open, done;
};

struct run {
    const struct engine_kind *kind;
    struct engine *engine;
    struct engine_info info;
    struct prompt *prompts;
    uint32_t count, max_new, chunk, pages_per_slot;
    uint64_t steps;
    float *logits; /* shared between ranks: (2, count, vocab_size), of the first and last id */
};

static void check(int rc, const struct err *err)
{
    if (!rc)
        return;
    (void)fprintf(stderr, "model_cli: %s\n", err->msg);
    exit(1);
}

static struct prompt *read_prompts(const char *path, uint32_t max_new, uint32_t *count)
{
    struct prompt *prompts;
    struct err err;
    json_t *root;

    check(json_load_path(path, 1 << 26, &root, &err), &err);
    *count = (uint32_t)json_array_size(root);
    prompts = mem_array(*count, sizeof *prompts);
    for (uint32_t i = 0; i < *count; i++) {
        const json_t *ids = json_array_get(root, i);

        prompts[i].count = prompts[i].known = (uint32_t)json_array_size(ids);
        prompts[i].ids = mem_array(prompts[i].count + max_new, sizeof(uint32_t));
        for (uint32_t k = 0; k < prompts[i].count; k++)
            prompts[i].ids[k] = (uint32_t)json_integer_value(json_array_get(ids, k));
    }
    json_decref(root);
    return prompts;
}

static struct proto_slot_open slot_open(const struct run *r, uint32_t slot)
{
    return (struct proto_slot_open){
        .slot = slot,
        .tokens = r->prompts[slot].ids,
        .tokens_count = r->prompts[slot].count,
        .sampling =
            {.top_p = 1, .top_k = -1, .repetition_penalty = 1, .logprobs = -1, .ignore_eos = true},
    };
}

static void keep_logits(struct run *r, uint32_t result, uint32_t slot)
{
    const struct prompt *p = &r->prompts[slot];
    uint32_t begin, count;
    const float *logits = engine_model_logits(r->engine, result, &begin, &count);

    assert(logits);
    for (uint32_t i = 0; i < 2; i++)
        if (p->known == (i ? p->count + r->max_new - 1 : p->count))
            memcpy(r->logits + ((size_t)i * r->count + slot) * r->info.vocab_size + begin, logits,
                   count * sizeof *logits);
}

/* One step of prompts first .. first + count - 1; page i of slot s is a fixed one that is not next
 * to page i + 1. False when all of them are done. */
static bool run_step(struct run *r, uint32_t first, uint32_t count)
{
    struct proto_slot_open opened[64];
    struct proto_slot_pages pages[64];
    struct proto_row rows[64];
    uint32_t closed[64];
    struct proto_step step = {
        .step = r->steps + 1, .closed = closed, .opened = opened, .pages = pages, .rows = rows};
    struct engine_result result;
    struct err err;

    for (uint32_t s = first; s < first + count; s++) {
        struct prompt *p = &r->prompts[s];
        uint32_t left = p->known - p->computed, n = left < r->chunk ? left : r->chunk;

        if (p->done && p->open) {
            closed[step.closed_count++] = s;
            p->open = false;
        }
        if (p->done)
            continue;
        if (!p->open) {
            uint32_t *list = mem_array(r->pages_per_slot, sizeof *list);

            for (uint32_t i = 0; i < r->pages_per_slot; i++)
                list[i] = i * r->count + (s * 7 + 3) % r->count;
            opened[step.opened_count++] = slot_open(r, s);
            pages[step.pages_count++] = (struct proto_slot_pages){
                .slot = s, .pages = list, .pages_count = r->pages_per_slot};
            p->open = true;
        }
        rows[step.rows_count++] = (struct proto_row){s, p->computed, n, n == left};
        p->computed += n;
    }
    check(r->kind->begin(r->engine, &step, &err), &err);
    check(r->kind->end(r->engine, &result, &err), &err);
    r->steps++;
    for (uint32_t i = 0; i < step.pages_count; i++)
        free(pages[i].pages);
    for (uint32_t i = 0; i < result.count; i++) {
        struct prompt *p = &r->prompts[result.results[i].slot];

        keep_logits(r, i, result.results[i].slot);
        p->ids[p->known++] = result.results[i].id;
        p->done = p->known == p->count + r->max_new;
    }
    return step.rows_count > 0;
}

static void run_all(struct run *r, const char *mode)
{
    if (!strcmp(mode, "alone")) {
        for (uint32_t i = 0; i < r->count; i++)
            while (run_step(r, i, 1)) {
            }
    } else if (!strcmp(mode, "together")) {
        while (run_step(r, 0, r->count)) {
        }
    } else {
        while (run_step(r, 0, r->steps / 3 < r->count ? (uint32_t)r->steps / 3 + 1 : r->count)) {
        }
    }
}

static void print_logits(const struct run *r, const char *name, const float *logits)
{
    (void)printf(", \"%s\": [", name);
    for (uint32_t i = 0; i < r->count; i++) {
        (void)printf("%s[", i ? ", " : "");
        for (uint32_t k = 0; k < r->info.vocab_size; k++)
            (void)printf("%s%.9g", k ? ", " : "",
                         (double)logits[(size_t)i * r->info.vocab_size + k]);
        (void)printf("]");
    }
    (void)printf("]");
}

static void print(const struct run *r)
{
    (void)printf("{\"bytes_read\": %llu, \"tokens\": [",
                 (unsigned long long)engine_model_bytes_read(r->engine));
    for (uint32_t i = 0; i < r->count; i++) {
        (void)printf("%s[", i ? ", " : "");
        for (uint32_t k = r->prompts[i].count; k < r->prompts[i].known; k++)
            (void)printf("%s%u", k > r->prompts[i].count ? ", " : "", r->prompts[i].ids[k]);
        (void)printf("]");
    }
    (void)printf("]");
    print_logits(r, "logits", r->logits);
    print_logits(r, "last_logits", r->logits + (size_t)r->count * r->info.vocab_size);
    (void)printf("}\n");
}

static void rank_main(struct run *r, struct engine_config *config, const char *mode,
                      const char *store)
{
    struct meet_folder meet;
    struct err err;
    uint32_t longest = 0;

    r->kind = engine_find(config->device);
    assert(r->kind);
    config->meet = meet_folder_init(&meet, store, config->rank, config->tp_size, 60);
    check(r->kind->load(config, &r->engine, &err), &err);
    meet_folder_fini(&meet);
    r->kind->info(r->engine, &r->info);
    for (uint32_t i = 0; i < r->count; i++)
        if (r->prompts[i].count > longest)
            longest = r->prompts[i].count;
    r->pages_per_slot = (longest + r->max_new + PAGE_SIZE - 1) / PAGE_SIZE;
    check(r->kind->kv_alloc(r->engine, r->pages_per_slot * r->count, r->count, TOKENS_MAX, &err),
          &err);
    run_all(r, mode);
}

static void run_fini(struct run *r)
{
    r->kind->free(&r->engine);
    for (uint32_t i = 0; i < r->count; i++)
        free(r->prompts[i].ids);
    free(r->prompts);
}

int main(int argc, char **argv)
{
    struct run r = {0};
    struct engine_config config = {
        .device = "cpu", .dtype = "auto", .page_size = PAGE_SIZE, .dist_timeout_s = 60};
    const size_t logits_bytes = (size_t)1 << 28; /* untouched pages cost nothing */
    bool failed = false;

    if (argc < 8 || argc > 10) {
        (void)fprintf(
            stderr,
            "usage: model_cli MODEL PROMPTS TP MAX_NEW CHUNK MODE STORE [DTYPE [DEVICE]]\n");
        return 2;
    }
    config.model_dir = argv[1];
    config.tp_size = (uint32_t)atoi(argv[3]);
    config.dummy_weight = argc > 8 && !strcmp(argv[8], "dummy");
    if (argc > 8 && !config.dummy_weight)
        config.dtype = argv[8];
    if (argc > 9)
        config.device = argv[9];
    r.max_new = (uint32_t)atoi(argv[4]);
    r.chunk = (uint32_t)atoi(argv[5]);
    r.prompts = read_prompts(argv[2], r.max_new, &r.count);
    r.logits = mmap(NULL, logits_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert(r.logits != MAP_FAILED && r.count <= 64);
    for (uint32_t rank = 1; rank < config.tp_size; rank++) {
        pid_t pid = fork();

        if (pid == 0) {
            config.rank = rank;
            rank_main(&r, &config, argv[6], argv[7]);
            run_fini(&r);
            return 0;
        }
    }
    rank_main(&r, &config, argv[6], argv[7]);
    for (uint32_t rank = 1; rank < config.tp_size; rank++) {
        int status = 1;

        failed = wait(&status) < 0 || status || failed;
    }
    if (!failed)
        print(&r);
    run_fini(&r);
    return failed;
}

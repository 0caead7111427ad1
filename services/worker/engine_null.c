#include "services/worker/engine_null.h"

#include "common/clock.h"
#include "common/file.h"
#include "common/mem.h"
#include "services/worker/engine.h"
#include "services/worker/model_config.h"
#include "services/worker/slots.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <xxhash.h>

/* Pages cost nothing here, of whatever size; little enough for the scheduler's tables. */
#define NULL_POOL_PAGES (1u << 18)

/* A step that has begun. */
struct null_step {
    struct engine_result result;
    int64_t due_us;
    struct proto_sampled *results;
    struct proto_logprob *logprobs;
    struct proto_alternative *alternatives;
};

struct engine {
    uint32_t vocab_size, context_length, page_size;
    uint32_t step_us;
    uint32_t eos_ids[MODEL_EOS_MAX]; /* rising */
    uint32_t eos_count;
    uint64_t fingerprint;
    struct slots slots;
    struct null_step steps[ENGINE_STEPS_MAX];
    uint32_t first, count; /* of them, in turn */
    int64_t busy_us;       /* until then, with what has begun */
};

uint32_t null_token(uint64_t seed, uint32_t i, uint32_t vocab_size, const uint32_t *eos_ids,
                    uint32_t eos_count)
{
    uint64_t x = seed + (i + (uint64_t)1) * 0x9e3779b97f4a7c15u;
    uint32_t id;

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    id = (uint32_t)(x % (vocab_size - eos_count));
    for (uint32_t k = 0; k < eos_count && eos_ids[k] <= id; k++)
        id++;
    return id;
}

static int compare_ids(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

static int read_config(struct engine *e, const char *dir, struct err *err)
{
    struct model_config *model;
    char *path = file_join(dir, "config.json");
    bool there = *dir && file_exists(path);
    int rc = 0;

    free(path);
    e->vocab_size = NULL_VOCAB_SIZE;
    e->context_length = NULL_CONTEXT_LENGTH;
    if (!there)
        return 0;
    model = mem_zalloc(sizeof *model);
    rc = model_config_load(dir, model, err);
    if (!rc && model->vocab_size <= model->eos_count)
        rc = err_set(err, ERR_INVALID, "every id of the vocabulary is an end id");
    e->vocab_size = model->vocab_size;
    e->context_length = model->context_length;
    e->eos_count = model->eos_count;
    memcpy(e->eos_ids, model->eos_ids, sizeof e->eos_ids);
    if (e->eos_count)
        qsort(e->eos_ids, e->eos_count, sizeof *e->eos_ids, compare_ids);
    e->fingerprint = model->hash;
    free(model);
    return rc;
}

static void engine_null_free(struct engine **self)
{
    struct engine *e = *self;

    if (!e)
        return;
    slots_fini(&e->slots);
    for (uint32_t i = 0; i < ENGINE_STEPS_MAX; i++) {
        free(e->steps[i].results);
        free(e->steps[i].logprobs);
        free(e->steps[i].alternatives);
    }
    free(e);
    *self = NULL;
}

static int load(const struct engine_config *config, struct engine **out, struct err *err)
{
    struct engine *e = mem_zalloc(sizeof *e);
    int rc = read_config(e, config->model_dir, err);
    uint32_t layout[3];

    e->page_size = config->page_size;
    e->step_us = config->null_step_us;
    if (config->context_length)
        e->context_length = config->context_length;
    layout[0] = config->tp_size;
    layout[1] = e->page_size;
    layout[2] = e->context_length;
    e->fingerprint = XXH64(layout, sizeof layout, e->fingerprint);
    e->fingerprint = XXH64(PHALANX_VERSION, strlen(PHALANX_VERSION), e->fingerprint);
    if (rc)
        engine_null_free(&e);
    *out = e;
    return rc;
}

/* Without a time, steps end as they begin. */
static uint32_t steps_ahead(const struct engine *e)
{
    return e->step_us ? ENGINE_STEPS_MAX : 1;
}

static void info(const struct engine *e, struct engine_info *out)
{
    *out = (struct engine_info){
        .device = "null",
        .vocab_size = e->vocab_size,
        .context_length = e->context_length,
        .pages_max = NULL_POOL_PAGES,
        .fingerprint = e->fingerprint,
        .eos_count = e->eos_count,
        .prompt_logprobs = true,
        .steps_ahead = steps_ahead(e),
    };
    memcpy(out->eos_ids, e->eos_ids, sizeof e->eos_ids);
}

#define NULL_TOP_MAX 20

static int kv_alloc(struct engine *e, uint32_t num_pages, uint32_t num_slots, uint32_t tokens_max,
                    struct err *err)
{
    const struct slots_config config = {num_slots,  num_pages,         e->page_size,
                                        tokens_max, e->context_length, e->vocab_size};
    size_t logprobs = (size_t)num_slots + LIMIT_STEP_SCORES; /* those of scores come last */

    if (e->slots.views)
        return slots_again(&e->slots, &config, err);
    if (!num_pages || !num_slots || !tokens_max)
        return err_set(err, ERR_PROTOCOL, "KV pool of %u pages, %u slots, %u tokens a step",
                       num_pages, num_slots, tokens_max);
    slots_init(&e->slots, &config);
    for (uint32_t i = 0; i < ENGINE_STEPS_MAX; i++) {
        struct null_step *u = &e->steps[i];

        u->results = mem_array(num_slots, sizeof *u->results);
        u->logprobs = mem_array(logprobs, sizeof *u->logprobs);
        u->alternatives = mem_array(logprobs * NULL_TOP_MAX, sizeof *u->alternatives);
    }
    return 0;
}

/* Log probability i of step u, made up as the tokens: alternative j has -(j + 1). */
static struct proto_logprob *fill_logprob(const struct engine *e, struct null_step *u, uint32_t i,
                                          uint32_t id, int32_t wanted)
{
    struct proto_alternative *top = u->alternatives + (size_t)i * NULL_TOP_MAX;
    uint32_t count = (uint32_t)wanted < e->vocab_size ? (uint32_t)wanted : e->vocab_size;

    for (uint32_t j = 0; j < count; j++)
        top[j] = (struct proto_alternative){.id = (id + j) % e->vocab_size, .logprob = -1.0 - j};
    u->logprobs[i] =
        (struct proto_logprob){.id = id, .logprob = -1.0, .top = top, .top_count = count};
    return &u->logprobs[i];
}

/* The tokens of a prompt are not kept: a scored position has its number as the id that follows. */
static void fill_scores(const struct engine *e, struct null_step *u,
                        const struct proto_score *score, int32_t wanted, uint32_t *logprobs,
                        struct proto_sampled *r)
{
    r->prompt = &u->logprobs[*logprobs];
    r->prompt_count = score->count;
    for (uint32_t k = 0; k < score->count; k++)
        (void)fill_logprob(e, u, (*logprobs)++, (score->start + k) % e->vocab_size, wanted);
}

static uint32_t fill_results(const struct engine *e, struct null_step *u,
                             const struct proto_step *step)
{
    uint32_t count = 0, next = 0, logprobs = e->slots.config.num_slots;

    for (uint32_t i = 0; i < step->rows_count; i++) {
        const struct slot_view *view = &e->slots.views[step->rows[i].slot];
        const struct proto_score *score = slots_score(step, i, &next);
        struct proto_sampled *r = &u->results[count];

        if (!step->rows[i].sample && !score)
            continue;
        *r = (struct proto_sampled){.slot = step->rows[i].slot};
        if (step->rows[i].sample) {
            r->id = null_token(view->seed, view->generated - 1, e->vocab_size, e->eos_ids,
                               e->eos_count);
            r->logprob_count = view->logprobs >= 0;
            if (r->logprob_count)
                r->logprob = fill_logprob(e, u, count, r->id, view->logprobs);
        }
        if (score)
            fill_scores(e, u, score, view->logprobs, &logprobs, r);
        count++;
    }
    return count;
}

/* Computing is waiting, as the host does while a device works: steps begin when the one before has
 * ended, and take their time. */
static void wait_until(int64_t until_us)
{
    const struct timespec until = {until_us / 1000000, until_us % 1000000 * 1000};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        continue;
}

static int begin(struct engine *e, const struct proto_step *step, struct err *err)
{
    struct null_step *u = &e->steps[(e->first + e->count) % ENGINE_STEPS_MAX];
    int64_t now_us = clock_mono_us();
    int rc;

    if (!e->slots.views)
        return err_set(err, ERR_PROTOCOL, "a step before the KV pool");
    rc = slots_apply(&e->slots, step, err);
    if (rc)
        return rc;
    u->result = (struct engine_result){
        .results = u->results, .count = fill_results(e, u, step), .device_us = e->step_us};
    u->result.hash = slots_hash_results(slots_hash_rows(step), u->results, u->result.count);
    e->busy_us = (e->busy_us > now_us ? e->busy_us : now_us) + e->step_us;
    u->due_us = e->busy_us;
    e->count++;
    return 0;
}

static bool room(const struct engine *e)
{
    return e->count < steps_ahead(e);
}

static int64_t due_us(const struct engine *e)
{
    return e->steps[e->first].due_us;
}

static bool ready(const struct engine *e)
{
    return !e->step_us || clock_mono_us() >= due_us(e);
}

static int end(struct engine *e, struct engine_result *result, struct err *err)
{
    struct null_step *u = &e->steps[e->first];

    (void)err;
    if (!ready(e))
        wait_until(u->due_us);
    *result = u->result;
    e->first = (e->first + 1) % ENGINE_STEPS_MAX;
    e->count--;
    return 0;
}

extern const struct engine_kind engine_null;
const struct engine_kind engine_null = {
    .device = "null",
    .load = load,
    .info = info,
    .kv_alloc = kv_alloc,
    .begin = begin,
    .room = room,
    .ready = ready,
    .due_us = due_us,
    .end = end,
    .free = engine_null_free,
};

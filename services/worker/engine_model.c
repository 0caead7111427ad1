/* The engine of real models: config.json, weights and decoder on a backend of kernels/ops.h. */
#include "services/worker/engine_model.h"

#include "common/log.h"
#include "common/mem.h"
#include "kernels/backends.h"
#include "services/worker/decoder.h"
#include "services/worker/progress.h"
#include "services/worker/slots.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

/* What a result is made of. */
struct wanted {
    uint32_t slot;
    bool sample, logprob;
    uint32_t scores;
};

/* A step that has begun. */
struct under_way {
    struct wanted *wanted; /* (num_slots) */
    uint32_t count, rows;
    uint64_t hash;                    /* of its rows */
    const struct ops_sampled *scored; /* NULL: it scores nothing */
};

struct engine {
    const struct ops *ops;
    struct device *device;
    struct model_config model;
    struct shard shard;
    struct weights weights;
    struct decoder decoder;
    struct progress progress; /* of getting ready */
    bool tells;               /* rank 0, of what takes time */
    bool prepared;
    uint32_t page_size, context_length;
    uint64_t fingerprint, bytes_read;
    struct slots slots; /* views is NULL before kv_alloc */
    struct under_way under_way[ENGINE_STEPS_MAX];
    uint32_t first, count; /* of them, in turn */
    struct ops_row *rows;
    uint32_t *end_ids;
    struct ops_bias *bias;
    struct ops_score *scores;
    /* Results: one logprob and OPS_LOGPROBS_MAX alternatives each; those of scores follow the
     * num_slots of rows. */
    struct proto_sampled *results;
    struct proto_logprob *logprobs;
    struct proto_alternative *alternatives;
};

_Static_assert(OPS_SCORES_MAX == LIMIT_STEP_SCORES, "a step's scores fit the device");

#define END_IDS_MAX 256
#define BIASES_MAX 1024

static void engine_model_free(struct engine **self)
{
    struct engine *e = *self;

    if (!e)
        return;
    if (e->device)
        e->ops->device_close(&e->device);
    weights_fini(&e->weights);
    slots_fini(&e->slots);
    for (uint32_t i = 0; i < ENGINE_STEPS_MAX; i++)
        free(e->under_way[i].wanted);
    free(e->rows);
    free(e->scores);
    free(e->end_ids);
    free(e->bias);
    free(e->results);
    free(e->logprobs);
    free(e->alternatives);
    free(e);
    *self = NULL;
}

static uint32_t context_length(const struct engine_config *config, const struct model_config *model)
{
    if (config->context_length > model->context_max && config->rank == 0)
        log_warn("--context-length %u is more than the model was made for (%u)",
                 config->context_length, model->context_max);
    return config->context_length ? config->context_length : model->context_length;
}

static int open_device(struct engine *e, const struct engine_config *config, struct err *err)
{
    const struct model_config *m = &e->model;
    const struct shard *s = &e->shard;
    float *inv_freq = mem_array(m->head_dim / 2, sizeof *inv_freq);
    struct ops_model model = {
        .layers = m->layers,
        .hidden = m->hidden,
        .heads = s->heads,
        .kv_heads = s->kv_heads,
        .head_dim = m->head_dim,
        .intermediate = s->intermediate,
        .vocab_size = m->vocab_size,
        .vocab_begin = s->vocab_begin,
        .vocab_count = s->vocab_count,
        .norm_eps = m->norm_eps,
        .attention_scale = (float)(1 / sqrt((double)m->head_dim)),
        .rope_inv_freq = inv_freq,
        .rope_scale = (float)m->rope.attention_factor,
    };
    struct ops_config device = {
        .rank = config->rank,
        .tp_size = config->tp_size,
        .device_index = config->first_device + config->rank,
        .comm_meet = config->meet,
        .comm_interface = config->comm_interface,
        .comm_timeout_s = config->dist_timeout_s,
        .graphs_off = config->graphs_off,
        .graph_rows_max = config->graph_rows_max,
        .library_all_reduce = config->library_all_reduce,
        .symmetric = config->symmetric,
        .p2p_check = config->p2p_check,
        .memory_fraction = config->mem_fraction,
    };
    int rc;

    rope_inv_freq(&m->rope, m->head_dim, inv_freq);
    rc = e->ops->device_open(&device, &model, &e->device, err);
    free(inv_freq);
    return rc;
}

static void fingerprint(struct engine *e, const struct engine_config *config,
                        const struct safetensors *checkpoint)
{
    struct buf text = {0};

    buf_printf(&text, "%s %016llx %016llx %s %d %s %u %u %u", PHALANX_VERSION,
               (unsigned long long)e->model.hash,
               (unsigned long long)(checkpoint ? safetensors_hash(checkpoint) : 0), e->ops->name,
               e->ops->abi, config->dtype, config->tp_size, config->page_size, e->context_length);
    e->fingerprint = XXH64(text.data, text.len, 0);
    buf_fini(&text);
}

static int load_weights(struct engine *e, const struct engine_config *config,
                        struct safetensors *checkpoint, struct err *err)
{
    struct weights_config weights = {
        .model = &e->model,
        .shard = &e->shard,
        .dtype = config->dtype,
        .checkpoint = checkpoint,
        .progress = config->rank == 0,
    };
    int rc = weights_load(&weights, e->ops, e->device, &e->weights, err);

    if (checkpoint)
        e->bytes_read = safetensors_bytes_read(checkpoint);
    return rc;
}

/* ---- getting ready ---- */

static int warm_forward(void *ctx, struct err *err)
{
    return decoder_forward(&((struct engine *)ctx)->decoder, NULL, err);
}

static void warm_progress(void *ctx, const char *what, uint32_t done, uint32_t total)
{
    struct engine *e = ctx;

    if (!done)
        progress_init_items(&e->progress, what, total, e->tells);
    else
        progress_add(&e->progress, done - e->progress.done);
    if (done && done == total)
        progress_end(&e->progress);
}

static void warm_say(void *ctx, const char *line)
{
    (void)ctx;
    log_warn("%s", line);
}

static int warm(struct engine *e, bool tell, struct err *err)
{
    const struct ops_warm warm = {
        .forward = warm_forward,
        .progress = tell ? warm_progress : NULL,
        .say = warm_say,
        .ctx = e,
    };

    return e->ops->warm ? e->ops->warm(e->device, &warm, err) : 0;
}

static int decoder_init(struct engine *e, struct err *err)
{
    e->decoder = (struct decoder){
        .ops = e->ops, .device = e->device, .config = &e->model, .weights = &e->weights};
    return decoder_alloc(&e->decoder, &e->shard, err);
}

/* What a scheduler with these options asks for at most: see budget_init in its core.c. */
static uint32_t step_tokens_max(const struct engine *e, const struct engine_config *config)
{
    uint32_t slots = config->num_slots, page = e->page_size, least;
    uint32_t prefill =
        config->prefill_tokens_max < 0 ? e->context_length : (uint32_t)config->prefill_tokens_max;

    if (prefill > LIMIT_PROMPT_IDS)
        prefill = LIMIT_PROMPT_IDS;
    least = config->prefill_tokens_max < 0 || prefill < page ? prefill : page;
    return prefill > slots + least ? prefill : slots + least;
}

/* All that a step needs but its pages, so that pages get what is left. */
static int prepare(struct engine *e, const struct engine_config *config, struct err *err)
{
    int rc;

    if (!e->ops->prepare || !config->num_slots)
        return 0;
    rc = e->ops->prepare(e->device, e->page_size, config->num_slots, step_tokens_max(e, config),
                         e->context_length, err);
    e->prepared = !rc;
    if (!rc)
        rc = decoder_init(e, err);
    return rc ? rc : warm(e, true, err);
}

/* A device on which no page is left is refused before anybody waits for it. */
static int check_memory(const struct engine *e, const struct engine_config *config, struct err *err)
{
    double page = (double)e->ops->page_bytes(e->device, e->page_size);
    double weights = (double)e->ops->weight_bytes(e->device), budget, mine, others;
    struct ops_memory m;
    int rc;

    if (!e->ops->memory || e->ops->pages_max(e->device, e->page_size))
        return 0;
    rc = e->ops->memory(e->device, &m, err);
    if (rc)
        return rc;
    budget = config->mem_fraction * (double)m.total;
    mine = weights + (double)m.workspace + (double)m.graphs;
    others = (double)(m.total - m.unused) - mine;
    return err_set(
        err, ERR_NOMEM,
        "rank %u: no memory for KV pages of %.2f MB: --mem-fraction-static %g of %.2f GB is %.2f, "
        "but weights take %.2f, workspace %.2f, graphs %.2f, libraries and other programs %.2f GB, "
        "and %.2f are free; %s",
        config->rank, page / 1e6, config->mem_fraction, (double)m.total / 1e9, budget / 1e9,
        weights / 1e9, (double)m.workspace / 1e9, (double)m.graphs / 1e9,
        others > 0 ? others / 1e9 : 0.0, (double)m.unused / 1e9,
        others > 4e9 ? "see what else runs on this GPU (nvidia-smi)"
        : budget < 0.9 * (double)m.total
            ? "raise it"
            : "use more ranks (--tp-size), or lower --max-running-requests or "
              "--chunked-prefill-size");
}

static int load(const struct engine_config *config, const char *backend, struct engine **out,
                struct err *err)
{
    struct engine *e = mem_zalloc(sizeof *e);
    struct safetensors *checkpoint = NULL;
    int rc = backend_load(backend, &e->ops, err);

    e->page_size = config->page_size;
    e->tells = config->rank == 0;
    if (!rc)
        rc = model_config_load(config->model_dir, &e->model, err);
    if (!rc) {
        e->context_length = context_length(config, &e->model);
        rc = shard_init(&e->shard, &e->model, config->rank, config->tp_size, err);
    }
    if (!rc && !config->dummy_weight)
        rc = safetensors_open(config->model_dir, &checkpoint, err);
    if (!rc)
        rc = open_device(e, config, err);
    if (!rc) {
        fingerprint(e, config, checkpoint);
        rc = load_weights(e, config, checkpoint, err);
    }
    if (!rc)
        rc = prepare(e, config, err);
    if (!rc)
        rc = check_memory(e, config, err);
    safetensors_free(&checkpoint);
    if (rc)
        engine_model_free(&e);
    *out = e;
    return rc;
}

static int load_cpu(const struct engine_config *config, struct engine **out, struct err *err)
{
    return load(config, "cpu", out, err);
}

static int load_cuda(const struct engine_config *config, struct engine **out, struct err *err)
{
    return load(config, "cuda", out, err);
}

static uint32_t steps_ahead(const struct engine *e)
{
    return e->ops->steps_ahead < ENGINE_STEPS_MAX ? e->ops->steps_ahead : ENGINE_STEPS_MAX;
}

static void info(const struct engine *e, struct engine_info *out)
{
    uint64_t pages = e->ops->pages_max(e->device, e->page_size);
    struct ops_memory memory = {0};
    struct err err;

    if (e->ops->memory)
        (void)e->ops->memory(e->device, &memory, &err);
    *out = (struct engine_info){
        .vocab_size = e->model.vocab_size,
        .context_length = e->context_length,
        .pages_max = pages > UINT32_MAX ? UINT32_MAX : (uint32_t)pages,
        .page_bytes = e->ops->page_bytes(e->device, e->page_size),
        .weight_bytes = e->ops->weight_bytes(e->device),
        .kv_bytes = e->ops->kv_bytes(e->device),
        .memory_total = memory.total,
        .memory_unused = memory.unused,
        .workspace_bytes = memory.workspace,
        .graph_bytes = memory.graphs,
        .fingerprint = e->fingerprint,
        .eos_count = e->model.eos_count,
        .prompt_logprobs = e->ops->score != NULL,
        .steps_ahead = steps_ahead(e),
    };
    (void)snprintf(out->device, sizeof out->device, "%s", e->ops->name);
    memcpy(out->eos_ids, e->model.eos_ids, sizeof e->model.eos_ids);
}

static int kv_alloc(struct engine *e, uint32_t num_pages, uint32_t num_slots, uint32_t tokens_max,
                    struct err *err)
{
    const struct slots_config config = {num_slots,  num_pages,         e->page_size,
                                        tokens_max, e->context_length, e->model.vocab_size};
    size_t logprobs = (size_t)num_slots + OPS_SCORES_MAX;
    uint64_t bytes;
    int rc;

    if (e->slots.views) {
        for (uint32_t i = 0; i < e->slots.config.num_slots; i++)
            if (e->slots.views[i].open)
                e->ops->slot_close(e->device, i);
        return slots_again(&e->slots, &config, err);
    }
    if (!num_pages || !num_slots || !tokens_max ||
        __builtin_mul_overflow(e->ops->page_bytes(e->device, e->page_size), (uint64_t)num_pages,
                               &bytes))
        return err_set(err, ERR_PROTOCOL, "KV pool of %u pages, %u slots, %u tokens a step",
                       num_pages, num_slots, tokens_max);
    rc = e->ops->pool_alloc(e->device, num_pages, e->page_size, num_slots, tokens_max,
                            e->context_length, err);
    if (!rc)
        rc = e->prepared ? warm(e, false, err) : decoder_init(e, err);
    if (rc)
        return rc;
    slots_init(&e->slots, &config);
    for (uint32_t i = 0; i < ENGINE_STEPS_MAX; i++)
        e->under_way[i].wanted = mem_array(num_slots, sizeof *e->under_way[i].wanted);
    e->rows = mem_array(num_slots, sizeof *e->rows);
    e->scores = mem_array(num_slots, sizeof *e->scores);
    e->end_ids = mem_array(END_IDS_MAX, sizeof *e->end_ids);
    e->bias = mem_array(BIASES_MAX, sizeof *e->bias);
    e->results = mem_array(num_slots, sizeof *e->results);
    e->logprobs = mem_array(logprobs, sizeof *e->logprobs);
    e->alternatives = mem_array(logprobs * OPS_LOGPROBS_MAX, sizeof *e->alternatives);
    return 0;
}

static int open_slot(struct engine *e, const struct proto_slot_open *o, struct err *err)
{
    const struct proto_sampling *p = &o->sampling;
    struct ops_sampling sampling = {
        .temperature = (float)p->temperature,
        .top_p = (float)p->top_p,
        .min_p = (float)p->min_p,
        .top_k = (int32_t)p->top_k,
        .presence_penalty = (float)p->presence_penalty,
        .frequency_penalty = (float)p->frequency_penalty,
        .repetition_penalty = (float)p->repetition_penalty,
        .seed = p->seed,
        .min_tokens = p->min_tokens,
        .logprobs = (int32_t)p->logprobs,
        .end_ids = e->end_ids,
        .bias = e->bias,
    };

    for (uint32_t i = 0; !p->ignore_eos && i < e->model.eos_count; i++)
        e->end_ids[sampling.end_ids_count++] = e->model.eos_ids[i];
    for (uint32_t i = 0; i < p->stop_token_ids_count && sampling.end_ids_count < END_IDS_MAX; i++)
        e->end_ids[sampling.end_ids_count++] = p->stop_token_ids[i];
    for (uint32_t i = 0; i < p->logit_bias_count && i < BIASES_MAX; i++)
        e->bias[sampling.bias_count++] =
            (struct ops_bias){p->logit_bias[i].id, (float)p->logit_bias[i].value};
    return e->ops->slot_open(e->device, o->slot, o->tokens, o->tokens_count, o->generated,
                             &sampling, err);
}

/* Log probability i of the step, as messages carry it. */
static struct proto_logprob *fill_logprob(struct engine *e, uint32_t i, const struct ops_sampled *s)
{
    struct proto_alternative *top = e->alternatives + (size_t)i * OPS_LOGPROBS_MAX;

    e->logprobs[i] = (struct proto_logprob){
        .id = s->id, .logprob = (double)s->logprob, .top = top, .top_count = s->top_count};
    for (uint32_t j = 0; j < s->top_count; j++)
        top[j] =
            (struct proto_alternative){.id = s->top_ids[j], .logprob = (double)s->top_logprobs[j]};
    return &e->logprobs[i];
}

/* What the device chose and scored for the step. */
static void fill_results(struct engine *e, const struct under_way *u,
                         const struct ops_sampled *sampled)
{
    const struct ops_sampled *scored = u->scored;
    uint32_t logprobs = e->slots.config.num_slots;

    for (uint32_t i = 0; i < u->count; i++) {
        const struct wanted *w = &u->wanted[i];
        struct proto_sampled *r = &e->results[i];

        *r = (struct proto_sampled){.slot = w->slot};
        if (w->sample) {
            r->id = sampled->id;
            if (w->logprob) {
                r->logprob = fill_logprob(e, i, sampled);
                r->logprob_count = 1;
            }
            sampled++;
        }
        if (w->scores) {
            r->prompt = &e->logprobs[logprobs];
            r->prompt_count = w->scores;
            for (uint32_t k = 0; k < w->scores; k++)
                (void)fill_logprob(e, logprobs++, scored++);
        }
    }
}

/* The step's rows and scores as the device takes them, and what its results are to be; returns the
 * number of scores. */
static uint32_t fill_rows(struct engine *e, const struct proto_step *step, struct under_way *u)
{
    uint32_t next = 0;

    u->count = 0;
    u->rows = step->rows_count;
    for (uint32_t i = 0; i < step->rows_count; i++) {
        const struct proto_row *row = &step->rows[i];
        const struct proto_score *score = slots_score(step, i, &next);

        e->rows[i] = (struct ops_row){row->slot, row->start, row->count, row->sample};
        if (score)
            e->scores[next - 1] = (struct ops_score){i, score->start, score->count};
        if (row->sample || score)
            u->wanted[u->count++] =
                (struct wanted){row->slot, row->sample, e->slots.views[row->slot].logprobs >= 0,
                                score ? score->count : 0};
    }
    return next;
}

static int apply_slots(struct engine *e, const struct proto_step *step, struct err *err)
{
    int rc = 0;

    for (uint32_t i = 0; i < step->closed_count; i++)
        e->ops->slot_close(e->device, step->closed[i]);
    for (uint32_t i = 0; i < step->opened_count && !rc; i++)
        rc = open_slot(e, &step->opened[i], err);
    for (uint32_t i = 0; i < step->pages_count && !rc; i++)
        rc = e->ops->slot_pages(e->device, step->pages[i].slot, step->pages[i].first,
                                step->pages[i].pages, step->pages[i].pages_count, err);
    return rc;
}

/* One that scores is the newest: nothing begins behind it. */
static bool room(const struct engine *e)
{
    uint32_t newest = (e->first + e->count + ENGINE_STEPS_MAX - 1) % ENGINE_STEPS_MAX;

    return e->count < steps_ahead(e) && !(e->count && e->under_way[newest].scored);
}

static int begin(struct engine *e, const struct proto_step *step, struct err *err)
{
    struct under_way *u = &e->under_way[(e->first + e->count) % ENGINE_STEPS_MAX];
    struct decoder_scores scores = {.list = e->scores};
    int rc;

    if (!e->slots.views)
        return err_set(err, ERR_PROTOCOL, "a step before the KV pool");
    rc = slots_apply(&e->slots, step, err);
    if (!rc)
        rc = apply_slots(e, step, err);
    if (!rc)
        scores.count = fill_rows(e, step, u);
    if (!rc && step->rows_count)
        rc = decoder_begin(&e->decoder, e->rows, step->rows_count, &scores, err);
    if (rc)
        return rc;
    u->hash = slots_hash_rows(step);
    u->scored = scores.results;
    e->count++;
    return 0;
}

static bool ready(const struct engine *e)
{
    return !e->ops->step_ready || !e->under_way[e->first].rows || e->ops->step_ready(e->device);
}

static int end(struct engine *e, struct engine_result *result, struct err *err)
{
    struct under_way *u = &e->under_way[e->first];
    const struct ops_sampled *sampled = NULL;
    uint32_t count;
    int rc = u->rows ? e->ops->step_end(e->device, &sampled, &count, err) : 0;

    if (rc)
        return rc;
    fill_results(e, u, sampled);
    *result = (struct engine_result){.results = e->results, .count = u->count};
    result->hash = slots_hash_results(u->hash, e->results, u->count);
    result->device_us = u->rows && e->ops->step_us ? e->ops->step_us(e->device) : 0;
    e->first = (e->first + 1) % ENGINE_STEPS_MAX;
    e->count--;
    return 0;
}

const float *engine_model_logits(struct engine *e, uint32_t i, uint32_t *begin, uint32_t *count)
{
    *begin = e->shard.vocab_begin;
    *count = e->shard.vocab_count;
    return e->ops->logits(e->device, i);
}

uint64_t engine_model_bytes_read(const struct engine *e)
{
    return e->bytes_read;
}

extern const struct engine_kind engine_cpu, engine_cuda;
const struct engine_kind engine_cpu = {
    .device = "cpu",
    .load = load_cpu,
    .info = info,
    .kv_alloc = kv_alloc,
    .begin = begin,
    .room = room,
    .ready = ready,
    .end = end,
    .free = engine_model_free,
};
const struct engine_kind engine_cuda = {
    .device = "cuda",
    .load = load_cuda,
    .info = info,
    .kv_alloc = kv_alloc,
    .begin = begin,
    .room = room,
    .ready = ready,
    .end = end,
    .free = engine_model_free,
};

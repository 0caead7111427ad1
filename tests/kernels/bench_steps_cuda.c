/* Times whole steps of a model's real dimensions with random weights on one GPU: decode at batch
 * sizes, prefill of one prompt. Usage: bench_steps_cuda [MODEL] [contexts] [prefill tokens]
 * [batches], MODEL being 0.6b, 0.6b/2, 8b, 14b or 32b/4; contexts and batches are lists as
 * 1024,8192. Context 1024+32768: one sequence has 32,768 tokens, the others 1,024. DECODE=1 or 2 in
 * the environment: attention shares the GPU that way (enum ops_decode) always. Beside each time its
 * floor: bytes that must be read over 4.4 TB/s, or FLOP over 800 TFLOP/s. */
#include "tests/kernels/support.h"

#include "common/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BYTES_PER_S 4.4e12
#define FLOP_PER_S 800e12
#define RUNS 41
#define PAGE 16u
#define LIST_MAX 16u

struct dimensions {
    const char *name;
    uint32_t layers, hidden, heads, kv_heads, head_dim, intermediate, vocab;
};

static const struct dimensions models[] = {
    {"0.6b", 28, 1024, 16, 8, 128, 3072, 151936},
    {"0.6b/2", 14, 1024, 16, 8, 128, 3072, 151936}, /* half the layers: what one of them costs */
    {"8b", 36, 4096, 32, 8, 128, 12288, 151936},
    {"14b", 40, 5120, 40, 8, 128, 17408, 151936},
    {"32b/4", 64, 5120, 16, 2, 128, 6400, 37984}, /* a rank of four, without the sums */
};

struct layer {
    struct weight *norm, *qkv, *q_norm, *k_norm, *o, *post_norm, *gate_up, *down;
};

struct bench {
    const struct dimensions *m;
    const struct ops *ops;
    struct device *device;
    struct layer *layers;
    struct weight *embedding, *norm;
    struct act *residual, *normed, *qkv, *attended, *mid;
    float *numbers; /* rows of random weights, reused */
    uint64_t random;
    uint32_t rows_max;
};

struct list {
    uint32_t count, at[LIST_MAX];
    uint32_t longest[LIST_MAX]; /* at, or what follows it behind a + */
};

static struct list list_read(const char *text)
{
    struct list l = {0};

    for (char *end; l.count < LIST_MAX && *text; text = *end ? end + 1 : end) {
        l.at[l.count] = l.longest[l.count] = (uint32_t)strtoul(text, &end, 10);
        if (end == text)
            break;
        if (*end == '+')
            l.longest[l.count] = (uint32_t)strtoul(end + 1, &end, 10);
        l.count++;
    }
    return l;
}

static uint32_t list_max(const struct list *l)
{
    uint32_t most = 0;

    for (uint32_t i = 0; i < l->count; i++)
        most = l->longest[i] > most ? l->longest[i] : most;
    return most;
}

static void check(int rc, const struct err *err)
{
    if (rc) {
        (void)fprintf(stderr, "bench_steps_cuda: %s\n", err->msg);
        exit(1);
    }
}

static struct weight *weight_make(struct bench *b, enum weight_kind kind, uint32_t rows,
                                  uint32_t cols)
{
    uint32_t chunk = (4u << 20) / cols;
    struct err err = {0};
    struct weight *w;

    check(b->ops->weight_new(b->device, kind, DTYPE_BF16, rows, cols, &w, &err), &err);
    for (uint32_t at = 0; at < rows; at += chunk)
        check(b->ops->weight_write(b->device, w, at, rows - at < chunk ? rows - at : chunk,
                                   b->numbers, kind == WEIGHT_VECTOR ? DTYPE_F32 : DTYPE_BF16,
                                   &err),
              &err);
    check(b->ops->weight_done(b->device, w, &err), &err);
    return w;
}

static void model_make(struct bench *b)
{
    const struct dimensions *m = b->m;
    uint16_t *half = mem_array(4u << 20, 4);

    /* bf16 numbers of either sign around 2^-6 */
    for (uint32_t i = 0; i < 4u << 20; i++)
        half[i] =
            (uint16_t)(0x3c00u | random_below(&b->random, 256) | random_below(&b->random, 2) << 15);
    b->numbers = (float *)(void *)half;
    b->embedding = weight_make(b, WEIGHT_EMBED, m->vocab, m->hidden);
    b->norm = weight_make(b, WEIGHT_VECTOR, 1, m->hidden);
    b->layers = mem_array(m->layers, sizeof *b->layers);
    for (uint32_t i = 0; i < m->layers; i++) {
        struct layer *l = &b->layers[i];

        l->norm = weight_make(b, WEIGHT_VECTOR, 1, m->hidden);
        l->post_norm = weight_make(b, WEIGHT_VECTOR, 1, m->hidden);
        l->q_norm = weight_make(b, WEIGHT_VECTOR, 1, m->head_dim);
        l->k_norm = weight_make(b, WEIGHT_VECTOR, 1, m->head_dim);
        l->qkv =
            weight_make(b, WEIGHT_MATRIX, (m->heads + 2 * m->kv_heads) * m->head_dim, m->hidden);
        l->o = weight_make(b, WEIGHT_MATRIX, m->hidden, m->heads * m->head_dim);
        l->gate_up = weight_make(b, WEIGHT_GATE_UP, 2 * m->intermediate, m->hidden);
        l->down = weight_make(b, WEIGHT_MATRIX, m->hidden, m->intermediate);
    }
}

static double step(struct bench *b, const struct ops_row *rows, uint32_t count)
{
    const struct dimensions *m = b->m;
    const struct ops *o = b->ops;
    const struct ops_sampled *results;
    struct device *d = b->device;
    double begin = now_s();
    struct err err = {0};
    uint32_t n;

    check(o->step_begin(d, rows, count, &err), &err);
    check(o->embed(d, b->embedding, b->layers[0].norm, b->residual, b->normed, &err), &err);
    for (uint32_t i = 0; i < m->layers; i++) {
        struct layer *l = &b->layers[i];
        struct weight *next = i + 1 < m->layers ? l[1].norm : b->norm;

        check(o->linear(d, b->normed, l->qkv, NULL, b->qkv, &err), &err);
        check(o->qk_norm_rope_kv(d, i, b->qkv, l->q_norm, l->k_norm, &err), &err);
        check(o->attention(d, i, b->qkv, 0, b->attended, &err), &err);
        check(
            o->linear_reduce_norm(d, b->attended, l->o, l->post_norm, b->residual, b->normed, &err),
            &err);
        check(o->gate_up_silu(d, b->normed, l->gate_up, b->mid, &err), &err);
        check(o->linear_reduce_norm(d, b->mid, l->down, next, b->residual, b->normed, &err), &err);
    }
    check(o->sample(d, b->normed, b->embedding, &err), &err);
    check(o->step_end(d, &results, &n, &err), &err);
    return now_s() - begin;
}

static void slot_make(struct bench *b, uint32_t slot, uint32_t tokens, uint32_t first,
                      uint32_t pages, float temperature)
{
    struct ops_sampling sampling = {.temperature = temperature,
                                    .top_p = temperature > 0 ? 0.95f : 1.0f,
                                    .top_k = temperature > 0 ? 20 : 0,
                                    .repetition_penalty = 1.0f,
                                    .logprobs = -1,
                                    .seed = slot};
    uint32_t *ids = mem_array(tokens + pages, sizeof *ids), *list = ids + tokens;
    struct err err = {0};

    for (uint32_t i = 0; i < tokens; i++)
        ids[i] = random_below(&b->random, b->m->vocab);
    for (uint32_t i = 0; i < pages; i++)
        list[i] = first + i;
    check(b->ops->slot_open(b->device, slot, ids, tokens, 0, &sampling, &err), &err);
    check(b->ops->slot_pages(b->device, slot, 0, list, pages, &err), &err);
    free(ids);
}

static int order(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

/* Decode reads every matrix once, and k and v of all positions. */
static void decode_time(struct bench *b, uint32_t batch, uint32_t context, uint32_t longest,
                        float temperature)
{
    const struct dimensions *m = b->m;
    uint32_t page = 0;
    struct ops_row *rows = mem_array(batch, sizeof *rows);
    double times[RUNS], bytes, floor_s, keys = 0.0;

    for (uint32_t i = 0; i < batch; i++) {
        uint32_t tokens = i ? context : longest, pages = (tokens + RUNS + 8 + PAGE - 1) / PAGE;

        slot_make(b, i, tokens, page, pages, temperature);
        rows[i] = (struct ops_row){i, tokens - 1, 1, true};
        page += pages;
        keys += tokens;
    }
    for (int r = -3; r < RUNS; r++) {
        double t = step(b, rows, batch);

        if (r >= 0)
            times[r] = t;
        for (uint32_t i = 0; i < batch; i++)
            rows[i].start++;
    }
    for (uint32_t i = 0; i < batch; i++)
        b->ops->slot_close(b->device, i);
    qsort(times, RUNS, sizeof *times, order);
    bytes = (double)b->ops->weight_bytes(b->device) +
            keys * m->layers * 2 * m->kv_heads * m->head_dim * 2;
    floor_s = bytes / BYTES_PER_S;
    printf("decode  %-5s batch %3u context %5u", m->name, batch, context);
    if (longest != context)
        printf("+%u", longest);
    printf(" %s: %8.3f ms (floor %6.3f, x%.2f) %9.0f tokens/s\n",
           temperature > 0 ? "top-k" : "greedy", times[RUNS / 2] * 1e3, floor_s * 1e3,
           times[RUNS / 2] / floor_s, batch / times[RUNS / 2]);
    (void)fflush(stdout);
    free(rows);
}

static void prefill_time(struct bench *b, uint32_t tokens)
{
    const struct dimensions *m = b->m;
    uint32_t pages = (tokens + 8 + PAGE - 1) / PAGE;
    struct ops_row row = {0, 0, tokens, true};
    double times[5], matrices, attention, t;

    for (int r = -2; r < 5; r++) {
        slot_make(b, 0, tokens, 0, pages, 0.0f);
        t = step(b, &row, 1);
        if (r >= 0)
            times[r] = t;
        b->ops->slot_close(b->device, 0);
    }
    qsort(times, 5, sizeof *times, order);
    matrices = 2.0 * tokens * m->layers * m->hidden *
               (double)((2 * m->heads + 2 * m->kv_heads) * m->head_dim + 3 * m->intermediate);
    attention = 2.0 * tokens * tokens * m->layers * m->heads * m->head_dim;
    t = (matrices + attention) / FLOP_PER_S;
    printf("prefill %-5s %5u tokens: %8.2f ms (floor %6.2f, x%.2f) %6.0f TFLOP/s\n", m->name,
           tokens, times[2] * 1e3, t * 1e3, times[2] / t,
           (matrices + attention) / times[2] * 1e-12);
}

static void bench_open(struct bench *b, uint32_t context, uint32_t tokens)
{
    const struct dimensions *m = b->m;
    float inv_freq[64];
    struct ops_model model = {
        .layers = m->layers,
        .hidden = m->hidden,
        .heads = m->heads,
        .kv_heads = m->kv_heads,
        .head_dim = m->head_dim,
        .intermediate = m->intermediate,
        .vocab_size = m->vocab,
        .vocab_count = m->vocab,
        .norm_eps = 1e-6f,
        .attention_scale = 1.0f / sqrtf((float)m->head_dim),
        .rope_inv_freq = inv_freq,
        .rope_scale = 1.0f,
    };
    const char *decode = getenv("DECODE");
    struct ops_config config = {.tp_size = 1, .decode = decode ? (enum ops_decode)atoi(decode) : 0};
    uint32_t most = context + RUNS + 16 > tokens + 16 ? context + RUNS + 16 : tokens + 16;
    struct err err = {0};
    uint64_t pages;

    for (uint32_t i = 0; i < 64; i++)
        inv_freq[i] = powf(1e6f, -2.0f * (float)i / (float)m->head_dim);
    check(b->ops->device_open(&config, &model, &b->device, &err), &err);
    model_make(b);
    pages = b->ops->pages_max(b->device, PAGE);
    b->rows_max = 256;
    while ((uint64_t)b->rows_max * (most / PAGE + 1) > pages)
        b->rows_max /= 2;
    check(b->ops->pool_alloc(b->device, b->rows_max * (most / PAGE + 1), PAGE, b->rows_max,
                             tokens > b->rows_max ? tokens : b->rows_max, most, &err),
          &err);
    check(b->ops->act_new(b->device, m->hidden, &b->residual, &err), &err);
    check(b->ops->act_new(b->device, m->hidden, &b->normed, &err), &err);
    check(b->ops->act_new(b->device, (m->heads + 2 * m->kv_heads) * m->head_dim, &b->qkv, &err),
          &err);
    check(b->ops->act_new(b->device, m->heads * m->head_dim, &b->attended, &err), &err);
    check(b->ops->act_new(b->device, m->intermediate, &b->mid, &err), &err);
}

int main(int argc, char **argv)
{
    const struct list contexts = list_read(argc > 2 ? argv[2] : "1024");
    const struct list batches = list_read(argc > 4 ? argv[4] : "1,2,4,8,32,64,128,256");
    uint32_t tokens = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 8192;
    struct bench b = {.m = &models[0], .ops = backend_open("cuda"), .random = 1};

    for (size_t i = 0; argc > 1 && i < sizeof models / sizeof *models; i++)
        if (!strcmp(argv[1], models[i].name))
            b.m = &models[i];
    if (!b.ops)
        return 1;
    bench_open(&b, list_max(&contexts), tokens);
    for (uint32_t c = 0; c < contexts.count; c++)
        for (uint32_t i = 0; i < batches.count; i++)
            if (batches.at[i] <= b.rows_max)
                decode_time(&b, batches.at[i], contexts.at[c], contexts.longest[c], 0.0f);
    if (argc <= 4)
        for (uint32_t batch = 1; batch; batch = batch < b.rows_max ? b.rows_max : 0)
            decode_time(&b, batch, contexts.at[0], contexts.longest[0], 0.6f);
    prefill_time(&b, tokens);
    b.ops->device_close(&b.device);
    free(b.layers);
    free(b.numbers);
    return 0;
}

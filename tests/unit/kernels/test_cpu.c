/* The CPU backend, operation by operation, against plain double-precision loops, and its sampler
 * against the distributions it must draw from. */
#include "kernels/ops.h"
#include "kernels/philox.h"
#include "tests/meet_folder.h"

#include <dlfcn.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const struct ops *ops;

static int setup(void **state)
{
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 64);
    const struct ops *(*get)(void);
    void *lib;

    (void)state;
    if (n < 0)
        return -1;
    path[n] = '\0';
    (void)strcpy(strrchr(path, '/'), "/../lib/libphalanx-cpu.so");
    lib = dlopen(path, RTLD_NOW);
    if (!lib) {
        print_error("%s\n", dlerror());
        return -1;
    }
    *(void **)&get = dlsym(lib, "phalanx_backend");
    ops = get();
    return ops->abi == OPS_ABI ? 0 : -1;
}

static float uniform(uint64_t seed, uint32_t i)
{
    return philox_uniform(seed, 77, i) * 2.0f - 1.0f;
}

static struct weight *weight_random(struct device *d, enum weight_kind kind, enum dtype dtype,
                                    uint32_t rows, uint32_t cols, uint64_t seed, float *copy)
{
    struct weight *w;

    for (uint32_t i = 0; i < rows * cols; i++) {
        uint32_t bits;

        copy[i] = uniform(seed, i);
        memcpy(&bits, &copy[i], 4);
        if (dtype == DTYPE_BF16)
            bits &= 0xffff0000u; /* so that storing it is exact */
        memcpy(&copy[i], &bits, 4);
    }
    assert_int_equal(ops->weight_new(d, kind, dtype, rows, cols, &w, NULL), 0);
    assert_int_equal(ops->weight_write(d, w, 0, rows, copy, DTYPE_F32, NULL), 0);
    assert_int_equal(ops->weight_done(d, w, NULL), 0);
    return w;
}

struct rig {
    struct device *d;
    struct ops_model m;
    float inv_freq[64];
};

static void rig_open(struct rig *r, struct ops_model m, uint32_t rank, uint32_t tp,
                     const char *store)
{
    struct meet_folder meet;
    struct ops_config c = {.rank = rank, .tp_size = tp, .comm_timeout_s = 30.0};
    struct err err = {0};

    c.comm_meet = meet_folder_init(&meet, store, rank, tp, 30.0);
    r->m = m;
    for (uint32_t i = 0; i < m.head_dim / 2; i++)
        r->inv_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)m.head_dim);
    r->m.rope_inv_freq = r->inv_freq;
    if (ops->device_open(&c, &r->m, &r->d, &err))
        fail_msg("%s", err.msg);
    meet_folder_fini(&meet);
}

static const struct ops_model small = {.layers = 2,
                                       .hidden = 24,
                                       .heads = 4,
                                       .kv_heads = 2,
                                       .head_dim = 10,
                                       .intermediate = 19,
                                       .vocab_size = 40,
                                       .vocab_count = 40,
                                       .norm_eps = 1e-5f,
                                       .attention_scale = 0.3f,
                                       .rope_scale = 1.0f};

static const struct ops_sampling greedy = {
    .top_p = 1.0f, .repetition_penalty = 1.0f, .logprobs = -1};

static void open_slot(struct rig *r, uint32_t slot, uint32_t count, const uint32_t *pages,
                      uint32_t pages_count, const struct ops_sampling *sampling)
{
    uint32_t tokens[64];

    for (uint32_t i = 0; i < count; i++)
        tokens[i] = (slot * 7 + i * 3) % r->m.vocab_size;
    assert_int_equal(ops->slot_open(r->d, slot, tokens, count, 0, sampling, NULL), 0);
    assert_int_equal(ops->slot_pages(r->d, slot, 0, pages, pages_count, NULL), 0);
}

/* y = x W^T for many shapes, both stored types; and the same bits whatever the number of rows. */
static void test_linear(void **state)
{
    static const uint32_t outs[] = {1, 15, 16, 17, 33, 64, 100};
    static const uint32_t tokens[] = {1, 2, 3, 4, 5, 9, 16};
    static float x[16 * 24], w[100 * 24], y[16 * 100], one[100];

    (void)state;
    for (size_t o = 0; o < sizeof outs / sizeof *outs; o++)
        for (int type = DTYPE_F32; type <= DTYPE_BF16; type++) {
            struct rig r;
            struct weight *weight;
            struct act *in, *out;
            uint32_t pages[4] = {0, 1, 2, 3}, n = outs[o];

            rig_open(&r, small, 0, 1, NULL);
            weight = weight_random(r.d, WEIGHT_MATRIX, (enum dtype)type, n, 24, o + 1, w);
            assert_int_equal(ops->pool_alloc(r.d, 4, 4, 2, 16, 16, NULL), 0);
            assert_int_equal(ops->act_new(r.d, 24, &in, NULL), 0);
            assert_int_equal(ops->act_new(r.d, n, &out, NULL), 0);
            open_slot(&r, 0, 16, pages, 4, &greedy);
            for (uint32_t i = 0; i < 16 * 24; i++)
                x[i] = uniform(99, i);
            for (size_t t = 0; t < sizeof tokens / sizeof *tokens; t++) {
                struct ops_row row = {0, 0, tokens[t], false};

                assert_int_equal(ops->step_begin(r.d, &row, 1, NULL), 0);
                (void)ops->act_write(r.d, in, tokens[t], x, NULL);
                assert_int_equal(ops->linear(r.d, in, weight, NULL, out, NULL), 0);
                (void)ops->act_read(r.d, out, tokens[t], y, NULL);
                if (t == 0)
                    memcpy(one, y, n * sizeof *one);
                assert_memory_equal(one, y, n * sizeof *one);
                for (uint32_t i = 0; i < tokens[t]; i++)
                    for (uint32_t j = 0; j < n; j++) {
                        double sum = 0;

                        for (uint32_t k = 0; k < 24; k++)
                            sum += (double)x[i * 24 + k] * (double)w[j * 24 + k];
                        assert_true(fabs((double)y[i * n + j] - sum) < 1e-5);
                    }
            }
            ops->device_close(&r.d);
        }
}

static void reference_head(float *x, const float *norm, uint32_t position, uint32_t dim)
{
    double sum = 0, out[64];

    for (uint32_t i = 0; i < dim; i++)
        sum += (double)x[i] * (double)x[i];
    for (uint32_t i = 0; i < dim; i++)
        out[i] = (double)x[i] / sqrt(sum / dim + 1e-5) * (double)norm[i];
    for (uint32_t i = 0; i < dim / 2; i++) {
        double angle = position * pow(10000.0, -2.0 * i / dim);

        x[i] = (float)(out[i] * cos(angle) - out[i + dim / 2] * sin(angle));
        x[i + dim / 2] = (float)(out[i + dim / 2] * cos(angle) + out[i] * sin(angle));
    }
}

static void reference_attention(const float *qkv, uint32_t t, uint32_t window, uint32_t head,
                                double *out)
{
    uint32_t dim = 10, width = 80, kv = head / 2;
    uint32_t first = window && t + 1 > window ? t + 1 - window : 0;
    double sum = 0;

    memset(out, 0, dim * sizeof *out);
    for (uint32_t p = first; p <= t; p++) {
        const float *q = qkv + t * width + head * dim, *k = qkv + p * width + (4 + kv) * dim;
        const float *v = qkv + p * width + (6 + kv) * dim;
        double score = 0, weight;

        for (uint32_t i = 0; i < dim; i++)
            score += (double)q[i] * (double)k[i];
        weight = exp(score * 0.3);
        sum += weight;
        for (uint32_t i = 0; i < dim; i++)
            out[i] += weight * (double)v[i];
    }
    for (uint32_t i = 0; i < dim; i++)
        out[i] /= sum;
}

/* Norm, rotary embedding, pages in any order, windows; chunked prefill gives the same bits. */
static void check_attention(uint32_t window)
{
    static float qkv[13 * 80], whole[13 * 40], piece[13 * 40], norm[2][10];
    uint32_t pages[4] = {6, 1, 4, 3};
    struct weight *q_norm, *k_norm;
    struct act *a, *out;
    struct rig r;

    rig_open(&r, small, 0, 1, NULL);
    q_norm = weight_random(r.d, WEIGHT_VECTOR, DTYPE_F32, 1, 10, 5, norm[0]);
    k_norm = weight_random(r.d, WEIGHT_VECTOR, DTYPE_F32, 1, 10, 6, norm[1]);
    assert_int_equal(ops->pool_alloc(r.d, 8, 4, 2, 16, 16, NULL), 0);
    (void)ops->act_new(r.d, 80, &a, NULL);
    (void)ops->act_new(r.d, 40, &out, NULL);
    for (int chunked = 0; chunked < 2; chunked++) {
        open_slot(&r, (uint32_t)chunked, 13, pages, 4, &greedy);
        for (uint32_t start = 0, n = chunked ? 5 : 13; start < 13; start += n) {
            struct ops_row row = {(uint32_t)chunked, start, start + n > 13 ? 13 - start : n, false};

            for (uint32_t i = 0; i < 13 * 80; i++)
                qkv[i] = uniform(3, i);
            assert_int_equal(ops->step_begin(r.d, &row, 1, NULL), 0);
            (void)ops->act_write(r.d, a, row.count, qkv + start * 80, NULL);
            assert_int_equal(ops->qk_norm_rope_kv(r.d, 1, a, q_norm, k_norm, NULL), 0);
            assert_int_equal(ops->attention(r.d, 1, a, window, out, NULL), 0);
            (void)ops->act_read(r.d, out, row.count, (chunked ? piece : whole) + start * 40, NULL);
        }
    }
    assert_memory_equal(whole, piece, sizeof whole);
    for (uint32_t t = 0; t < 13; t++)
        for (uint32_t h = 0; h < 6; h++)
            reference_head(qkv + t * 80 + h * 10, norm[h >= 4], t, 10);
    for (uint32_t t = 0; t < 13; t++)
        for (uint32_t h = 0; h < 4; h++) {
            double want[10];

            reference_attention(qkv, t, window, h, want);
            for (uint32_t i = 0; i < 10; i++)
                assert_true(fabs((double)whole[t * 40 + h * 10 + i] - want[i]) < 1e-5);
        }
    ops->device_close(&r.d);
}

static void test_attention(void **state)
{
    (void)state;
    check_attention(0);
    check_attention(1);
    check_attention(5);
    check_attention(100);
}

static void test_gate_up(void **state)
{
    static float x[3 * 24], w[38 * 24], y[3 * 19];
    uint32_t pages[1] = {0};
    struct weight *weight;
    struct act *in, *out;
    struct ops_row row = {0, 0, 3, false};
    struct rig r;

    (void)state;
    rig_open(&r, small, 0, 1, NULL);
    weight = weight_random(r.d, WEIGHT_GATE_UP, DTYPE_F32, 38, 24, 8, w);
    (void)ops->pool_alloc(r.d, 1, 4, 1, 4, 4, NULL);
    (void)ops->act_new(r.d, 24, &in, NULL);
    (void)ops->act_new(r.d, 19, &out, NULL);
    open_slot(&r, 0, 3, pages, 1, &greedy);
    for (uint32_t i = 0; i < 72; i++)
        x[i] = uniform(9, i);
    (void)ops->step_begin(r.d, &row, 1, NULL);
    (void)ops->act_write(r.d, in, 3, x, NULL);
    assert_int_equal(ops->gate_up_silu(r.d, in, weight, out, NULL), 0);
    (void)ops->act_read(r.d, out, 3, y, NULL);
    for (uint32_t t = 0; t < 3; t++)
        for (uint32_t i = 0; i < 19; i++) {
            double gate = 0, up = 0;

            for (uint32_t k = 0; k < 24; k++) {
                gate += (double)x[t * 24 + k] * (double)w[i * 24 + k];
                up += (double)x[t * 24 + k] * (double)w[(19 + i) * 24 + k];
            }
            assert_true(fabs((double)y[t * 19 + i] - gate / (1 + exp(-gate)) * up) < 1e-5);
        }
    ops->device_close(&r.d);
}

/* ---- sampling, with logits prescribed: normed is e0, so logit i is W[i][0] ---- */

struct sampler {
    struct rig r;
    struct weight *head;
    struct act *x;
    uint32_t vocab;
};

static void sampler_open(struct sampler *s, uint32_t vocab, const float *logits, uint32_t rank,
                         uint32_t tp, const char *store)
{
    struct ops_model m = small;
    uint32_t share = (vocab + tp - 1) / tp;
    float row[24] = {0};

    m.vocab_size = vocab;
    m.vocab_begin = rank * share < vocab ? rank * share : vocab;
    m.vocab_count = vocab - m.vocab_begin < share ? vocab - m.vocab_begin : share;
    rig_open(&s->r, m, rank, tp, store);
    s->vocab = vocab;
    assert_int_equal(
        ops->weight_new(s->r.d, WEIGHT_EMBED, DTYPE_F32, m.vocab_count, 24, &s->head, NULL), 0);
    for (uint32_t i = 0; i < m.vocab_count; i++) {
        row[0] = logits[m.vocab_begin + i];
        assert_int_equal(ops->weight_write(s->r.d, s->head, i, 1, row, DTYPE_F32, NULL), 0);
    }
    assert_int_equal(ops->pool_alloc(s->r.d, 4, 16, 2, 16, 64, NULL), 0);
    assert_int_equal(ops->act_new(s->r.d, 24, &s->x, NULL), 0);
}

static struct ops_sampled draw(struct sampler *s, const uint32_t *tokens, uint32_t count,
                               uint32_t generated, const struct ops_sampling *p)
{
    float row[24] = {1.0f};
    uint32_t pages[4] = {0, 1, 2, 3}, n;
    struct ops_row step = {0, count - 1, 1, true};
    const struct ops_sampled *results;
    struct ops_sampled out;

    assert_int_equal(ops->slot_open(s->r.d, 0, tokens, count, generated, p, NULL), 0);
    assert_int_equal(ops->slot_pages(s->r.d, 0, 0, pages, 4, NULL), 0);
    assert_int_equal(ops->step_begin(s->r.d, &step, 1, NULL), 0);
    (void)ops->act_write(s->r.d, s->x, 1, row, NULL);
    assert_int_equal(ops->sample(s->r.d, s->x, s->head, NULL), 0);
    assert_int_equal(ops->step_end(s->r.d, &results, &n, NULL), 0);
    assert_int_equal(n, 1);
    out = results[0];
    ops->slot_close(s->r.d, 0);
    return out;
}

#define DRAWS 4000

/* Draws with many seeds fall as softmax over the allowed ids says (5 standard deviations). */
static void check_distribution(struct sampler *s, const float *logits, struct ops_sampling p,
                               const bool *allowed)
{
    uint32_t token = 1, hits[256] = {0};
    double sum = 0;

    for (uint32_t i = 0; i < s->vocab; i++)
        sum += allowed[i] ? exp((double)(logits[i] / p.temperature)) : 0;
    for (uint32_t i = 0; i < DRAWS; i++) {
        p.seed = i * 7919ull + 3;
        hits[draw(s, &token, 1, 0, &p).id]++;
    }
    for (uint32_t i = 0; i < s->vocab; i++) {
        double q = allowed[i] ? exp((double)(logits[i] / p.temperature)) / sum : 0;

        assert_true(fabs(hits[i] - q * DRAWS) <= 5 * sqrt(DRAWS * q * (1 - q)) + 1e-9);
    }
}

static void test_sampling_distribution(void **state)
{
    float logits[12] = {1.0f, 3.0f, 0.5f, 2.5f, -1.0f, 2.0f, 0.0f, 1.5f, -4.0f, 2.9f, 1.0f, 0.2f};
    bool all[12], top3[12] = {false}, nucleus[12] = {false}, min_p[12] = {false};
    struct ops_sampling p = greedy;
    struct sampler s;
    double sum = 0, cumulative = 0;

    (void)state;
    sampler_open(&s, 12, logits, 0, 1, NULL);
    for (int i = 0; i < 12; i++) {
        all[i] = true;
        sum += exp((double)logits[i] / 0.8);
        min_p[i] = exp((double)(logits[i] - 3.0f) / 0.8) >= 0.2;
    }
    top3[1] = top3[9] = top3[3] = true;
    while (cumulative < 0.7 * sum) { /* the smallest set of at least 0.7 */
        int best = -1;

        for (int i = 0; i < 12; i++)
            if (!nucleus[i] && (best < 0 || logits[i] > logits[best]))
                best = i;
        nucleus[best] = true;
        cumulative += exp((double)logits[best] / 0.8);
    }
    p.temperature = 0.8f;
    check_distribution(&s, logits, p, all);
    p.top_k = 3;
    check_distribution(&s, logits, p, top3);
    p.top_k = 0;
    p.top_p = 0.7f;
    check_distribution(&s, logits, p, nucleus);
    p.top_p = 1.0f;
    p.min_p = 0.2f;
    check_distribution(&s, logits, p, min_p);
    ops->device_close(&s.r.d);
}

static void test_penalties(void **state)
{
    float logits[6] = {5.0f, 4.9f, 4.0f, 3.0f, -1.0f, -2.0f};
    uint32_t tokens[4] = {0, 1, 1, 2}; /* prompt 0; generated 1 1 2 */
    uint32_t ends[1] = {0};
    struct ops_bias bias[2] = {{5, 100.0f}, {0, -100.0f}};
    struct ops_sampling p = greedy;
    struct sampler s;

    (void)state;
    sampler_open(&s, 6, logits, 0, 1, NULL);
    assert_int_equal(draw(&s, tokens, 4, 3, &p).id, 0);
    p.frequency_penalty = 0.5f; /* 1: 4.9 - 1.0, 2: 4.0 - 0.5; 0 is prompt: untouched */
    assert_int_equal(draw(&s, tokens, 4, 3, &p).id, 0);
    p.frequency_penalty = 0.0f;
    p.repetition_penalty = 2.0f; /* 0: 2.5, 1: 2.45, 2: 2.0 -> 3 */
    assert_int_equal(draw(&s, tokens, 4, 3, &p).id, 3);
    p.repetition_penalty = 1.0f;
    p.presence_penalty = 1.0f;
    p.min_tokens = 4; /* 0 is masked; 1: 3.9, 2: 3.0, 3: 3.0 */
    p.end_ids = ends;
    p.end_ids_count = 1;
    assert_int_equal(draw(&s, tokens, 4, 3, &p).id, 1);
    p.min_tokens = 3;
    assert_int_equal(draw(&s, tokens, 4, 3, &p).id, 0);
    p.bias = bias;
    p.bias_count = 2;
    assert_int_equal(draw(&s, tokens, 4, 3, &p).id, 5);
    ops->device_close(&s.r.d);
}

static void test_logprobs(void **state)
{
    float logits[5] = {0.5f, 2.0f, 2.0f, -1.0f, 1.0f};
    struct ops_sampling p = greedy;
    struct ops_sampled out;
    struct sampler s;
    uint32_t token = 0;
    double sum = 0;

    (void)state;
    sampler_open(&s, 5, logits, 0, 1, NULL);
    for (int i = 0; i < 5; i++)
        sum += exp((double)logits[i]);
    p.logprobs = 3;
    p.temperature = 5.0f; /* log probabilities are from before temperature */
    p.top_k = 1;
    out = draw(&s, &token, 1, 0, &p);
    assert_int_equal(out.id, 1); /* ties go to the smaller id */
    assert_int_equal(out.top_count, 3);
    assert_int_equal(out.top_ids[0], 1);
    assert_int_equal(out.top_ids[1], 2);
    assert_int_equal(out.top_ids[2], 4);
    assert_true(fabs((double)out.logprob - (2.0 - log(sum))) < 1e-5);
    assert_true(fabs((double)out.top_logprobs[2] - (1.0 - log(sum))) < 1e-5);
    ops->device_close(&s.r.d);
}

/* What one process draws for a list of settings; ranks > 0 of a group must agree with it. */
#define SETTINGS 6
#define SEEDS 40
static void draw_all(uint32_t rank, uint32_t tp, const char *store, struct ops_sampled *out)
{
    static float logits[301];
    struct sampler s;

    for (uint32_t i = 0; i < 301; i++)
        logits[i] = uniform(21, i) * 1.5f; /* flat: nuclei are wider than the candidates */
    sampler_open(&s, 301, logits, rank, tp, store);
    for (uint32_t k = 0; k < SETTINGS; k++)
        for (uint32_t seed = 0; seed < SEEDS; seed++) {
            struct ops_sampling p = greedy;
            uint32_t tokens[3] = {4, 250, 80};

            p.temperature = k == 0 ? 0.0f : 0.9f;
            p.top_k = k == 2 ? 20 : k == 3 ? 150 : 0;
            p.top_p = k == 4 ? 0.95f : k == 2 ? 0.5f : 1.0f;
            p.min_p = k == 5 ? 0.3f : 0.0f;
            p.presence_penalty = 0.5f;
            p.logprobs = 5;
            p.seed = seed;
            *out++ = draw(&s, tokens, 3, 2, &p);
        }
    ops->device_close(&s.r.d);
}

static void test_ranks_agree(void **state)
{
    static struct ops_sampled alone[SETTINGS * SEEDS], group[SETTINGS * SEEDS];

    (void)state;
    draw_all(0, 1, NULL, alone);
    for (uint32_t tp = 2; tp <= 4; tp += 2) {
        char store[] = "/tmp/phalanx-test-XXXXXX", command[128];
        int pipes[4][2];

        assert_non_null(mkdtemp(store));
        for (uint32_t rank = 0; rank < tp; rank++) {
            assert_int_equal(pipe(pipes[rank]), 0);
            if (fork() == 0) {
                draw_all(rank, tp, store, group);
                for (size_t done = 0; done < sizeof group;) {
                    ssize_t n = write(pipes[rank][1], (char *)group + done, sizeof group - done);

                    if (n <= 0)
                        _exit(1);
                    done += (size_t)n;
                }
                _exit(0);
            }
            (void)close(pipes[rank][1]);
        }
        for (uint32_t rank = 0; rank < tp; rank++) {
            FILE *f = fdopen(pipes[rank][0], "rb");

            assert_int_equal(fread(group, sizeof group, 1, f), 1);
            (void)fclose(f);
            for (uint32_t i = 0; i < SETTINGS * SEEDS; i++) {
                assert_int_equal(group[i].id, alone[i].id);
                assert_memory_equal(group[i].top_ids, alone[i].top_ids, 5 * sizeof(uint32_t));
                assert_true(fabsf(group[i].logprob - alone[i].logprob) < 1e-4f);
            }
        }
        for (uint32_t rank = 0; rank < tp; rank++)
            (void)wait(NULL);
        (void)snprintf(command, sizeof command, "rm -rf %s", store);
        assert_int_equal(system(command), 0);
    }
}

#define SCORES 37
/* Scores of a prompt of SCORES + 1 tokens from fixed activations, in chunks of `chunk`. */
static void score_all(uint32_t rank, uint32_t tp, const char *store, uint32_t chunk,
                      struct ops_sampled *out)
{
    static float x[SCORES * 24], y[(SCORES + 1) * 24], w[101 * 24];
    uint32_t share = (101 + tp - 1) / tp, tokens[SCORES + 1], pages[10];
    struct ops_model m = small;
    struct ops_sampling p = greedy;
    struct weight *head;
    struct act *in;
    struct rig r;

    m.vocab_size = 101;
    m.vocab_begin = rank * share;
    m.vocab_count = 101 - m.vocab_begin < share ? 101 - m.vocab_begin : share;
    rig_open(&r, m, rank, tp, store);
    for (uint32_t i = 0; i < 101 * 24; i++)
        w[i] = uniform(5, i);
    for (uint32_t i = 0; i < SCORES * 24; i++)
        x[i] = uniform(6, i);
    for (uint32_t i = 0; i <= SCORES; i++)
        tokens[i] = i * 31 % 101;
    for (uint32_t i = 0; i < 10; i++)
        pages[i] = i;
    assert_int_equal(ops->weight_new(r.d, WEIGHT_MATRIX, DTYPE_F32, m.vocab_count, 24, &head, NULL),
                     0);
    assert_int_equal(ops->weight_write(r.d, head, 0, m.vocab_count, w + (size_t)m.vocab_begin * 24,
                                       DTYPE_F32, NULL),
                     0);
    assert_int_equal(ops->pool_alloc(r.d, 10, 4, 2, 40, 40, NULL), 0);
    assert_int_equal(ops->act_new(r.d, 24, &in, NULL), 0);
    p.logprobs = 4;
    assert_int_equal(ops->slot_open(r.d, 0, tokens, 1, 0, &greedy, NULL), 0);
    assert_int_equal(ops->slot_pages(r.d, 0, 0, pages, 1, NULL), 0);
    assert_int_equal(ops->slot_open(r.d, 1, tokens, SCORES + 1, 0, &p, NULL), 0);
    assert_int_equal(ops->slot_pages(r.d, 1, 0, pages, 10, NULL), 0);
    for (uint32_t start = 0; start < SCORES; start += chunk) {
        uint32_t n = SCORES - start < chunk ? SCORES - start : chunk;
        /* Another row goes before. */
        struct ops_row rows[2] = {{0, 0, 1, false}, {1, start, n, false}};
        struct ops_score score = {1, start, n};
        const struct ops_sampled *results;

        assert_int_equal(ops->step_begin(r.d, rows, 2, NULL), 0);
        memcpy(y + 24, x + (size_t)start * 24, (size_t)n * 24 * sizeof *x);
        (void)ops->act_write(r.d, in, n + 1, y, NULL);
        assert_int_equal(ops->score(r.d, in, head, &score, 1, &results, NULL), 0);
        memcpy(out + start, results, n * sizeof *out);
        score.count = n + 1; /* past the row */
        assert_int_not_equal(ops->score(r.d, in, head, &score, 1, &results, NULL), 0);
    }
    ops->device_close(&r.d);
}

static void check_score(const struct ops_sampled *out, uint32_t position)
{
    double logits[101], sum = 0;
    uint32_t best = 0;

    for (uint32_t id = 0; id < 101; id++) {
        logits[id] = 0;
        for (uint32_t k = 0; k < 24; k++)
            logits[id] += (double)uniform(6, position * 24 + k) * (double)uniform(5, id * 24 + k);
        sum += exp(logits[id]);
        best = logits[id] > logits[best] ? id : best;
    }
    assert_int_equal(out->slot, 1);
    assert_int_equal(out->id, (position + 1) * 31 % 101);
    assert_true(fabs((double)out->logprob - (logits[out->id] - log(sum))) < 1e-5);
    assert_int_equal(out->top_count, 4);
    assert_int_equal(out->top_ids[0], best);
    for (uint32_t k = 0; k < 4; k++) {
        double want = logits[out->top_ids[k]] - log(sum);
        uint32_t above = 0;

        assert_true(fabs((double)out->top_logprobs[k] - want) < 1e-5);
        for (uint32_t id = 0; id < 101; id++)
            above += logits[id] > logits[out->top_ids[k]];
        assert_int_equal(above, k);
    }
}

/* As computed in double precision, the same bits in chunks of any size, and by two ranks. */
static void test_score(void **state)
{
    static struct ops_sampled whole[SCORES], chunks[SCORES], group[SCORES];
    char store[] = "/tmp/phalanx-test-XXXXXX", command[128];
    int ends[2];

    (void)state;
    score_all(0, 1, NULL, SCORES, whole);
    for (uint32_t i = 0; i < SCORES; i++)
        check_score(&whole[i], i);
    for (uint32_t chunk = 1; chunk < SCORES; chunk += 5) {
        score_all(0, 1, NULL, chunk, chunks);
        for (uint32_t i = 0; i < SCORES; i++) {
            assert_int_equal(chunks[i].id, whole[i].id);
            assert_true(chunks[i].logprob == whole[i].logprob);
            assert_memory_equal(chunks[i].top_ids, whole[i].top_ids, 4 * sizeof(uint32_t));
            assert_memory_equal(chunks[i].top_logprobs, whole[i].top_logprobs, 4 * sizeof(float));
        }
    }
    assert_non_null(mkdtemp(store));
    assert_int_equal(pipe(ends), 0);
    if (fork() == 0) {
        score_all(1, 2, store, 9, group);
        _exit(write(ends[1], group, sizeof group) == (ssize_t)sizeof group ? 0 : 1);
    }
    score_all(0, 2, store, 9, chunks);
    assert_int_equal(read(ends[0], group, sizeof group), sizeof group);
    (void)wait(NULL);
    for (uint32_t i = 0; i < SCORES; i++) {
        check_score(&group[i], i);
        assert_true(chunks[i].logprob == group[i].logprob);
        assert_memory_equal(chunks[i].top_logprobs, group[i].top_logprobs, 4 * sizeof(float));
    }
    (void)close(ends[0]);
    (void)close(ends[1]);
    (void)snprintf(command, sizeof command, "rm -rf %s", store);
    assert_int_equal(system(command), 0);
}

/* A bad step or slot is an error, not a crash. */
static void test_bad_calls(void **state)
{
    uint32_t tokens[3] = {1, 2, 3}, bad_token = 40, pages[1] = {0}, bad_page = 9;
    struct ops_row rows[] = {{5, 0, 1, false}, {0, 0, 0, false}, {0, 1, 3, false},
                             {0, 0, 2, true},  {1, 0, 1, false}, {0, UINT32_MAX, 2, false}};
    struct rig r;

    (void)state;
    rig_open(&r, small, 0, 1, NULL);
    (void)ops->pool_alloc(r.d, 2, 2, 2, 8, 8, NULL);
    assert_int_not_equal(ops->slot_open(r.d, 2, tokens, 3, 0, &greedy, NULL), 0);
    assert_int_not_equal(ops->slot_open(r.d, 0, &bad_token, 1, 0, &greedy, NULL), 0);
    assert_int_not_equal(ops->slot_open(r.d, 0, tokens, 0, 0, &greedy, NULL), 0);
    assert_int_equal(ops->slot_open(r.d, 0, tokens, 3, 0, &greedy, NULL), 0);
    assert_int_not_equal(ops->slot_open(r.d, 0, tokens, 3, 0, &greedy, NULL), 0);
    assert_int_not_equal(ops->slot_pages(r.d, 0, 0, &bad_page, 1, NULL), 0);
    assert_int_not_equal(ops->slot_pages(r.d, 0, 1, pages, 1, NULL), 0);
    assert_int_equal(ops->slot_pages(r.d, 0, 0, pages, 1, NULL), 0);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_int_not_equal(ops->step_begin(r.d, &rows[i], 1, NULL), 0);
    rows[0] = (struct ops_row){0, 0, 3, false}; /* a position past its one page of two */
    assert_int_not_equal(ops->step_begin(r.d, &rows[0], 1, NULL), 0);
    rows[0].count = 2;
    assert_int_equal(ops->step_begin(r.d, &rows[0], 1, NULL), 0);
    ops->device_close(&r.d);
}

/* Known answers of Philox4x32-10 (Random123's kat_vectors). */
static void test_philox(void **state)
{
    uint32_t zero[4] = {0}, ones[4] = {~0u, ~0u, ~0u, ~0u}, out[4];
    uint32_t want_zero[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
    uint32_t want_ones[4] = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};

    (void)state;
    philox4x32(zero, 0, out);
    assert_memory_equal(out, want_zero, sizeof out);
    philox4x32(ones, ~0ull, out);
    assert_memory_equal(out, want_ones, sizeof out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox),    cmocka_unit_test(test_linear),
        cmocka_unit_test(test_attention), cmocka_unit_test(test_gate_up),
        cmocka_unit_test(test_penalties), cmocka_unit_test(test_sampling_distribution),
        cmocka_unit_test(test_logprobs),  cmocka_unit_test(test_ranks_agree),
        cmocka_unit_test(test_score),     cmocka_unit_test(test_bad_calls),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}

/* Shards: a backend that only remembers what is written shows that the ranks' parts, put together,
 * are the model, and that each rank reads no more than its part. */
#include "services/worker/weights.h"

#include "common/file.h"
#include "common/json.h"
#include "common/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define TP_MAX 8

/* ---- the backend: float32 matrices ---- */

struct weight {
    enum weight_kind kind;
    uint32_t rows, cols;
    float *data;
    struct weight *next;
};

struct device {
    struct weight *weights;
};

static int weight_new(struct device *d, enum weight_kind kind, enum dtype dtype, uint32_t rows,
                      uint32_t cols, struct weight **out, struct err *err)
{
    struct weight *w = mem_zalloc(sizeof *w);

    (void)err;
    assert_int_equal(dtype, DTYPE_F32);
    *w = (struct weight){kind, rows, cols, mem_array((size_t)rows * cols, sizeof(float)),
                         d->weights};
    for (size_t i = 0; i < (size_t)rows * cols; i++)
        w->data[i] = -1e30f; /* what is never written shows */
    d->weights = w;
    *out = w;
    return 0;
}

static int weight_write(struct device *d, struct weight *w, uint32_t row, uint32_t rows,
                        const void *src, enum dtype type, struct err *err)
{
    (void)d;
    (void)err;
    assert_int_equal(type, DTYPE_F32);
    assert_true(row + rows <= w->rows);
    memcpy(w->data + (size_t)row * w->cols, src, (size_t)rows * w->cols * sizeof(float));
    return 0;
}

static int weight_done(struct device *d, struct weight *w, struct err *err)
{
    (void)d;
    (void)w;
    (void)err;
    return 0;
}

static const struct ops recorder = {
    .weight_new = weight_new, .weight_write = weight_write, .weight_done = weight_done};

static void device_fini(struct device *d)
{
    while (d->weights) {
        struct weight *w = d->weights;

        d->weights = w->next;
        free(w->data);
        free(w);
    }
}

/* ---- a model ---- */

#define CONFIG(kv, inter, vocab)                                                                   \
    "{\"architectures\":[\"Qwen2ForCausalLM\"],\"hidden_size\":24,\"num_hidden_layers\":2,"        \
    "\"num_attention_heads\":8,\"num_key_value_heads\":" #kv ",\"head_dim\":4,"                    \
    "\"intermediate_size\":" #inter ",\"vocab_size\":" #vocab "}"

struct rank {
    struct device device;
    struct shard shard;
    struct weights weights;
    uint64_t bytes_read;
};

static void rank_load(struct rank *r, const struct model_config *c, const char *dir, uint32_t rank,
                      uint32_t tp)
{
    struct safetensors *checkpoint = NULL;
    struct weights_config config = {.model = c, .shard = &r->shard, .dtype = "float32"};
    struct err err;

    *r = (struct rank){0};
    if (shard_init(&r->shard, c, rank, tp, &err) ||
        (dir && safetensors_open(dir, &checkpoint, &err)))
        fail_msg("%s", err.msg);
    config.checkpoint = checkpoint;
    if (weights_load(&config, &recorder, &r->device, &r->weights, &err))
        fail_msg("%s", err.msg);
    r->bytes_read = checkpoint ? safetensors_bytes_read(checkpoint) : 0;
    safetensors_free(&checkpoint);
}

static void rank_fini(struct rank *r)
{
    weights_fini(&r->weights);
    device_fini(&r->device);
}

/* Rows [row, row + rows) of part are rows [at, at + rows) of whole. */
static void same_rows(const struct weight *part, uint32_t row, uint32_t rows,
                      const struct weight *whole, uint32_t at)
{
    assert_int_equal(part->cols, whole->cols);
    assert_true(row + rows <= part->rows && at + rows <= whole->rows);
    assert_memory_equal(part->data + (size_t)row * part->cols,
                        whole->data + (size_t)at * part->cols,
                        (size_t)rows * part->cols * sizeof(float));
}

static void same_cols(const struct weight *part, uint32_t cols, const struct weight *whole,
                      uint32_t at)
{
    assert_int_equal(part->rows, whole->rows);
    for (uint32_t i = 0; i < part->rows; i++) {
        assert_memory_equal(part->data + (size_t)i * part->cols,
                            whole->data + (size_t)i * whole->cols + at, cols * sizeof(float));
        for (uint32_t k = cols; k < part->cols; k++)
            assert_true(part->data[(size_t)i * part->cols + k] == 0);
    }
}

static void zero_rows(const struct weight *part, uint32_t row, uint32_t rows)
{
    for (size_t i = (size_t)row * part->cols; i < (size_t)(row + rows) * part->cols; i++)
        assert_true(part->data[i] == 0);
}

static void layer_compare(const struct rank *r, const struct layer_weights *part,
                          const struct layer_weights *whole, const struct model_config *c,
                          uint32_t tp)
{
    uint32_t d = c->head_dim, rank = r->shard.rank, q = c->heads / tp * d;
    uint32_t kv = c->kv_heads >= tp ? c->kv_heads / tp * d : d;
    uint32_t kv_at = c->kv_heads >= tp ? rank * kv : rank / (tp / c->kv_heads) * d;
    uint32_t kv_all = c->kv_heads * d, q_all = c->heads * d;
    uint32_t inter = (c->intermediate + tp - 1) / tp, at = rank * inter, real;

    at = at < c->intermediate ? at : c->intermediate;
    real = c->intermediate - at < inter ? c->intermediate - at : inter;
    same_rows(part->qkv, 0, q, whole->qkv, rank * q);
    same_rows(part->qkv, q, kv, whole->qkv, q_all + kv_at);
    same_rows(part->qkv, q + kv, kv, whole->qkv, q_all + kv_all + kv_at);
    assert_int_equal(part->qkv->rows, q + 2 * kv);
    assert_int_equal(part->qkv_bias->cols, q + 2 * kv);
    assert_memory_equal(part->qkv_bias->data, whole->qkv_bias->data + rank * q, q * 4);
    assert_memory_equal(part->qkv_bias->data + q, whole->qkv_bias->data + q_all + kv_at, kv * 4);
    assert_memory_equal(part->qkv_bias->data + q + kv,
                        whole->qkv_bias->data + q_all + kv_all + kv_at, kv * 4);
    same_cols(part->o, q, whole->o, rank * q);
    assert_int_equal(part->gate_up->rows, 2 * inter);
    same_rows(part->gate_up, 0, real, whole->gate_up, at);
    same_rows(part->gate_up, inter, real, whole->gate_up, c->intermediate + at);
    zero_rows(part->gate_up, real, inter - real);
    zero_rows(part->gate_up, inter + real, inter - real);
    assert_int_equal(part->down->cols, inter);
    same_cols(part->down, real, whole->down, at);
    same_rows(part->input_norm, 0, 1, whole->input_norm, 0);
    same_rows(part->post_norm, 0, 1, whole->post_norm, 0);
}

/* All ranks against one rank; dir NULL: made-up weights. */
static void split_compare(const struct model_config *c, const char *dir, uint32_t tp)
{
    struct rank whole, part;
    uint32_t vocab = 0;

    rank_load(&whole, c, dir, 0, 1);
    for (uint32_t i = 0; i < tp; i++) {
        rank_load(&part, c, dir, i, tp);
        assert_int_equal(part.shard.vocab_begin, vocab);
        assert_int_equal(part.weights.embed->rows, part.shard.vocab_count);
        same_rows(part.weights.embed, 0, part.shard.vocab_count, whole.weights.embed, vocab);
        same_rows(part.weights.lm_head, 0, part.shard.vocab_count, whole.weights.lm_head, vocab);
        same_rows(part.weights.norm, 0, 1, whole.weights.norm, 0);
        for (uint32_t k = 0; k < c->layers; k++)
            layer_compare(&part, &part.weights.layers[k], &whole.weights.layers[k], c, tp);
        vocab += part.shard.vocab_count;
        /* Norms are on every rank and KV heads may be: hence not exactly 1 / tp. */
        if (dir)
            assert_true(part.bytes_read < whole.bytes_read / tp * 5 / 4);
        rank_fini(&part);
    }
    assert_int_equal(vocab, c->vocab_size);
    rank_fini(&whole);
}

static void config_of(const char *text, struct model_config *c)
{
    struct err err;

    if (model_config_parse(text, strlen(text), c, &err))
        fail_msg("%s", err.msg);
}

static void made_up_weights_do_not_depend_on_ranks(void **state)
{
    static const char *const configs[] = {CONFIG(8, 32, 40), CONFIG(2, 33, 41), CONFIG(1, 5, 9)};
    struct model_config c;

    (void)state;
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
        config_of(configs[i], &c);
        for (uint32_t tp = 1; tp <= TP_MAX; tp *= 2)
            split_compare(&c, NULL, tp);
    }
}

static void made_up_weights_are_sane(void **state)
{
    struct model_config c;
    struct rank r;
    double sum = 0, squares = 0;
    size_t n;

    (void)state;
    config_of(CONFIG(8, 320, 40), &c);
    rank_load(&r, &c, NULL, 0, 1);
    n = (size_t)r.weights.layers[0].gate_up->rows * 24;
    for (size_t i = 0; i < n; i++) {
        double v = (double)r.weights.layers[0].gate_up->data[i];

        sum += v;
        squares += v * v;
    }
    assert_true(sum / (double)n > -0.01 && sum / (double)n < 0.01);
    assert_true(squares / (double)n > 0.9 / 24 && squares / (double)n < 1.1 / 24);
    assert_true(r.weights.norm->data[0] > 0.9f && r.weights.norm->data[0] < 1.1f);
    assert_memory_not_equal(r.weights.layers[0].o->data, r.weights.layers[1].o->data, 64);
    rank_fini(&r);
}

/* ---- a checkpoint on disk, element k of all tensors is k ---- */

static void tensor_add(struct buf *header, uint64_t *at, const char *name, uint32_t rows,
                       uint32_t cols)
{
    uint64_t end = *at + (uint64_t)(rows ? rows : 1) * cols * 4;

    buf_printf(header, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[", header->len > 1 ? "," : "", name);
    if (rows)
        buf_printf(header, "%u,", rows);
    buf_printf(header, "%u],\"data_offsets\":[%llu,%llu]}", cols, (unsigned long long)*at,
               (unsigned long long)end);
    *at = end;
}

static void layer_add(struct buf *header, uint64_t *at, const struct model_config *c, uint32_t i)
{
    const struct {
        const char *name;
        uint32_t rows, cols;
    } tensors[] = {
        {"input_layernorm.weight", 0, c->hidden},
        {"self_attn.q_proj.weight", c->heads * c->head_dim, c->hidden},
        {"self_attn.k_proj.weight", c->kv_heads * c->head_dim, c->hidden},
        {"self_attn.v_proj.weight", c->kv_heads * c->head_dim, c->hidden},
        {"self_attn.q_proj.bias", 0, c->heads * c->head_dim},
        {"self_attn.k_proj.bias", 0, c->kv_heads * c->head_dim},
        {"self_attn.v_proj.bias", 0, c->kv_heads * c->head_dim},
        {"self_attn.o_proj.weight", c->hidden, c->heads * c->head_dim},
        {"post_attention_layernorm.weight", 0, c->hidden},
        {"mlp.gate_proj.weight", c->intermediate, c->hidden},
        {"mlp.up_proj.weight", c->intermediate, c->hidden},
        {"mlp.down_proj.weight", c->hidden, c->intermediate},
    };
    char name[128];

    for (size_t k = 0; k < sizeof tensors / sizeof *tensors; k++) {
        (void)snprintf(name, sizeof name, "model.layers.%u.%s", i, tensors[k].name);
        tensor_add(header, at, name, tensors[k].rows, tensors[k].cols);
    }
}

static void checkpoint_write(const char *dir, const struct model_config *c, const char *without)
{
    struct buf header = {0};
    uint64_t at = 0, n;
    char *path = file_join(dir, "model.safetensors");
    FILE *f = fopen(path, "wb");

    buf_puts(&header, "{");
    tensor_add(&header, &at, "model.embed_tokens.weight", c->vocab_size, c->hidden);
    for (uint32_t i = 0; i < c->layers; i++)
        layer_add(&header, &at, c, i);
    tensor_add(&header, &at, "model.norm.weight", 0, c->hidden);
    if (!without)
        tensor_add(&header, &at, "lm_head.weight", c->vocab_size, c->hidden);
    buf_puts(&header, "}");
    n = header.len;
    assert_non_null(f);
    assert_int_equal(fwrite(&n, 8, 1, f), 1);
    assert_int_equal(fwrite(header.data, 1, n, f), n);
    for (uint64_t i = 0; i < at / 4; i++) {
        float v = (float)i;

        assert_int_equal(fwrite(&v, 4, 1, f), 1);
    }
    assert_int_equal(fclose(f), 0);
    buf_fini(&header);
    free(path);
}

static void ranks_read_their_shards_only(void **state)
{
    char dir[] = "/tmp/phalanx-test-XXXXXX", command[64];
    static const char *const configs[] = {CONFIG(8, 64, 128), CONFIG(4, 66, 129)};
    struct model_config c;

    (void)state;
    assert_non_null(mkdtemp(dir));
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
        config_of(configs[i], &c);
        checkpoint_write(dir, &c, NULL);
        for (uint32_t tp = 1; tp <= 4; tp *= 2)
            split_compare(&c, dir, tp);
    }
    (void)snprintf(command, sizeof command, "rm -rf %s", dir);
    assert_int_equal(system(command), 0);
}

static void a_missing_tensor_is_named_before_any_is_read(void **state)
{
    char dir[] = "/tmp/phalanx-test-XXXXXX", command[64];
    struct weights_config config = {.dtype = "auto"};
    struct model_config c;
    struct rank r = {0};
    struct safetensors *checkpoint;
    struct err err;

    (void)state;
    assert_non_null(mkdtemp(dir));
    config_of(CONFIG(8, 64, 128), &c);
    checkpoint_write(dir, &c, "lm_head.weight");
    assert_int_equal(shard_init(&r.shard, &c, 0, 1, &err), 0);
    assert_int_equal(safetensors_open(dir, &checkpoint, &err), 0);
    config.model = &c;
    config.shard = &r.shard;
    config.checkpoint = checkpoint;
    assert_int_equal(weights_load(&config, &recorder, &r.device, &r.weights, &err), ERR_NOT_FOUND);
    assert_non_null(strstr(err.msg, "model.safetensors: no tensor lm_head.weight"));
    assert_int_equal(safetensors_bytes_read(checkpoint), 0);
    assert_null(r.device.weights);
    safetensors_free(&checkpoint);
    (void)snprintf(command, sizeof command, "rm -rf %s", dir);
    assert_int_equal(system(command), 0);
}

static void heads_that_do_not_divide(void **state)
{
    struct model_config c;
    struct shard s;
    struct err err;

    (void)state;
    config_of(CONFIG(8, 32, 40), &c);
    assert_int_equal(shard_init(&s, &c, 0, 3, &err), ERR_INVALID);
    assert_non_null(strstr(err.msg, "--tp-size 3 does not divide the model's 8 attention heads"));
    config_of(CONFIG(8, 32, 40), &c);
    c.heads = 24;
    c.kv_heads = 6;
    assert_int_equal(shard_init(&s, &c, 0, 4, &err), ERR_INVALID);
    assert_non_null(strstr(err.msg, "--tp-size 4 neither divides the model's 6 KV heads"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(made_up_weights_do_not_depend_on_ranks),
        cmocka_unit_test(made_up_weights_are_sane),
        cmocka_unit_test(ranks_read_their_shards_only),
        cmocka_unit_test(a_missing_tensor_is_named_before_any_is_read),
        cmocka_unit_test(heads_that_do_not_divide),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "services/worker/model_config.h"

#include "common/file.h"
#include "common/json.h"
#include "services/worker/config_field.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#define CONFIG_BYTES_MAX (16u << 20)
#define HIDDEN_MAX 262144
#define HEADS_MAX 4096
#define HEAD_DIM_MAX 1024
#define INTERMEDIATE_MAX 4194304
#define VOCAB_MAX 4194304
#define POSITIONS_MAX 16777216

static int parse_architecture(const json_t *root, struct model_config *c, struct err *err)
{
    const json_t *list = config_field_get(root, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    struct buf known = {0};

    if (!name)
        return err_set(err, ERR_INVALID, "architectures is no list of one name");
    c->kind = models_find(name);
    if (c->kind)
        return 0;
    models_list(&known);
    (void)err_set(err, ERR_UNSUPPORTED, "architecture %.100s is not supported (%s are)", name,
                  known.data);
    buf_fini(&known);
    return ERR_UNSUPPORTED;
}

static int parse_sizes(const json_t *root, struct model_config *c, struct err *err)
{
    const struct size_field {
        const char *key;
        uint32_t high;
        uint32_t *out;
    } fields[] = {
        {"hidden_size", HIDDEN_MAX, &c->hidden},
        {"num_hidden_layers", MODEL_LAYERS_MAX, &c->layers},
        {"num_attention_heads", HEADS_MAX, &c->heads},
        {"intermediate_size", INTERMEDIATE_MAX, &c->intermediate},
        {"vocab_size", VOCAB_MAX, &c->vocab_size},
    };
    uint32_t head_dim;
    int rc;

    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if ((rc = config_field_u32(root, fields[i].key, -1, 1, fields[i].high, fields[i].out, err)))
            return rc;
    rc = config_field_u32(root, "max_position_embeddings", 2048, 1, POSITIONS_MAX,
                          &c->context_length, err);
    if (rc)
        return rc;
    rc = config_field_u32(root, "num_key_value_heads", c->heads, 1, c->heads, &c->kv_heads, err);
    if (rc)
        return rc;
    if (c->heads % c->kv_heads)
        return err_set(err, ERR_INVALID,
                       "num_attention_heads %u is no multiple of num_key_value_heads %u", c->heads,
                       c->kv_heads);
    head_dim = c->kind->head_dim ? c->kind->head_dim : c->hidden / c->heads;
    rc = config_field_u32(root, "head_dim", head_dim, 2, HEAD_DIM_MAX, &c->head_dim, err);
    if (!rc && c->head_dim % 2)
        rc = err_set(err, ERR_INVALID, "head_dim %u is odd", c->head_dim);
    return rc;
}

static int parse_bias(const json_t *root, struct model_config *c, struct err *err)
{
    bool attention = false, mlp;
    int rc = config_field_bool(root, "mlp_bias", false, &mlp, err);

    if (!rc && mlp)
        rc = err_set(err, ERR_UNSUPPORTED, "mlp_bias is not supported");
    if (!rc && c->kind->qkv_bias == BIAS_CONFIG)
        rc = config_field_bool(root, "attention_bias", false, &attention, err);
    c->qkv_bias = attention || c->kind->qkv_bias == BIAS_ALWAYS;
    c->o_bias = attention;
    return rc;
}

static int layer_window(const json_t *types, uint32_t layer, uint32_t first, uint32_t window,
                        uint32_t *out, struct err *err)
{
    const char *type;

    *out = layer >= first ? window : 0;
    if (!types)
        return 0;
    type = json_string_value(json_array_get(types, layer));
    if (!type || (strcmp(type, "full_attention") && strcmp(type, "sliding_attention")))
        return err_set(err, ERR_UNSUPPORTED,
                       "layer_types[%u] is \"%.64s\", known are "
                       "full_attention and sliding_attention",
                       layer, type ? type : "(no string)");
    *out = strcmp(type, "sliding_attention") ? 0 : window;
    return 0;
}

static int parse_window(const json_t *root, struct model_config *c, struct err *err)
{
    const json_t *types = config_field_get(root, "layer_types");
    uint32_t window, first = 0;
    bool use = true, missing = !json_object_get(root, "sliding_window");
    int rc;

    if (c->kind->window == WINDOW_NONE)
        return 0;
    rc = config_field_u32(root, "sliding_window", missing ? c->kind->sliding_window : 0, 0,
                          POSITIONS_MAX, &window, err);
    if (!rc && c->kind->window == WINDOW_LAYERS)
        rc = config_field_bool(root, "use_sliding_window", false, &use, err);
    if (!rc && c->kind->window == WINDOW_LAYERS)
        rc = config_field_u32(root, "max_window_layers", 28, 0, UINT32_MAX, &first, err);
    if (rc)
        return rc;
    if (c->kind->window != WINDOW_LAYERS)
        types = NULL;
    if (types && json_array_size(types) != c->layers)
        return err_set(err, ERR_INVALID, "layer_types has %zu entries for %u layers",
                       json_array_size(types), c->layers);
    for (uint32_t i = 0; i < c->layers && !rc; i++)
        rc = layer_window(types, i, first, use ? window : 0, &c->window[i], err);
    return rc;
}

static int eos_add(struct model_config *c, const json_t *value, struct err *err)
{
    json_int_t id = json_integer_value(value);

    if (!json_is_integer(value) || id < 0 || id >= c->vocab_size)
        return err_set(err, ERR_INVALID, "eos_token_id is no id below vocab_size %u",
                       c->vocab_size);
    for (uint32_t i = 0; i < c->eos_count; i++)
        if (c->eos_ids[i] == id)
            return 0;
    if (c->eos_count == MODEL_EOS_MAX)
        return err_set(err, ERR_LIMIT, "eos_token_id: more than %d ids", MODEL_EOS_MAX);
    c->eos_ids[c->eos_count++] = (uint32_t)id;
    return 0;
}

static int parse_eos(const json_t *root, struct model_config *c, struct err *err)
{
    const json_t *value = config_field_get(root, "eos_token_id");
    int rc = 0;

    if (!value)
        return 0;
    if (!json_is_array(value))
        return eos_add(c, value, err);
    for (size_t i = 0; i < json_array_size(value) && !rc; i++)
        rc = eos_add(c, json_array_get(value, i), err);
    return rc;
}

int model_dtype(const char *name, enum dtype automatic, enum dtype *out, struct err *err)
{
    if (!strcmp(name, "auto"))
        *out = automatic;
    else if (!strcmp(name, "float32"))
        *out = DTYPE_F32;
    else if (!strcmp(name, "bfloat16"))
        *out = DTYPE_BF16;
    else if (!strcmp(name, "float16"))
        *out = DTYPE_F16;
    else
        return err_set(err, ERR_UNSUPPORTED,
                       "dtype \"%.64s\" is not supported (float32, bfloat16, float16 are)", name);
    return 0;
}

static int parse_rest(const json_t *root, struct model_config *c, struct err *err)
{
    const char *act = json_string_value(json_object_get(root, "hidden_act"));
    const json_t *dtype = config_field_get(root, "dtype");
    double eps;
    int rc;

    if (config_field_get(root, "quantization_config"))
        return err_set(err, ERR_UNSUPPORTED,
                       "quantization_config: quantized checkpoints are not "
                       "supported");
    if (act && strcmp(act, "silu") && strcmp(act, "swish"))
        return err_set(err, ERR_UNSUPPORTED, "hidden_act \"%.64s\" is not supported (silu is)",
                       act);
    if (!dtype)
        dtype = config_field_get(root, "torch_dtype");
    rc = model_dtype(json_is_string(dtype) ? json_string_value(dtype) : "auto", DTYPE_F32,
                     &c->dtype, err);
    if (!rc)
        rc = config_field_f64(root, "rms_norm_eps", 1e-6, 0, 1, &eps, err);
    if (rc)
        return rc;
    c->norm_eps = (float)eps;
    return config_field_bool(root, "tie_word_embeddings", false, &c->tied, err);
}

int model_config_parse(const char *text, size_t len, struct model_config *out, struct err *err)
{
    json_t *root = NULL;
    double most;
    int rc;

    *out = (struct model_config){.hash = XXH64(text, len, 0)};
    rc = json_parse(text, len, JSON_DEPTH_FILE, &root, err);
    if (rc)
        return rc;
    if (!json_is_object(root))
        rc = err_set(err, ERR_INVALID, "no JSON object");
    if (!rc)
        rc = parse_architecture(root, out, err);
    if (!rc)
        rc = parse_sizes(root, out, err);
    if (!rc)
        rc = parse_bias(root, out, err);
    if (!rc)
        rc = parse_window(root, out, err);
    if (!rc)
        rc = parse_rest(root, out, err);
    if (!rc)
        rc = parse_eos(root, out, err);
    if (!rc)
        rc = rope_parse(root, out->context_length, &out->rope, err);
    json_decref(root);
    if (rc)
        return rc;
    most = out->rope.original_max * out->rope.factor;
    out->context_max = out->context_length;
    if (most > out->context_max && most <= POSITIONS_MAX)
        out->context_max = (uint32_t)most;
    return 0;
}

static int load_generation_config(const char *path, struct model_config *c, struct err *err)
{
    json_t *root = NULL;
    int rc;

    if (!file_exists(path))
        return 0;
    rc = json_load_path(path, CONFIG_BYTES_MAX, &root, err);
    if (rc)
        return rc;
    if ((rc = parse_eos(root, c, err)))
        (void)err_prefix(err, "%s", path);
    json_decref(root);
    return rc;
}

int model_config_load(const char *dir, struct model_config *out, struct err *err)
{
    char *path = file_join(dir, "config.json");
    char *generation = file_join(dir, "generation_config.json");
    struct buf text = {0};
    int rc = file_read(path, CONFIG_BYTES_MAX, &text, err);

    if (!rc && (rc = model_config_parse(text.data ? text.data : "", text.len, out, err)))
        (void)err_prefix(err, "%s", path);
    if (!rc)
        rc = load_generation_config(generation, out, err);
    buf_fini(&text);
    free(path);
    free(generation);
    return rc;
}

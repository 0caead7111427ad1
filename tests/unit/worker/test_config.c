/* config.json: what is understood, and one line for everything else. */
#include "services/worker/model_config.h"

#include "common/buf.h"
#include "common/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char base[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,\"num_hidden_layers\":4,"
    "\"num_attention_heads\":8,\"num_key_value_heads\":2,\"intermediate_size\":96,"
    "\"vocab_size\":100,\"max_position_embeddings\":256}";

/* Parses base with the keys of `change` put over it. */
static int parse(const char *change, struct model_config *c, struct err *err)
{
    json_t *root, *over;
    char *text;
    int rc;

    assert_int_equal(json_parse(base, strlen(base), 64, &root, err), 0);
    if (json_parse(change, strlen(change), 64, &over, err))
        fail_msg("%s", err->msg);
    assert_int_equal(json_object_update(root, over), 0);
    text = json_dumps(root, 0);
    rc = model_config_parse(text, strlen(text), c, err);
    free(text);
    json_decref(root);
    json_decref(over);
    return rc;
}

static void parse_ok(const char *change, struct model_config *c)
{
    struct err err = {0};

    if (parse(change, c, &err))
        fail_msg("%s: %s", change, err.msg);
}

static void values_and_defaults(void **state)
{
    struct model_config c;

    (void)state;
    parse_ok("{}", &c);
    assert_string_equal(c.kind->architecture, "LlamaForCausalLM");
    assert_int_equal(c.hidden, 64);
    assert_int_equal(c.layers, 4);
    assert_int_equal(c.heads, 8);
    assert_int_equal(c.kv_heads, 2);
    assert_int_equal(c.head_dim, 8);
    assert_int_equal(c.intermediate, 96);
    assert_int_equal(c.vocab_size, 100);
    assert_int_equal(c.context_length, 256);
    assert_true(c.norm_eps == 1e-6f);
    assert_true(c.rope.theta == 10000 && c.rope.type == ROPE_DEFAULT);
    assert_false(c.tied || c.qkv_bias || c.o_bias);
    assert_int_equal(c.dtype, DTYPE_F32);
    assert_int_equal(c.eos_count, 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(c.window[i], 0);
    parse_ok("{\"num_key_value_heads\":null,\"head_dim\":null,\"rope_scaling\":null}", &c);
    assert_int_equal(c.kv_heads, 8);
    assert_int_equal(c.head_dim, 8);
    parse_ok("{\"head_dim\":32,\"tie_word_embeddings\":true,\"attention_bias\":true,"
             "\"torch_dtype\":\"bfloat16\",\"rms_norm_eps\":1e-5}",
             &c);
    assert_int_equal(c.head_dim, 32);
    assert_true(c.tied && c.qkv_bias && c.o_bias && c.norm_eps == 1e-5f);
    assert_int_equal(c.dtype, DTYPE_BF16);
    parse_ok("{\"dtype\":\"float16\"}", &c);
    assert_int_equal(c.dtype, DTYPE_F16);
}

static void architectures_differ(void **state)
{
    struct model_config c;

    (void)state;
    parse_ok("{\"architectures\":[\"Qwen2ForCausalLM\"]}", &c);
    assert_true(c.qkv_bias && !c.o_bias && !c.kind->qk_norm);
    parse_ok("{\"architectures\":[\"Qwen3ForCausalLM\"]}", &c);
    assert_true(!c.qkv_bias && c.kind->qk_norm && c.head_dim == 128);
    parse_ok("{\"architectures\":[\"MistralForCausalLM\"]}", &c);
    assert_true(!c.qkv_bias && !c.kind->qk_norm && c.window[0] == 4096);
}

static void windows(void **state)
{
    struct model_config c;

    (void)state;
    parse_ok("{\"architectures\":[\"MistralForCausalLM\"],\"sliding_window\":16}", &c);
    assert_true(c.window[0] == 16 && c.window[3] == 16);
    parse_ok("{\"architectures\":[\"MistralForCausalLM\"],\"sliding_window\":null}", &c);
    assert_true(c.window[0] == 0 && c.window[3] == 0);
    parse_ok("{\"architectures\":[\"Qwen2ForCausalLM\"],\"sliding_window\":16,"
             "\"max_window_layers\":1}",
             &c);
    assert_true(c.window[1] == 0 && c.window[3] == 0);
    parse_ok("{\"architectures\":[\"Qwen2ForCausalLM\"],\"sliding_window\":16,"
             "\"use_sliding_window\":true,\"max_window_layers\":1}",
             &c);
    assert_true(c.window[0] == 0 && c.window[1] == 16 && c.window[3] == 16);
    parse_ok("{\"architectures\":[\"Qwen3ForCausalLM\"],\"sliding_window\":16,"
             "\"use_sliding_window\":true,\"layer_types\":[\"sliding_attention\","
             "\"full_attention\",\"full_attention\",\"sliding_attention\"]}",
             &c);
    assert_true(c.window[0] == 16 && c.window[1] == 0 && c.window[2] == 0 && c.window[3] == 16);
}

static void both_rope_layouts_mean_the_same(void **state)
{
    struct model_config a, b;

    (void)state;
    parse_ok("{\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
             "\"low_freq_factor\":1,\"high_freq_factor\":4,"
             "\"original_max_position_embeddings\":32}}",
             &a);
    parse_ok("{\"rope_parameters\":{\"rope_theta\":500000.0,\"rope_type\":\"llama3\",\"factor\":8,"
             "\"low_freq_factor\":1,\"high_freq_factor\":4,"
             "\"original_max_position_embeddings\":32}}",
             &b);
    assert_memory_equal(&a.rope, &b.rope, sizeof a.rope);
    assert_true(a.rope.type == ROPE_LLAMA3 && a.rope.theta == 500000 && a.rope.factor == 8);
    parse_ok("{\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}", &a);
    assert_true(a.rope.type == ROPE_LINEAR && a.rope.factor == 2 && a.context_max == 512);
    parse_ok("{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4.0,"
             "\"original_max_position_embeddings\":64}}",
             &a);
    assert_true(a.rope.type == ROPE_YARN && a.rope.beta_fast == 32 && a.rope.beta_slow == 1);
    assert_true(a.rope.truncate && a.rope.original_max == 64);
    assert_float_equal(a.rope.attention_factor, 1.1386294361, 1e-9);
}

static void everything_else_is_one_line(void **state)
{
    static const struct {
        const char *change, *text;
    } rows[] = {
        {"{\"architectures\":[\"GPT2LMHeadModel\"]}",
         "architecture GPT2LMHeadModel is not supported (LlamaForCausalLM, MistralForCausalLM, "
         "Qwen2ForCausalLM, Qwen3ForCausalLM are)"},
        {"{\"architectures\":[]}", "architectures"},
        {"{\"architectures\":\"LlamaForCausalLM\"}", "architectures"},
        {"{\"hidden_size\":null}", "hidden_size is missing"},
        {"{\"hidden_size\":0}", "hidden_size is 0"},
        {"{\"hidden_size\":-64}", "hidden_size is -64"},
        {"{\"hidden_size\":\"64\"}", "hidden_size is not an integer"},
        {"{\"hidden_size\":64.5}", "hidden_size is not an integer"},
        {"{\"hidden_size\":9223372036854775807}", "hidden_size is 9223372036854775807"},
        {"{\"num_hidden_layers\":100000}", "num_hidden_layers is 100000"},
        {"{\"num_key_value_heads\":3}", "num_attention_heads 8 is no multiple"},
        {"{\"num_key_value_heads\":16}", "num_key_value_heads is 16"},
        {"{\"head_dim\":7}", "head_dim 7 is odd"},
        {"{\"vocab_size\":1000000000}", "vocab_size is 1000000000"},
        {"{\"hidden_act\":\"gelu\"}", "hidden_act \"gelu\" is not supported"},
        {"{\"quantization_config\":{\"quant_method\":\"fp8\"}}", "quantization_config"},
        {"{\"mlp_bias\":true}", "mlp_bias is not supported"},
        {"{\"tie_word_embeddings\":1}", "tie_word_embeddings is not true or false"},
        {"{\"torch_dtype\":\"int8\"}", "dtype \"int8\" is not supported"},
        {"{\"rms_norm_eps\":-1}", "rms_norm_eps is -1"},
        {"{\"eos_token_id\":100}", "eos_token_id is no id below vocab_size 100"},
        {"{\"eos_token_id\":[1,-1]}", "eos_token_id"},
        {"{\"rope_theta\":0}", "rope_theta is 0"},
        {"{\"rope_theta\":\"x\"}", "rope_theta is not a number"},
        {"{\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}", "rope_type \"dynamic\""},
        {"{\"rope_scaling\":{\"rope_type\":\"longrope\"}}", "rope_type \"longrope\""},
        {"{\"rope_scaling\":{\"type\":\"linear\"}}", "factor is missing"},
        {"{\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}}", "factor is 0"},
        {"{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":2}}",
         "low_freq_factor is missing"},
        {"{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":2,\"low_freq_factor\":4,"
         "\"high_freq_factor\":4}}",
         "high_freq_factor is not above"},
        {"{\"rope_scaling\":7}", "rope_scaling is no object"},
        {"{\"rope_parameters\":{\"full_attention\":{}}}", "by layer type"},
        {"{\"partial_rotary_factor\":0.5}", "partial_rotary_factor 0.5"},
        {"{\"architectures\":[\"Qwen2ForCausalLM\"],\"layer_types\":[\"full_attention\"]}",
         "layer_types has 1 entries for 4 layers"},
        {"{\"architectures\":[\"Qwen2ForCausalLM\"],\"layer_types\":[\"a\",\"a\",\"a\",\"a\"]}",
         "layer_types[0] is \"a\""},
    };
    struct model_config c;
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (parse(rows[i].change, &c, &err) == 0)
            fail_msg("%s was accepted", rows[i].change);
        if (!strstr(err.msg, rows[i].text))
            fail_msg("%s: expected \"%s\" in \"%s\"", rows[i].change, rows[i].text, err.msg);
    }
    assert_int_not_equal(model_config_parse("[]", 2, &c, &err), 0);
    assert_int_not_equal(model_config_parse("", 0, &c, &err), 0);
}

static void put(const char *dir, const char *name, const char *text)
{
    char path[128];
    FILE *f;

    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void end_ids_of_both_files(void **state)
{
    char dir[] = "/tmp/phalanx-test-XXXXXX", command[64];
    struct model_config c;
    struct err err;

    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(model_config_load(dir, &c, &err), ERR_NOT_FOUND);
    assert_non_null(strstr(err.msg, "config.json"));
    put(dir, "config.json",
        "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,\"num_hidden_layers\":1,"
        "\"num_attention_heads\":8,\"intermediate_size\":96,\"vocab_size\":100,"
        "\"eos_token_id\":5}");
    put(dir, "generation_config.json", "{\"eos_token_id\":[5,7]}");
    assert_int_equal(model_config_load(dir, &c, &err), 0);
    assert_int_equal(c.eos_count, 2);
    assert_int_equal(c.eos_ids[0], 5);
    assert_int_equal(c.eos_ids[1], 7);
    put(dir, "generation_config.json", "{\"eos_token_id\":[100]}");
    assert_int_not_equal(model_config_load(dir, &c, &err), 0);
    assert_non_null(strstr(err.msg, "generation_config.json: eos_token_id"));
    (void)snprintf(command, sizeof command, "rm -rf %s", dir);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_and_defaults),
        cmocka_unit_test(architectures_differ),
        cmocka_unit_test(windows),
        cmocka_unit_test(both_rope_layouts_mean_the_same),
        cmocka_unit_test(everything_else_is_one_line),
        cmocka_unit_test(end_ids_of_both_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

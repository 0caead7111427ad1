/* Bodies into parameters: every field, every kind of error. */
#include "services/gateway/call.h"
#include "services/gateway/defaults.h"
#include "services/gateway/params.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

struct parsed {
    json_t *body;
    struct params params;
    struct problem problem;
    int rc;
};

static struct parsed parse(const struct dialect *dialect, const char *text)
{
    static struct params_context context;
    struct parsed p = {0};
    struct err err = {0};

    context.model = "m";
    context.vocab_size = 1000;
    defaults_init(&context.defaults);
    p.rc = json_parse(text, strlen(text), 64, &p.body, &err);
    if (p.rc)
        print_error("%s: %s\n", text, err.msg);
    assert_int_equal(p.rc, 0);
    p.rc = params_parse(&dialect->params, &context, p.body, &p.params, &p.problem);
    return p;
}

static void release(struct parsed *p)
{
    params_fini(&p->params);
    json_decref(p->body);
}

#define CHAT(fields) "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]," fields "}"
#define COMPLETION(fields) "{\"prompt\":\"a\"," fields "}"
#define GENERATE_ALL(fields) "{\"text\":\"a\"," fields "}"
#define GENERATE(fields) "{\"text\":\"a\",\"sampling_params\":{" fields "}}"

struct refusal {
    const struct dialect *dialect;
    const char *body;
    int status;
    const char *param;
    const char *says; /* part of the message */
};

static const struct refusal refusals[] = {
    {&dialect_chat, "[]", 400, "", "JSON object"},
    {&dialect_chat, "3", 400, "", "JSON object"},
    {&dialect_chat, "{}", 400, "messages", "messages is required"},
    {&dialect_chat, "{\"messages\":null}", 400, "messages", "required"},
    {&dialect_chat, "{\"messages\":[]}", 400, "messages", "at least one"},
    {&dialect_chat, "{\"messages\":\"hi\"}", 400, "messages", "\"hi\""},
    {&dialect_chat, "{\"messages\":[3]}", 400, "messages[0]", "object"},
    {&dialect_chat, "{\"messages\":[{\"content\":\"a\"}]}", 400, "messages[0].role", "user"},
    {&dialect_chat, "{\"messages\":[{\"role\":\"wizard\",\"content\":\"a\"}]}", 400,
     "messages[0].role", "assistant"},
    {&dialect_chat, "{\"messages\":[{\"role\":\"user\"}]}", 400, "messages[0].content", "string"},
    {&dialect_chat, "{\"messages\":[{\"role\":\"user\",\"content\":7}]}", 400,
     "messages[0].content", "string"},
    {&dialect_chat, "{\"messages\":[{\"role\":\"user\",\"content\":[]}]}", 400,
     "messages[0].content", "parts"},
    {&dialect_chat, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}",
     400, "messages[0].content", "\"image_url\""},
    {&dialect_chat, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"text\":\"a\"}]}]}", 400,
     "messages[0].content", "type"},
    {&dialect_chat, CHAT("\"frobnicate\":1"), 400, "frobnicate", "unknown field \"frobnicate\""},
    {&dialect_chat, CHAT("\"prompt\":\"x\""), 400, "prompt", "unknown field"},
    {&dialect_chat, CHAT("\"model\":\"other\""), 404, "model", "\"other\" does not exist"},
    {&dialect_chat, CHAT("\"model\":5"), 400, "model", "string"},
    {&dialect_chat, CHAT("\"temperature\":-1"), 400, "temperature",
     "temperature is -1: must be a number from 0 to 100"},
    {&dialect_chat, CHAT("\"temperature\":1e9"), 400, "temperature", "1000000000"},
    {&dialect_chat, CHAT("\"temperature\":\"hot\""), 400, "temperature", "\"hot\""},
    {&dialect_chat, CHAT("\"temperature\":true"), 400, "temperature", "true"},
    {&dialect_chat, CHAT("\"top_p\":0"), 400, "top_p", "top_p is 0"},
    {&dialect_chat, CHAT("\"top_p\":1.01"), 400, "top_p", "to 1"},
    {&dialect_chat, CHAT("\"top_k\":-2"), 400, "top_k", "-2"},
    {&dialect_chat, CHAT("\"top_k\":1.5"), 400, "top_k", "whole number"},
    {&dialect_chat, CHAT("\"min_p\":2"), 400, "min_p", "from 0 to 1"},
    {&dialect_chat, CHAT("\"presence_penalty\":2.1"), 400, "presence_penalty", "from -2 to 2"},
    {&dialect_chat, CHAT("\"frequency_penalty\":-3"), 400, "frequency_penalty", "-3"},
    {&dialect_chat, CHAT("\"repetition_penalty\":0"), 400, "repetition_penalty", "0.01"},
    {&dialect_chat, CHAT("\"max_tokens\":0"), 400, "max_tokens", "from 1 to 1048576"},
    {&dialect_chat, CHAT("\"max_tokens\":-1"), 400, "max_tokens", "-1"},
    {&dialect_chat, CHAT("\"max_tokens\":1000000000"), 400, "max_tokens", "1000000000"},
    {&dialect_chat, CHAT("\"max_tokens\":1e300"), 400, "max_tokens", "whole number"},
    {&dialect_chat, CHAT("\"max_completion_tokens\":\"5\""), 400, "max_completion_tokens", "\"5\""},
    {&dialect_chat, CHAT("\"min_tokens\":-1"), 400, "min_tokens", "-1"},
    {&dialect_chat, CHAT("\"min_tokens\":9,\"max_tokens\":8"), 400, "min_tokens", "which is 8"},
    {&dialect_completions, COMPLETION("\"min_tokens\":17"), 400, "min_tokens", "which is 16"},
    {&dialect_chat, CHAT("\"n\":0"), 400, "n", "from 1 to 128"},
    {&dialect_chat, CHAT("\"n\":129"), 400, "n", "129"},
    {&dialect_chat, CHAT("\"seed\":1.5"), 400, "seed", "1.5"},
    {&dialect_chat, CHAT("\"seed\":\"x\""), 400, "seed", "64 bits"},
    {&dialect_chat, CHAT("\"stream\":1"), 400, "stream", "true or false"},
    {&dialect_chat, CHAT("\"stream_options\":{\"include_usage\":true}"), 400, "stream_options",
     "needs"},
    {&dialect_chat, CHAT("\"stream\":true,\"stream_options\":{\"x\":1}"), 400, "stream_options.x",
     "unknown field"},
    {&dialect_chat, CHAT("\"stream\":true,\"stream_options\":{\"continuous_usage_stats\":true}"),
     400, "stream_options.continuous_usage_stats", "not supported"},
    {&dialect_chat, CHAT("\"stream\":true,\"stream_options\":3"), 400, "stream_options", "object"},
    {&dialect_chat, CHAT("\"stop\":5"), 400, "stop", "string"},
    {&dialect_chat, CHAT("\"stop\":\"\""), 400, "stop", "1 to 1024"},
    {&dialect_chat, CHAT("\"stop\":[\"a\",5]"), 400, "stop", "5"},
    {&dialect_chat,
     CHAT("\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"10\",\"11\",\"12\","
          "\"13\",\"14\",\"15\",\"16\",\"17\"]"),
     400, "stop", "at most 16"},
    {&dialect_chat, CHAT("\"stop_token_ids\":5"), 400, "stop_token_ids", "list"},
    {&dialect_chat, CHAT("\"stop_token_ids\":[1000]"), 400, "stop_token_ids", "0 to 999"},
    {&dialect_chat, CHAT("\"stop_token_ids\":[-1]"), 400, "stop_token_ids", "-1"},
    {&dialect_chat, CHAT("\"logit_bias\":[]"), 400, "logit_bias", "object"},
    {&dialect_chat, CHAT("\"logit_bias\":{\"x\":1}"), 400, "logit_bias", "\"x\""},
    {&dialect_chat, CHAT("\"logit_bias\":{\"1000\":1}"), 400, "logit_bias", "1000"},
    {&dialect_chat, CHAT("\"logit_bias\":{\"-5\":1}"), 400, "logit_bias", "-5"},
    {&dialect_chat, CHAT("\"logit_bias\":{\"99999999999999999999\":1}"), 400, "logit_bias", "9999"},
    {&dialect_chat, CHAT("\"logit_bias\":{\"5\":101}"), 400, "logit_bias", "from -100 to 100"},
    {&dialect_chat, CHAT("\"logit_bias\":{\"5\":null}"), 400, "logit_bias", "null"},
    {&dialect_chat, CHAT("\"logprobs\":5"), 400, "logprobs", "true or false"},
    {&dialect_chat, CHAT("\"top_logprobs\":5"), 400, "top_logprobs", "needs"},
    {&dialect_chat, CHAT("\"logprobs\":true,\"top_logprobs\":21"), 400, "top_logprobs",
     "from 0 to 20"},
    {&dialect_chat, CHAT("\"chat_template_kwargs\":[]"), 400, "chat_template_kwargs", "object"},
    {&dialect_chat, CHAT("\"continue_final_message\":true"), 400, "continue_final_message",
     "add_generation_prompt"},
    {&dialect_chat, CHAT("\"user\":5"), 400, "user", "string"},
    {&dialect_chat, CHAT("\"response_format\":{\"type\":\"json_object\"}"), 400, "response_format",
     "not supported"},
    {&dialect_chat, CHAT("\"tools\":[{\"type\":\"function\"}]"), 400, "tools", "not supported"},
    {&dialect_chat, CHAT("\"tool_choice\":\"auto\""), 400, "tool_choice", "not supported"},
    {&dialect_chat, CHAT("\"priority\":5"), 400, "priority", "not supported"},
    {&dialect_chat, CHAT("\"best_of\":3,\"n\":2"), 400, "best_of", "best_of is 3"},
    {&dialect_completions, "{}", 400, "prompt", "prompt is required"},
    {&dialect_completions, "{\"prompt\":5}", 400, "prompt", "prompt is 5"},
    {&dialect_completions, "{\"prompt\":{}}", 400, "prompt", "an object"},
    {&dialect_completions, "{\"prompt\":[]}", 400, "prompt", "list of"},
    {&dialect_completions, "{\"prompt\":[[]]}", 400, "prompt", "1 to 1048576"},
    {&dialect_completions, "{\"prompt\":[\"a\",5]}", 400, "prompt", "of one kind"},
    {&dialect_completions, "{\"prompt\":[5,\"a\"]}", 400, "prompt", "\"a\""},
    {&dialect_completions, "{\"prompt\":[[5],6]}", 400, "prompt", "of one kind"},
    {&dialect_completions, "{\"prompt\":[1000]}", 400, "prompt", "0 to 999"},
    {&dialect_completions, "{\"prompt\":[-1]}", 400, "prompt", "-1"},
    {&dialect_completions, "{\"prompt\":[1.5]}", 400, "prompt", "1.5"},
    {&dialect_completions, COMPLETION("\"logprobs\":true"), 400, "logprobs", "whole number"},
    {&dialect_completions, COMPLETION("\"logprobs\":21"), 400, "logprobs", "from 0 to 20"},
    {&dialect_completions, COMPLETION("\"max_tokens\":0"), 400, "max_tokens", "echo"},
    {&dialect_completions, COMPLETION("\"echo\":true,\"max_tokens\":-1"), 400, "max_tokens",
     "from 0 to 1048576"},
    {&dialect_generate, GENERATE_ALL("\"logprob_start_len\":1"), 400, "logprob_start_len",
     "from -1 to 0"},
    {&dialect_completions, COMPLETION("\"suffix\":\"x\""), 400, "suffix", "not supported"},
    {&dialect_completions, COMPLETION("\"messages\":[]"), 400, "messages", "unknown field"},
    {&dialect_generate, "{}", 400, "text", "required"},
    {&dialect_generate, "{\"text\":\"a\",\"input_ids\":[1]}", 400, "input_ids", "exclude"},
    {&dialect_generate, "{\"text\":[1]}", 400, "text", "string"},
    {&dialect_generate, "{\"input_ids\":\"a\"}", 400, "input_ids", "token ids"},
    {&dialect_generate, "{\"text\":\"a\",\"sampling_params\":[]}", 400, "sampling_params",
     "object"},
    {&dialect_generate, GENERATE("\"temperature\":-1"), 400, "sampling_params.temperature", "-1"},
    {&dialect_generate, GENERATE("\"max_tokens\":1"), 400, "sampling_params.max_tokens",
     "unknown field"},
    {&dialect_generate, GENERATE("\"regex\":\"a\""), 400, "sampling_params.regex", "not supported"},
    {&dialect_generate, "{\"text\":\"a\",\"temperature\":1}", 400, "temperature", "unknown field"},
    {&dialect_generate, "{\"text\":\"a\",\"rid\":5}", 400, "rid", "string"},
};

static void test_refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        const struct refusal *r = &refusals[i];
        struct parsed p = parse(r->dialect, r->body);

        if (!p.rc || p.problem.status != r->status || strcmp(p.problem.param, r->param) != 0 ||
            !strstr(p.problem.message, r->says))
            print_error("%s -> %d %d [%s] %s\n", r->body, p.rc, p.problem.status, p.problem.param,
                        p.problem.message);
        assert_int_equal(p.rc, -1);
        assert_int_equal(p.problem.status, r->status);
        assert_string_equal(p.problem.param, r->param);
        assert_non_null(strstr(p.problem.message, r->says));
        release(&p);
    }
}

static void test_harmless(void **state)
{
    static const char *const bodies[] = {
        CHAT("\"temperature\":null,\"stop\":null,\"tools\":null,\"response_format\":null"),
        CHAT("\"response_format\":{\"type\":\"text\"},\"tool_choice\":\"none\",\"tools\":[]"),
        CHAT("\"best_of\":1,\"n\":3"),
        CHAT("\"best_of\":3,\"n\":3"),
        CHAT("\"priority\":0.0"),
        CHAT("\"user\":\"u\",\"store\":false,\"parallel_tool_calls\":true,\"stop\":[]"),
        CHAT("\"model\":\"m\",\"top_k\":0,\"length_penalty\":1.0,\"logit_bias\":{}"),
        CHAT("\"stream\":true,\"stream_options\":{\"include_obfuscation\":false}"),
        CHAT("\"add_generation_prompt\":false,\"continue_final_message\":true"),
        "{\"messages\":[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[]},"
        "{\"role\":\"assistant\"},{\"role\":\"tool\",\"content\":\"x\",\"tool_call_id\":\"1\"}]}",
    };

    (void)state;
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        struct parsed p = parse(&dialect_chat, bodies[i]);

        if (p.rc)
            print_error("%s: %s\n", bodies[i], p.problem.message);
        assert_int_equal(p.rc, 0);
        release(&p);
    }
}

static void test_values(void **state)
{
    struct parsed p = parse(
        &dialect_chat,
        CHAT("\"temperature\":0.25,\"top_p\":0.5,\"top_k\":7,\"min_p\":0.125,\"seed\":-3,"
             "\"presence_penalty\":1,\"frequency_penalty\":-1.5,\"repetition_penalty\":1.5,"
             "\"max_tokens\":5,\"max_completion_tokens\":9.0,\"min_tokens\":2,\"ignore_eos\":true,"
             "\"n\":3,\"stop\":[\"x\",\"yy\"],\"stop_token_ids\":[4,999],\"logprobs\":true,"
             "\"top_logprobs\":4,\"logit_bias\":{\"12\":-100,\"3\":2.5},\"stream\":true,"
             "\"stream_options\":{\"include_usage\":true},\"skip_special_tokens\":false,"
             "\"chat_template_kwargs\":{\"enable_thinking\":false}"));
    const struct proto_generate *g = &p.params.generate;
    const struct proto_sampling *s = &g->sampling;

    (void)state;
    assert_int_equal(p.rc, 0);
    assert_true(s->temperature == 0.25 && s->top_p == 0.5 && s->min_p == 0.125);
    assert_true(s->presence_penalty == 1 && s->frequency_penalty == -1.5);
    assert_true(s->repetition_penalty == 1.5);
    assert_int_equal(s->top_k, 7);
    assert_true(s->seed == (uint64_t)-3);
    assert_int_equal(s->max_tokens, 9);
    assert_int_equal(s->min_tokens, 2);
    assert_true(s->ignore_eos);
    assert_int_equal(s->logprobs, 4);
    assert_int_equal(s->stop_token_ids_count, 2);
    assert_int_equal(s->stop_token_ids[1], 999);
    assert_int_equal(s->logit_bias_count, 2);
    assert_int_equal(s->logit_bias[0].id, 12);
    assert_true(s->logit_bias[1].value == 2.5);
    assert_int_equal(g->n, 3);
    assert_int_equal(g->stops_count, 2);
    assert_true(proto_str_is(g->stops[1].text, "yy"));
    assert_false(g->skip_special_tokens);
    assert_true(g->add_generation_prompt);
    assert_true(p.params.stream && p.params.include_usage);
    assert_true(proto_str_is(g->template_kwargs, "{\"enable_thinking\":false}"));
    assert_string_equal(p.params.messages.data, "[{\"role\":\"user\",\"content\":\"a\"}]");
    release(&p);
}

static void test_defaults(void **state)
{
    struct parsed chat = parse(&dialect_chat, CHAT("\"n\":1"));
    struct parsed other = parse(&dialect_chat, CHAT("\"n\":1"));
    struct parsed completion = parse(&dialect_completions, COMPLETION("\"logprobs\":0"));
    struct parsed generate = parse(&dialect_generate, "{\"text\":[\"a\"]}");
    const struct proto_sampling *s = &chat.params.generate.sampling;

    (void)state;
    assert_true(s->temperature == 1.0 && s->top_p == 1.0 && s->repetition_penalty == 1.0);
    assert_int_equal(s->top_k, -1);
    assert_int_equal(s->max_tokens, 0);
    assert_int_equal(s->logprobs, -1);
    assert_true(s->seed != other.params.generate.sampling.seed);
    assert_int_equal(completion.params.generate.sampling.max_tokens, 16);
    assert_int_equal(completion.params.generate.sampling.logprobs, 0);
    assert_false(completion.params.prompts_listed);
    assert_int_equal(generate.params.generate.sampling.max_tokens, 128);
    assert_true(generate.params.prompts_listed);
    release(&chat);
    release(&other);
    release(&completion);
    release(&generate);
}

static void test_prompt_logprobs(void **state)
{
    struct parsed both =
        parse(&dialect_completions, COMPLETION("\"echo\":true,\"logprobs\":3,\"max_tokens\":0"));
    struct parsed echo = parse(&dialect_completions, COMPLETION("\"echo\":true"));
    struct parsed plain = parse(&dialect_completions, COMPLETION("\"logprobs\":3"));
    struct parsed start =
        parse(&dialect_generate, GENERATE_ALL("\"return_logprob\":true,\"logprob_start_len\":0"));
    struct parsed none = parse(&dialect_generate, GENERATE_ALL("\"return_logprob\":true"));

    (void)state;
    assert_true(both.params.generate.sampling.prompt_logprobs && both.params.generate.prompt_only);
    assert_int_equal(both.params.generate.sampling.max_tokens, 1);
    assert_int_equal(both.params.generate.sampling.logprobs, 3);
    assert_false(echo.params.generate.sampling.prompt_logprobs || echo.params.generate.prompt_only);
    assert_false(plain.params.generate.sampling.prompt_logprobs);
    assert_true(start.params.generate.sampling.prompt_logprobs);
    assert_int_equal(start.params.generate.sampling.logprobs, 0);
    assert_false(none.params.generate.sampling.prompt_logprobs);
    release(&both);
    release(&echo);
    release(&plain);
    release(&start);
    release(&none);
}

static void test_prompts(void **state)
{
    struct parsed texts = parse(&dialect_completions, "{\"prompt\":[\"a\",\"b\\u0000c\"]}");
    struct parsed ids = parse(&dialect_completions, "{\"prompt\":[5,6.0,7]}");
    struct parsed lists = parse(&dialect_generate, "{\"input_ids\":[[5],[6,7]]}");

    (void)state;
    assert_int_equal(texts.params.prompts_count, 2);
    assert_int_equal(texts.params.prompts[1].text.len, 3);
    assert_memory_equal(texts.params.prompts[1].text.data, "b\0c", 3);
    assert_int_equal(ids.params.prompts_count, 1);
    assert_int_equal(ids.params.prompts[0].ids_count, 3);
    assert_int_equal(ids.params.prompts[0].ids[1], 6);
    assert_int_equal(lists.params.prompts_count, 2);
    assert_int_equal(lists.params.prompts[1].ids[1], 7);
    release(&texts);
    release(&ids);
    release(&lists);
}

static void test_prompt_count(void **state)
{
    for (int count = 256; count <= 257; count++) {
        struct buf text = {0};
        struct parsed p;

        (void)state;
        buf_puts(&text, "{\"prompt\":[");
        for (int i = 0; i < count; i++)
            buf_puts(&text, i ? ",\"a\"" : "\"a\"");
        buf_puts(&text, "]}");
        p = parse(&dialect_completions, text.data);
        assert_int_equal(p.rc, count == 256 ? 0 : -1);
        release(&p);
        buf_fini(&text);
    }
}

static void test_parts(void **state)
{
    struct parsed p =
        parse(&dialect_chat, "{\"messages\":[{\"role\":\"user\",\"name\":\"n\",\"content\":["
                             "{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}"
                             "]},{\"role\":\"assistant\",\"content\":null}]}");

    (void)state;
    assert_int_equal(p.rc, 0);
    assert_string_equal(p.params.messages.data,
                        "[{\"role\":\"user\",\"name\":\"n\",\"content\":\"a\\nb\"},"
                        "{\"role\":\"assistant\",\"content\":null}]");
    release(&p);
}

static void test_generation_config(void **state)
{
    static const struct {
        const char *text;
        double temperature, top_p;
        int64_t top_k;
    } rows[] = {
        {"{\"temperature\":0.6,\"top_p\":0.9,\"top_k\":20,\"do_sample\":true}", 0.6, 0.9, 20},
        {"{\"do_sample\":false,\"temperature\":0.6}", 0.0, 1.0, -1},
        {"{\"temperature\":-5,\"top_k\":\"x\",\"top_p\":0.5}", 1.0, 0.5, -1},
        {"{\"eos_token_id\":[1,2]}", 1.0, 1.0, -1},
        {"not JSON", 1.0, 1.0, -1},
    };
    char dir[] = "/tmp/phalanx-test-XXXXXX", path[64];

    (void)state;
    assert_non_null(mkdtemp(dir));
    (void)snprintf(path, sizeof path, "%s/generation_config.json", dir);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct proto_sampling s;
        FILE *f = fopen(path, "w");

        assert_non_null(f);
        (void)fputs(rows[i].text, f);
        (void)fclose(f);
        defaults_init(&s);
        defaults_load(dir, &s);
        assert_true(s.temperature == rows[i].temperature && s.top_p == rows[i].top_p);
        assert_int_equal(s.top_k, rows[i].top_k);
    }
    (void)unlink(path);
    (void)rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_harmless),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_prompt_logprobs),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_prompt_count),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_generation_config),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What choices hold, rendered as events and as whole answers: shapes, framing, log
 * probabilities; the API key; the table of pending ids. */
#include "services/gateway/auth.h"
#include "services/gateway/call.h"
#include "services/gateway/pending.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/json.h"

static void call_make(struct call *call, const struct dialect *dialect, size_t prompts, uint32_t n,
                      bool stream, int64_t logprobs)
{
    struct params params = {.prompts_count = prompts, .stream = stream, .include_usage = stream};

    params.generate.n = n;
    params.generate.sampling.logprobs = logprobs;
    params.prompts_listed = prompts > 1;
    call_init(call, dialect, &params, "id-1", "mo\"del", "fp_0");
}

static struct proto_chunk chunk_of(uint32_t choice, const char *text, uint32_t finish)
{
    return (struct proto_chunk){.choice = choice,
                                .text = proto_str(text),
                                .finish = finish,
                                .stop_id = -1,
                                .prompt_tokens = 5,
                                .completion_tokens = 2,
                                .cached_tokens = 1};
}

static void add(struct call *call, uint32_t part, uint32_t choice, const char *text,
                uint32_t finish)
{
    struct proto_chunk chunk = chunk_of(choice, text, finish);

    call_choice_add(call, part, &chunk);
}

/* Every line of events is empty or one JSON object behind "data: "; returns their list. */
static json_t *events_parse(const struct buf *out)
{
    json_t *list = json_array();
    const char *at = out->data, *end = out->data + out->len;

    while (at < end) {
        const char *stop = strstr(at, "\n\n");
        json_t *event;

        assert_non_null(stop);
        assert_memory_equal(at, "data: ", 6);
        at += 6;
        assert_null(memchr(at, '\n', (size_t)(stop - at)));
        assert_null(memchr(at, '\r', (size_t)(stop - at)));
        event = json_loadb(at, (size_t)(stop - at), 0, NULL);
        if (!event) /* [DONE] */
            event = json_stringn(at, (size_t)(stop - at));
        assert_int_equal(json_array_append_new(list, event), 0);
        at = stop + 2;
    }
    return list;
}

static json_t *path_get(json_t *at, const char *path)
{
    char part[64];

    while (*path && at) {
        size_t len = strcspn(path, ".");

        memcpy(part, path, len);
        part[len] = '\0';
        at = json_is_array(at) ? json_array_get(at, (size_t)(part[0] - '0'))
                               : json_object_get(at, part);
        path += len + (path[len] == '.');
    }
    return at;
}

static void expect_text(json_t *at, const char *path, const char *text)
{
    assert_true(json_is_string(path_get(at, path)));
    assert_string_equal(json_string_value(path_get(at, path)), text);
}

static void test_chat_events(void **state)
{
    struct buf out = {0};
    struct call call;
    json_t *events;

    (void)state;
    call_make(&call, &dialect_chat, 1, 1, true, -1);
    add(&call, 0, 0, "a\nb\"\r\n\ndata: [DONE]\n\n\xe2\x80\xa8", FINISH_STOP);
    dialect_chat.event(&call, 0, &out);
    dialect_chat.tail(&call, &out);
    events = events_parse(&out);
    assert_int_equal(json_array_size(events), 5);
    expect_text(events, "0.choices.0.delta.role", "assistant");
    expect_text(events, "0.choices.0.delta.content", "");
    expect_text(events, "0.object", "chat.completion.chunk");
    expect_text(events, "0.model", "mo\"del");
    expect_text(events, "1.choices.0.delta.content", "a\nb\"\r\n\ndata: [DONE]\n\n\xe2\x80\xa8");
    assert_true(json_is_null(path_get(events, "1.choices.0.finish_reason")));
    assert_true(json_is_null(path_get(events, "1.usage")));
    expect_text(events, "2.choices.0.finish_reason", "stop");
    assert_int_equal(json_object_size(path_get(events, "2.choices.0.delta")), 0);
    assert_int_equal(json_array_size(path_get(events, "3.choices")), 0);
    assert_int_equal(json_integer_value(path_get(events, "3.usage.prompt_tokens")), 5);
    assert_int_equal(json_integer_value(path_get(events, "3.usage.total_tokens")), 7);
    assert_int_equal(
        json_integer_value(path_get(events, "3.usage.prompt_tokens_details.cached_tokens")), 1);
    expect_text(events, "4", "[DONE]");
    json_decref(events);
    buf_fini(&out);
    call_fini(&call);
}

/* return_token_ids: each id once, also of tokens without text. */
static void test_token_ids(void **state)
{
    static const struct dialect *const dialects[] = {&dialect_chat, &dialect_completions};
    uint32_t ids[] = {7, 0, 4294967295u};

    (void)state;
    for (size_t d = 0; d < 2; d++) {
        struct params params = {.prompts_count = 1, .stream = d == 0, .return_ids = true};
        struct proto_chunk chunk = chunk_of(0, "", FINISH_NONE);
        struct buf out = {0};
        struct call call;
        json_t *list;

        params.generate.n = 1;
        params.generate.sampling.logprobs = -1;
        call_init(&call, dialects[d], &params, "id-1", "m", "fp_0");
        chunk.ids = ids;
        chunk.ids_count = 2;
        call_choice_add(&call, 0, &chunk);
        assert_true(call.choices[0].held);
        chunk = chunk_of(0, "x", FINISH_LENGTH);
        chunk.ids = ids + 2;
        chunk.ids_count = 1;
        call_choice_add(&call, 0, &chunk);
        if (d == 0)
            dialects[d]->event(&call, 0, &out);
        else
            dialects[d]->result(&call, &out);
        assert_non_null(strstr(out.data, "\"token_ids\":[7,0,4294967295]"));
        assert_null(strstr(strstr(out.data, "token_ids") + 1, "token_ids"));
        list = d == 0 ? events_parse(&out) : json_loads(out.data, 0, NULL);
        assert_non_null(list);
        json_decref(list);
        buf_fini(&out);
        call_fini(&call);
    }
}

/* What another tokenizer would go on from, in streams too; what is computed again for it does not
 * change what is said of the prompt. */
static void test_remembered(void **state)
{
    uint32_t ids[] = {7, 0, 4294967295u, 127, 128, 16383, 16384, 151935, 2097152};
    enum { COUNT = sizeof ids / sizeof *ids };
    uint32_t *seen;
    struct call call;

    (void)state;
    call_make(&call, &dialect_completions, 1, 2, true, -1);
    for (uint32_t i = 0; i < 100; i++) {
        struct proto_chunk chunk = chunk_of(1, "\xc3\xa9", FINISH_NONE);

        chunk.ids = ids;
        chunk.ids_count = COUNT;
        chunk.completion_tokens = COUNT * (i + 1);
        chunk.cached_tokens = i < 50 ? 1 : 900;
        call_choice_add(&call, 0, &chunk);
    }
    assert_int_equal(call.choices[0].seen_count, 0);
    assert_int_equal(call.choices[1].seen_count, 100 * COUNT);
    assert_int_equal(call.choices[1].text_bytes, 200);
    seen = call_choice_ids(&call.choices[1]);
    for (uint32_t i = 0; i < 100 * COUNT; i++)
        assert_int_equal(seen[i], ids[i % COUNT]);
    free(seen);
    assert_int_equal(call.parts[0].cached_tokens, 1);
    call_fini(&call);
}

static void test_completions_result(void **state)
{
    struct buf out = {0};
    struct call call;
    json_t *whole;

    (void)state;
    call_make(&call, &dialect_completions, 2, 2, false, -1);
    add(&call, 1, 0, "third", FINISH_NONE);
    add(&call, 1, 0, " goes on", FINISH_LENGTH);
    add(&call, 0, 1, "second", FINISH_ABORT);
    add(&call, 0, 0, "first", FINISH_STOP);
    assert_int_equal(call.open, 1);
    add(&call, 1, 1, "", FINISH_STOP);
    assert_int_equal(call.open, 0);
    dialect_completions.result(&call, &out);
    whole = json_loadb(out.data, out.len, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(whole);
    expect_text(whole, "choices.0.text", "first");
    expect_text(whole, "choices.1.finish_reason", "abort");
    expect_text(whole, "choices.2.text", "third goes on");
    expect_text(whole, "choices.2.finish_reason", "length");
    assert_int_equal(json_integer_value(path_get(whole, "choices.3.index")), 3);
    assert_int_equal(json_integer_value(path_get(whole, "usage.prompt_tokens")), 10);
    assert_int_equal(json_integer_value(path_get(whole, "usage.completion_tokens")), 8);
    json_decref(whole);
    buf_fini(&out);
    call_fini(&call);
}

static void logprobs_add(struct call *call, const char *text, double logprob)
{
    struct proto_alternative top[2] = {{.id = 8, .logprob = -0.25, .text = proto_str("best")},
                                       {.id = 9, .logprob = -2.0, .text = proto_str("best")}};
    struct proto_logprob lp = {
        .id = 7, .logprob = logprob, .text = proto_str(text), .top = top, .top_count = 2};
    struct proto_chunk chunk = chunk_of(0, text, FINISH_NONE);
    uint32_t id = 7;

    chunk.ids = &id;
    chunk.ids_count = 1;
    chunk.logprobs = &lp;
    chunk.logprobs_count = 1;
    call_choice_add(call, 0, &chunk);
}

static json_t *result_of(struct call *call)
{
    struct buf out = {0};
    json_t *whole;

    call->dialect->result(call, &out);
    whole = json_loadb(out.data, out.len, JSON_REJECT_DUPLICATES, NULL);
    if (!whole)
        print_error("%s\n", out.data);
    assert_non_null(whole);
    buf_fini(&out);
    return whole;
}

static void test_logprobs(void **state)
{
    struct call call;
    json_t *whole;

    (void)state;
    call_make(&call, &dialect_completions, 1, 1, false, 2);
    logprobs_add(&call, "\xc3\xa4\xc3\xb6", -1.5); /* two code points */
    logprobs_add(&call, "x", -INFINITY);
    whole = result_of(&call);
    assert_int_equal(json_integer_value(path_get(whole, "choices.0.logprobs.text_offset.1")), 2);
    assert_true(json_real_value(path_get(whole, "choices.0.logprobs.token_logprobs.0")) == -1.5);
    assert_true(json_number_value(path_get(whole, "choices.0.logprobs.token_logprobs.1")) ==
                -9999.0);
    assert_true(json_real_value(path_get(whole, "choices.0.logprobs.top_logprobs.0.best")) ==
                -0.25);
    assert_int_equal(json_object_size(path_get(whole, "choices.0.logprobs.top_logprobs.0")), 2);
    json_decref(whole);
    call_fini(&call);

    call_make(&call, &dialect_chat, 1, 1, false, 2);
    logprobs_add(&call, "\xc3", -1.5); /* half a code point */
    whole = result_of(&call);
    expect_text(whole, "choices.0.logprobs.content.0.token", "\xef\xbf\xbd");
    assert_int_equal(json_integer_value(path_get(whole, "choices.0.logprobs.content.0.bytes.0")),
                     0xc3);
    expect_text(whole, "choices.0.logprobs.content.0.top_logprobs.1.token", "best");
    json_decref(whole);
    call_fini(&call);

    call_make(&call, &dialect_generate, 1, 1, false, 2);
    logprobs_add(&call, "x", -1.5);
    whole = result_of(&call);
    assert_int_equal(json_integer_value(path_get(whole, "output_ids.0")), 7);
    assert_int_equal(json_integer_value(path_get(whole, "meta_info.output_token_logprobs.0.1")), 7);
    assert_int_equal(json_integer_value(path_get(whole, "meta_info.output_top_logprobs.0.1.1")), 9);
    json_decref(whole);
    call_fini(&call);
}

/* Pieces of a prompt's log probabilities: the first token has none; shown with the first token. */
static void test_prompt_logprobs(void **state)
{
    struct proto_alternative top = {.id = 8, .logprob = -0.25, .text = proto_str("best")};
    struct proto_logprob pieces[3] = {
        {.id = 1, .text = proto_str("a")},
        {.id = 2, .logprob = -1.5, .text = proto_str("bc"), .top = &top, .top_count = 1},
        {.id = 3, .logprob = -2.5, .text = proto_str("d"), .top = &top, .top_count = 1}};
    struct proto_chunk chunk = {.stop_id = -1, .prompt_tokens = 3, .prompt_logprobs = pieces};
    const struct dialect *dialects[] = {&dialect_completions, &dialect_generate};

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct call call;
        json_t *whole;

        call_make(&call, dialects[i], 1, 1, false, 1);
        chunk.prompt_logprobs = pieces;
        chunk.prompt_logprobs_count = 2;
        call_choice_add(&call, 0, &chunk);
        chunk.prompt_logprobs = pieces + 2;
        chunk.prompt_logprobs_count = 1;
        call_choice_add(&call, 0, &chunk);
        assert_false(call.choices[0].held); /* until there is a token */
        logprobs_add(&call, "x", -0.5);
        assert_true(call.choices[0].held);
        whole = result_of(&call);
        if (dialects[i] == &dialect_completions) {
            expect_text(whole, "choices.0.logprobs.tokens.2", "d");
            expect_text(whole, "choices.0.logprobs.tokens.3", "x");
            assert_true(json_is_null(path_get(whole, "choices.0.logprobs.token_logprobs.0")));
            assert_true(json_is_null(path_get(whole, "choices.0.logprobs.top_logprobs.0")));
            assert_true(json_real_value(path_get(whole, "choices.0.logprobs.token_logprobs.2")) ==
                        -2.5);
            assert_int_equal(json_object_size(path_get(whole, "choices.0.logprobs.top_logprobs.1")),
                             2);
            assert_int_equal(
                json_integer_value(path_get(whole, "choices.0.logprobs.text_offset.3")), 4);
        } else {
            assert_int_equal(json_array_size(path_get(whole, "meta_info.input_token_logprobs")), 3);
            assert_true(json_is_null(path_get(whole, "meta_info.input_token_logprobs.0.0")));
            assert_true(json_is_null(path_get(whole, "meta_info.input_top_logprobs.0")));
            assert_int_equal(
                json_integer_value(path_get(whole, "meta_info.input_token_logprobs.2.1")), 3);
            assert_int_equal(
                json_integer_value(path_get(whole, "meta_info.input_top_logprobs.2.0.1")), 8);
            assert_int_equal(json_array_size(path_get(whole, "meta_info.output_token_logprobs")),
                             1);
        }
        json_decref(whole);
        call_fini(&call);
    }
}

static void test_generate_events(void **state)
{
    struct proto_chunk last = chunk_of(0, "b", FINISH_STOP);
    struct buf out = {0};
    struct call call;
    json_t *events;

    (void)state;
    call_make(&call, &dialect_generate, 1, 1, true, -1);
    add(&call, 0, 0, "a", FINISH_NONE);
    dialect_generate.event(&call, 0, &out);
    last.stop_text = proto_str("END");
    call_choice_add(&call, 0, &last);
    dialect_generate.event(&call, 0, &out);
    dialect_generate.tail(&call, &out);
    events = events_parse(&out);
    expect_text(events, "0.text", "a");
    assert_true(json_is_null(path_get(events, "0.meta_info.finish_reason")));
    expect_text(events, "1.text", "ab");
    expect_text(events, "1.meta_info.id", "id-1");
    expect_text(events, "1.meta_info.finish_reason.type", "stop");
    expect_text(events, "1.meta_info.finish_reason.matched", "END");
    expect_text(events, "2", "[DONE]");
    json_decref(events);
    buf_fini(&out);
    call_fini(&call);
}

static void test_auth(void **state)
{
    static const struct {
        const char *value;
        bool right;
    } rows[] = {
        {"Bearer secret", true},   {"bearer secret", true},
        {"Bearer secre", false},   {"Bearer secrets", false},
        {"Bearer Secret", false},  {"Bearer ", false},
        {"secret", false},         {"Basic secret", false},
        {"Bearer  secret", false}, {"", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        assert_int_equal(auth_matches(rows[i].value, strlen(rows[i].value), "secret"),
                         rows[i].right);
    assert_false(auth_matches(NULL, 0, "secret"));
}

/* Against a plain array, through growth, wrap-around and removal in any order. */
static void test_pending(void **state)
{
    enum { COUNT = 3000 };
    static bool in[COUNT + 1];
    static struct call calls[1];
    struct pending p = {0};
    uint32_t seed = 1;

    (void)state;
    assert_null(pending_find(&p, 1));
    pending_remove(&p, 1);
    for (int step = 0; step < 60000; step++) {
        uint32_t id;

        seed = seed * 1664525u + 1013904223u;
        id = 1 + (seed >> 8) % COUNT;
        if (in[id])
            pending_remove(&p, id);
        else
            pending_put(&p, id, calls, id);
        in[id] = !in[id];
        if (step % 1000 == 0)
            for (uint32_t i = 1; i <= COUNT; i++) {
                const struct pending_entry *e = pending_find(&p, i);

                assert_int_equal(e != NULL, in[i]);
                assert_true(!e || e->part == i);
            }
    }
    pending_fini(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chat_events),     cmocka_unit_test(test_token_ids),
        cmocka_unit_test(test_remembered),      cmocka_unit_test(test_completions_result),
        cmocka_unit_test(test_logprobs),        cmocka_unit_test(test_prompt_logprobs),
        cmocka_unit_test(test_generate_events), cmocka_unit_test(test_auth),
        cmocka_unit_test(test_pending),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

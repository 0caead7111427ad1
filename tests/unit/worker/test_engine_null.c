/* The device without a model. */
#include "common/clock.h"
#include "services/worker/engine.h"
#include "services/worker/engine_null.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static int step_whole(const struct engine_kind *kind, struct engine *e,
                      const struct proto_step *step, struct engine_result *result, struct err *err)
{
    int rc = kind->begin(e, step, err);

    return rc ? rc : kind->end(e, result, err);
}

static void tokens_are_a_fixed_function(void **state)
{
    const uint32_t eos[] = {0, 3, 4, 9};
    bool seen[10] = {false};

    (void)state;
    assert_int_equal(null_token(0, 0, 32000, NULL, 0), 0xe220a8397b1dcdafu % 32000);
    for (uint32_t i = 0; i < 1000; i++) {
        uint32_t id = null_token(42, i, 10, eos, 4);

        assert_true(id < 10 && id != 0 && id != 3 && id != 4 && id != 9);
        assert_int_equal(id, null_token(42, i, 10, eos, 4));
        seen[id] = true;
    }
    assert_true(seen[1] && seen[2] && seen[5] && seen[6] && seen[7] && seen[8]);
}

static struct engine *engine_open(const char *dir, struct engine_info *info)
{
    const struct engine_kind *kind = engine_find("null");
    struct engine_config config = {
        .model_dir = dir, .device = "null", .dtype = "auto", .tp_size = 1, .page_size = 4};
    struct engine *e;
    struct err err;

    assert_non_null(kind);
    if (kind->load(&config, &e, &err))
        fail_msg("%s", err.msg);
    kind->info(e, info);
    return e;
}

/* Generates `count` tokens of one request whose first `known` tokens (of which `generated` were
 * generated) are given; ids get the tokens. */
static void generate(struct engine *e, uint32_t *ids, uint32_t known, uint32_t generated,
                     uint32_t count, int64_t logprobs)
{
    const struct engine_kind *kind = engine_find("null");
    uint32_t page_list[] = {2, 0, 1, 3, 4, 5, 6, 7};
    struct proto_slot_open opened = {
        .slot = 1,
        .tokens = ids,
        .tokens_count = known,
        .generated = generated,
        .sampling = {.top_p = 1, .repetition_penalty = 1, .seed = 77, .logprobs = logprobs}};
    struct proto_slot_pages pages = {.slot = 1, .pages = page_list, .pages_count = 8};
    struct proto_row row = {1, 0, known, true};
    struct proto_step step = {.opened = &opened,
                              .opened_count = 1,
                              .pages = &pages,
                              .pages_count = 1,
                              .rows = &row,
                              .rows_count = 1};
    struct engine_result result;
    struct err err;

    for (uint32_t i = 0; i < count; i++) {
        step.step = i + 1;
        if (step_whole(kind, e, &step, &result, &err))
            fail_msg("%s", err.msg);
        assert_int_equal(result.count, 1);
        assert_int_equal(result.results[0].slot, 1);
        assert_int_equal(result.results[0].logprob_count, logprobs >= 0 ? 1 : 0);
        if (logprobs >= 0)
            assert_int_equal(result.results[0].logprob[0].top_count, logprobs);
        ids[known + i] = result.results[0].id;
        row = (struct proto_row){1, known + i, 1, true};
        step.opened_count = step.pages_count = 0;
    }
}

static void a_request_goes_on_where_it_was(void **state)
{
    const struct engine_kind *kind = engine_find("null");
    uint32_t all[16] = {5, 6, 7}, again[16];
    struct engine_info info;
    struct engine *e;
    struct err err;

    (void)state;
    e = engine_open("", &info);
    assert_int_equal(info.vocab_size, NULL_VOCAB_SIZE);
    assert_true(info.pages_max > 1000);
    assert_int_equal(kind->kv_alloc(e, 8, 2, 64, &err), 0);
    generate(e, all, 3, 0, 10, -1);
    kind->free(&e);
    assert_null(e);
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(all[3 + i], null_token(77, i, NULL_VOCAB_SIZE, NULL, 0));
    memcpy(again, all, sizeof again);
    memset(again + 7, 0, 6 * sizeof *again);
    e = engine_open("", &info);
    assert_int_equal(kind->kv_alloc(e, 8, 2, 64, &err), 0);
    generate(e, again, 7, 4, 6, 3);
    assert_memory_equal(again, all, 13 * sizeof *all);
    kind->free(&e);
}

static void the_config_gives_vocabulary_and_end_ids(void **state)
{
    char dir[] = "/tmp/phalanx-test-XXXXXX", path[64], command[64];
    const struct engine_kind *kind = engine_find("null");
    uint32_t ids[24] = {1};
    struct engine_info info;
    struct engine *e;
    struct err err;
    FILE *f;

    (void)state;
    assert_non_null(mkdtemp(dir));
    (void)snprintf(path, sizeof path, "%s/config.json", dir);
    f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs("{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,"
                      "\"num_hidden_layers\":1,\"num_attention_heads\":8,\"intermediate_size\":96,"
                      "\"vocab_size\":4,\"max_position_embeddings\":32,\"eos_token_id\":[3,1]}",
                      f) >= 0);
    assert_int_equal(fclose(f), 0);
    e = engine_open(dir, &info);
    assert_int_equal(info.vocab_size, 4);
    assert_int_equal(info.context_length, 32);
    assert_int_equal(info.eos_count, 2);
    assert_int_equal(kind->kv_alloc(e, 8, 2, 64, &err), 0);
    generate(e, ids, 1, 0, 20, -1);
    for (int i = 1; i < 21; i++)
        assert_true(ids[i] == 0 || ids[i] == 2);
    kind->free(&e);
    (void)snprintf(command, sizeof command, "rm -rf %s", dir);
    assert_int_equal(system(command), 0);
}

static void order_of_calls_is_checked(void **state)
{
    const struct engine_kind *kind = engine_find("null");
    struct proto_step step = {.step = 1};
    struct engine_result result;
    struct engine_info info;
    struct engine *e = engine_open("", &info);
    struct err err;

    (void)state;
    assert_int_equal(step_whole(kind, e, &step, &result, &err), ERR_PROTOCOL);
    assert_int_equal(kind->kv_alloc(e, 0, 2, 64, &err), ERR_PROTOCOL);
    assert_int_equal(kind->kv_alloc(e, 8, 2, 64, &err), 0);
    assert_int_equal(step_whole(kind, e, &step, &result, &err), 0);
    assert_int_equal(result.count, 0);
    assert_int_equal(kind->kv_alloc(e, 8, 2, 32, &err), ERR_PROTOCOL);
    assert_non_null(strstr(err.msg, "8 pages, 2 slots and 64 tokens"));
    assert_int_equal(kind->kv_alloc(e, 8, 2, 64, &err), 0);
    assert_int_equal(step_whole(kind, e, &step, &result, &err), 0); /* step 1 again */
    kind->free(&e);
    assert_null(engine_find("gpu"));
}

static void a_step_takes_its_time(void **state)
{
    const struct engine_kind *kind = engine_find("null");
    struct engine_config config = {
        .model_dir = "", .device = "null", .tp_size = 1, .page_size = 4, .null_step_us = 30000};
    struct proto_step step = {.step = 1};
    struct engine_result result;
    struct engine *e;
    struct err err;
    int64_t start_us;

    (void)state;
    assert_int_equal(kind->load(&config, &e, &err), 0);
    assert_int_equal(kind->kv_alloc(e, 8, 2, 64, &err), 0);
    start_us = clock_mono_us();
    assert_int_equal(step_whole(kind, e, &step, &result, &err), 0);
    assert_true(clock_mono_us() - start_us >= 30000);
    kind->free(&e);
}

/* Steps that have begun wait for those before them, each keeps its results, and the device knows
 * when it is idle. */
static void steps_queue_up(void **state)
{
    const struct engine_kind *kind = engine_find("null");
    struct engine_config config = {
        .model_dir = "", .device = "null", .tp_size = 1, .page_size = 4, .null_step_us = 20000};
    uint32_t ids[] = {5}, page_list[] = {0, 1, 2};
    struct proto_slot_open opened = {
        .tokens = ids,
        .tokens_count = 1,
        .sampling = {.top_p = 1, .repetition_penalty = 1, .seed = 7, .logprobs = 1}};
    struct proto_slot_pages pages = {.pages = page_list, .pages_count = 3};
    struct proto_row row = {0, 0, 1, true};
    struct proto_step step = {.opened = &opened,
                              .opened_count = 1,
                              .pages = &pages,
                              .pages_count = 1,
                              .rows = &row,
                              .rows_count = 1};
    struct engine_result result;
    struct engine_info info;
    struct engine *e;
    struct err err;
    int64_t start_us = clock_mono_us();

    (void)state;
    assert_int_equal(kind->load(&config, &e, &err), 0);
    kind->info(e, &info);
    assert_int_equal(info.steps_ahead, ENGINE_STEPS_MAX);
    assert_int_equal(kind->kv_alloc(e, 8, 2, 64, &err), 0);
    for (uint32_t i = 0; i < ENGINE_STEPS_MAX; i++) {
        assert_true(kind->room(e));
        step.step = i + 1;
        assert_int_equal(kind->begin(e, &step, &err), 0);
        row = (struct proto_row){0, i + 1, 1, true};
        step.opened_count = step.pages_count = 0;
    }
    assert_false(kind->room(e));
    for (uint32_t i = 0; i < ENGINE_STEPS_MAX; i++) {
        uint32_t id = null_token(7, i, NULL_VOCAB_SIZE, NULL, 0);

        assert_true(kind->due_us(e) >= start_us + 20000 * (i + 1));
        assert_int_equal(kind->end(e, &result, &err), 0);
        assert_true(clock_mono_us() >= start_us + 20000 * (i + 1));
        assert_int_equal(result.device_us, 20000);
        assert_int_equal(result.count, 1);
        assert_int_equal(result.results[0].id, id);
        assert_int_equal(result.results[0].logprob->id, id);
        assert_true(kind->room(e));
    }
    kind->free(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_are_a_fixed_function),
        cmocka_unit_test(a_request_goes_on_where_it_was),
        cmocka_unit_test(the_config_gives_vocabulary_and_end_ids),
        cmocka_unit_test(order_of_calls_is_checked),
        cmocka_unit_test(a_step_takes_its_time),
        cmocka_unit_test(steps_queue_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

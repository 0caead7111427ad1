/* The scheduler's core, one rule a test. */
#include "services/scheduler/core.h"

#include "common/mem.h"
#include "tests/unit/scheduler/core_setup.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define VOCAB 1000u
#define EOS 7u

static struct scheduler_config config_default(void)
{
    static const uint32_t eos[] = {EOS, 8};

    return (struct scheduler_config){
        .slots_max = 4,
        .queued_max = 8,
        .page_size = 4,
        .num_pages = 64,
        .prefill_tokens_max = 16,
        .context_length = 64,
        .vocab_size = VOCAB,
        .steps_in_flight_max = 1,
        .policy = "fcfs",
        .conservativeness = 1,
        .eos_ids = eos,
        .eos_ids_count = 2,
    };
}

static int admit_sampling(struct scheduler *s, uint64_t owner, uint64_t id, uint32_t prompt_count,
                          const struct proto_sampling *sampling, struct scheduler_refusal *refusal,
                          struct err *err)
{
    uint32_t *prompt = mem_array(prompt_count, sizeof *prompt);
    struct scheduler_request r = {.owner = owner,
                                  .id = id,
                                  .prompt = prompt,
                                  .prompt_count = prompt_count,
                                  .sampling = sampling};
    int rc;

    for (uint32_t i = 0; i < prompt_count; i++)
        prompt[i] = 100 + i % 100;
    rc = scheduler_admit(s, &r, 1000, refusal, err);
    free(prompt);
    return rc;
}

static void admit(struct scheduler *s, uint64_t id, uint32_t prompt_count, uint32_t max_tokens)
{
    struct proto_sampling sampling = sampling_default(max_tokens);
    struct err err = {0};

    if (admit_sampling(s, 1, id, prompt_count, &sampling, NULL, &err))
        fail_msg("%s", err.msg);
}

/* One step whose sampled rows all give token; the single output. */
static struct proto_token turn(struct scheduler *s, uint32_t token)
{
    const struct scheduler_step *step = scheduler_plan(s, 0);
    const struct scheduler_output *out;
    uint32_t count;

    assert_non_null(step);
    out = apply(s, step, token, &count);
    assert_int_equal(count, 1);
    return out[0].token;
}

static struct scheduler_stats stats(const struct scheduler *s)
{
    struct scheduler_stats st;

    scheduler_stats(s, &st);
    return st;
}

static void assert_idle(struct scheduler *s)
{
    struct scheduler_stats st = stats(s);

    assert_null(scheduler_plan(s, 0));
    assert_int_equal(st.running, 0);
    assert_int_equal(st.waiting, 0);
    assert_int_equal(st.steps_in_flight, 0);
    assert_int_equal(st.pages_free, st.pages_total);
}

static void test_config_bounds(void **state)
{
    struct scheduler_config good = config_default(), c;
    struct scheduler *s;
    struct err err = {0};

    (void)state;
#define BAD(field, value)                                                                          \
    c = good;                                                                                      \
    c.field = value;                                                                               \
    assert_int_equal(scheduler_new(&c, &s, &err), ERR_INVALID)
    BAD(slots_max, 0);
    BAD(slots_max, SCHEDULER_SLOTS_MAX + 1);
    BAD(num_pages, 0);
    BAD(num_pages, SCHEDULER_PAGES_MAX + 1);
    BAD(page_size, 0);
    BAD(queued_max, 0);
    BAD(context_length, 1);
    BAD(vocab_size, 0);
    BAD(prefill_tokens_max, 0);
    BAD(prefill_tokens_max, -2);
    BAD(steps_in_flight_max, 0);
    BAD(steps_in_flight_max, SCHEDULER_STEPS_MAX + 1);
    BAD(policy, "none");
    BAD(conservativeness, -0.1);
    BAD(conservativeness, (double)NAN);
#undef BAD
    good.slots_max = SCHEDULER_SLOTS_MAX;
    s = make(&good);
    scheduler_free(&s);
    assert_null(s);
    scheduler_free(&s);
}

static void test_one_sequence(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler *s = make(&c);
    const struct scheduler_step *step;
    const struct scheduler_output *out;
    uint32_t count;

    (void)state;
    assert_null(scheduler_plan(s, 0));
    admit(s, 42, 5, 3);
    step = scheduler_plan(s, 5000);
    assert_non_null(step);
    assert_int_equal(step->message.step, 1);
    assert_int_equal(step->message.closed_count, 0);
    assert_int_equal(step->message.opened_count, 1);
    assert_int_equal(step->queue_us[0], 4000);
    assert_int_equal(step->message.opened[0].tokens_count, 5);
    assert_int_equal(step->message.opened[0].tokens[4], 104);
    assert_int_equal(step->message.opened[0].generated, 0);
    assert_int_equal(step->message.opened[0].sampling.max_tokens, 3);
    assert_int_equal(step->message.pages_count, 1);
    assert_int_equal(step->message.pages[0].first, 0);
    assert_int_equal(step->message.pages[0].pages_count, 2);
    assert_int_equal(step->message.rows_count, 1);
    assert_int_equal(step->message.rows[0].start, 0);
    assert_int_equal(step->message.rows[0].count, 5);
    assert_true(step->message.rows[0].sample);
    assert_null(scheduler_plan(s, 0)); /* one step in flight */
    out = apply(s, step, 500, &count);
    assert_int_equal(count, 1);
    assert_int_equal(out[0].owner, 1);
    assert_int_equal(out[0].token.sid, 42);
    assert_int_equal(out[0].token.index, 0);
    assert_int_equal(out[0].token.id, 500);
    assert_int_equal(out[0].token.finish, FINISH_NONE);

    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.opened_count, 0);
    assert_int_equal(step->message.pages_count, 0); /* position 5 is in the second page */
    assert_int_equal(step->message.rows[0].start, 5);
    assert_int_equal(step->message.rows[0].count, 1);
    out = apply(s, step, 501, &count);
    assert_int_equal(out[0].token.index, 1);
    assert_int_equal(turn(s, 502).finish, FINISH_LENGTH);
    assert_int_equal(stats(s).prompt_tokens, 5);
    assert_int_equal(stats(s).generation_tokens, 3);
    assert_int_equal(stats(s).steps, 3);
    assert_idle(s);

    admit(s, 43, 1, 1); /* the slot is told closed before it is opened again */
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.closed_count, 1);
    assert_int_equal(step->message.closed[0], step->message.opened[0].slot);
    (void)apply(s, step, 1, &count);
    assert_idle(s);
    scheduler_free(&s);
}

static void test_chunks_beside_decode(void **state)
{
    struct scheduler_config c = config_default();
    const struct scheduler_step *step;
    struct scheduler *s;
    uint32_t count;

    (void)state;
    c.prefill_tokens_max = 10;
    s = make(&c);
    admit(s, 1, 2, 20);
    (void)turn(s, 100);
    admit(s, 2, 25, 5);
    admit(s, 3, 3, 5);
    for (uint32_t at = 0; at < 18; at += 9) { /* a decode row, then what the budget leaves */
        step = scheduler_plan(s, 0);
        assert_int_equal(step->message.rows_count, 2);
        assert_int_equal(step->message.rows[0].count, 1);
        assert_int_equal(step->message.rows[1].start, at);
        assert_int_equal(step->message.rows[1].count, 9);
        assert_false(step->message.rows[1].sample);
        assert_int_equal(step->message.opened_count, at == 0);
        (void)apply(s, step, 100, &count);
        assert_int_equal(count, 1);
    }
    step = scheduler_plan(s, 0); /* its last 7, and the first 2 of the next */
    assert_int_equal(step->message.rows_count, 3);
    assert_int_equal(step->message.rows[1].count, 7);
    assert_true(step->message.rows[1].sample);
    assert_int_equal(step->message.rows[2].count, 2);
    assert_false(step->message.rows[2].sample);
    (void)apply(s, step, 100, &count);
    assert_int_equal(count, 2);
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.rows_count, 3);
    assert_int_equal(step->message.rows[2].start, 2);
    assert_int_equal(step->message.rows[2].count, 1);
    scheduler_free(&s);
}

/* A batch as large as the budget does not lock prompts out. */
static void test_budget_below_batch(void **state)
{
    struct scheduler_config c = config_default();
    const struct scheduler_step *step;
    struct scheduler *s;
    uint32_t count;

    (void)state;
    c.prefill_tokens_max = 2;
    s = make(&c);
    assert_int_equal(scheduler_tokens_max(s), 6);
    for (uint64_t i = 0; i < 3; i++) {
        admit(s, i, 1, 20);
        (void)apply(s, scheduler_plan(s, 0), 100, &count);
    }
    admit(s, 9, 6, 2);
    for (uint32_t at = 0; at < 6; at += 2) {
        step = scheduler_plan(s, 0);
        assert_int_equal(step->message.rows_count, 4);
        assert_int_equal(step->message.rows[3].start, at);
        assert_int_equal(step->message.rows[3].count, 2);
        (void)apply(s, step, 100, &count);
    }
    assert_int_equal(count, 4);
    scheduler_free(&s);
}

static void test_whole_prompts(void **state)
{
    struct scheduler_config c = config_default();
    const struct scheduler_step *step;
    struct scheduler *s;
    uint32_t count;

    (void)state;
    c.prefill_tokens_max = -1;
    s = make(&c);
    assert_int_equal(scheduler_tokens_max(s), 64 + 4);
    admit(s, 1, 40, 5);
    admit(s, 2, 30, 5); /* does not fit beside it: waits, uncut */
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.rows_count, 1);
    assert_int_equal(step->message.rows[0].count, 40);
    (void)apply(s, step, 100, &count);
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.rows_count, 2);
    assert_int_equal(step->message.rows[1].count, 30);
    assert_true(step->message.rows[1].sample);
    scheduler_free(&s);
}

static void test_context_bounds(void **state)
{
    struct scheduler_config c = config_default();
    struct proto_sampling sampling = sampling_default(0);
    struct scheduler_refusal refusal;
    struct err err = {0};
    struct scheduler *s = make(&c);
    const struct scheduler_step *step;
    uint32_t count;

    (void)state;
    assert_int_equal(admit_sampling(s, 1, 1, 64, &sampling, &refusal, &err), ERR_LIMIT);
    assert_non_null(strstr(err.msg, "64 tokens"));
    assert_non_null(strstr(err.msg, "holds 64"));
    assert_string_equal(refusal.param, "prompt");
    assert_string_equal(refusal.code, "context_length_exceeded");
    assert_int_equal(admit_sampling(s, 1, 1, 0, &sampling, &refusal, &err), ERR_INVALID);
    assert_string_equal(refusal.param, "prompt");
    assert_string_equal(refusal.code, "");

    admit(s, 1, 63, 0); /* room for one */
    for (int i = 0; i < 3; i++)
        (void)apply(s, scheduler_plan(s, 0), 100, &count);
    assert_int_equal(turn(s, 100).finish, FINISH_LENGTH);
    admit(s, 2, 60, 100); /* asked for more than the context holds: ends with it */
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.opened[0].sampling.max_tokens, 4);
    (void)apply(s, step, 100, &count);
    assert_int_equal(scheduler_abort(s, 1, 2), 0);
    assert_idle(s);
    scheduler_free(&s);
}

static void test_longest_prompt(void **state)
{
    struct scheduler_config c = config_default();
    struct proto_sampling sampling = sampling_default(1);
    struct scheduler_refusal refusal;
    const struct scheduler_step *step;
    struct err err = {0};
    struct scheduler *s;

    (void)state;
    c.context_length = 16777216;
    c.num_pages = 4194304;
    c.prefill_tokens_max = -1;
    s = make(&c);
    assert_int_equal(admit_sampling(s, 1, 1, 1048577, &sampling, &refusal, &err), ERR_INVALID);
    assert_string_equal(refusal.param, "prompt");
    admit(s, 1, 1048576, 1);
    step = scheduler_plan(s, 0);
    assert_non_null(step);
    assert_int_equal(step->message.rows[0].count, 1048576);
    assert_true(step->message.rows[0].sample);
    scheduler_free(&s);
}

/* With tokens that it had elsewhere it can be more than a step holds: it is cut after all. */
static void test_longer_than_a_step(void **state)
{
    struct scheduler_config c = config_default();
    const struct proto_sampling sampling = sampling_default(2);
    const uint32_t token = 100;
    struct scheduler_request r = {
        .owner = 1, .id = 1, .sampling = &sampling, .resumed = &token, .resumed_count = 1};
    const struct scheduler_step *step;
    struct err err = {0};
    struct scheduler *s;
    uint32_t count;

    (void)state;
    c.context_length = 16777216;
    c.num_pages = 4194304;
    c.prefill_tokens_max = -1;
    s = make(&c);
    r.prompt_count = 1048576;
    r.prompt = mem_array(r.prompt_count, sizeof *r.prompt);
    assert_int_equal(scheduler_admit(s, &r, 0, NULL, &err), 0);
    free((void *)(uintptr_t)r.prompt);
    step = scheduler_plan(s, 0);
    assert_non_null(step);
    assert_int_equal(step->message.rows[0].count, 1048576);
    assert_false(step->message.rows[0].sample);
    (void)apply(s, step, 100, &count);
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.rows[0].count, 1);
    assert_int_equal(apply(s, step, 100, &count)->token.index, 1);
    assert_idle(s);
    scheduler_free(&s);
}

/* Who has had all tokens that it may get has nothing to come here for. */
static void test_resumed_all(void **state)
{
    static const uint32_t ids[9];
    struct scheduler_config c = config_default();
    const struct proto_sampling sampling = sampling_default(5);
    struct scheduler_request r = {.owner = 1,
                                  .prompt = ids,
                                  .prompt_count = 9,
                                  .sampling = &sampling,
                                  .resumed = ids,
                                  .resumed_count = 5};
    struct scheduler *s = make(&c);
    struct scheduler_refusal refusal;
    struct err err = {0};

    (void)state;
    assert_int_equal(scheduler_admit(s, &r, 0, &refusal, &err), ERR_LIMIT);
    assert_string_equal(refusal.param, "resumed");
    assert_string_equal(refusal.code, "context_length_exceeded");
    assert_string_equal(err.msg, "5 tokens came already, there is room for 5");
    r.resumed_count = 4;
    assert_int_equal(scheduler_admit(s, &r, 0, &refusal, &err), 0);
    assert_string_equal(refusal.code, "");
    assert_int_equal(turn(s, 100).index, 4);
    assert_idle(s);
    scheduler_free(&s);
}

static void test_pool_bounds(void **state)
{
    struct scheduler_config c = config_default();
    struct proto_sampling sampling = sampling_default(9);
    struct scheduler_refusal refusal;
    struct err err = {0};
    const struct scheduler_step *step;
    struct scheduler *s;
    uint32_t count;

    (void)state;
    c.num_pages = 5; /* 20 tokens */
    s = make(&c);
    assert_int_equal(admit_sampling(s, 1, 1, 12, &sampling, &refusal, &err), ERR_LIMIT);
    assert_string_equal(refusal.param, "max_tokens");
    assert_non_null(strstr(err.msg, "need 6 KV pages"));
    assert_non_null(strstr(err.msg, "there are 5"));
    sampling = sampling_default(0);
    assert_int_equal(admit_sampling(s, 1, 1, 20, &sampling, &refusal, &err), ERR_LIMIT);
    assert_string_equal(refusal.param, "prompt");
    admit(s, 1, 12, 8); /* all of it */
    admit(s, 2, 1, 1);  /* waits although slots are free */
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.opened_count, 1);
    (void)apply(s, step, 100, &count);
    for (int i = 0; i < 6; i++)
        assert_int_equal(turn(s, 100).finish, FINISH_NONE);
    assert_int_equal(stats(s).waiting, 1);
    assert_int_equal(turn(s, 100).finish, FINISH_LENGTH);
    assert_int_equal(turn(s, 100).sid, 2);
    assert_idle(s);
    admit(s, 3, 12, 0); /* as many as fit into the pool */
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.opened[0].sampling.max_tokens, 8);
    scheduler_free(&s);
}

/* The first of the queue is not passed by smaller ones for good. */
static void test_fcfs_holds_the_line(void **state)
{
    struct scheduler_config c = config_default();
    const struct scheduler_step *step;
    struct scheduler *s;
    uint32_t count;

    (void)state;
    c.num_pages = 5;
    s = make(&c);
    admit(s, 1, 4, 4);
    admit(s, 2, 12, 8);
    admit(s, 3, 1, 1);
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.opened_count, 1);
    (void)apply(s, step, EOS, &count);
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.opened_count, 1);
    assert_int_equal(step->message.opened[0].tokens_count, 12);
    scheduler_free(&s);
}

static void test_queue_bound(void **state)
{
    struct scheduler_config c = config_default();
    struct proto_sampling sampling = sampling_default(5);
    struct err err = {0};
    struct scheduler *s = make(&c);
    uint32_t count;

    (void)state;
    for (uint64_t i = 0; i < 12; i++) /* 4 slots are free and 8 may wait */
        admit(s, i, 1, 5);
    assert_int_equal(admit_sampling(s, 1, 12, 1, &sampling, NULL, &err), ERR_BUSY);
    (void)apply(s, scheduler_plan(s, 0), 100, &count);
    assert_int_equal(count, 4);
    assert_int_equal(stats(s).waiting, 8);
    assert_int_equal(admit_sampling(s, 1, 12, 1, &sampling, NULL, &err), ERR_BUSY);
    assert_int_equal(scheduler_abort(s, 1, 11), 0);
    assert_int_equal(admit_sampling(s, 1, 12, 1, &sampling, NULL, &err), 0);
    assert_int_equal(admit_sampling(s, 1, 12, 1, &sampling, NULL, &err), ERR_INVALID);
    scheduler_free(&s);
}

static void test_request_checks(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler *s = make(&c);
    struct scheduler_refusal refusal;
    struct proto_sampling p;
    struct err err = {0};
    uint32_t ids[] = {1, VOCAB};
    struct proto_bias bias[] = {{5, 1}, {VOCAB, 1}};
    struct scheduler_request bad_id = {
        .owner = 1, .id = 1, .prompt = ids, .prompt_count = 2, .sampling = &p};

    (void)state;
#define BAD(field, value)                                                                          \
    p = sampling_default(5);                                                                       \
    p.field = value;                                                                               \
    err.msg[0] = '\0';                                                                             \
    assert_int_equal(admit_sampling(s, 1, 1, 3, &p, &refusal, &err), ERR_INVALID);                 \
    assert_string_equal(refusal.param, #field);                                                    \
    assert_non_null(strstr(err.msg, #field))
    BAD(temperature, NAN);
    BAD(temperature, -0.5);
    BAD(temperature, INFINITY);
    BAD(top_p, 0);
    BAD(top_p, 1.5);
    BAD(top_k, -2);
    BAD(min_p, -1);
    BAD(presence_penalty, 2.5);
    BAD(frequency_penalty, -2.5);
    BAD(repetition_penalty, 0);
    BAD(max_tokens, 1048577);
    BAD(min_tokens, 6);
    BAD(logprobs, 21);
    BAD(logprobs, -2);
    BAD(priority, 1000001);
#undef BAD
    p = sampling_default(5);
    assert_int_equal(scheduler_admit(s, &bad_id, 0, &refusal, &err), ERR_INVALID);
    assert_string_equal(refusal.param, "prompt");
    p.stop_token_ids = ids;
    p.stop_token_ids_count = 2;
    assert_int_equal(admit_sampling(s, 1, 1, 3, &p, &refusal, &err), ERR_INVALID);
    assert_string_equal(refusal.param, "stop_token_ids");
    p.stop_token_ids_count = 1;
    p.logit_bias = bias;
    p.logit_bias_count = 2;
    assert_int_equal(admit_sampling(s, 1, 1, 3, &p, &refusal, &err), ERR_INVALID);
    assert_string_equal(refusal.param, "logit_bias");
    p.logit_bias_count = 1025;
    assert_int_equal(admit_sampling(s, 1, 1, 3, &p, &refusal, &err), ERR_INVALID);
    assert_string_equal(refusal.param, "logit_bias");
    p.logit_bias_count = 1;
    p.stop_token_ids_count = 129;
    assert_int_equal(admit_sampling(s, 1, 1, 3, &p, &refusal, &err), ERR_INVALID);
    assert_string_equal(refusal.param, "stop_token_ids");
    p.stop_token_ids_count = 1;
    bias[0].value = NAN;
    assert_int_equal(admit_sampling(s, 1, 1, 3, &p, &refusal, &err), ERR_INVALID);
    bias[0].value = -100;
    assert_int_equal(admit_sampling(s, 1, 1, 3, &p, &refusal, &err), 0);
    assert_int_equal(stats(s).waiting, 1);
    scheduler_free(&s);
}

static void test_ends(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler *s = make(&c);
    struct proto_sampling p = sampling_default(10);
    uint32_t stop[] = {300, 301};
    struct err err = {0};

    (void)state;
    admit(s, 1, 3, 10);
    assert_int_equal(turn(s, 9).finish, FINISH_NONE);
    assert_int_equal(turn(s, 8).finish, FINISH_STOP); /* the second end token */
    assert_idle(s);

    p.stop_token_ids = stop;
    p.stop_token_ids_count = 2;
    p.ignore_eos = true;
    p.min_tokens = 2;
    assert_int_equal(admit_sampling(s, 1, 1, 3, &p, NULL, &err), 0);
    assert_int_equal(turn(s, 301).finish, FINISH_NONE); /* below min_tokens */
    assert_int_equal(turn(s, 301).finish, FINISH_NONE);
    assert_int_equal(turn(s, EOS).finish, FINISH_NONE);
    assert_int_equal(turn(s, 301).finish, FINISH_STOP);
    assert_idle(s);

    p = sampling_default(0); /* min_tokens over what the context leaves */
    p.min_tokens = 1048576;
    assert_int_equal(admit_sampling(s, 1, 1, 61, &p, NULL, &err), 0);
    for (int i = 0; i < 3; i++) {
        const struct scheduler_output *out;
        uint32_t count;

        out = apply(s, scheduler_plan(s, 0), EOS, &count);
        assert_int_equal(count, 0);
        (void)out;
    }
    assert_int_equal(turn(s, EOS).finish, FINISH_NONE);
    assert_int_equal(turn(s, EOS).finish, FINISH_NONE);
    assert_int_equal(turn(s, EOS).finish, FINISH_LENGTH);
    assert_idle(s);

    admit(s, 1, 3, 1); /* end token and length at once: it stopped */
    assert_int_equal(turn(s, EOS).finish, FINISH_STOP);
    assert_idle(s);
    scheduler_free(&s);
}

static void test_abort_states(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler *s = make(&c);
    const struct scheduler_step *step;
    uint32_t count;

    (void)state;
    assert_int_equal(scheduler_abort(s, 1, 1), ERR_NOT_FOUND);
    admit(s, 1, 3, 5); /* waiting */
    assert_int_equal(scheduler_abort(s, 2, 1), ERR_NOT_FOUND);
    assert_int_equal(scheduler_abort(s, 1, 1), 0);
    assert_int_equal(scheduler_abort(s, 1, 1), ERR_NOT_FOUND);
    assert_idle(s);

    admit(s, 1, 20, 5); /* prefilling, between steps */
    (void)apply(s, scheduler_plan(s, 0), 100, &count);
    assert_int_equal(count, 0);
    assert_int_equal(stats(s).pages_free, 60);
    assert_int_equal(scheduler_abort(s, 1, 1), 0);
    assert_idle(s);

    admit(s, 1, 3, 5); /* running, between steps */
    (void)turn(s, 100);
    assert_int_equal(scheduler_abort(s, 1, 1), 0);
    assert_idle(s);

    admit(s, 1, 3, 5); /* in flight: pages come back with the step, the token is dropped */
    step = scheduler_plan(s, 0);
    assert_int_equal(scheduler_abort(s, 1, 1), 0);
    assert_int_equal(scheduler_abort(s, 1, 1), ERR_NOT_FOUND);
    assert_int_equal(stats(s).running, 0);
    assert_int_equal(stats(s).pages_free, 63);
    assert_int_equal(stats(s).slots_free, 3);
    admit(s, 1, 3, 5); /* the id is free again */
    (void)apply(s, step, 100, &count);
    assert_int_equal(count, 0);
    assert_int_equal(stats(s).surplus_tokens, 1);
    assert_int_equal(stats(s).slots_free, 4);
    assert_int_equal(turn(s, 100).index, 0);
    step = scheduler_plan(s, 0); /* freed with a step in flight */
    assert_int_equal(scheduler_abort(s, 1, 1), 0);
    assert_non_null(step);
    scheduler_free(&s);
}

static void test_abort_owner(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler *s = make(&c);
    struct proto_sampling p = sampling_default(5);
    const struct scheduler_output *out;
    struct err err = {0};
    uint32_t count;

    (void)state;
    for (uint64_t i = 0; i < 6; i++) /* the same ids of two owners */
        assert_int_equal(admit_sampling(s, i % 2, i / 2, 3, &p, NULL, &err), 0);
    (void)apply(s, scheduler_plan(s, 0), 100, &count);
    assert_int_equal(count, 4);
    assert_int_equal(scheduler_abort_owner(s, 0), 3);
    assert_int_equal(scheduler_abort_owner(s, 0), 0);
    out = apply(s, scheduler_plan(s, 0), 100, &count);
    assert_int_equal(count, 3);
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(out[i].owner, 1);
    scheduler_free(&s);
}

static void test_result_checks(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler *s = make(&c);
    const struct scheduler_output *out;
    struct proto_sampled r[2] = {{.slot = 0, .id = 1}, {.slot = 1, .id = 1}};
    struct err err = {0};
    uint32_t count;

    (void)state;
    assert_int_equal(scheduler_apply(s, 1, r, 1, &out, &count, &err), ERR_PROTOCOL);
    admit(s, 1, 3, 5);
    assert_non_null(scheduler_plan(s, 0));
    assert_int_equal(scheduler_apply(s, 2, r, 1, &out, &count, &err), ERR_PROTOCOL);
    assert_int_equal(scheduler_apply(s, 0, r, 1, &out, &count, &err), ERR_PROTOCOL);
    assert_int_equal(scheduler_apply(s, 1, NULL, 0, &out, &count, &err), ERR_PROTOCOL);
    assert_int_equal(scheduler_apply(s, 1, r, 2, &out, &count, &err), ERR_PROTOCOL);
    r[0].slot = 1;
    assert_int_equal(scheduler_apply(s, 1, r, 1, &out, &count, &err), ERR_PROTOCOL);
    r[0] = (struct proto_sampled){.slot = 0, .id = VOCAB};
    assert_int_equal(scheduler_apply(s, 1, r, 1, &out, &count, &err), ERR_PROTOCOL);
    r[0].id = VOCAB - 1;
    assert_int_equal(scheduler_apply(s, 1, r, 1, &out, &count, &err), 0);
    assert_int_equal(count, 1);
    assert_int_equal(scheduler_apply(s, 1, r, 1, &out, &count, &err), ERR_PROTOCOL);
    scheduler_free(&s);
}

/* With two steps in flight an end is noticed late, and what it held waits for the late step. */
static void test_late_end(void **state)
{
    struct scheduler_config c = config_default();
    const struct scheduler_step *step;
    const struct scheduler_output *out;
    struct proto_sampled r = {.slot = 0};
    struct err err = {0};
    struct scheduler *s;
    uint32_t count;

    (void)state;
    c.steps_in_flight_max = 2;
    c.slots_max = 1;
    s = make(&c);
    admit(s, 1, 4, 5);
    admit(s, 2, 4, 1);
    assert_non_null(scheduler_plan(s, 0));
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.rows[0].start, 4); /* of a token not known yet */
    assert_null(scheduler_plan(s, 0));
    r.id = EOS;
    assert_int_equal(scheduler_apply(s, 1, &r, 1, &out, &count, &err), 0);
    assert_int_equal(out[0].token.finish, FINISH_STOP);
    assert_int_equal(stats(s).slots_free, 0);
    assert_int_equal(stats(s).pages_free, 62);
    assert_null(scheduler_plan(s, 0)); /* step 2 still writes to the one slot */
    r.id = 100;
    assert_int_equal(scheduler_apply(s, 2, &r, 1, &out, &count, &err), 0);
    assert_int_equal(count, 0);
    assert_int_equal(stats(s).surplus_tokens, 1);
    assert_int_equal(stats(s).pages_free, 64);
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.closed_count, 1);
    assert_int_equal(step->message.opened_count, 1);
    assert_null(scheduler_plan(s, 0)); /* an end by length is known ahead: no surplus row */
    assert_int_equal(scheduler_apply(s, 3, &r, 1, &out, &count, &err), 0);
    assert_int_equal(out[0].token.finish, FINISH_LENGTH);
    assert_int_equal(stats(s).surplus_tokens, 1);
    assert_idle(s);
    scheduler_free(&s);
}

/* Ended, its newest step in flight, and freed with everything. */
static void test_free_with_steps_in_flight(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler *s;

    (void)state;
    c.steps_in_flight_max = 2;
    s = make(&c);
    admit(s, 1, 4, 5);
    admit(s, 2, 4, 5);
    assert_non_null(scheduler_plan(s, 0));
    assert_non_null(scheduler_plan(s, 0));
    assert_int_equal(scheduler_abort(s, 1, 1), 0);
    scheduler_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_bounds),
        cmocka_unit_test(test_one_sequence),
        cmocka_unit_test(test_chunks_beside_decode),
        cmocka_unit_test(test_budget_below_batch),
        cmocka_unit_test(test_whole_prompts),
        cmocka_unit_test(test_context_bounds),
        cmocka_unit_test(test_longest_prompt),
        cmocka_unit_test(test_longer_than_a_step),
        cmocka_unit_test(test_resumed_all),
        cmocka_unit_test(test_pool_bounds),
        cmocka_unit_test(test_fcfs_holds_the_line),
        cmocka_unit_test(test_queue_bound),
        cmocka_unit_test(test_request_checks),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_abort_states),
        cmocka_unit_test(test_abort_owner),
        cmocka_unit_test(test_result_checks),
        cmocka_unit_test(test_late_end),
        cmocka_unit_test(test_free_with_steps_in_flight),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

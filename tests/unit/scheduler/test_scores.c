/* Log probabilities of prompt tokens: every position once, whatever happens on the way. */
#include "services/scheduler/core.h"

#include "common/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define VOCAB 100000u
#define STEP_MAX 2048u /* of proto/limits.def */

static struct scheduler_config config_default(void)
{
    return (struct scheduler_config){
        .slots_max = 4,
        .queued_max = 8,
        .page_size = 4,
        .num_pages = 4096,
        .prefill_tokens_max = 16,
        .context_length = 8192,
        .vocab_size = VOCAB,
        .steps_in_flight_max = 2,
        .policy = "fcfs",
        .prefix_cache = true,
        .conservativeness = 1,
        .prompt_logprobs = true,
    };
}

static struct scheduler *make(const struct scheduler_config *c)
{
    struct scheduler *s = NULL;
    struct err err = {0};

    if (scheduler_new(c, &s, &err))
        fail_msg("%s", err.msg);
    return s;
}

static int try_admit(struct scheduler *s, uint64_t id, uint32_t count, uint32_t max_tokens,
                     bool scores, int64_t logprobs, struct scheduler_refusal *refusal)
{
    uint32_t *prompt = mem_array(count, sizeof *prompt);
    struct proto_sampling sampling = {.temperature = 1,
                                      .top_p = 1,
                                      .top_k = -1,
                                      .repetition_penalty = 1,
                                      .max_tokens = max_tokens,
                                      .logprobs = logprobs,
                                      .prompt_logprobs = scores};
    struct scheduler_request r = {
        .owner = 1, .id = id, .prompt = prompt, .prompt_count = count, .sampling = &sampling};
    struct err err = {0};
    int rc;

    for (uint32_t i = 0; i < count; i++)
        prompt[i] = i;
    rc = scheduler_admit(s, &r, 1000, refusal, &err);
    free(prompt);
    return rc;
}

static void admit(struct scheduler *s, uint64_t id, uint32_t count, uint32_t max_tokens,
                  bool scores)
{
    assert_int_equal(try_admit(s, id, count, max_tokens, scores, 0, NULL), 0);
}

/* What came out of sequences 0 .. 7. */
struct seen {
    uint32_t next[8]; /* prompt token whose log probability comes next */
    uint32_t tokens[8];
    uint32_t steps;
    uint32_t most; /* scores of a step */
};

static struct proto_logprob list[8192];

static const struct proto_score *score_of(const struct proto_step *m, uint32_t slot)
{
    for (uint32_t i = 0; i < m->scores_count; i++)
        if (m->scores[i].slot == slot)
            return &m->scores[i];
    return NULL;
}

/* Applies a step; the log probability of the token after position p is -p. */
static void apply(struct scheduler *s, const struct proto_step *m, struct seen *seen)
{
    const struct scheduler_output *out;
    struct proto_sampled results[8];
    struct err err = {0};
    uint32_t n = 0, count, used = 0;

    for (uint32_t i = 0; i < m->rows_count; i++) {
        const struct proto_score *score = score_of(m, m->rows[i].slot);

        if (!score && !m->rows[i].sample)
            continue;
        results[n] = (struct proto_sampled){.slot = m->rows[i].slot, .prompt = list + used};
        if (score) {
            assert_true(score->start >= m->rows[i].start);
            assert_true(score->start + score->count <= m->rows[i].start + m->rows[i].count);
            results[n].prompt_count = score->count;
            for (uint32_t k = 0; k < score->count; k++)
                list[used++].logprob = -(double)(score->start + k);
        }
        n++;
    }
    seen->most = used > seen->most ? used : seen->most;
    if (scheduler_apply(s, m->step, results, n, &out, &count, &err))
        fail_msg("%s", err.msg);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t sid = out[i].token.sid;

        for (uint32_t k = 0; k < out[i].prompt.logprobs_count; k++) {
            assert_int_equal(out[i].prompt.start + k, seen->next[sid]);
            assert_true(out[i].prompt.logprobs[k].logprob == 1.0 - seen->next[sid]);
            seen->next[sid]++;
        }
        seen->tokens[sid] += out[i].chosen;
    }
    seen->steps++;
}

static void run(struct scheduler *s, struct seen *seen)
{
    const struct scheduler_step *step;

    for (int i = 0; i < 8; i++)
        seen->next[i] = seen->next[i] ? seen->next[i] : 1;
    while ((step = scheduler_plan(s, 0)))
        apply(s, &step->message, seen);
}

static void test_chunks(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler *s = make(&c);
    struct seen seen = {0};

    (void)state;
    admit(s, 1, 50, 3, true);
    admit(s, 2, 1, 2, true);
    admit(s, 3, 30, 2, false);
    run(s, &seen);
    assert_int_equal(seen.next[1], 50);
    assert_int_equal(seen.tokens[1], 3);
    assert_int_equal(seen.next[2], 1); /* no token follows another */
    assert_int_equal(seen.tokens[2], 2);
    assert_int_equal(seen.next[3], 1);
    assert_int_equal(seen.tokens[3], 2);
    scheduler_free(&s);
}

/* Cached pages do not keep a position from being scored, and those scored are shared later. */
static void test_cache(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler *s = make(&c);
    struct scheduler_stats stats;
    struct seen seen = {0};

    (void)state;
    admit(s, 1, 50, 3, false);
    run(s, &seen);
    admit(s, 2, 50, 3, true);
    run(s, &seen);
    scheduler_stats(s, &stats);
    assert_int_equal(stats.prefix_hits, 0);
    assert_int_equal(seen.next[2], 50);
    admit(s, 3, 50, 3, false);
    run(s, &seen);
    scheduler_stats(s, &stats);
    assert_int_equal(stats.prefix_hits, 48);
    assert_int_equal(stats.pages_free, stats.pages_total);
    scheduler_free(&s);
}

/* The answer to a step is bounded, even where prompts are not cut. */
static void test_bound(void **state)
{
    struct scheduler_config c = config_default();
    struct seen seen = {0};
    struct scheduler *s;

    (void)state;
    c.prefill_tokens_max = -1;
    s = make(&c);
    admit(s, 1, 5000, 2, true);
    admit(s, 2, 3000, 2, true);
    admit(s, 3, 300, 2, false);
    run(s, &seen);
    assert_int_equal(seen.next[1], 5000);
    assert_int_equal(seen.next[2], 3000);
    assert_int_equal(seen.tokens[1] + seen.tokens[2] + seen.tokens[3], 6);
    assert_int_equal(seen.most, STEP_MAX);
    scheduler_free(&s);
}

/* A prompt that takes all scores of a step to its end: another one with scores starts with the
 * next, and those behind it stay behind it. */
static void test_bound_reached(void **state)
{
    struct scheduler_config c = config_default();
    const struct scheduler_step *step;
    struct seen seen = {.next = {0, 1, 1}};
    struct scheduler *s;

    (void)state;
    c.prefill_tokens_max = -1;
    s = make(&c);
    admit(s, 1, STEP_MAX + 1, 2, true);
    admit(s, 2, 300, 2, true);
    admit(s, 3, 300, 2, false);
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.opened_count, 1);
    assert_int_equal(step->message.rows[0].count, STEP_MAX + 1);
    assert_int_equal(step->message.scores[0].count, STEP_MAX);
    apply(s, &step->message, &seen);
    step = scheduler_plan(s, 0);
    assert_int_equal(step->message.opened_count, 2);
    apply(s, &step->message, &seen);
    run(s, &seen);
    assert_int_equal(seen.next[1], STEP_MAX + 1);
    assert_int_equal(seen.next[2], 300);
    assert_int_equal(seen.tokens[1] + seen.tokens[2] + seen.tokens[3], 6);
    scheduler_free(&s);
}

/* Retracted ones are computed again and scored no more than once. */
static void test_pressure(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler_stats stats;
    struct seen seen = {0};
    struct scheduler *s;

    (void)state;
    c.num_pages = 40;
    c.conservativeness = 0; /* all start at once, and then there are not enough pages */
    for (int cache = 0; cache < 2; cache++) {
        seen = (struct seen){0};
        c.prefix_cache = cache;
        s = make(&c);
        for (uint64_t id = 1; id <= 4; id++)
            admit(s, id, 37, 60, true);
        run(s, &seen);
        scheduler_stats(s, &stats);
        assert_true(stats.preemptions > 0);
        for (int id = 1; id <= 4; id++) {
            assert_int_equal(seen.next[id], 37);
            assert_int_equal(seen.tokens[id], 60);
        }
        assert_int_equal(stats.pages_free, stats.pages_total);
        scheduler_free(&s);
    }
}

/* Retracted in the middle of its prompt: the rest is scored when it is computed again. */
static void test_half_a_prompt(void **state)
{
    struct scheduler_config c = config_default();

    (void)state;
    c.num_pages = 30;
    c.prefill_tokens_max = 4;
    c.conservativeness = 0;
    for (int cache = 0; cache < 2; cache++) {
        struct seen seen = {.next = {1, 1, 1}};
        const struct scheduler_step *step;
        struct scheduler_stats stats = {0};
        struct scheduler *s;

        c.prefix_cache = cache;
        s = make(&c);
        admit(s, 1, 8, 90, true);
        admit(s, 2, 100, 2, true);
        while (!stats.preemptions && (step = scheduler_plan(s, 0))) {
            apply(s, &step->message, &seen);
            scheduler_stats(s, &stats);
        }
        assert_true(stats.preemptions && seen.next[2] > 20 && seen.next[2] < 100);
        run(s, &seen);
        assert_int_equal(seen.next[1], 8);
        assert_int_equal(seen.next[2], 100);
        assert_int_equal(seen.tokens[1], 90);
        assert_int_equal(seen.tokens[2], 2);
        scheduler_free(&s);
    }
}

static void test_refusals(void **state)
{
    struct scheduler_config c = config_default();
    struct scheduler_refusal refusal;
    struct scheduler *s = make(&c);

    (void)state;
    assert_int_equal(try_admit(s, 1, 10, 2, true, -1, &refusal), ERR_INVALID);
    assert_string_equal(refusal.param, "logprobs");
    scheduler_free(&s);
    c.context_length = 65536;
    c.num_pages = 65536;
    s = make(&c);
    assert_int_equal(try_admit(s, 1, 30000, 2, true, 20, &refusal), ERR_INVALID);
    assert_string_equal(refusal.param, "logprobs");
    assert_int_equal(try_admit(s, 1, 30000, 2, true, 2, &refusal), 0);
    scheduler_free(&s);
    c.prompt_logprobs = false;
    s = make(&c);
    assert_int_equal(try_admit(s, 1, 10, 2, true, 0, &refusal), ERR_INVALID);
    assert_string_equal(refusal.code, "unsupported_field");
    scheduler_free(&s);
}

/* An answer with scores that were not asked for, or without those that were. */
static void test_bad_results(void **state)
{
    struct scheduler_config c = config_default();
    const struct scheduler_output *out;
    struct proto_sampled r = {.prompt = list, .prompt_count = 9};
    struct scheduler *s = make(&c);
    struct err err = {0};
    uint32_t count;

    (void)state;
    admit(s, 1, 11, 2, true);
    assert_non_null(scheduler_plan(s, 0));
    assert_int_equal(scheduler_apply(s, 1, &r, 1, &out, &count, &err), ERR_PROTOCOL);
    assert_non_null(strstr(err.msg, "9 scores, not 10"));
    r.prompt_count = 10;
    assert_int_equal(scheduler_apply(s, 1, &r, 1, &out, &count, &err), 0);
    assert_non_null(scheduler_plan(s, 0));
    assert_int_equal(scheduler_apply(s, 2, &r, 1, &out, &count, &err), ERR_PROTOCOL);
    scheduler_free(&s);
}

/* The ranks are lost after each of the first steps: nothing is scored or chosen twice. */
static void test_ranks_lost(void **state)
{
    struct scheduler_config c = config_default();
    const struct scheduler_failure *failed;

    (void)state;
    for (uint32_t steps = 0; steps < 8; steps++) {
        struct scheduler *s = make(&c);
        struct seen seen = {.next = {1, 1, 1}};

        admit(s, 0, 70, 4, true);
        admit(s, 1, 30, 4, false);
        for (uint32_t i = 0; i < steps; i++)
            apply(s, &scheduler_plan(s, 0)->message, &seen);
        (void)scheduler_plan(s, 0); /* on its way when they are lost */
        assert_int_equal(scheduler_group_lost(s, &failed), 0);
        assert_null(scheduler_plan(s, 0));
        admit(s, 2, 9, 1, true);
        assert_int_equal(scheduler_group_joined(s, 64, &failed), 0);
        run(s, &seen);
        assert_int_equal(seen.next[0], 70);
        assert_int_equal(seen.next[1], 1);
        assert_int_equal(seen.next[2], 9);
        assert_int_equal(seen.tokens[0], 4);
        assert_int_equal(seen.tokens[1], 4);
        scheduler_free(&s);
    }
}

/* A prompt whose tokens were resumed has been scored. */
static void test_resumed(void **state)
{
    static const uint32_t ids[10];
    struct scheduler_config c = config_default();
    struct scheduler *s = make(&c);
    struct seen seen = {.next = {0}};
    const struct proto_sampling sampling = {
        .top_p = 1, .repetition_penalty = 1, .max_tokens = 5, .prompt_logprobs = true};
    const struct scheduler_request r = {.owner = 1,
                                        .prompt = ids,
                                        .prompt_count = 10,
                                        .sampling = &sampling,
                                        .resumed = ids,
                                        .resumed_count = 2};

    (void)state;
    assert_int_equal(scheduler_admit(s, &r, 0, NULL, NULL), 0);
    run(s, &seen);
    assert_int_equal(seen.next[0], 1);
    assert_int_equal(seen.tokens[0], 3);
    scheduler_free(&s);
}

/* Fewer pages than before: one line for each that can not go on, and less for those who asked for
 * as much as there is. */
static void test_fewer_pages(void **state)
{
    struct scheduler_config c = config_default();
    const struct scheduler_failure *failed;
    struct seen seen = {.next = {0}};
    struct scheduler *s;

    (void)state;
    c.num_pages = 32;
    s = make(&c);
    admit(s, 0, 40, 60, false);
    admit(s, 1, 40, 0, false);
    admit(s, 2, 40, 20, false);
    apply(s, &scheduler_plan(s, 0)->message, &seen);
    assert_int_equal(scheduler_group_lost(s, &failed), 0);
    assert_int_equal(scheduler_group_joined(s, 16, &failed), 1);
    assert_int_equal(failed[0].id, 0);
    assert_int_equal(failed[0].owner, 1);
    assert_string_equal(failed[0].code, "unavailable");
    assert_string_equal(failed[0].message, "40 prompt tokens and 60 new ones need 25 KV pages of 4 "
                                           "tokens, there are 16");
    run(s, &seen);
    assert_int_equal(seen.tokens[1], 16 * 4 - 40);
    assert_int_equal(seen.tokens[2], 20);
    scheduler_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunks),      cmocka_unit_test(test_cache),
        cmocka_unit_test(test_bound),       cmocka_unit_test(test_bound_reached),
        cmocka_unit_test(test_pressure),    cmocka_unit_test(test_half_a_prompt),
        cmocka_unit_test(test_refusals),    cmocka_unit_test(test_bad_results),
        cmocka_unit_test(test_ranks_lost),  cmocka_unit_test(test_resumed),
        cmocka_unit_test(test_fewer_pages),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

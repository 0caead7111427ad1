/* Steps as a broken scheduler might send them: each is refused by one line. */
#include "services/worker/slots.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static const struct slots_config config = {.num_slots = 4,
                                           .num_pages = 10,
                                           .page_size = 4,
                                           .tokens_max = 16,
                                           .context_max = 18,
                                           .vocab_size = 100};

/* A step with room for a little of everything. */
struct script {
    struct proto_step step;
    uint32_t closed[2], tokens[20], page_list[8], stop_ids[1];
    struct proto_bias bias;
    struct proto_slot_open opened[2];
    struct proto_slot_pages pages[2];
    struct proto_row rows[4];
    struct proto_score scores[2];
};

static const struct proto_sampling plain = {
    .temperature = 1, .top_p = 1, .top_k = -1, .repetition_penalty = 1, .logprobs = -1};

static void script_init(struct script *s, uint64_t step)
{
    *s = (struct script){0};
    s->step = (struct proto_step){.step = step,
                                  .closed = s->closed,
                                  .opened = s->opened,
                                  .pages = s->pages,
                                  .rows = s->rows,
                                  .scores = s->scores};
    for (int i = 0; i < 2; i++) {
        s->opened[i] = (struct proto_slot_open){.tokens = s->tokens, .sampling = plain};
        s->opened[i].sampling.stop_token_ids = s->stop_ids;
        s->opened[i].sampling.logit_bias = &s->bias;
        s->pages[i].pages = s->page_list;
    }
}

/* Slot 1 opened with 6 tokens, pages 0 and 1, all computed, one token sampled. */
static void begin(struct slots *slots, struct script *s)
{
    struct err err = {0};

    slots_init(slots, &config);
    script_init(s, 1);
    s->step.opened_count = s->step.pages_count = s->step.rows_count = 1;
    s->opened[0].slot = s->pages[0].slot = 1;
    s->opened[0].tokens_count = 6;
    s->pages[0].pages_count = 2;
    s->page_list[1] = 1;
    s->rows[0] = (struct proto_row){1, 0, 6, true};
    if (slots_apply(slots, &s->step, &err))
        fail_msg("%s", err.msg);
    script_init(s, 2);
}

static void refused(struct slots *slots, struct script *s, const char *text)
{
    struct err err = {0};

    if (slots_apply(slots, &s->step, &err) == 0)
        fail_msg("accepted: %s", text);
    if (!strstr(err.msg, text) || strncmp(err.msg, "step ", 5))
        fail_msg("expected \"%s\" in \"%s\"", text, err.msg);
    slots_fini(slots);
}

static void a_sequence_lives(void **state)
{
    struct slots slots;
    struct script s;
    struct err err = {0};

    (void)state;
    begin(&slots, &s);
    assert_int_equal(slots.views[1].known, 7);
    assert_int_equal(slots.views[1].generated, 1);
    s.step.rows_count = 1;
    s.rows[0] = (struct proto_row){1, 6, 1, true};
    assert_int_equal(slots_apply(&slots, &s.step, &err), 0);
    assert_int_equal(slots.views[1].known, 8);
    script_init(&s, 3);
    s.step.closed_count = s.step.opened_count = 1;
    s.closed[0] = s.opened[0].slot = 1; /* closed and opened anew in one step */
    s.opened[0].tokens_count = 18;
    s.opened[0].generated = 18;
    assert_int_equal(slots_apply(&slots, &s.step, &err), 0);
    assert_int_equal(slots.views[1].generated, 18);
    assert_int_equal(slots.views[1].pages, 0);
    slots_fini(&slots);
}

static void bad_slots(void **state)
{
    struct slots slots;
    struct script s;

    (void)state;
    begin(&slots, &s);
    s.step.step = 3;
    refused(&slots, &s, "step 3 after step 1");
    begin(&slots, &s);
    s.step.closed_count = 1;
    s.closed[0] = 4;
    refused(&slots, &s, "slot 4, there are 4");
    begin(&slots, &s);
    s.step.closed_count = 1;
    s.closed[0] = 2;
    refused(&slots, &s, "slot 2 is not open");
    begin(&slots, &s);
    s.step.closed_count = 2;
    s.closed[0] = s.closed[1] = 1;
    refused(&slots, &s, "slot 1 is not open");
    begin(&slots, &s);
    s.step.opened_count = 1;
    s.opened[0].slot = 1;
    s.opened[0].tokens_count = 1;
    refused(&slots, &s, "slot 1 is open");
}

static void bad_openings(void **state)
{
    struct slots slots;
    struct script s;

    (void)state;
#define OPENING(text, ...)                                                                         \
    begin(&slots, &s);                                                                             \
    s.step.opened_count = 1;                                                                       \
    s.opened[0].tokens_count = 3;                                                                  \
    __VA_ARGS__;                                                                                   \
    refused(&slots, &s, text)
    OPENING("slot 0: 0 tokens", s.opened[0].tokens_count = 0);
    OPENING("slot 0: 19 tokens, the range is 1 to 18", s.opened[0].tokens_count = 19);
    OPENING("slot 0: 4 of 3 tokens generated", s.opened[0].generated = 4);
    OPENING("slot 0: token id 100, the vocabulary has 100", s.tokens[2] = 100);
    OPENING("slot 0: sampling: temperature is nan", s.opened[0].sampling.temperature = NAN);
    OPENING("slot 0: sampling: temperature is -1", s.opened[0].sampling.temperature = -1);
    OPENING("slot 0: sampling: top_p is 0", s.opened[0].sampling.top_p = 0);
    OPENING("slot 0: sampling: logprobs is 21", s.opened[0].sampling.logprobs = 21);
    OPENING("slot 0: sampling: stop id 100", s.stop_ids[0] = 100;
            s.opened[0].sampling.stop_token_ids_count = 1);
    OPENING("slot 0: sampling: logit_bias of id 100", s.bias.id = 100;
            s.opened[0].sampling.logit_bias_count = 1);
    OPENING("slot 0: sampling: logit_bias of id 5", s.bias = (struct proto_bias){5, INFINITY};
            s.opened[0].sampling.logit_bias_count = 1);
#undef OPENING
}

static void bad_pages(void **state)
{
    struct slots slots;
    struct script s;

    (void)state;
#define PAGES(text, page_slot, page_first, count, page)                                            \
    begin(&slots, &s);                                                                             \
    s.step.pages_count = 1;                                                                        \
    s.pages[0].slot = page_slot;                                                                   \
    s.pages[0].first = page_first;                                                                 \
    s.pages[0].pages_count = count;                                                                \
    s.page_list[0] = page;                                                                         \
    refused(&slots, &s, text)
    PAGES("slot 0 is not open", 0, 0, 1, 0);
    PAGES("slot 1: 1 pages from entry 3, it has 2 of 5", 1, 3, 1, 0);
    PAGES("slot 1: 4 pages from entry 2, it has 2 of 5", 1, 2, 4, 0);
    PAGES("slot 1: 1 pages from entry 4294967295", 1, UINT32_MAX, 1, 0);
    PAGES("slot 1: page 10, there are 10", 1, 2, 1, 10);
#undef PAGES
}

static void bad_rows(void **state)
{
    struct slots slots;
    struct script s;

    (void)state;
#define ROW(text, ...)                                                                             \
    begin(&slots, &s);                                                                             \
    s.step.rows_count = 1;                                                                         \
    s.rows[0] = (struct proto_row){__VA_ARGS__};                                                   \
    refused(&slots, &s, text)
    ROW("slot 9, there are 4", 9, 0, 1, false);
    ROW("slot 0 is not open", 0, 0, 1, false);
    ROW("slot 1: 0 tokens from 6, it has 7", 1, 6, 0, false);
    ROW("slot 1: 1 tokens from 7, it has 7", 1, 7, 1, false);
    ROW("slot 1: 2 tokens from 4294967295", 1, UINT32_MAX, 2, false);
    ROW("slot 1: 4294967295 tokens from 2", 1, 2, UINT32_MAX, false);
    ROW("no token can follow 6 of 7", 1, 5, 1, true);
#undef ROW
    begin(&slots, &s);
    s.step.rows_count = 2;
    s.rows[0] = s.rows[1] = (struct proto_row){1, 0, 3, false};
    refused(&slots, &s, "slot 1 has two rows");
    begin(&slots, &s);
    s.step.opened_count = s.step.rows_count = 1;
    s.opened[0].tokens_count = 3;
    s.rows[0] = (struct proto_row){0, 0, 3, false};
    refused(&slots, &s, "slot 0: 3 tokens from 0, its 0 pages hold 0");
}

/* Slot 2 with 8 tokens, of which the row has positions 2 .. 5; slot 1 wants no scores. */
static void bad_scores(void **state)
{
    struct slots slots;
    struct script s;
    struct err err;

    (void)state;
#define SCORE(...)                                                                                 \
    begin(&slots, &s);                                                                             \
    s.step.opened_count = s.step.pages_count = s.step.rows_count = s.step.scores_count = 1;        \
    s.opened[0].slot = s.pages[0].slot = 2;                                                        \
    s.opened[0].tokens_count = 8;                                                                  \
    s.opened[0].sampling.logprobs = 0;                                                             \
    s.pages[0].pages_count = 2;                                                                    \
    s.rows[0] = (struct proto_row){2, 2, 4, false};                                                \
    s.scores[0] = (struct proto_score){__VA_ARGS__}
    SCORE(2, 2, 4);
    assert_int_equal(slots_apply(&slots, &s.step, &err), 0);
    slots_fini(&slots);
    SCORE(2, 1, 4);
    refused(&slots, &s, "slot 2: 4 scores from 1, its row has 4 from 2");
    SCORE(2, 3, 4);
    refused(&slots, &s, "slot 2: 4 scores from 3");
    SCORE(2, 3, 0);
    refused(&slots, &s, "slot 2: 0 scores from 3");
    SCORE(2, 3, UINT32_MAX);
    refused(&slots, &s, "slot 2: 4294967295 scores from 3");
    SCORE(1, 2, 4);
    refused(&slots, &s, "the score of slot 1 is not of a row");
    SCORE(2, 2, 4);
    s.scores[1] = s.scores[0];
    s.step.scores_count = 2;
    refused(&slots, &s, "the score of slot 2 is not of a row");
    SCORE(2, 7, 1); /* what follows is not known yet, with a sample or without */
    s.rows[0] = (struct proto_row){2, 2, 6, false};
    refused(&slots, &s, "slot 2: 1 scores from 7");
    SCORE(2, 7, 1);
    s.rows[0] = (struct proto_row){2, 2, 6, true};
    refused(&slots, &s, "slot 2: 1 scores from 7");
    SCORE(2, 2, 4);
    s.opened[0].sampling.logprobs = -1;
    refused(&slots, &s, "slot 2: scored without log probabilities");
#undef SCORE
}

static void bad_totals(void **state)
{
    struct slots slots;
    struct script s;

    (void)state;
    begin(&slots, &s);
    s.step.opened_count = s.step.pages_count = 1;
    s.step.rows_count = 2;
    s.opened[0].tokens_count = 16;
    s.pages[0].pages_count = 4;
    s.rows[0] = (struct proto_row){1, 6, 1, true};
    s.rows[1] = (struct proto_row){0, 0, 16, false};
    refused(&slots, &s, "more than 16 tokens in a step");
    begin(&slots, &s);
    s.step.opened_count = s.step.pages_count = s.step.rows_count = 1;
    s.opened[0].tokens_count = 18;
    s.pages[0].pages_count = 5;
    s.rows[0] = (struct proto_row){0, 17, 1, true};
    refused(&slots, &s, "no token can follow 18 of 18 (context 18)");
}

static void the_hash_sees_rows_and_tokens(void **state)
{
    struct proto_row rows[2] = {{1, 0, 6, true}, {2, 3, 1, true}};
    struct proto_sampled results[2] = {{.slot = 1, .id = 5}, {.slot = 2, .id = 6}};
    struct proto_step step = {.step = 7, .rows = rows, .rows_count = 2};
    uint64_t hash = slots_hash_results(slots_hash_rows(&step), results, 2);

    (void)state;
    assert_true(slots_hash_results(slots_hash_rows(&step), results, 2) == hash);
    results[1].id = 7;
    assert_true(slots_hash_results(slots_hash_rows(&step), results, 2) != hash);
    results[1].id = 6;
    rows[0].start = 1;
    assert_true(slots_hash_results(slots_hash_rows(&step), results, 2) != hash);
    rows[0].start = 0;
    step.step = 8;
    assert_true(slots_hash_results(slots_hash_rows(&step), results, 2) != hash);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sequence_lives), cmocka_unit_test(bad_slots),
        cmocka_unit_test(bad_openings),     cmocka_unit_test(bad_pages),
        cmocka_unit_test(bad_rows),         cmocka_unit_test(bad_scores),
        cmocka_unit_test(bad_totals),       cmocka_unit_test(the_hash_sees_rows_and_tokens),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

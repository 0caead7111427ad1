/* Policies of dispatch: which replica takes a request. */
#include "services/tokenizer/dispatch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#define PROMPT 256

struct play {
    const struct dispatch_policy *policy;
    void *state;
    struct dispatch_replica replicas[3];
};

static void play_start(struct play *p, const char *policy)
{
    *p = (struct play){.policy = dispatch_find(policy)};
    assert_non_null(p->policy);
    assert_string_equal(p->policy->name, policy);
    p->state = p->policy->new ();
    for (size_t i = 0; i < 3; i++)
        p->replicas[i].ready = true;
}

static void play_end(struct play *p)
{
    p->policy->free(p->state);
}

/* A prompt of `count` tokens whose first `shared` are the family's; the rest is its own. */
static uint32_t choose(struct play *p, uint32_t family, size_t shared, uint32_t own, size_t count)
{
    uint32_t prompt[PROMPT];
    uint32_t chosen;

    assert_true(count <= PROMPT);
    for (size_t i = 0; i < count; i++)
        prompt[i] = i < shared ? family * 1000 + (uint32_t)i : own * 7919 + (uint32_t)i;
    chosen = p->policy->choose(p->state, p->replicas, 3, prompt, count);
    assert_in_range(chosen, 0, 2);
    assert_true(p->replicas[chosen].ready);
    return chosen;
}

static void unknown_policies_are_not_found(void **state)
{
    (void)state;
    assert_null(dispatch_find("random"));
    assert_null(dispatch_find(""));
}

static void round_robin_goes_round(void **state)
{
    struct play p;

    (void)state;
    play_start(&p, "round_robin");
    p.replicas[0].load = 1000;
    for (uint32_t i = 0; i < 9; i++)
        assert_int_equal(choose(&p, 1, 8, i, 16), i % 3);
    p.replicas[1].ready = false;
    assert_int_equal(choose(&p, 1, 8, 0, 16), 0);
    assert_int_equal(choose(&p, 1, 8, 0, 16), 2);
    assert_int_equal(choose(&p, 1, 8, 0, 16), 0);
    play_end(&p);
}

static void least_load_takes_the_least(void **state)
{
    bool seen[3] = {false};
    struct play p;

    (void)state;
    play_start(&p, "least_load");
    p.replicas[0].load = 5;
    p.replicas[1].load = 2;
    p.replicas[2].load = 3;
    assert_int_equal(choose(&p, 1, 8, 0, 16), 1);
    p.replicas[1].ready = false;
    assert_int_equal(choose(&p, 1, 8, 0, 16), 2);
    memset(p.replicas, 0, sizeof p.replicas);
    for (size_t i = 0; i < 3; i++)
        p.replicas[i].ready = true;
    for (uint32_t i = 0; i < 3; i++)
        seen[choose(&p, 1, 8, 0, 16)] = true;
    assert_true(seen[0] && seen[1] && seen[2]);
    play_end(&p);
}

static void prefixes_come_home(void **state)
{
    uint32_t home[20];
    bool used[3] = {false};
    struct play p;

    (void)state;
    play_start(&p, "prefix_aware");
    for (uint32_t f = 0; f < 20; f++) {
        home[f] = choose(&p, f, 128, f, 160);
        used[home[f]] = true;
    }
    assert_true(used[0] && used[1] && used[2]); /* idle replicas share what is new */
    for (uint32_t f = 0; f < 20; f++)
        for (uint32_t own = 100; own < 110; own++)
            assert_int_equal(choose(&p, f, 128, own, 200), home[f]);
    play_end(&p);
}

static void load_outweighs_a_prefix(void **state)
{
    struct play p;
    uint32_t home, other;

    (void)state;
    play_start(&p, "prefix_aware");
    home = choose(&p, 1, 128, 0, 160);
    p.replicas[home].load = 1; /* 128 tokens are worth a sequence, and not four */
    assert_int_equal(choose(&p, 1, 128, 1, 160), home);
    p.replicas[home].load = 4;
    other = choose(&p, 1, 128, 2, 160);
    assert_int_not_equal(other, home);
    p.replicas[home].load = 0; /* now both have it */
    p.replicas[other].load = 1;
    assert_int_equal(choose(&p, 1, 128, 3, 160), home);
    p.replicas[home].load = 1;
    p.replicas[other].load = 0;
    assert_int_equal(choose(&p, 1, 128, 4, 160), other);
    play_end(&p);
}

static void a_lost_replica_has_nothing(void **state)
{
    struct play p;
    uint32_t home, other;

    (void)state;
    play_start(&p, "prefix_aware");
    home = choose(&p, 1, 128, 0, 160);
    p.replicas[home].ready = false;
    p.policy->lost(p.state, home);
    other = choose(&p, 1, 128, 1, 160);
    assert_int_not_equal(other, home);
    p.replicas[home].ready = true;
    assert_int_equal(choose(&p, 1, 128, 2, 160), other);
    play_end(&p);
}

static void any_prompt_finds_a_replica(void **state)
{
    struct play p;

    (void)state;
    play_start(&p, "prefix_aware");
    for (size_t count = 1; count < 40; count++)
        (void)choose(&p, 1, 0, (uint32_t)count, count);
    for (uint32_t i = 0; i < 100000; i++) /* more than it remembers */
        (void)choose(&p, 1, 0, i, 64);
    p.replicas[0].load = p.replicas[2].load = UINT32_MAX;
    assert_int_equal(choose(&p, 1, 0, 1, 64), 1);
    play_end(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unknown_policies_are_not_found),
        cmocka_unit_test(round_robin_goes_round),
        cmocka_unit_test(least_load_takes_the_least),
        cmocka_unit_test(prefixes_come_home),
        cmocka_unit_test(load_outweighs_a_prefix),
        cmocka_unit_test(a_lost_replica_has_nothing),
        cmocka_unit_test(any_prompt_finds_a_replica),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

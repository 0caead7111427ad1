/* The prefix tree alone. */
#include "services/scheduler/prefix.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#define PAGE_SIZE 2u
#define PAGES 16u

static const struct prefix_place root = {.page = PREFIX_ROOT};

/* Puts pages first .. first + count - 1 under the tokens' path and leaves it loose. */
static uint32_t insert(struct prefix *p, const uint32_t *tokens, uint32_t first, uint32_t count)
{
    uint32_t node = PREFIX_ROOT;

    for (uint32_t i = 0; i < count; i++)
        node = prefix_extend(p, node, tokens + (size_t)i * PAGE_SIZE, first + i, 1, true);
    prefix_unlock(p, node);
    return node;
}

static struct prefix_place match(const struct prefix *p, const uint32_t *tokens, uint32_t pages)
{
    struct prefix_place place = root;

    prefix_match(p, tokens, pages, &place);
    return place;
}

static void test_match(void **state)
{
    static const uint32_t a[] = {1, 2, 3, 4, 5, 6}, b[] = {1, 2, 3, 9, 5, 6}, c[] = {2, 1, 3, 4};
    struct prefix p;
    uint32_t path[3];

    (void)state;
    prefix_init(&p, PAGES, PAGE_SIZE, 42);
    assert_int_equal(match(&p, a, 3).depth, 0);
    assert_int_equal(insert(&p, a, 4, 3), 6);
    assert_int_equal(match(&p, a, 3).depth, 3);
    assert_int_equal(match(&p, a, 3).page, 6);
    assert_int_equal(match(&p, a, 2).page, 5); /* not more than asked for */
    assert_int_equal(match(&p, a, 0).page, PREFIX_ROOT);
    assert_int_equal(match(&p, b, 3).page, 4); /* whole pages only */
    assert_int_equal(match(&p, c, 2).depth, 0);
    assert_int_equal(match(&p, a + 2, 2).depth, 0); /* the same tokens elsewhere */
    prefix_path(&p, 6, 3, path);
    assert_true(path[0] == 4 && path[1] == 5 && path[2] == 6);
    assert_int_equal(insert(&p, b, 8, 3), 10); /* the first page is there: 8 is not taken */
    assert_false(prefix_holds(&p, 8));
    assert_true(prefix_holds(&p, 9) && prefix_holds(&p, 10));
    assert_int_equal(p.count, 5);
    prefix_fini(&p);
}

static void test_without_join(void **state)
{
    static const uint32_t a[] = {1, 2};
    struct prefix p;

    (void)state;
    prefix_init(&p, PAGES, PAGE_SIZE, 42);
    (void)insert(&p, a, 0, 1);
    assert_int_equal(prefix_extend(&p, PREFIX_ROOT, a, 1, 1, false), PREFIX_ROOT);
    assert_true(p.count == 1 && p.kept == 0 && !prefix_holds(&p, 1));
    prefix_fini(&p);
}

/* A place outlives its node, and the node's page as another node. */
static void test_places(void **state)
{
    static const uint32_t a[] = {1, 2, 3, 4}, b[] = {7, 8, 9, 9};
    struct prefix_place place = root;
    struct prefix p;

    (void)state;
    prefix_init(&p, PAGES, PAGE_SIZE, 42);
    (void)insert(&p, a, 0, 1);
    prefix_match(&p, a, 2, &place);
    assert_int_equal(place.depth, 1);
    (void)insert(&p, a, 0, 2);
    prefix_match(&p, a, 2, &place); /* goes on where it was */
    assert_true(place.depth == 2 && place.page == 1);
    prefix_match(&p, a, 1, &place);
    assert_true(place.depth == 1 && place.page == 0);
    assert_int_equal(prefix_evict(&p), 1);
    assert_int_equal(prefix_evict(&p), 0);
    prefix_match(&p, a, 2, &place);
    assert_int_equal(place.page, PREFIX_ROOT);
    (void)insert(&p, a, 0, 1);
    prefix_match(&p, a, 2, &place);
    (void)prefix_evict(&p);
    (void)insert(&p, b, 0, 1); /* page 0 holds something else now */
    prefix_match(&p, a, 2, &place);
    assert_true(place.page == PREFIX_ROOT && place.depth == 0);
    prefix_fini(&p);
}

static void test_ready(void **state)
{
    static const uint32_t a[] = {1, 2, 3, 4, 5, 6};
    struct prefix_place place = root;
    struct prefix p;
    uint32_t node;

    (void)state;
    prefix_init(&p, PAGES, PAGE_SIZE, 42);
    node = prefix_extend(&p, PREFIX_ROOT, a, 0, 5, false);
    node = prefix_extend(&p, node, a + 2, 1, 6, false);
    (void)prefix_extend(&p, node, a + 4, 2, 6, false);
    for (uint64_t step = 5; step <= 7; step++) {
        place = match(&p, a, 3);
        prefix_climb_ready(&p, step, &place);
        assert_int_equal(place.depth, step == 5 ? 0 : step == 6 ? 1 : 3);
    }
    prefix_fini(&p);
}

static void test_locks(void **state)
{
    static const uint32_t a[] = {1, 2, 3, 4, 5, 6}, b[] = {1, 2, 9, 9};
    struct prefix p;

    (void)state;
    prefix_init(&p, PAGES, PAGE_SIZE, 42);
    (void)insert(&p, a, 0, 3);
    (void)insert(&p, b, 4, 2); /* page 5, beside page 1 */
    assert_int_equal(prefix_loose(&p), 4);
    assert_int_equal(prefix_path_loose(&p, 1), 2);
    prefix_lock(&p, 1);
    prefix_lock(&p, 1);
    assert_int_equal(prefix_loose(&p), 2);
    assert_int_equal(prefix_path_loose(&p, 1), 0);
    assert_int_equal(prefix_path_loose(&p, 5), 1);
    prefix_lock(&p, PREFIX_ROOT); /* keeps nothing */
    assert_int_equal(prefix_evict(&p), 2);
    assert_int_equal(prefix_evict(&p), 5);
    assert_int_equal(prefix_loose(&p), 0);
    prefix_unlock(&p, 1);
    assert_int_equal(prefix_loose(&p), 0);
    prefix_unlock(&p, 1);
    prefix_unlock(&p, PREFIX_ROOT);
    assert_int_equal(prefix_evict(&p), 1);
    assert_int_equal(prefix_evict(&p), 0);
    assert_true(p.count == 0 && p.kept == 0 && p.heap_count == 0);
    prefix_fini(&p);
}

/* Against a list that is searched from end to end. */
static void test_eviction_order(void **state)
{
    enum { N = 512, ROUNDS = 20000 };
    uint64_t used[N] = {0}, clock = 0, random = 7;
    uint32_t locked[N] = {0};
    bool there[N] = {false};
    struct prefix p;

    (void)state;
    prefix_init(&p, N, 1, 42);
    for (uint32_t i = 0; i < ROUNDS; i++) {
        uint32_t page;

        random = random * 6364136223846793005u + 1442695040888963407u;
        page = (uint32_t)(random >> 40) % N;
        if (there[page] && locked[page]) {
            prefix_unlock(&p, page);
            locked[page] = 0;
            used[page] = ++clock;
        } else if (there[page]) {
            prefix_lock(&p, page);
            locked[page] = 1;
        } else if (random % 3) {
            assert_int_equal(prefix_extend(&p, PREFIX_ROOT, &page, page, 1, false), page);
            there[page] = true;
            locked[page] = 1;
        } else if (prefix_loose(&p)) {
            uint32_t oldest = N, evicted = prefix_evict(&p);

            for (uint32_t k = 0; k < N; k++)
                if (there[k] && !locked[k] && (oldest == N || used[k] < used[oldest]))
                    oldest = k;
            assert_int_equal(evicted, oldest);
            there[oldest] = false;
        }
    }
    assert_true(clock > ROUNDS / 8);
    prefix_fini(&p);
}

/* A parent was used when its child was. */
static void test_eviction_climbs(void **state)
{
    static const uint32_t a[] = {1, 2, 3, 4}, b[] = {5, 5}, c[] = {6, 6};
    struct prefix p;

    (void)state;
    prefix_init(&p, PAGES, PAGE_SIZE, 42);
    (void)insert(&p, b, 2, 1);
    (void)insert(&p, a, 0, 2); /* used after b, before c */
    (void)insert(&p, c, 3, 1);
    assert_int_equal(prefix_evict(&p), 2);
    assert_int_equal(prefix_evict(&p), 1);
    assert_int_equal(prefix_evict(&p), 0);
    assert_int_equal(prefix_evict(&p), 3);
    (void)insert(&p, a, 0, 2);
    (void)insert(&p, b, 2, 1);
    prefix_lock(&p, 0); /* its first page alone is used again */
    prefix_unlock(&p, 0);
    assert_int_equal(prefix_evict(&p), 1);
    assert_int_equal(prefix_evict(&p), 2);
    assert_int_equal(prefix_evict(&p), 0);
    prefix_fini(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_match),           cmocka_unit_test(test_without_join),
        cmocka_unit_test(test_places),          cmocka_unit_test(test_ready),
        cmocka_unit_test(test_locks),           cmocka_unit_test(test_eviction_order),
        cmocka_unit_test(test_eviction_climbs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

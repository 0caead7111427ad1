/* How long steps may take, from how long others took. */
#include "services/scheduler/deadline.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define S 1000000
#define MAX_US (INT64_C(300) * S)

static struct deadline deadline;

static struct deadline_shape shape_of(uint32_t rows_count, uint32_t start, uint32_t count)
{
    struct proto_row rows[64] = {{0}};

    for (uint32_t i = 0; i < rows_count; i++)
        rows[i] = (struct proto_row){.slot = i, .start = start, .count = count};
    return deadline_shape(&(struct proto_step){.rows = rows, .rows_count = rows_count});
}

static int64_t after(struct deadline_shape shape, int64_t step_us, uint32_t steps)
{
    for (uint32_t i = 0; i < steps; i++)
        deadline_learn(&deadline, shape, step_us);
    return deadline_us(&deadline, shape);
}

static void test_first_steps(void **state)
{
    struct deadline_shape decode = shape_of(8, 100, 1);

    (void)state;
    deadline_init(&deadline, MAX_US);
    assert_int_equal(deadline_us(&deadline, decode), MAX_US);
    assert_int_equal(after(decode, 20 * S, 1), MAX_US); /* it has captured something */
    assert_int_equal(after(decode, S / 100, 1), 2 * S);
    /* Others are still unknown. */
    assert_int_equal(deadline_us(&deadline, shape_of(16, 100, 1)), MAX_US);
    assert_int_equal(deadline_us(&deadline, shape_of(8, 100, 64)), MAX_US);
    assert_int_equal(deadline_us(&deadline, shape_of(8, 10, 1)), MAX_US);
    deadline_init(&deadline, MAX_US);
    assert_int_equal(deadline_us(&deadline, decode), MAX_US);
}

static void test_bounds(void **state)
{
    struct deadline_shape shape = shape_of(1, 0, 512);

    (void)state;
    deadline_init(&deadline, MAX_US);
    assert_int_equal(after(shape, S / 1000, 2), 2 * S);
    assert_int_equal(after(shape, S / 2, 1), 5 * S);
    assert_int_equal(after(shape, 4 * S, 1), 30 * S);
    assert_int_equal(after(shape, 20 * S, 1), 60 * S); /* slow, not dead */
    assert_int_equal(after(shape, 200 * S, 1), MAX_US);
    assert_int_equal(after(shape, INT64_MAX, 1), MAX_US);
    assert_int_equal(after(shape, S / 1000, 20000), 2 * S); /* and forgotten */
}

static void test_more_positions(void **state)
{
    (void)state;
    deadline_init(&deadline, MAX_US);
    assert_int_equal(after(shape_of(2, 63, 1), S / 2, 2), 5 * S);
    assert_int_equal(deadline_us(&deadline, shape_of(2, 127, 1)), 10 * S);
    assert_int_equal(deadline_us(&deadline, shape_of(2, 255, 1)), 20 * S);
    assert_int_equal(deadline_us(&deadline, shape_of(2, UINT32_MAX - 1, 1)), MAX_US);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_steps),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_more_positions),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

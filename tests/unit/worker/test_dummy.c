/* Made-up weights do not depend on how a tensor is cut. */
#include "services/worker/dummy.h"

#include "common/bf16.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { ROWS = 40, COLS = 70000 }; /* a row is longer than what it is cut from */

static float whole[ROWS * COLS], part[ROWS * COLS];

static void test_cuts(void **state)
{
    (void)state;
    dummy_fill("w", COLS, 0, ROWS, 0, COLS, 0, 0.02f, DTYPE_F32, whole);
    dummy_fill("w", COLS, 7, 20, 65000, 5000, 0, 0.02f, DTYPE_F32, part);
    for (size_t r = 0; r < 20; r++)
        assert_memory_equal(part + r * 5000, whole + (7 + r) * COLS + 65000, 5000 * sizeof *part);
}

static void test_spread(void **state)
{
    double sum = 0, squares = 0, together = 0;
    const double n = (double)ROWS * COLS;
    (void)state;

    dummy_fill("w", COLS, 0, ROWS, 0, COLS, 1, 0.5f, DTYPE_F32, whole);
    for (size_t i = 0; i < ROWS * COLS; i++) {
        double x = (double)whole[i] - 1;

        sum += x;
        squares += x * x;
        if (i >= COLS)
            together += x * ((double)whole[i - COLS] - 1);
    }
    assert_true(fabs(sum / n) < 0.01);
    assert_true(fabs(sqrt(squares / n) - 0.5) < 0.01);
    assert_true(fabs(together / squares) < 0.02); /* a row says nothing of the next */
    dummy_fill("v", COLS, 0, ROWS, 0, COLS, 1, 0.5f, DTYPE_F32, part);
    assert_memory_not_equal(part, whole, sizeof whole);
}

static void test_halves(void **state)
{
    static uint16_t halves[ROWS * COLS];
    (void)state;

    dummy_fill("w", COLS, 0, ROWS, 0, COLS, 0, 0.02f, DTYPE_F32, whole);
    dummy_fill("w", COLS, 0, ROWS, 0, COLS, 0, 0.02f, DTYPE_BF16, halves);
    for (size_t i = 0; i < ROWS * COLS; i++) {
        float half = bf16_widen(halves[i]);

        assert_true(fabsf(half - whole[i]) <= fabsf(whole[i]) / 256);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_spread),
        cmocka_unit_test(test_halves),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

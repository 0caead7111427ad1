/* Inverse frequencies against values computed in double precision from the papers' formulas; the
 * golden tests compare whole models with transformers. */
#include "services/worker/rope.h"

#include "common/json.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void compare(const char *config, uint32_t max_position, const double *want, double factor)
{
    struct rope r;
    struct err err;
    float got[8];
    json_t *root;

    assert_int_equal(json_parse(config, strlen(config), 16, &root, &err), 0);
    if (rope_parse(root, max_position, &r, &err))
        fail_msg("%s", err.msg);
    rope_inv_freq(&r, 16, got);
    for (int i = 0; i < 8; i++)
        if (fabs((double)got[i] - want[i]) > 2e-6 * want[i])
            fail_msg("%s: [%d] is %.9g, expected %.9g", config, i, (double)got[i], want[i]);
    assert_true(fabs(r.attention_factor - factor) < 1e-9);
    json_decref(root);
}

static void default_and_linear(void **state)
{
    const double plain[] = {1,    0.316227766,   0.1,   0.0316227766,
                            0.01, 0.00316227766, 0.001, 0.000316227766};
    const double linear[] = {0.5,   0.158113883,   0.05,   0.0158113883,
                             0.005, 0.00158113883, 0.0005, 0.000158113883};

    (void)state;
    compare("{}", 4096, plain, 1);
    compare("{\"rope_theta\":10000.0,\"rope_scaling\":{\"type\":\"default\"}}", 4096, plain, 1);
    compare("{\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.0}}", 4096, linear, 1);
}

static void llama3(void **state)
{
    const double want[] = {1,
                           0.193922745,
                           0.0376060309,
                           0.00729266474,
                           0.000524846161,
                           3.4281022e-05,
                           6.64786987e-06,
                           1.28917317e-06};

    (void)state;
    compare("{\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,"
            "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
            "\"original_max_position_embeddings\":8192}}",
            131072, want, 1);
    /* Without its own value, max_position_embeddings is the training's length. */
    compare("{\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,"
            "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0}}",
            8192, want, 1);
}

static void yarn(void **state)
{
    const double want[] = {1,      0.177827941,    0.0316227766,   0.00421755994,
                           0.0005, 4.44569853e-05, 7.90569415e-06, 1.40585331e-06};
    const double untruncated[] = {
        1, 0.316227766, 0.1, 0.0316227766, 0.0067616192, 0.000825104359, 0.00025, 7.90569415e-05};

    (void)state;
    compare("{\"rope_theta\":1000000,\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4.0,"
            "\"original_max_position_embeddings\":32768}}",
            131072, want, 0.1 * log(4) + 1);
    /* A null factor is the ratio of the two lengths. */
    compare("{\"rope_theta\":1000000,\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":null,"
            "\"original_max_position_embeddings\":32768,\"attention_factor\":0.75}}",
            131072, want, 0.75);
    compare("{\"rope_parameters\":{\"rope_theta\":10000.0,\"rope_type\":\"yarn\",\"factor\":4,"
            "\"original_max_position_embeddings\":4096,\"beta_fast\":16,\"beta_slow\":2,"
            "\"truncate\":false,\"mscale\":0.707,\"mscale_all_dim\":1.0}}",
            16384, untruncated, (0.0707 * log(4) + 1) / (0.1 * log(4) + 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(default_and_linear),
        cmocka_unit_test(llama3),
        cmocka_unit_test(yarn),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

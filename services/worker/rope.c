#include "services/worker/rope.h"

#include "services/worker/config_field.h"

#include <math.h>
#include <string.h>

#define FACTOR_MIN 1e-3
#define FACTOR_MAX 1e6
#define POSITIONS_MAX 1e9
#define THETA_DEFAULT 10000.0

static const struct rope_name {
    const char *name;
    enum rope_type type;
} rope_names[] = {
    {"default", ROPE_DEFAULT},
    {"linear", ROPE_LINEAR},
    {"llama3", ROPE_LLAMA3},
    {"yarn", ROPE_YARN},
};

static int rope_parse_type(const json_t *params, enum rope_type *out, struct err *err)
{
    const json_t *value = config_field_get(params, "rope_type");
    const char *name;

    if (!value)
        value = config_field_get(params, "type");
    name = value ? json_string_value(value) : "default";
    for (size_t i = 0; name && i < sizeof rope_names / sizeof *rope_names; i++) {
        if (!strcmp(rope_names[i].name, name)) {
            *out = rope_names[i].type;
            return 0;
        }
    }
    return err_set(err, ERR_UNSUPPORTED,
                   "rope_type \"%.64s\" is not supported (default, linear, llama3, yarn are)",
                   name ? name : "(no string)");
}

static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

static int rope_parse_yarn(const json_t *params, struct rope *r, struct err *err)
{
    double mscale = 0, mscale_all_dim = 0, inferred;
    int rc = 0;

    if (!(rc = config_field_f64(params, "beta_fast", 32, 0, 1e6, &r->beta_fast, err)))
        rc = config_field_f64(params, "beta_slow", 1, 0, 1e6, &r->beta_slow, err);
    if (!rc)
        rc = config_field_bool(params, "truncate", true, &r->truncate, err);
    if (!rc)
        rc = config_field_f64(params, "mscale", 0, 0, 1e3, &mscale, err);
    if (!rc)
        rc = config_field_f64(params, "mscale_all_dim", 0, 0, 1e3, &mscale_all_dim, err);
    if (rc)
        return rc;
    if (r->beta_fast == 0)
        r->beta_fast = 32;
    if (r->beta_slow == 0)
        r->beta_slow = 1;
    inferred = mscale != 0 && mscale_all_dim != 0
                   ? yarn_mscale(r->factor, mscale) / yarn_mscale(r->factor, mscale_all_dim)
                   : yarn_mscale(r->factor, 1);
    return config_field_f64(params, "attention_factor", inferred, 0, 1e3, &r->attention_factor,
                            err);
}

static int rope_parse_llama3(const json_t *params, struct rope *r, struct err *err)
{
    int rc =
        config_field_f64(params, "low_freq_factor", NAN, FACTOR_MIN, FACTOR_MAX, &r->low_freq, err);

    if (!rc)
        rc = config_field_f64(params, "high_freq_factor", NAN, FACTOR_MIN, FACTOR_MAX,
                              &r->high_freq, err);
    if (!rc && !(r->high_freq > r->low_freq))
        rc = err_set(err, ERR_INVALID, "high_freq_factor is not above low_freq_factor");
    return rc;
}

static int rope_parse_scaling(const json_t *config, const json_t *params, uint32_t max_position,
                              struct rope *r, struct err *err)
{
    /* Outside of the parameters it wins, as in transformers. */
    const json_t *outer = config_field_get(config, "original_max_position_embeddings");
    double factor_missing = NAN;
    int rc = config_field_f64(outer ? config : params, "original_max_position_embeddings",
                              max_position, 1, POSITIONS_MAX, &r->original_max, err);

    if (rc)
        return rc;
    if (r->type == ROPE_YARN && json_is_null(json_object_get(params, "factor")))
        factor_missing = max_position / r->original_max;
    rc =
        config_field_f64(params, "factor", factor_missing, FACTOR_MIN, FACTOR_MAX, &r->factor, err);
    if (!rc && r->type == ROPE_LLAMA3)
        rc = rope_parse_llama3(params, r, err);
    if (!rc && r->type == ROPE_YARN)
        rc = rope_parse_yarn(params, r, err);
    return rc;
}

static int rope_check_partial(const json_t *object, struct err *err)
{
    double factor;
    int rc = config_field_f64(object, "partial_rotary_factor", 1, 0, 1, &factor, err);

    if (!rc && factor != 1)
        rc = err_set(err, ERR_UNSUPPORTED, "partial_rotary_factor %g is not supported", factor);
    return rc;
}

int rope_parse(const json_t *config, uint32_t max_position, struct rope *out, struct err *err)
{
    const json_t *params = config_field_get(config, "rope_scaling");
    const char *key = params ? "rope_scaling" : "rope_parameters";
    int rc;

    *out = (struct rope){.attention_factor = 1, .factor = 1};
    if (!params)
        params = config_field_get(config, key);
    if (params && !json_is_object(params))
        return err_set(err, ERR_INVALID, "%s is no object", key);
    if (json_object_get(params, "full_attention") || json_object_get(params, "sliding_attention"))
        return err_set(err, ERR_UNSUPPORTED, "%s by layer type is not supported", key);
    if ((rc = rope_check_partial(config, err)) || (rc = rope_check_partial(params, err)))
        return rc;
    rc = config_field_f64(config_field_get(params, "rope_theta") ? params : config, "rope_theta",
                          THETA_DEFAULT, 1.001, 1e12, &out->theta, err);
    if (!rc)
        rc = rope_parse_type(params, &out->type, err);
    if (!rc && out->type != ROPE_DEFAULT)
        rc = rope_parse_scaling(config, params, max_position, out, err);
    return rc ? err_prefix(err, "rotary embedding") : 0;
}

static float llama3_scale(const struct rope *r, float inv_freq)
{
    float wavelen = (float)(2 * M_PI) / inv_freq;
    float low = (float)r->low_freq, factor = (float)r->factor;
    float smooth;

    if (wavelen > (float)(r->original_max / r->low_freq))
        return inv_freq / factor;
    if (wavelen < (float)(r->original_max / r->high_freq))
        return inv_freq;
    smooth = ((float)r->original_max / wavelen - low) / (float)(r->high_freq - r->low_freq);
    return (1 - smooth) * inv_freq / factor + smooth * inv_freq;
}

/* The dimension that turns `rotations` times over the training's positions. */
static double yarn_dimension(const struct rope *r, double rotations, uint32_t head_dim)
{
    return head_dim * log(r->original_max / (rotations * 2 * M_PI)) / (2 * log(r->theta));
}

static void yarn_range(const struct rope *r, uint32_t head_dim, double *low, double *high)
{
    *low = yarn_dimension(r, r->beta_fast, head_dim);
    *high = yarn_dimension(r, r->beta_slow, head_dim);
    if (r->truncate) {
        *low = floor(*low);
        *high = ceil(*high);
    }
    *low = fmax(*low, 0);
    *high = fmin(*high, head_dim - 1.0);
    if (*low == *high)
        *high += 0.001;
}

void rope_inv_freq(const struct rope *r, uint32_t head_dim, float *inv_freq)
{
    double low = 0, high = 1;

    if (r->type == ROPE_YARN)
        yarn_range(r, head_dim, &low, &high);
    for (uint32_t i = 0; i < head_dim / 2; i++) {
        float power = powf((float)r->theta, (float)(2 * i) / (float)head_dim);
        float f = 1.0f / power;

        if (r->type == ROPE_LINEAR) {
            f /= (float)r->factor;
        } else if (r->type == ROPE_LLAMA3) {
            f = llama3_scale(r, f);
        } else if (r->type == ROPE_YARN) {
            float ramp = ((float)i - (float)low) / (float)(high - low);
            float keep = 1 - fminf(fmaxf(ramp, 0), 1);

            f = 1.0f / ((float)r->factor * power) * (1 - keep) + f * keep;
        }
        inv_freq[i] = f;
    }
}

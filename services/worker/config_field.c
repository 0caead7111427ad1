#include "services/worker/config_field.h"

#include <math.h>

json_t *config_field_get(const json_t *object, const char *key)
{
    json_t *value = json_object_get(object, key);

    return json_is_null(value) ? NULL : value;
}

int config_field_u32(const json_t *object, const char *key, int64_t missing, uint32_t low,
                     uint32_t high, uint32_t *out, struct err *err)
{
    const json_t *value = config_field_get(object, key);
    json_int_t n = value ? json_integer_value(value) : missing;

    *out = 0;
    if (!value && missing < 0)
        return err_set(err, ERR_INVALID, "%s is missing", key);
    if (value && !json_is_integer(value))
        return err_set(err, ERR_INVALID, "%s is not an integer", key);
    if (n < low || n > high)
        return err_set(err, ERR_LIMIT, "%s is %lld, the range is %u to %u", key, (long long)n, low,
                       high);
    *out = (uint32_t)n;
    return 0;
}

int config_field_f64(const json_t *object, const char *key, double missing, double low, double high,
                     double *out, struct err *err)
{
    const json_t *value = config_field_get(object, key);
    double n = value ? json_number_value(value) : missing;

    *out = 0;
    if (!value && isnan(missing))
        return err_set(err, ERR_INVALID, "%s is missing", key);
    if (value && !json_is_number(value))
        return err_set(err, ERR_INVALID, "%s is not a number", key);
    if (!(n >= low && n <= high))
        return err_set(err, ERR_LIMIT, "%s is %g, the range is %g to %g", key, n, low, high);
    *out = n;
    return 0;
}

int config_field_bool(const json_t *object, const char *key, bool missing, bool *out,
                      struct err *err)
{
    const json_t *value = config_field_get(object, key);

    if (value && !json_is_boolean(value))
        return err_set(err, ERR_INVALID, "%s is not true or false", key);
    *out = value ? json_is_true(value) : missing;
    return 0;
}

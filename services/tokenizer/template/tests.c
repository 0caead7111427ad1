/* The table of tests: "x is name". */
#include "services/tokenizer/template/render.h"

#include <utf8proc.h>

#define TEST(name)                                                                                 \
    static int test_##name(struct render *r, const struct value *v, const struct value *argument,  \
                           bool *out)

/* A test that only looks at the kind of value. */
#define TEST_KIND(name, condition)                                                                 \
    TEST(name)                                                                                     \
    {                                                                                              \
        (void)r;                                                                                   \
        (void)argument;                                                                            \
        *out = (condition);                                                                        \
        return 0;                                                                                  \
    }

TEST_KIND(defined, v->kind != VALUE_UNDEFINED)
TEST_KIND(undefined, v->kind == VALUE_UNDEFINED)
TEST_KIND(none, v->kind == VALUE_NONE)
TEST_KIND(string, v->kind == VALUE_STRING)
TEST_KIND(mapping, v->kind == VALUE_DICT)
TEST_KIND(iterable, value_iterable(v))
TEST_KIND(sequence, v->kind == VALUE_STRING || v->kind == VALUE_LIST || v->kind == VALUE_TUPLE ||
                        v->kind == VALUE_RANGE || v->kind == VALUE_DICT ||
                        v->kind == VALUE_UNDEFINED)
TEST_KIND(boolean, v->kind == VALUE_BOOL)
TEST_KIND(integer, v->kind == VALUE_INT)
TEST_KIND(float, v->kind == VALUE_FLOAT)
TEST_KIND(number, value_number(v))
TEST_KIND(is_true, v->kind == VALUE_BOOL && v->u.boolean)
TEST_KIND(is_false, v->kind == VALUE_BOOL && !v->u.boolean)
TEST_KIND(escaped, v->kind == VALUE_STRING && v->markup)
TEST_KIND(callable, v->kind == VALUE_FUNCTION || v->kind == VALUE_MACRO || v->kind == VALUE_LOOP ||
                        v->kind == VALUE_UNDEFINED)

TEST(filter)
{
    (void)r;
    (void)argument;
    *out = v->kind == VALUE_STRING && filter_find(v->u.text);
    return 0;
}

TEST(test)
{
    (void)r;
    (void)argument;
    *out = v->kind == VALUE_STRING && test_find(v->u.text);
    return 0;
}

static int remainder_is(struct render *r, const struct value *v, int64_t divisor, int64_t wanted,
                        bool *out)
{
    struct value by = value_int(divisor), rest, expected = value_int(wanted);
    int rc = v->kind == VALUE_STRING ? render_fail(r, "not all arguments converted")
                                     : binary(r, TOKEN_MOD, v, &by, &rest);

    return rc < 0 ? rc : value_equal(r, &rest, &expected, out);
}

TEST(odd)
{
    (void)argument;
    return remainder_is(r, v, 2, 1, out);
}

TEST(even)
{
    (void)argument;
    return remainder_is(r, v, 2, 0, out);
}

TEST(divisibleby)
{
    struct value rest, zero = value_int(0);
    int rc = binary(r, TOKEN_MOD, v, argument, &rest);

    return rc < 0 ? rc : value_equal(r, &rest, &zero, out);
}

/* Cased letters exist and all of them are in that case. */
static int has_case(struct render *r, const struct value *v, bool upper, bool *out)
{
    struct text t, unit;
    uint32_t cp;
    bool cased = false, all = true;
    int rc = value_str(r, v, &t);

    while (rc == 0 && text_next(&t, &unit, &cp)) {
        int32_t c = (int32_t)cp;

        if (utf8proc_islower(c) || utf8proc_isupper(c)) {
            cased = true;
            all = all && (utf8proc_isupper(c) != 0) == upper;
        }
        rc = render_tick(r, 1);
    }
    *out = cased && all;
    return rc;
}

TEST(lower)
{
    (void)argument;
    return has_case(r, v, false, out);
}

TEST(upper)
{
    (void)argument;
    return has_case(r, v, true, out);
}

TEST(eq)
{
    return value_equal(r, v, argument, out);
}

TEST(ne)
{
    int rc = value_equal(r, v, argument, out);

    *out = !*out;
    return rc;
}

TEST(sameas)
{
    if (v->kind != argument->kind) {
        *out = false;
        return 0;
    }
    if (v->kind >= VALUE_LIST && v->kind != VALUE_FUNCTION) {
        *out = v->u.list == argument->u.list;
        return 0;
    }
    return value_equal(r, v, argument, out);
}

TEST(in)
{
    return value_contains(r, argument, v, out);
}

TEST(lt)
{
    int order, rc = value_compare(r, v, argument, "<", &order);

    *out = rc == 0 && order < 0;
    return rc;
}

TEST(le)
{
    int order, rc = value_compare(r, v, argument, "<=", &order);

    *out = rc == 0 && order <= 0;
    return rc;
}

TEST(gt)
{
    int order, rc = value_compare(r, v, argument, ">", &order);

    *out = rc == 0 && order > 0 && order != 2;
    return rc;
}

TEST(ge)
{
    int order, rc = value_compare(r, v, argument, ">=", &order);

    *out = rc == 0 && order >= 0 && order != 2;
    return rc;
}

static const struct test tests[] = {
    {"!=", 1, test_ne},
    {"<", 1, test_lt},
    {"<=", 1, test_le},
    {"==", 1, test_eq},
    {">", 1, test_gt},
    {">=", 1, test_ge},
    {"boolean", 0, test_boolean},
    {"callable", 0, test_callable},
    {"defined", 0, test_defined},
    {"divisibleby", 1, test_divisibleby},
    {"eq", 1, test_eq},
    {"equalto", 1, test_eq},
    {"escaped", 0, test_escaped},
    {"even", 0, test_even},
    {"false", 0, test_is_false},
    {"filter", 0, test_filter},
    {"float", 0, test_float},
    {"ge", 1, test_ge},
    {"greaterthan", 1, test_gt},
    {"gt", 1, test_gt},
    {"in", 1, test_in},
    {"integer", 0, test_integer},
    {"iterable", 0, test_iterable},
    {"le", 1, test_le},
    {"lessthan", 1, test_lt},
    {"lower", 0, test_lower},
    {"lt", 1, test_lt},
    {"mapping", 0, test_mapping},
    {"ne", 1, test_ne},
    {"none", 0, test_none},
    {"number", 0, test_number},
    {"odd", 0, test_odd},
    {"sameas", 1, test_sameas},
    {"sequence", 0, test_sequence},
    {"string", 0, test_string},
    {"test", 0, test_test},
    {"true", 0, test_is_true},
    {"undefined", 0, test_undefined},
    {"upper", 0, test_upper},
};

const struct test *test_find(struct text name)
{
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (text_is(name, tests[i].name))
            return &tests[i];
    }
    return NULL;
}

int test_call(struct render *r, struct text name, const struct value *v, const struct args *args,
              bool *out)
{
    const struct test *test = test_find(name);
    const struct value *argument = args->positional;

    if (!test)
        return render_fail(r, "no test named '%.*s'", (int)(name.len > 64 ? 64 : name.len),
                           name.data);
    if ((int)(args->positional_count + args->keywords_count) != test->arguments)
        return render_fail(r, "test '%s' takes %d argument(s)", test->name, test->arguments);
    if (args->keywords_count)
        argument = &args->keywords[0].value;
    return test->fn(r, v, argument, out);
}

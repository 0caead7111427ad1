/* State of one render, its limits, and what the parts of the interpreter give each other. */
#ifndef PHALANX_TOKENIZER_TEMPLATE_RENDER_H
#define PHALANX_TOKENIZER_TEMPLATE_RENDER_H

#include "services/tokenizer/template.h"
#include "services/tokenizer/template/ast.h"

/* Growable text in the arena. */
struct sink {
    char *data;
    size_t len, cap;
};

struct binding {
    struct text name;
    struct value value;
};

struct scope {
    struct scope *parent;
    struct binding *bindings;
    size_t count, cap;
};

struct render {
    struct arena arena;
    const struct template_limits *limits;
    struct err *err;
    uint64_t fuel;
    uint64_t clock_due; /* fuel at which the clock is read again */
    int64_t deadline_us;
    int64_t now; /* seconds since 1970 */
    int depth;   /* nested expressions and statements */
    int calls;   /* nested macro calls */
    int line;    /* of the node being evaluated */
    struct sink *out;
    struct scope *root;
};

struct args {
    struct value *positional;
    size_t positional_count;
    struct binding *keywords;
    size_t keywords_count;
};

enum { BOUND_MAX = 6 };

/* Arguments by the names of a params string ("!old !new count": "!" marks what must be given,
 * "*" alone takes anything); VALUE_MISSING where none was given. */
struct bound {
    struct value v[BOUND_MAX];
    const struct args *args;
};

typedef int native_fn(struct render *r, const struct value *self, struct bound *b,
                      struct value *out);

struct native { /* a row of the tables of filters, methods and globals */
    const char *name;
    const char *params;
    native_fn *fn;
};

struct function { /* VALUE_FUNCTION */
    const struct native *native;
    struct value self;
};

struct test {
    const char *name;
    int arguments; /* how many it takes */
    int (*fn)(struct render *r, const struct value *v, const struct value *argument, bool *out);
};

struct macro {
    struct text name;
    const struct params *params;
    const struct body *body;
    struct scope *scope; /* where it was defined */
};

struct loop;

void render_start(struct render *r); /* fills fuel and deadline from the limits */

/* Charges work; ERR_LIMIT when fuel, memory or time are used up. */
int render_tick(struct render *r, uint64_t work);
int render_enter(struct render *r); /* one level deeper; pairs with render_leave when it succeeds */
void render_leave(struct render *r);
int render_fail(struct render *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int render_undefined(struct render *r, const struct value *v); /* "'x' is undefined" */

/* A text of len bytes, to be filled; ERR_LIMIT when it is too long. */
int text_new(struct render *r, size_t len, char **out);
int sink_put(struct render *r, struct sink *s, struct text t);
int sink_puts(struct render *r, struct sink *s, const char *c_string);
struct text sink_text(const struct sink *s);

void scope_set(struct render *r, struct scope *s, struct text name, struct value v);
struct scope *scope_new(struct render *r, struct scope *parent);

/* eval.c, exec.c, access.c, arith.c, call.c */
int eval(struct render *r, struct scope *s, const struct node *n, struct value *out);
int eval_filters(struct render *r, struct scope *s, const struct node *n,
                 const struct value *subject, struct value *out);
enum { FLOW_BREAK = 1, FLOW_CONTINUE = 2 };
int exec_body(struct render *r, struct scope *s, const struct body *body);
int exec_capture(struct render *r, struct scope *s, const struct body *body, struct value *out);
int exec_for(struct render *r, struct scope *s, const struct node *n);
int exec_assign(struct render *r, struct scope *s, const struct node *target,
                const struct value *v);
int loop_attribute(struct render *r, struct loop *loop, struct text name, struct value *out);
int loop_call(struct render *r, struct loop *loop, const struct args *args, struct value *out);
int binary(struct render *r, enum token_kind op, const struct value *a, const struct value *b,
           struct value *out);
int value_contains(struct render *r, const struct value *container, const struct value *item,
                   bool *out);
int get_attribute(struct render *r, const struct value *v, struct text name, struct value *out);
int get_item(struct render *r, const struct value *v, const struct value *key, struct value *out);
int get_slice(struct render *r, const struct value *v, const struct value parts[3],
              struct value *out);
int call_value(struct render *r, const struct value *callee, struct args *args, struct value *out);
int call_native(struct render *r, const struct native *native, const struct value *self,
                const struct args *args, struct value *out);
int eval_args(struct render *r, struct scope *s, const struct call_args *n, struct args *out);

/* Tables. */
const struct native *filter_find(struct text name);
const struct native *method_find(const struct value *v, struct text name);
const struct test *test_find(struct text name);
int test_call(struct render *r, struct text name, const struct value *v, const struct args *args,
              bool *out);
int filter_call(struct render *r, struct text name, const struct value *v, const struct args *args,
                struct value *out);
void globals_define(struct render *r, struct scope *s);

/* Text of values. */
int value_str(struct render *r, const struct value *v, struct text *out); /* str(v) */
int value_repr(struct render *r, struct sink *s, const struct value *v);  /* repr(v) */
size_t float_repr(double d, char out[40]);
int value_tojson(struct render *r, const struct value *v, struct bound *options, struct value *out);
int value_parse_json(struct render *r, struct text t, struct value *out);
int format_percent(struct render *r, struct text format, const struct args *args, bool tuple,
                   struct value *out);
int format_braces(struct render *r, struct text format, const struct args *args, struct value *out);
int format_time(struct render *r, struct text format, struct value *out);

/* Python's float(text) and int(text): false when it is none. */
bool text_to_float(struct text t, double *out);
bool text_to_int(struct text t, int base, int64_t *out);

enum text_case { CASE_LOWER, CASE_UPPER, CASE_CAPITALIZE, CASE_TITLE, CASE_SWAP };
int text_recase(struct render *r, struct text t, enum text_case how, struct text *out);
int text_escape(struct render *r, struct text t, struct text *out); /* HTML */
int text_replace(struct render *r, struct text t, struct text old, struct text new_text,
                 int64_t count, struct text *out);
int text_lines(struct render *r, struct text t, bool keep_ends, struct list *out);
int text_join(struct render *r, const struct value *items, struct text separator, bool strict,
              struct text *out);
int argument_text(struct render *r, const struct value *v, const char *what, struct text *out);
int argument_int(struct render *r, const struct value *v, const char *what, int64_t *out);

#endif

/* What the command line asks for. */
#ifndef PHALANX_BENCH_CONFIG_H
#define PHALANX_BENCH_CONFIG_H

#include "common/err.h"
#include "common/options.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SWEEP_MAX 64

enum shape { SHAPE_COMPLETIONS, SHAPE_CHAT, SHAPE_GENERATE };

/* What a sweep changes from run to run. */
enum load_kind {
    LOAD_RATE,        /* --request-rate */
    LOAD_CONCURRENCY, /* --max-concurrency */
    LOAD_SCALE,       /* --trace-scale */
};

struct bench_config {
    enum shape shape;
    const char *path;         /* of the endpoint */
    double rates[SWEEP_MAX];  /* a second; INFINITY: all at once; NAN: as in the trace */
    double scales[SWEEP_MAX]; /* of a trace's times */
    double limits[SWEEP_MAX]; /* of requests in flight; INFINITY: none */
    size_t rates_count, scales_count, limits_count;
    enum load_kind swept; /* LOAD_RATE when nothing is */
    size_t runs_count;
    size_t num_prompts, warmups;
    uint32_t input_max, output_max;
    double range_ratio;
    uint32_t vocab; /* 0: as the server says */
    uint64_t seed;
    double temperature; /* negative: the model's own */
    bool trace, ignore_eos, progress, details;
    char *extra; /* owned; members to add to a body, without braces; "" for none */
    int64_t stall_us;
    const struct options *options; /* borrowed */
};

/* ERR_INVALID names the option, the value and what is allowed. */
int bench_config_read(struct bench_config *c, const struct options *o, struct err *err);
void bench_config_fini(struct bench_config *c);

/* The load of one run. */
double bench_config_rate(const struct bench_config *c, size_t run);
double bench_config_scale(const struct bench_config *c, size_t run);
double bench_config_limit(const struct bench_config *c, size_t run);

/* "a,b,c" as numbers from low to high, or "inf" where inf is true. At most SWEEP_MAX. */
int list_read(const char *name, const char *text, double low, double high, bool inf, double *out,
              size_t *count, struct err *err);

#endif

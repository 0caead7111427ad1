/* What one run measured, request by request, and the numbers made from it. */
#ifndef PHALANX_BENCH_RESULTS_H
#define PHALANX_BENCH_RESULTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REASONS_MAX 24
#define REASON_BYTES 200

enum outcome { OUTCOME_NONE, OUTCOME_OK, OUTCOME_FAILED };

/* Times in microseconds since the start of the run. */
struct sample {
    int64_t due_us, start_us, first_us, end_us;
    uint32_t input_asked, output_asked;
    uint32_t input_tokens, output_tokens; /* as the reply's usage counts them */
    uint32_t chunks;                      /* events that brought text */
    uint8_t reason;                       /* of a failure, in results.reasons */
    uint8_t outcome;
};

struct results {
    struct sample *samples; /* owned */
    size_t count;
    uint32_t *gaps_us; /* owned; between chunks of the same reply, of all that succeeded */
    size_t gaps_count, gaps_cap;
    struct {
        char text[REASON_BYTES];
        size_t count;
    } reasons[REASONS_MAX]; /* the last one gathers what found no place */
    size_t reasons_count;
    int64_t duration_us;
    int64_t cpu_us;       /* this process's, user and system */
    size_t peak;          /* most requests in flight */
    size_t without_usage; /* replies that do not count their tokens: chunks are taken */
    size_t shorter;       /* fewer tokens than asked for although ignore_eos was sent */
    size_t more_chunks;   /* more chunks than tokens: one of the two is not what it seems */
    size_t other_inputs;  /* the server counts another number of prompt tokens than was sent */
    bool interrupted;
};

void results_init(struct results *r, size_t count);
void results_fini(struct results *r);
void results_fail(struct results *r, struct sample *s, const char *reason);
void results_add_gaps(struct results *r, const uint32_t *gaps_us, size_t count);

struct summary {
    size_t count;
    double mean, std, p50, p90, p99, max; /* all 0 without samples */
};

/* Sorts values. Percentiles are exact: of all values, between two by linear interpolation. */
struct summary summarize(double *values, size_t count);

struct report {
    size_t completed, failed;
    double duration_s;
    uint64_t input_tokens, output_tokens, chunks; /* of the completed ones */
    double request_rate, input_rate, output_rate; /* a second */
    double concurrency;                           /* requests in flight, mean over time */
    double offered_rate;                          /* arrivals a second; INFINITY: all at once */
    double cpu_share;                             /* of one core, this process */
    double cpu_us_token;                          /* of this process, for one output token */
    struct summary ttft_ms, tpot_ms, itl_ms, e2e_ms;
    struct summary late_ms; /* sent after it was due (and below --max-concurrency) */
};

void report_make(const struct results *r, struct report *out);

#endif

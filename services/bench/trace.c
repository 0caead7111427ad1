/* Trace files: Azure's CSV and Mooncake's JSON lines, told apart by their first byte. */
#include "common/buf.h"
#include "common/file.h"
#include "common/json.h"
#include "common/mem.h"
#include "services/bench/workload.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX (512u << 20)
#define LINE_BYTES_MAX (1u << 20)
#define TIME_US_MAX (INT64_C(1) << 53) /* what a double counts exactly: 285 years */

static const char header[] = "TIMESTAMP,ContextTokens,GeneratedTokens";

struct trace {
    struct workload *w;
    size_t cap, blocks_cap;
};

/* ---- one line ---- */

/* Digits at *at, of at most `digits` places (all of them when exact); moves behind them. */
static bool take_number(const char **at, int digits, bool exact, int64_t *out)
{
    int n = 0;

    *out = 0;
    for (; n < digits && isdigit((unsigned char)**at); n++)
        *out = *out * 10 + (*(*at)++ - '0');
    return exact ? n == digits : n > 0;
}

static bool take_char(const char **at, char c)
{
    if (**at != c)
        return false;
    (*at)++;
    return true;
}

/* Days from 1970-01-01 (Gregorian; years from 1 on). */
static int64_t days_from_civil(int64_t year, int64_t month, int64_t day)
{
    int64_t y = year - (month <= 2 ? 1 : 0);
    int64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;

    return 365 * y + y / 4 - y / 100 + y / 400 + day_of_year - 719468;
}

/* "2023-11-16 18:15:46.6805900", optionally with "+00:00". */
static bool take_time(const char **at, int64_t *out_us)
{
    static const char separators[6] = {'-', '-', ' ', ':', ':', '\0'};
    static const int64_t low[6] = {1, 1, 1, 0, 0, 0}, high[6] = {9999, 12, 31, 23, 59, 60};
    int64_t part[6], us = 0;

    for (int i = 0; i < 6; i++) {
        if (!take_number(at, i ? 2 : 4, true, &part[i]) || part[i] < low[i] || part[i] > high[i])
            return false;
        if (separators[i] && !take_char(at, separators[i]))
            return false;
    }
    if (take_char(at, '.')) {
        int64_t unit = 100000;

        if (!isdigit((unsigned char)**at))
            return false;
        for (; isdigit((unsigned char)**at); (*at)++, unit /= 10)
            us += (**at - '0') * unit;
    }
    if (strncmp(*at, "+00:00", 6) == 0)
        *at += 6;
    *out_us = ((days_from_civil(part[0], part[1], part[2]) * 24 + part[3]) * 60 + part[4]) * 60;
    *out_us = (*out_us + part[5]) * 1000000 + us;
    return true;
}

static bool tokens_valid(int64_t n)
{
    return n >= 1 && n <= TOKENS_MAX;
}

static bool azure_line(const char *line, struct request *q)
{
    int64_t input, output;

    if (!take_time(&line, &q->arrival_us) || !take_char(&line, ',') ||
        !take_number(&line, 9, false, &input) || !take_char(&line, ',') ||
        !take_number(&line, 9, false, &output) || *line)
        return false;
    q->input_tokens = (uint32_t)input;
    q->output_tokens = (uint32_t)output;
    return tokens_valid(input) && tokens_valid(output);
}

static bool mooncake_blocks(struct trace *t, const json_t *list, struct request *q)
{
    struct workload *w = t->w;
    size_t count = json_array_size(list);

    if (list && !json_is_array(list))
        return false;
    while (w->blocks_count + count > t->blocks_cap) {
        t->blocks_cap = t->blocks_cap ? t->blocks_cap * 2 : 4096;
        w->blocks = mem_resize(w->blocks, t->blocks_cap, sizeof *w->blocks);
    }
    q->blocks_at = w->blocks_count;
    q->blocks_count = (uint32_t)count;
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(list, i);
        json_int_t value = json_integer_value(id);

        if (!json_is_integer(id) || value < 0 || value > UINT32_MAX)
            return false;
        w->blocks[w->blocks_count + i] = (uint32_t)value;
    }
    return true;
}

static bool mooncake_line(struct trace *t, const char *line, size_t len, struct request *q)
{
    json_t *json = NULL;
    struct err ignored;
    const json_t *time, *input, *output;
    bool valid;

    if (json_parse(line, len, 4, &json, &ignored))
        return false;
    time = json_object_get(json, "timestamp");
    input = json_object_get(json, "input_length");
    output = json_object_get(json, "output_length");
    valid = json_is_number(time) && json_number_value(time) >= 0 &&
            json_number_value(time) * 1000 < (double)TIME_US_MAX &&
            tokens_valid(json_integer_value(input)) && tokens_valid(json_integer_value(output)) &&
            mooncake_blocks(t, json_object_get(json, "hash_ids"), q);
    if (valid) {
        q->arrival_us = (int64_t)(json_number_value(time) * 1000);
        q->input_tokens = (uint32_t)json_integer_value(input);
        q->output_tokens = (uint32_t)json_integer_value(output);
    }
    json_decref(json);
    return valid;
}

/* ---- the file ---- */

static void trace_add(struct trace *t, const struct request *q)
{
    struct workload *w = t->w;

    if (w->count == t->cap) {
        t->cap = t->cap ? t->cap * 2 : 1024;
        w->requests = mem_resize(w->requests, t->cap, sizeof *w->requests);
    }
    w->requests[w->count++] = *q;
    w->blocks_count += q->blocks_count;
}

/* The smaller of two heads each time; equal ones stay in their order. */
static void merge(const struct request *from, struct request *to, size_t low, size_t middle,
                  size_t high)
{
    size_t a = low, b = middle;

    for (size_t k = low; k < high; k++) {
        bool left = b == high || (a < middle && from[a].arrival_us <= from[b].arrival_us);

        to[k] = left ? from[a++] : from[b++];
    }
}

/* By time; rows of one moment stay in their order, as qsort would not promise. */
static void trace_sort(struct workload *w)
{
    struct request *from = w->requests;
    struct request *to = mem_array(w->count, sizeof *to);

    for (size_t width = 1; width < w->count; width *= 2) {
        struct request *swap = from;

        for (size_t low = 0; low < w->count; low += 2 * width) {
            size_t middle = low + width < w->count ? low + width : w->count;
            size_t high = middle + width < w->count ? middle + width : w->count;

            merge(from, to, low, middle, high);
        }
        from = to;
        to = swap;
    }
    w->requests = from;
    free(to);
}

/* Rows beyond the context go, then what is beyond the count. */
static int trace_cut(struct workload *w, size_t count, uint64_t context, struct err *err)
{
    size_t kept = 0;
    int64_t first;

    for (size_t i = 0; i < w->count && kept < count; i++) {
        const struct request *q = &w->requests[i];

        if (context && (uint64_t)q->input_tokens + q->output_tokens > context)
            w->skipped++;
        else
            w->requests[kept++] = *q;
    }
    w->count = kept;
    if (!kept)
        return err_set(err, ERR_INVALID, "no row of the trace fits into the context of %llu tokens",
                       (unsigned long long)context);
    first = w->requests[0].arrival_us;
    for (size_t i = 0; i < kept; i++)
        w->requests[i].arrival_us -= first;
    return 0;
}

static int trace_line(struct trace *t, char *line, size_t len, size_t number, bool azure,
                      struct err *err)
{
    struct request q = {0};
    bool valid;

    if (len && line[len - 1] == '\r')
        line[--len] = '\0';
    if (!len)
        return 0;
    if (len > LINE_BYTES_MAX)
        return err_set(err, ERR_LIMIT, "line %zu is longer than %u bytes", number, LINE_BYTES_MAX);
    if (azure && number == 1)
        return strcmp(line, header) == 0
                   ? 0
                   : err_set(err, ERR_INVALID, "line 1 is neither the header %s nor a JSON object",
                             header);
    valid = azure ? strlen(line) == len && azure_line(line, &q) : mooncake_line(t, line, len, &q);
    if (!valid)
        return err_set(err, ERR_INVALID, "line %zu is no %s: %.120s", number,
                       azure ? "time, tokens of prompt, tokens of answer (1 to 16777216)"
                             : "object with timestamp, input_length, output_length (1 to 16777216) "
                               "and hash_ids",
                       line);
    trace_add(t, &q);
    return 0;
}

int workload_trace_text(struct workload *w, const char *text, size_t len, size_t count,
                        uint64_t context, struct err *err)
{
    struct trace t = {.w = w};
    struct buf line = {0};
    size_t number = 0;
    bool azure = len && *text != '{';
    int rc = 0;

    memset(w, 0, sizeof *w);
    while (len && !rc) {
        const char *end = memchr(text, '\n', len);
        size_t n = end ? (size_t)(end - text) : len;

        buf_clear(&line);
        buf_append(&line, text, n);
        rc = trace_line(&t, line.data, n, ++number, azure, err);
        text += n + (end ? 1 : 0);
        len -= n + (end ? 1 : 0);
    }
    if (!rc && !w->count)
        rc = err_set(err, ERR_INVALID, "no requests in the file");
    if (!rc) {
        trace_sort(w);
        rc = trace_cut(w, count, context, err);
    }
    buf_fini(&line);
    if (rc)
        workload_fini(w);
    return rc;
}

int workload_trace(struct workload *w, const char *path, size_t count, uint64_t context,
                   struct err *err)
{
    struct buf text = {0};
    int rc;

    memset(w, 0, sizeof *w);
    rc = file_read(path, FILE_BYTES_MAX, &text, err);
    if (!rc) {
        rc = workload_trace_text(w, text.data, text.len, count, context, err);
        if (rc)
            (void)err_prefix(err, "--dataset-path: %s", path);
    }
    buf_fini(&text);
    return rc;
}

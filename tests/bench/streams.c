/* Opens many streams at once against a server and checks every token of each.
 *
 * usage: streams --port P --streams N --tokens T [--model NAME] [--vocab V]
 *                [--eos ID]... [--seed S] [--opening N] [--slow N] [--slow-seconds S]
 *                [--seconds S] [--record FILE | --expect FILE]
 *
 * Stream i asks /v1/completions for T tokens with seed S + i. With --vocab (device null) token k
 * must be null_token(S + i, k): one that is lost, repeated or another stream's is counted as wrong.
 * At most --opening streams wait for their first token at a time. --slow N more ask for the same
 * and read nothing.
 *
 * --record writes ids and text of every stream to a file. --expect reads it: stream i is compared
 * with the file's row i modulo the rows, and asks what that one asked.
 *
 * --seconds: where a stream ends, the next one begins, for so long. How each of them ended is
 * counted by a label: "ok", "refused" (503 before anything else), "wrong", "dropped" (the
 * connection ended in mid-answer), "unanswered" (before it), "unreachable", "error CODE", "hung".
 * Ends that are neither ok nor refused nor unreachable, and gaps over 100 ms, are JSON lines
 * {"event": ...}; t is CLOCK_MONOTONIC in s.
 *
 * Prints one JSON object at the end: counts, time to first token, gaps between a stream's tokens.
 */
#include "common/clock.h"
#include "common/mem.h"
#include "services/worker/engine_null.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define LINE_MAX_BYTES 16384
#define EOS_MAX 64
#define BUCKETS 20000 /* of 1 ms; the last takes what is longer */
#define LABELS_MAX 32
#define GAP_TOLD_US 100000
#define RETRY_US 50000
#define HANG_US 60000000 /* without a token */

struct stream {
    int fd;
    uint64_t seed;
    uint32_t tokens; /* seen so far */
    char *line;      /* what was read of an unfinished line; owned, NULL: nothing */
    size_t line_len;
    int64_t asked_us, last_us;
    int64_t retry_us; /* --seconds: when the next one begins; 0: it runs */
    uint64_t text;    /* hash of the text as it is escaped */
    uint32_t row;     /* of --expect */
    uint32_t finishes, status;
    uint16_t port; /* ours */
    char code[48]; /* of an error */
    bool wrong;
    bool ended, done; /* [DONE] was read */
};

/* What a stream has to be. */
struct expected {
    uint64_t text;
    uint32_t *ids;
};

struct label {
    char text[64];
    uint64_t count;
};

struct bench {
    int port, epoll;
    uint32_t streams, tokens, opening_max, slow, vocab;
    double slow_seconds, seconds;
    const char *record, *expect;
    struct expected *rows; /* of --record or --expect */
    uint32_t rows_count;
    struct label labels[LABELS_MAX];
    uint64_t next; /* --seconds: the next stream's number */
    uint64_t seed;
    const char *model;
    uint32_t eos[EOS_MAX], eos_count;
    struct stream *list;
    uint32_t opened, begun, ended;
    uint64_t seen, wrong, failed;
    uint64_t gaps[BUCKETS], first[BUCKETS];
    int64_t gap_us_max;
    int64_t all_begun_us, first_end_us;
};

static void count(uint64_t *buckets, int64_t us)
{
    int64_t ms = us / 1000;

    buckets[ms < BUCKETS - 1 ? ms : BUCKETS - 1]++;
}

static double quantile(const uint64_t *buckets, double q)
{
    uint64_t total = 0, below = 0;

    for (int i = 0; i < BUCKETS; i++)
        total += buckets[i];
    for (int i = 0; i < BUCKETS; i++) {
        below += buckets[i];
        if (below && (double)below >= q * (double)total)
            return i + 1;
    }
    return 0;
}

static int compare_ids(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

/* ---- opening ---- */

static int stream_connect(const struct bench *b, bool slow)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)b->port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int small = 4096, on = 1;

    if (fd < 0)
        return -1;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (slow)
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) {
        (void)close(fd);
        return -1;
    }
    return fd;
}

static bool stream_ask(const struct bench *b, int fd, uint64_t seed)
{
    char body[512], request[1024];
    int body_len =
        snprintf(body, sizeof body,
                 "{\"model\":\"%s\",\"prompt\":[%llu,2,3,4],\"seed\":%llu,"
                 "\"max_tokens\":%u,\"ignore_eos\":true,\"stream\":true,"
                 "\"return_token_ids\":true}",
                 b->model, (unsigned long long)(seed % 1000), (unsigned long long)seed, b->tokens);
    int len = snprintf(request, sizeof request,
                       "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                       "Content-Type: application/json\r\nContent-Length: %d\r\n"
                       "Connection: close\r\n\r\n%s",
                       body_len, body);

    return send(fd, request, (size_t)len, MSG_NOSIGNAL) == len;
}

static bool stream_open(struct bench *b, uint32_t i)
{
    struct stream *s = &b->list[i];
    struct epoll_event event = {.events = EPOLLIN, .data = {.u32 = i}};
    uint64_t number = b->next++;
    struct sockaddr_in at;
    socklen_t len = sizeof at;

    s->row = b->rows_count ? (uint32_t)(number % b->rows_count) : 0;
    s->seed = b->seed + (b->rows_count ? s->row : number);
    s->fd = stream_connect(b, false);
    s->asked_us = clock_mono_us();
    if (s->fd < 0)
        return false;
    if (getsockname(s->fd, (struct sockaddr *)&at, &len) == 0)
        s->port = ntohs(at.sin_port);
    if (!stream_ask(b, s->fd, s->seed)) {
        (void)close(s->fd);
        return false;
    }
    return epoll_ctl(b->epoll, EPOLL_CTL_ADD, s->fd, &event) == 0;
}

/* ---- reading ---- */

static void token_check(struct bench *b, struct stream *s, uint32_t id)
{
    bool wrong = s->tokens >= b->tokens;

    if (!wrong && b->vocab)
        wrong = id != null_token(s->seed, s->tokens, b->vocab, b->eos, b->eos_count);
    if (!wrong && b->record)
        b->rows[s->row].ids[s->tokens] = id;
    else if (!wrong && b->expect)
        wrong = id != b->rows[s->row].ids[s->tokens];
    s->wrong = s->wrong || wrong;
    b->wrong += wrong;
    s->tokens++;
    b->seen++;
}

/* FNV-1a of the string that begins at text, escapes as they are: how it was cut into events does
 * not matter. */
static void text_take(struct stream *s, const char *text)
{
    for (; *text && *text != '"'; text++) {
        s->text = (s->text ^ (unsigned char)*text) * 0x100000001b3u;
        if (*text == '\\' && text[1])
            s->text = (s->text ^ (unsigned char)*++text) * 0x100000001b3u;
    }
}

static void code_take(struct stream *s, const char *line)
{
    static const char mark[] = "\"code\":\"";
    const char *at = strstr(line, mark);

    if (at)
        (void)snprintf(s->code, sizeof s->code, "%.*s", (int)strcspn(at + sizeof mark - 1, "\""),
                       at + sizeof mark - 1);
}

static void tokens_time(struct bench *b, struct stream *s)
{
    int64_t now_us = clock_mono_us();

    if (!s->last_us) {
        count(b->first, now_us - s->asked_us);
        if (++b->begun == b->streams)
            b->all_begun_us = now_us;
    } else {
        count(b->gaps, now_us - s->last_us);
        if (b->seconds > 0 && now_us - s->last_us > GAP_TOLD_US)
            printf("{\"event\":\"gap\",\"from\":%.3f,\"t\":%.3f}\n", (double)s->last_us / 1e6,
                   (double)now_us / 1e6);
        if (now_us - s->last_us > b->gap_us_max)
            b->gap_us_max = now_us - s->last_us;
    }
    s->last_us = now_us;
}

/* line ends in a NUL instead of its newline. */
static void line_read(struct bench *b, struct stream *s, const char *line)
{
    static const char mark[] = "\"token_ids\":[", text[] = "\"text\":\"";
    const char *at = strstr(line, mark);

    if (!s->status && strncmp(line, "HTTP/1.1 ", 9) == 0)
        s->status = (uint32_t)strtoul(line + 9, NULL, 10);
    if (s->status != 200)
        code_take(s, line);
    if (strncmp(line, "data: ", 6) != 0)
        return;
    s->wrong = s->wrong || s->done; /* nothing comes after the end */
    if (strcmp(line + 6, "[DONE]") == 0)
        s->done = true;
    if (strncmp(line + 6, "{\"error\"", 8) == 0) {
        (void)snprintf(s->code, sizeof s->code, "?");
        code_take(s, line);
    }
    s->finishes += strstr(line, "\"finish_reason\":\"") != NULL;
    if (strstr(line, text))
        text_take(s, strstr(line, text) + sizeof text - 1);
    if (!at)
        return;
    at += sizeof mark - 1;
    if (*at != ']')
        tokens_time(b, s);
    while (*at && *at != ']') {
        char *end;

        token_check(b, s, (uint32_t)strtoul(at, &end, 10));
        at = *end == ',' ? end + 1 : end;
        if (end == at && *end != ']')
            break;
    }
}

static void stream_take(struct bench *b, struct stream *s, char *data, size_t len)
{
    char *end = data + len, *newline;

    while ((newline = memchr(data, '\n', (size_t)(end - data)))) {
        *newline = '\0';
        if (s->line) {
            size_t more = (size_t)(newline - data) + 1;

            s->line = mem_resize(s->line, s->line_len + more, 1);
            memcpy(s->line + s->line_len, data, more);
            line_read(b, s, s->line);
            free(s->line);
            s->line = NULL;
            s->line_len = 0;
        } else {
            line_read(b, s, data);
        }
        data = newline + 1;
    }
    if (data == end || s->line_len > LINE_MAX_BYTES)
        return;
    s->line = mem_resize(s->line, s->line_len + (size_t)(end - data), 1);
    memcpy(s->line + s->line_len, data, (size_t)(end - data));
    s->line_len += (size_t)(end - data);
}

static bool stream_right(const struct bench *b, const struct stream *s)
{
    if (s->wrong || s->tokens != b->tokens || s->finishes != 1)
        return false;
    return !b->expect || s->text == b->rows[s->row].text;
}

static void label_count(struct bench *b, const char *text)
{
    struct label *l = b->labels;

    while (l < b->labels + LABELS_MAX - 1 && l->count && strcmp(l->text, text) != 0)
        l++;
    if (!l->count)
        (void)snprintf(l->text, sizeof l->text, "%s", text);
    l->count++;
}

/* How the stream has ended, in a word or two. */
static void stream_label(struct bench *b, struct stream *s, const char *given)
{
    char label[64];

    if (s->line && s->status != 200) {
        s->line = mem_resize(s->line, s->line_len + 1, 1);
        s->line[s->line_len] = '\0';
        code_take(s, s->line);
    }
    if (given)
        (void)snprintf(label, sizeof label, "%s", given);
    else if (s->status == 503 &&
             (strcmp(s->code, "not_ready") == 0 || strcmp(s->code, "recovery_queue_full") == 0 ||
              strcmp(s->code, "shutting_down") == 0))
        (void)snprintf(label, sizeof label, "refused");
    else if (s->code[0] || (s->status && s->status != 200))
        (void)snprintf(label, sizeof label, "error %u %s", s->status, s->code);
    else if (s->done)
        (void)snprintf(label, sizeof label, stream_right(b, s) ? "ok" : "wrong");
    else
        (void)snprintf(label, sizeof label, s->status ? "dropped" : "unanswered");
    label_count(b, label);
    if (strcmp(label, "ok") != 0 && strcmp(label, "refused") != 0 && s->fd >= 0)
        printf("{\"event\":\"end\",\"what\":\"%s\",\"t\":%.3f,\"port\":%u,\"seed\":%llu,"
               "\"tokens\":%u}\n",
               label, (double)clock_mono_us() / 1e6, s->port, (unsigned long long)s->seed,
               s->tokens);
}

/* given: the label, where not the stream's own state says it; NULL: it does. */
static void stream_end(struct bench *b, struct stream *s, const char *given)
{
    if (!s->done || !stream_right(b, s))
        b->failed++;
    if (!s->last_us)
        b->begun++; /* never: nobody is to wait for it */
    if (!b->ended++)
        b->first_end_us = clock_mono_us();
    if (b->seconds > 0)
        stream_label(b, s, given);
    if (b->record)
        b->rows[s->row].text = s->text;
    s->ended = true;
    free(s->line);
    s->line = NULL;
    s->line_len = 0;
    if (s->fd >= 0)
        (void)close(s->fd);
}

static void stream_read(struct bench *b, struct stream *s)
{
    char data[65536];
    ssize_t n = recv(s->fd, data, sizeof data, MSG_DONTWAIT);

    if (n > 0)
        stream_take(b, s, data, (size_t)n);
    else if (n == 0 || (errno != EAGAIN && errno != EINTR))
        stream_end(b, s, NULL);
}

/* ---- the run ---- */

static void report(const struct bench *b, int64_t start_us)
{
    int64_t now_us = clock_mono_us();
    uint64_t lost = (uint64_t)b->streams * b->tokens;
    const char *comma = "";

    lost = b->seen < lost ? lost - b->seen : 0;
    printf("{\"streams\":%u,\"tokens\":%llu,\"wrong\":%llu,\"lost\":%llu,\"failed\":%llu,"
           "\"seconds\":%.3f,\"together_seconds\":%.3f,\"first_ms_p50\":%.0f,\"first_ms_p99\":%.0f,"
           "\"gap_ms_p50\":%.0f,\"gap_ms_p99\":%.0f,\"gap_ms_max\":%.0f,\"ends\":{",
           b->streams, (unsigned long long)b->seen, (unsigned long long)b->wrong,
           (unsigned long long)lost, (unsigned long long)b->failed,
           (double)(now_us - start_us) / 1e6, (double)(b->first_end_us - b->all_begun_us) / 1e6,
           quantile(b->first, 0.5), quantile(b->first, 0.99), quantile(b->gaps, 0.5),
           quantile(b->gaps, 0.99), (double)b->gap_us_max / 1e3);
    for (const struct label *l = b->labels; l < b->labels + LABELS_MAX && l->count; l++) {
        printf("%s\"%s\":%llu", comma, l->text, (unsigned long long)l->count);
        comma = ",";
    }
    printf("}}\n");
}

static void slow_open(const struct bench *b)
{
    for (uint32_t i = 0; i < b->slow; i++) {
        int fd = stream_connect(b, true);

        if (fd < 0 || !stream_ask(b, fd, b->seed + b->streams + i)) {
            perror("slow reader");
            exit(1);
        }
    }
}

static void bench_run(struct bench *b)
{
    struct epoll_event events[512];

    while (b->ended < b->streams) {
        int n;

        while (b->opened < b->streams && b->opened - b->begun < b->opening_max) {
            if (!stream_open(b, b->opened)) {
                perror("stream");
                exit(1);
            }
            b->opened++;
        }
        n = epoll_wait(b->epoll, events, 512, 60000);
        if (n == 0) {
            fprintf(stderr, "no stream got a token for 60 s\n");
            break;
        }
        for (int i = 0; i < n; i++)
            if (!b->list[events[i].data.u32].ended)
                stream_read(b, &b->list[events[i].data.u32]);
    }
}

/* The slot's next stream, and whatever it takes to get a connection. */
static void slot_restart(struct bench *b, struct stream *s, int64_t now_us)
{
    memset(s, 0, sizeof *s);
    if (!stream_open(b, (uint32_t)(s - b->list))) {
        s->fd = -1;
        stream_end(b, s, "unreachable");
        s->retry_us = now_us + RETRY_US;
    }
}

/* One slot, once a turn; true while something is open in it. */
static bool slot_tend(struct bench *b, struct stream *s, int64_t now_us, int64_t until_us)
{
    bool refused = s->status != 200;

    if (!s->ended) {
        if (now_us - (s->last_us ? s->last_us : s->asked_us) < HANG_US)
            return true;
        stream_end(b, s, "hung");
    }
    if (now_us >= until_us)
        return false;
    if (!s->retry_us)
        s->retry_us = refused ? now_us + RETRY_US : now_us;
    if (now_us >= s->retry_us)
        slot_restart(b, s, now_us);
    return true;
}

/* --seconds */
static void bench_keep(struct bench *b)
{
    int64_t until_us = clock_mono_us() + (int64_t)(b->seconds * 1e6);
    struct epoll_event events[512];
    bool open = true;

    for (uint32_t i = 0; i < b->streams; i++)
        slot_restart(b, &b->list[i], clock_mono_us());
    while (open) {
        int n = epoll_wait(b->epoll, events, 512, 20);

        for (int i = 0; i < n; i++)
            if (!b->list[events[i].data.u32].ended)
                stream_read(b, &b->list[events[i].data.u32]);
        open = false;
        for (uint32_t i = 0; i < b->streams; i++)
            open = slot_tend(b, &b->list[i], clock_mono_us(), until_us) || open;
    }
}

/* ---- what has to come ---- */

static void rows_alloc(struct bench *b, uint32_t count)
{
    b->rows_count = count;
    b->rows = mem_array(count, sizeof *b->rows);
    for (uint32_t i = 0; i < count; i++)
        b->rows[i].ids = mem_array(b->tokens, sizeof *b->rows[i].ids);
}

/* First line: rows and tokens; then a row a line: hash, ids. */
static void rows_write(const struct bench *b)
{
    FILE *file = fopen(b->record, "we");

    if (!file) {
        perror(b->record);
        exit(1);
    }
    fprintf(file, "%u %u\n", b->rows_count, b->tokens);
    for (uint32_t i = 0; i < b->rows_count; i++) {
        fprintf(file, "%llx", (unsigned long long)b->rows[i].text);
        for (uint32_t k = 0; k < b->tokens; k++)
            fprintf(file, " %u", b->rows[i].ids[k]);
        fprintf(file, "\n");
    }
    (void)fclose(file);
}

static void rows_read(struct bench *b)
{
    FILE *file = fopen(b->expect, "re");
    unsigned long long text;
    uint32_t rows;

    if (!file || fscanf(file, "%u %u", &rows, &b->tokens) != 2 || !rows || rows > 1u << 20 ||
        b->tokens > 1u << 20) {
        fprintf(stderr, "streams: %s is not what --record writes\n", b->expect);
        exit(2);
    }
    rows_alloc(b, rows);
    for (uint32_t i = 0; i < rows; i++) {
        bool right = fscanf(file, "%llx", &text) == 1;

        b->rows[i].text = text;
        for (uint32_t k = 0; k < b->tokens && right; k++)
            right = fscanf(file, "%u", &b->rows[i].ids[k]) == 1;
        if (!right) {
            fprintf(stderr, "streams: %s ends early\n", b->expect);
            exit(2);
        }
    }
    (void)fclose(file);
}

static void rows_free(struct bench *b)
{
    for (uint32_t i = 0; i < b->rows_count; i++)
        free(b->rows[i].ids);
    free(b->rows);
}

static void options_read(struct bench *b, int argc, char **argv)
{
    static const struct option names[] = {
        {"port", 1, NULL, 'p'},         {"streams", 1, NULL, 'n'}, {"tokens", 1, NULL, 't'},
        {"seed", 1, NULL, 's'},         {"model", 1, NULL, 'm'},   {"vocab", 1, NULL, 'v'},
        {"eos", 1, NULL, 'e'},          {"opening", 1, NULL, 'o'}, {"slow", 1, NULL, 'l'},
        {"slow-seconds", 1, NULL, 'L'}, {"seconds", 1, NULL, 'S'}, {"record", 1, NULL, 'R'},
        {"expect", 1, NULL, 'E'},       {NULL, 0, NULL, 0},
    };
    int c;

    while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (c) {
        case 'p':
            b->port = atoi(optarg);
            break;
        case 'n':
            b->streams = (uint32_t)strtoul(optarg, NULL, 10);
            break;
        case 't':
            b->tokens = (uint32_t)strtoul(optarg, NULL, 10);
            break;
        case 's':
            b->seed = strtoull(optarg, NULL, 10);
            break;
        case 'm':
            b->model = optarg;
            break;
        case 'v':
            b->vocab = (uint32_t)strtoul(optarg, NULL, 10);
            break;
        case 'e':
            if (b->eos_count < EOS_MAX)
                b->eos[b->eos_count++] = (uint32_t)strtoul(optarg, NULL, 10);
            break;
        case 'o':
            b->opening_max = (uint32_t)strtoul(optarg, NULL, 10);
            break;
        case 'l':
            b->slow = (uint32_t)strtoul(optarg, NULL, 10);
            break;
        case 'L':
            b->slow_seconds = strtod(optarg, NULL);
            break;
        case 'S':
            b->seconds = strtod(optarg, NULL);
            break;
        case 'R':
            b->record = optarg;
            break;
        case 'E':
            b->expect = optarg;
            break;
        default:
            exit(2);
        }
    }
    if (!b->port || (!b->tokens && !b->expect) || (b->vocab && b->vocab <= b->eos_count) ||
        (!b->vocab && !b->record && !b->expect) || (b->record && b->seconds > 0)) {
        fprintf(stderr, "streams: --port, --tokens (or --expect) and --vocab, --record or --expect "
                        "are needed; --record goes without --seconds\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct bench *b = mem_zalloc(sizeof *b);
    struct rlimit limit;
    int64_t start_us;
    bool bad;

    b->model = "demo-model";
    b->opening_max = 200;
    options_read(b, argc, argv);
    if (b->expect)
        rows_read(b);
    else if (b->record)
        rows_alloc(b, b->streams);
    qsort(b->eos, b->eos_count, sizeof *b->eos, compare_ids);
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
    b->epoll = epoll_create1(EPOLL_CLOEXEC);
    b->list = mem_array(b->streams ? b->streams : 1, sizeof *b->list);
    start_us = clock_mono_us();
    slow_open(b);
    if (b->seconds > 0)
        bench_keep(b);
    else
        bench_run(b);
    if (b->record)
        rows_write(b);
    if (b->slow_seconds > 0)
        (void)usleep((useconds_t)(b->slow_seconds * 1e6));
    report(b, start_us);
    bad = b->wrong || b->failed;
    rows_free(b);
    free(b->list);
    free(b);
    return bad;
}

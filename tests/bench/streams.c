/* Opens many streams at once against a server on device null and checks every token of each.
 *
 * usage: streams --port P --streams N --tokens T [--model NAME] [--vocab V]
 *                [--eos ID]... [--seed S] [--opening N] [--slow N] [--slow-seconds S]
 *
 * Stream i asks /v1/completions for T tokens with seed S + i. Token k must be null_token(S + i, k):
 * one that is lost, repeated or another stream's is counted as wrong. At most --opening streams
 * wait for their first token at a time. --slow N more ask for the same and read nothing.
 * Prints one JSON object: counts, time to first token, gaps between a stream's tokens. */
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

struct stream {
    int fd;
    uint64_t seed;
    uint32_t tokens; /* seen so far */
    char *line;      /* what was read of an unfinished line; owned, NULL: nothing */
    size_t line_len;
    int64_t asked_us, last_us;
    bool ended, done; /* [DONE] was read */
};

struct bench {
    int port, epoll;
    uint32_t streams, tokens, opening_max, slow, vocab;
    double slow_seconds;
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
                 "\"max_tokens\":%u,\"stream\":true,\"return_token_ids\":true}",
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

    s->seed = b->seed + i;
    s->fd = stream_connect(b, false);
    s->asked_us = clock_mono_us();
    if (s->fd < 0 || !stream_ask(b, s->fd, s->seed))
        return false;
    return epoll_ctl(b->epoll, EPOLL_CTL_ADD, s->fd, &event) == 0;
}

/* ---- reading ---- */

static void token_check(struct bench *b, struct stream *s, uint32_t id)
{
    if (s->tokens >= b->tokens ||
        id != null_token(s->seed, s->tokens, b->vocab, b->eos, b->eos_count))
        b->wrong++;
    s->tokens++;
    b->seen++;
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
        if (now_us - s->last_us > b->gap_us_max)
            b->gap_us_max = now_us - s->last_us;
    }
    s->last_us = now_us;
}

/* line ends in a NUL instead of its newline. */
static void line_read(struct bench *b, struct stream *s, const char *line)
{
    static const char mark[] = "\"token_ids\":[";
    const char *at = strstr(line, mark);

    if (strncmp(line, "data: ", 6) != 0)
        return;
    if (strcmp(line + 6, "[DONE]") == 0)
        s->done = true;
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

static void stream_end(struct bench *b, struct stream *s)
{
    if (!s->done || s->tokens != b->tokens)
        b->failed++;
    if (!s->last_us)
        b->begun++; /* never: nobody is to wait for it */
    if (!b->ended++)
        b->first_end_us = clock_mono_us();
    s->ended = true;
    free(s->line);
    s->line = NULL;
    (void)close(s->fd);
}

static void stream_read(struct bench *b, struct stream *s)
{
    char data[65536];
    ssize_t n = recv(s->fd, data, sizeof data, MSG_DONTWAIT);

    if (n > 0)
        stream_take(b, s, data, (size_t)n);
    else if (n == 0 || (errno != EAGAIN && errno != EINTR))
        stream_end(b, s);
}

/* ---- the run ---- */

static void report(const struct bench *b, int64_t start_us)
{
    int64_t now_us = clock_mono_us();
    uint64_t lost = (uint64_t)b->streams * b->tokens;

    lost = b->seen < lost ? lost - b->seen : 0;
    printf("{\"streams\":%u,\"tokens\":%llu,\"wrong\":%llu,\"lost\":%llu,\"failed\":%llu,"
           "\"seconds\":%.3f,\"together_seconds\":%.3f,\"first_ms_p50\":%.0f,\"first_ms_p99\":%.0f,"
           "\"gap_ms_p50\":%.0f,\"gap_ms_p99\":%.0f,\"gap_ms_max\":%.0f}\n",
           b->streams, (unsigned long long)b->seen, (unsigned long long)b->wrong,
           (unsigned long long)lost, (unsigned long long)b->failed,
           (double)(now_us - start_us) / 1e6, (double)(b->first_end_us - b->all_begun_us) / 1e6,
           quantile(b->first, 0.5), quantile(b->first, 0.99), quantile(b->gaps, 0.5),
           quantile(b->gaps, 0.99), (double)b->gap_us_max / 1e3);
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

static void options_read(struct bench *b, int argc, char **argv)
{
    static const struct option names[] = {
        {"port", 1, NULL, 'p'},         {"streams", 1, NULL, 'n'}, {"tokens", 1, NULL, 't'},
        {"seed", 1, NULL, 's'},         {"model", 1, NULL, 'm'},   {"vocab", 1, NULL, 'v'},
        {"eos", 1, NULL, 'e'},          {"opening", 1, NULL, 'o'}, {"slow", 1, NULL, 'l'},
        {"slow-seconds", 1, NULL, 'L'}, {NULL, 0, NULL, 0},
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
        default:
            exit(2);
        }
    }
    if (!b->port || !b->tokens || b->vocab <= b->eos_count) {
        fprintf(stderr, "streams: --port, --tokens and --vocab are needed\n");
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
    qsort(b->eos, b->eos_count, sizeof *b->eos, compare_ids);
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
    b->epoll = epoll_create1(EPOLL_CLOEXEC);
    b->list = mem_array(b->streams ? b->streams : 1, sizeof *b->list);
    start_us = clock_mono_us();
    slow_open(b);
    bench_run(b);
    if (b->slow_seconds > 0)
        (void)usleep((useconds_t)(b->slow_seconds * 1e6));
    report(b, start_us);
    bad = b->wrong || b->failed;
    free(b->list);
    free(b);
    return bad;
}

/* Drives a tokenizer over stdin and stdout, for tests in Python.
 *
 *     tokenizer_cli MODEL_DIR
 *
 * A request is: operation (1 byte), argument, length (u32 each, little endian), payload. An answer
 * is: status, length, payload; status 0 or -error code (the payload is the message then).
 *   E encode, argument = flags, payload = text; answers ids
 *   H shield, payload = text; answers bytes
 *   D decode, argument = skip_special, payload = ids; answers text
 *   S detokenizer; argument = skip_special | continues << 1 | ids a push << 8; payload = number of
 *     stop strings, each as length and text, then ids. Answers stop index (u32) and text
 *   T token bytes, argument = id
 *   e, d: E and D, argument = repetitions; answer microseconds (u64) and result length (u64)
 *   I answers load microseconds, resident KiB, peak KiB (u64 each) */
#include "common/clock.h"
#include "common/utf8.h"
#include "services/tokenizer/detok.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IDS_MAX (1u << 26)

struct request {
    char op;
    uint32_t argument, len;
    char *payload;
};

static int64_t load_us;

static bool request_read(struct request *r)
{
    if (fread(&r->op, 1, 1, stdin) != 1 || fread(&r->argument, 4, 1, stdin) != 1 ||
        fread(&r->len, 4, 1, stdin) != 1)
        return false;
    r->payload = malloc((size_t)r->len + 1);
    return r->payload && fread(r->payload, 1, r->len, stdin) == r->len;
}

static void answer(uint32_t status, const void *data, size_t len)
{
    uint32_t head[2] = {status, (uint32_t)len};

    (void)fwrite(head, 4, 2, stdout);
    if (len)
        (void)fwrite(data, 1, len, stdout);
    (void)fflush(stdout);
}

static void encode(const struct tokenizer *t, const struct request *r)
{
    struct ids ids = {0};
    struct err err = {0};
    int rc = tokenizer_encode(t, r->payload, r->len, r->argument, IDS_MAX, &ids, &err);

    if (rc)
        answer((uint32_t)-rc, err.msg, strlen(err.msg));
    else
        answer(0, ids.data, ids.len * 4);
    ids_fini(&ids);
}

static void stream(const struct tokenizer *t, const struct request *r)
{
    struct detok_stop stops[16];
    struct detok d;
    struct buf out = {0};
    uint32_t count, step = r->argument >> 8, ids_count;
    const char *at = r->payload + 4;
    const uint32_t *ids;
    int found = -1;
    char *copy;

    memcpy(&count, r->payload, 4);
    for (uint32_t i = 0; i < count && i < 16; i++) {
        uint32_t len;

        memcpy(&len, at, 4);
        stops[i] = (struct detok_stop){at + 4, len};
        at += 4 + len;
    }
    ids_count = (uint32_t)(r->len - (size_t)(at - r->payload)) / 4;
    copy = malloc((size_t)ids_count * 4 + 4);
    memcpy(copy + 4, at, (size_t)ids_count * 4);
    ids = (const uint32_t *)(const void *)copy + 1;
    buf_append(&out, &found, 4);
    detok_init(&d, t, stops, count, r->argument & 1, r->argument & 2);
    for (uint32_t i = 0; i < ids_count && found < 0; i += step) {
        size_t before = out.len;

        found = detok_push(&d, ids + i, ids_count - i < step ? ids_count - i : step, &out);
        if (!utf8_valid(out.data + before, out.len - before))
            buf_puts(&out, "[a piece is no valid UTF-8]");
    }
    detok_finish(&d, &out);
    memcpy(out.data, &found, 4);
    answer(0, out.data, out.len);
    detok_fini(&d);
    buf_fini(&out);
    free(copy);
}

static void bench(const struct tokenizer *t, const struct request *r)
{
    int64_t start = clock_mono_us();
    uint64_t result[2] = {0};

    for (uint32_t i = 0; i < r->argument; i++) {
        if (r->op == 'e') {
            struct ids ids = {0};

            (void)tokenizer_encode(t, r->payload, r->len, ENCODE_SPLIT_ADDED, IDS_MAX, &ids, NULL);
            result[1] = ids.len;
            ids_fini(&ids);
        } else {
            struct buf out = {0};

            tokenizer_decode(t, (const uint32_t *)(const void *)r->payload, r->len / 4, true, &out);
            result[1] = out.len;
            buf_fini(&out);
        }
    }
    result[0] = (uint64_t)(clock_mono_us() - start);
    answer(0, result, sizeof result);
}

static void info(void)
{
    uint64_t result[3] = {(uint64_t)load_us, 0, 0};
    char line[256];
    FILE *f = fopen("/proc/self/status", "r");

    while (f && fgets(line, sizeof line, f)) {
        if (!strncmp(line, "VmRSS:", 6))
            result[1] = strtoull(line + 6, NULL, 10);
        else if (!strncmp(line, "VmHWM:", 6))
            result[2] = strtoull(line + 6, NULL, 10);
    }
    if (f)
        (void)fclose(f);
    answer(0, result, sizeof result);
}

static void serve(const struct tokenizer *t, const struct request *r)
{
    struct buf out = {0};

    switch (r->op) {
    case 'E':
        encode(t, r);
        return;
    case 'S':
        stream(t, r);
        return;
    case 'I':
        info();
        return;
    case 'e':
    case 'd':
        bench(t, r);
        return;
    case 'H':
        tokenizer_shield(t, r->payload, r->len, &out);
        break;
    case 'D':
        tokenizer_decode(t, (const uint32_t *)(const void *)r->payload, r->len / 4, r->argument,
                         &out);
        break;
    case 'T':
        tokenizer_token_bytes(t, r->argument, &out);
        break;
    default:
        answer(1, "unknown operation", 17);
        return;
    }
    answer(0, out.data, out.len);
    buf_fini(&out);
}

int main(int argc, char **argv)
{
    struct tokenizer *t;
    struct err err = {0};
    struct request r;
    int64_t start = clock_mono_us();

    if (argc != 2) {
        (void)fprintf(stderr, "usage: tokenizer_cli MODEL_DIR\n");
        return 2;
    }
    if (tokenizer_load(argv[1], &t, &err)) {
        (void)fprintf(stderr, "%d %s\n", err.code, err.msg);
        return 1;
    }
    load_us = clock_mono_us() - start;
    while (request_read(&r)) {
        serve(t, &r);
        free(r.payload);
    }
    tokenizer_free(&t);
    return 0;
}

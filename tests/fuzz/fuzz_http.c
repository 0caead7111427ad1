/* Bytes of a connection into the HTTP parser. The first byte chooses how the rest is cut: requests
 * must come out the same however the bytes arrive. */
#include "services/gateway/http_parser.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* What came out: a hash of every request, and the final status. */
struct outcome {
    uint64_t hash;
    int requests, status;
};

static uint64_t mix(uint64_t hash, const char *data, size_t len)
{
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ (unsigned char)data[i]) * 0x100000001b3u;
    return hash;
}

static void note_request(struct outcome *o, const struct http_parser *p)
{
    o->requests++;
    o->hash = mix(o->hash, p->target.present ? p->head.data + p->target.at : "", p->target.len);
    for (int i = 0; i < HTTP_FIELDS_KNOWN; i++) {
        size_t len;
        const char *value = http_parser_field(p, (enum http_field)i, &len);

        if (value)
            o->hash = mix(o->hash, value, len);
    }
    o->hash = mix(o->hash, p->body.data, p->body.len);
}

static struct outcome parse(const char *data, size_t len, size_t step)
{
    struct outcome o = {0};
    struct problem problem = {0};
    struct http_parser p;
    bool again = false;
    size_t at = 0;

    http_parser_init(&p, &problem);
    while ((at < len || again) && !problem.status) {
        size_t n = step < len - at ? step : len - at, used = 0;
        enum http_parsed event = http_parser_feed(&p, data + at, n, &used);

        if (used > n)
            abort();
        at += used;
        again = event == PARSED_HEAD;
        if (event == PARSED_BAD && !problem.status)
            abort();
        if (event != PARSED_DONE)
            continue;
        note_request(&o, &p);
        if (!p.keep_alive)
            break;
        http_parser_next(&p);
    }
    o.status = problem.status;
    http_parser_fini(&p);
    return o;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    struct outcome whole, cut;

    if (!size)
        return 0;
    whole = parse(text + 1, size - 1, size);
    cut = parse(text + 1, size - 1, (size_t)data[0] + 1);
    /* of two faults in one head either may be named */
    if (whole.requests != cut.requests || !whole.status != !cut.status || whole.hash != cut.hash)
        abort();
    return 0;
}

#include "services/bench/body.h"

#include <string.h>

/* Words that are one token, blank included, in most vocabularies. */
static const char words[][8] = {
    "the",   "of",    "and",  "to",   "in",    "is",   "that",  "for",  "it",   "as",    "was",
    "with",  "be",    "by",   "on",   "not",   "he",   "his",   "but",  "at",   "are",   "this",
    "have",  "from",  "had",  "they", "you",   "were", "her",   "all",  "she",  "there", "would",
    "their", "we",    "him",  "been", "has",   "when", "who",   "will", "more", "no",    "if",
    "out",   "so",    "said", "what", "up",    "its",  "about", "into", "than", "them",  "can",
    "only",  "other", "new",  "some", "could", "time", "these", "two",  "may",
};
#define WORDS (sizeof words / sizeof *words)

/* Decimal digits of an id. Prompts are most of what is sent, so no printf. */
static size_t digits_write(uint32_t value, char *out)
{
    char reversed[10];
    size_t n = 0;

    do {
        reversed[n++] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    for (size_t i = 0; i < n; i++)
        out[i] = reversed[n - 1 - i];
    return n;
}

static void ids_write(const uint32_t *ids, uint32_t count, struct buf *out)
{
    char *at;

    buf_reserve(out, (size_t)count * 11 + 2);
    at = out->data + out->len;
    *at++ = '[';
    for (uint32_t i = 0; i < count; i++) {
        if (i)
            *at++ = ',';
        at += digits_write(ids[i], at);
    }
    *at++ = ']';
    *at = '\0';
    out->len = (size_t)(at - out->data);
}

static void words_write(const uint32_t *ids, uint32_t count, struct buf *out)
{
    for (uint32_t i = 0; i < count; i++) {
        if (i)
            buf_putc(out, ' ');
        buf_puts(out, words[ids[i] % WORDS]);
    }
}

/* Members that all shapes have, at the level where sampling parameters stand. */
static void sampling_write(const struct bench_config *c, const char *length, uint32_t tokens,
                           struct buf *out)
{
    buf_printf(out, "\"%s\":%u", length, (unsigned)tokens);
    if (c->ignore_eos)
        buf_puts(out, ",\"ignore_eos\":true");
    if (c->temperature >= 0) {
        buf_puts(out, ",\"temperature\":");
        buf_json_number(out, c->temperature);
    }
}

void body_write(const struct bench_config *c, const char *model, const uint32_t *ids,
                uint32_t count, uint32_t output_tokens, struct buf *out)
{
    if (c->shape == SHAPE_GENERATE) {
        buf_puts(out, "{\"input_ids\":");
        ids_write(ids, count, out);
        buf_puts(out, ",\"sampling_params\":{");
        sampling_write(c, "max_new_tokens", output_tokens, out);
        buf_puts(out, "},\"stream\":true");
    } else {
        buf_puts(out, "{\"model\":");
        buf_json_string(out, model, strlen(model));
        if (c->shape == SHAPE_CHAT) {
            buf_puts(out, ",\"messages\":[{\"role\":\"user\",\"content\":\"");
            words_write(ids, count, out);
            buf_puts(out, "\"}],");
        } else {
            buf_puts(out, ",\"prompt\":");
            ids_write(ids, count, out);
            buf_putc(out, ',');
        }
        sampling_write(c, "max_tokens", output_tokens, out);
        buf_puts(out, ",\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    }
    if (*c->extra)
        buf_printf(out, ",%s", c->extra);
    buf_putc(out, '}');
}

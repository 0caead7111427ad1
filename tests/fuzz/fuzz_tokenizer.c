/* The first byte chooses: a text for one of two small tokenizers (shield, encode, decode), or a
 * tokenizer.json and a text behind a NUL byte. */
#include "common/utf8.h"
#include "services/tokenizer/detok.h"
#include "tests/unit/tokenizer/tiny.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds)
{
    if (!holds)
        abort();
}

static void run_text(const struct tokenizer *t, const char *text, size_t len, bool exact)
{
    struct ids ids = {0};
    struct buf shielded = {0}, out = {0};

    tokenizer_shield(t, text, len, &shielded);
    if (!tokenizer_encode(t, shielded.data ? shielded.data : "", shielded.len, ENCODE_SPLIT_ADDED,
                          1u << 20, &ids, NULL)) {
        tokenizer_decode(t, ids.data, ids.len, false, &out);
        require(utf8_valid(out.data ? out.data : "", out.len) || !exact);
    }
    for (size_t i = 0; exact && utf8_valid(text, len) && i < ids.len; i++)
        require(!tokenizer_is_special(t, ids.data[i]));
    ids.len = 0;
    (void)tokenizer_encode(t, text, len, ENCODE_SPLIT_ADDED | ENCODE_ADD_SPECIAL, 1u << 20, &ids,
                           NULL);
    ids_fini(&ids);
    buf_fini(&shielded);
    buf_fini(&out);
}

/* The bytes as ids: streamed one by one they give what decode gives. */
static void run_ids(const struct tokenizer *t, const uint8_t *data, size_t size)
{
    struct ids ids = {0};
    struct buf whole = {0}, pieces = {0};
    struct detok d;

    for (size_t i = 0; i + 1 < size; i += 2)
        ids_push(&ids, data[i] | (data[i + 1] & 1u) << 8);
    tokenizer_decode(t, ids.data, ids.len, true, &whole);
    detok_init(&d, t, NULL, 0, true, false);
    for (size_t i = 0; i < ids.len; i++)
        (void)detok_push(&d, &ids.data[i], 1, &pieces);
    detok_finish(&d, &pieces);
    require(whole.len == pieces.len && (!whole.len || !memcmp(whole.data, pieces.data, whole.len)));
    detok_fini(&d);
    ids_fini(&ids);
    buf_fini(&whole);
    buf_fini(&pieces);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *tiny[2];
    const char *text = (const char *)data + 1;
    struct tokenizer *t;

    if (!size)
        return 0;
    for (size_t i = 0; i < 2 && !tiny[i]; i++)
        tiny[i] = tiny_load(i ? tiny_fallback : tiny_byte_level);
    if (data[0] < 128) {
        t = tiny[data[0] & 1];
        run_text(t, text, size - 1, true);
        run_ids(t, data + 1, size - 1);
    } else {
        const char *nul = memchr(text, 0, size - 1);
        size_t len = nul ? (size_t)(nul - text) : size - 1;

        if (tokenizer_parse(text, len, &t, NULL))
            return 0;
        run_text(t, text, size - 1, false);
        run_ids(t, data + 1, size - 1);
        tokenizer_free(&t);
    }
    return 0;
}

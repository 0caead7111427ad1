/* Two small tokenizers for unit tests and fuzzing, as tokenizer.json text.
 *
 * Byte-level (ids: the byte for each byte, then the merges "he" 256, "ll" 257, "hell" 258,
 * "hello" 259, " w" 260, "aa" 261, "aaaa" 262), and Llama-2's way with bytes as <0xXX>. */
#ifndef PHALANX_TESTS_TINY_H
#define PHALANX_TESTS_TINY_H

#include "common/buf.h"
#include "services/tokenizer/internal.h"

#include <stdio.h>

#define TINY_END 263  /* "<|end|>", special */
#define TINY_TOOL 264 /* "<tool>", not special */
#define TINY_WORD 265 /* "cat", single_word, lstrip */

static inline void tiny_byte_level(struct buf *out)
{
    static const char *const tokens[] = {"he", "ll", "hell", "hello", "\xc4\xa0w", "aa", "aaaa"};

    buf_puts(out, "{\"added_tokens\":["
                  "{\"content\":\"<|end|>\",\"special\":true,\"normalized\":false},"
                  "{\"content\":\"<tool>\",\"special\":false,\"normalized\":false},"
                  "{\"content\":\"cat\",\"single_word\":true,\"lstrip\":true,\"special\":false}],"
                  "\"normalizer\":{\"type\":\"NFC\"},"
                  "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
                  "\"decoder\":{\"type\":\"ByteLevel\"},"
                  "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":["
                  "{\"SpecialToken\":{\"id\":\"<|end|>\"}},{\"Sequence\":{\"id\":\"A\"}}],"
                  "\"special_tokens\":{\"<|end|>\":{\"ids\":[263]}}},"
                  "\"model\":{\"type\":\"BPE\",\"vocab\":{");
    for (unsigned i = 0; i < 256; i++) {
        char byte = (char)i, mapped[2];

        buf_json_string(out, mapped, bytelevel_map(&byte, 1, mapped));
        buf_printf(out, ":%u,", i);
    }
    for (unsigned i = 0; i < 7; i++)
        buf_printf(out, "\"%s\":%u%s", tokens[i], 256 + i, i < 6 ? "," : "");
    buf_puts(out, "},\"merges\":[\"h e\",[\"l\",\"l\"],\"he ll\",\"hell o\",\"\xc4\xa0 w\",\"a a\","
                  "\"aa aa\"]}}");
}

#define TINY_UNK 0
#define TINY_BYTE 3 /* of byte 0 */
#define TINY_SPACE 259
#define TINY_HI 262 /* U+2581 "hi" */

static inline void tiny_fallback(struct buf *out)
{
    buf_puts(out, "{\"added_tokens\":[{\"content\":\"<unk>\",\"special\":true},"
                  "{\"content\":\"<s>\",\"special\":true,\"normalized\":false},"
                  "{\"content\":\"</s>\",\"special\":true,\"normalized\":false}],"
                  "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":["
                  "{\"type\":\"Prepend\",\"prepend\":\"\xe2\x96\x81\"},"
                  "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},"
                  "\"content\":\"\xe2\x96\x81\"}]},"
                  "\"decoder\":{\"type\":\"Sequence\",\"decoders\":["
                  "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xe2\x96\x81\"},"
                  "\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
                  "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},"
                  "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,"
                  "\"byte_fallback\":true,\"vocab\":{\"<unk>\":0,\"<s>\":1,\"</s>\":2,");
    for (unsigned i = 0; i < 256; i++)
        buf_printf(out, "\"<0x%02X>\":%u,", i, TINY_BYTE + i);
    buf_puts(out, "\"\xe2\x96\x81\":259,\"h\":260,\"i\":261,\"\xe2\x96\x81hi\":262,\"hi\":263},"
                  "\"merges\":[\"h i\",\"\xe2\x96\x81 hi\"]}}");
}

static inline struct tokenizer *tiny_load(void (*make)(struct buf *))
{
    struct tokenizer *t = NULL;
    struct buf json = {0};
    struct err err = {0};

    make(&json);
    if (tokenizer_parse(json.data, json.len, &t, &err))
        (void)fprintf(stderr, "%s\n", err.msg);
    buf_fini(&json);
    return t;
}

#endif

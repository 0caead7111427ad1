/* Classes of code points as Hugging Face's engines see them (tables made by gen_unicode.py). */
#ifndef PHALANX_TOKENIZER_UNICODE_H
#define PHALANX_TOKENIZER_UNICODE_H

#include <stddef.h>
#include <stdint.h>

enum unicode_flag {
    UNICODE_LETTER = 1,          /* \p{L} */
    UNICODE_NUMBER = 2,          /* \p{N} */
    UNICODE_SPACE = 4,           /* \s, White_Space */
    UNICODE_MARK = 8,            /* \p{M} */
    UNICODE_UPPER = 16,          /* Lu, Lt, Lm, Lo, M */
    UNICODE_LOWER = 32,          /* Ll, Lm, Lo, M */
    UNICODE_PUNCT = 64,          /* \p{P} */
    UNICODE_SYMBOL = 128,        /* \p{S} */
    UNICODE_PUNCTUATION = 256,   /* what the Punctuation pre-tokenizer splits at */
    UNICODE_DIGIT = 512,         /* what the Digits pre-tokenizer splits at */
    UNICODE_WORD = 1024,         /* \w of the single_word flag */
    UNICODE_NFC_UNSAFE = 2048,   /* may change or be changed by a neighbour under NFC */
    UNICODE_NFC_UNKNOWN = 4096,  /* newer than the reference's NFC and NFD: left alone */
    UNICODE_NFKC_UNKNOWN = 8192, /* the same for NFKC and NFKD */
};

extern const uint16_t unicode_kinds[];
extern const uint8_t unicode_index[];
extern const uint8_t unicode_pages[];

/* Flags of a code point (<= U+10FFFF). */
static inline unsigned unicode_flags(uint32_t cp)
{
    return unicode_kinds[unicode_pages[(uint32_t)unicode_index[cp >> 7] << 7 | (cp & 127)]];
}

/* Reads one code point at s[i]; i < len. Returns its length. A byte that starts no valid sequence
 * is one code point U+FFFD. */
static inline size_t unicode_read(const unsigned char *s, size_t len, size_t i, uint32_t *cp)
{
    unsigned c = s[i];
    size_t left = len - i;

    if (c < 0x80) {
        *cp = c;
        return 1;
    }
    if (c >= 0xc2 && c < 0xe0 && left > 1) {
        *cp = (c & 0x1f) << 6 | (s[i + 1] & 0x3fu);
        return 2;
    }
    if (c >= 0xe0 && c < 0xf0 && left > 2) {
        *cp = (c & 0xf) << 12 | (s[i + 1] & 0x3fu) << 6 | (s[i + 2] & 0x3fu);
        return 3;
    }
    if (c >= 0xf0 && c < 0xf5 && left > 3) {
        *cp =
            (c & 7) << 18 | (s[i + 1] & 0x3fu) << 12 | (s[i + 2] & 0x3fu) << 6 | (s[i + 3] & 0x3fu);
        if (*cp <= 0x10ffff)
            return 4;
    }
    *cp = 0xfffd;
    return 1;
}

#endif

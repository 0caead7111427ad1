/* GPT-2's alphabet: every byte as a printable character. Bytes that print stand for themselves,
 * the other 68 are U+0100 and up, in order. */
#include "common/utf8.h"
#include "services/tokenizer/internal.h"
#include "services/tokenizer/unicode.h"

static bool byte_prints(unsigned b)
{
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
}

uint32_t bytelevel_char(unsigned char byte)
{
    if (byte_prints(byte))
        return byte;
    if (byte <= 0x20)
        return 0x100u + byte;
    return byte == 0xad ? 0x143 : 0x121u + byte - 0x7f;
}

int bytelevel_byte(uint32_t cp)
{
    if (cp < 0x100)
        return byte_prints(cp) ? (int)cp : -1;
    if (cp <= 0x120)
        return (int)(cp - 0x100);
    if (cp < 0x143)
        return (int)(cp - 0x121 + 0x7f);
    return cp == 0x143 ? 0xad : -1;
}

size_t bytelevel_map(const char *s, size_t len, char *out)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i++)
        n += (size_t)utf8_encode(bytelevel_char((unsigned char)s[i]), out + n);
    return n;
}

void bytelevel_unmap(const char *s, size_t len, struct buf *out)
{
    const unsigned char *bytes = (const unsigned char *)s;
    size_t before = out->len;
    uint32_t cp;

    for (size_t i = 0; i < len;) {
        int byte;

        i += unicode_read(bytes, len, i, &cp);
        byte = bytelevel_byte(cp);
        if (byte < 0) {
            out->len = before;
            buf_append(out, s, len);
            return;
        }
        buf_putc(out, (char)byte);
    }
}

#include "common/utf8.h"

int utf8_decode(const char *text, size_t len, uint32_t *cp)
{
    const unsigned char *s = (const unsigned char *)text;
    unsigned char lo = 0x80, hi = 0xbf; /* allowed range of the second byte */
    int need;

    if (!len)
        return -1;
    if (s[0] < 0x80) {
        *cp = s[0];
        return 1;
    }
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 0;
    need = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (s[0] == 0xe0)
        lo = 0xa0;
    else if (s[0] == 0xed)
        hi = 0x9f;
    else if (s[0] == 0xf0)
        lo = 0x90;
    else if (s[0] == 0xf4)
        hi = 0x8f;
    *cp = s[0] & (0x7fu >> need);
    for (int i = 1; i < need; i++) {
        if ((size_t)i >= len)
            return -1;
        if (s[i] < lo || s[i] > hi)
            return 0;
        *cp = *cp << 6 | (s[i] & 0x3fu);
        lo = 0x80;
        hi = 0xbf;
    }
    return need;
}

int utf8_encode(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xc0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3f));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xe0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3f));
        out[2] = (char)(0x80 | (cp & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3f));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3f));
    out[3] = (char)(0x80 | (cp & 0x3f));
    return 4;
}

bool utf8_valid(const char *text, size_t len)
{
    uint32_t cp;

    for (size_t i = 0; i < len;) {
        int n = utf8_decode(text + i, len - i, &cp);

        if (n <= 0)
            return false;
        i += (size_t)n;
    }
    return true;
}

size_t utf8_complete(const char *text, size_t len)
{
    uint32_t cp;

    for (size_t back = 1; back <= 3 && back <= len; back++) {
        unsigned char c = (unsigned char)text[len - back];

        if ((c & 0xc0) == 0x80)
            continue; /* a continuation byte: its lead is further left */
        if (c >= 0xc2 && utf8_decode(text + len - back, back, &cp) == -1)
            return len - back;
        break;
    }
    return len;
}

#include "services/gateway/auth.h"

#include <string.h>
#include <strings.h>

bool auth_matches(const char *value, size_t len, const char *key)
{
    const size_t scheme = 7;
    size_t key_len = strlen(key);
    volatile unsigned char differs = 0;

    if (!value || len < scheme || strncasecmp(value, "Bearer ", scheme) != 0)
        return false;
    if (len - scheme != key_len)
        return false;
    for (size_t i = 0; i < key_len; i++)
        differs = (unsigned char)(differs | (value[scheme + i] ^ key[i]));
    return differs == 0;
}

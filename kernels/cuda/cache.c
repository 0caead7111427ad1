/* Files that a later start finds: in XDG_CACHE_HOME/phalanx, or ~/.cache/phalanx. */
#include "kernels/cuda/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

bool cache_path(const char *name, char *path, size_t size)
{
    const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char dir[4096];
    int n;

    if (base && *base)
        n = snprintf(dir, sizeof dir, "%s", base);
    else if (home && *home)
        n = snprintf(dir, sizeof dir, "%s/.cache", home);
    else
        return false;
    if (n < 0 || (size_t)n >= sizeof dir - 16)
        return false;
    (void)mkdir(dir, 0700);
    (void)strcat(dir, "/phalanx");
    (void)mkdir(dir, 0700);
    n = snprintf(path, size, "%s/%s", dir, name);
    return n > 0 && (size_t)n < size;
}

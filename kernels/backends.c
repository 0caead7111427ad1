#include "kernels/backends.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* In the order in which "auto" tries them. */
static const char *const backends[] = {"cuda", "cpu"};

/* Relative to the folder of the running executable: installed, bundled and build trees alike. */
static const char *const folders[] = {"../lib/phalanx", "../lib"};

static int executable_dir(char *out, size_t size, struct err *err)
{
    ssize_t n = readlink("/proc/self/exe", out, size - 1);
    char *slash;

    if (n < 0)
        return err_errno(err, ERR_IO, "/proc/self/exe");
    out[n] = '\0';
    slash = strrchr(out, '/');
    if (slash)
        *slash = '\0';
    return 0;
}

static int backend_open(const char *path, const char *name, const struct ops **out, struct err *err)
{
    const struct ops *(*entry)(void);
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *symbol;

    if (!object)
        return err_set(err, ERR_UNSUPPORTED, "backend %s: %s", name, dlerror());
    symbol = dlsym(object, "phalanx_backend");
    if (!symbol) {
        (void)dlclose(object);
        return err_set(err, ERR_UNSUPPORTED, "backend %s: %s exports no phalanx_backend", name,
                       path);
    }
    memcpy(&entry, &symbol, sizeof entry); /* ISO C has no cast from data to function pointers */
    *out = entry();
    if (*out && (*out)->abi == OPS_ABI)
        return (*out)->probe ? (*out)->probe(err) : 0;
    return err_set(err, ERR_UNSUPPORTED, "backend %s: %s is of another version", name, path);
}

static int backend_find(const char *name, const struct ops **out, struct err *err)
{
    char dir[PATH_MAX], path[PATH_MAX + 128];
    int rc = executable_dir(dir, sizeof dir, err);

    if (rc)
        return rc;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        (void)snprintf(path, sizeof path, "%s/%s/libphalanx-%s.so", dir, folders[i], name);
        if (access(path, F_OK) == 0)
            return backend_open(path, name, out, err);
    }
    return err_set(err, ERR_NOT_FOUND, "backend %s: no libphalanx-%s.so in %s/../lib", name, name,
                   dir);
}

int backend_load(const char *name, const struct ops **out, struct err *err)
{
    int rc = ERR_NOT_FOUND;

    *out = NULL;
    if (!strcmp(name, "auto")) {
        for (size_t i = 0; i < sizeof backends / sizeof *backends && rc; i++)
            rc = backend_find(backends[i], out, err);
        return rc;
    }
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
        if (!strcmp(backends[i], name))
            return backend_find(name, out, err);
    return err_set(err, ERR_NOT_FOUND, "no backend is called %.32s", name);
}

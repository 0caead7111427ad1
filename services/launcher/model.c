#include "services/launcher/model.h"

#include "common/buf.h"
#include "common/file.h"
#include "common/json.h"
#include "common/mem.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define CONFIG_BYTES_MAX (1u << 20)
#define REF_BYTES_MAX 256
#define ID_CHARS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"

static bool is_folder(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* org/name: two plain words, neither of them a relative path. */
static bool is_hub_id(const char *text)
{
    size_t org = strspn(text, ID_CHARS);
    const char *name = text + org + 1;

    if (!org || text[org] != '/' || *text == '.')
        return false;
    return *name && *name != '.' && !name[strspn(name, ID_CHARS)];
}

/* As huggingface_hub looks for it. */
static char *hub_cache(void)
{
    const char *cache = getenv("HF_HUB_CACHE");
    const char *home = getenv("HF_HOME");
    const char *xdg = getenv("XDG_CACHE_HOME");

    if (cache && *cache)
        return mem_strdup(cache);
    if (home && *home)
        return file_join(home, "hub");
    if (xdg && *xdg)
        return file_join(xdg, "huggingface/hub");
    home = getenv("HOME");
    return file_join(home && *home ? home : "/root", ".cache/huggingface/hub");
}

/* <cache>/models--org--name/snapshots/<what refs/main names>, NULL when it is not there. */
static char *hub_snapshot(const char *cache, const char *id)
{
    struct buf path = {0};
    struct buf ref = {0};
    struct err ignored;
    char *snapshot = NULL;
    const char *slash = strchr(id, '/');
    size_t base;

    buf_printf(&path, "%s/models--%.*s--%s", cache, (int)(slash - id), id, slash + 1);
    base = path.len;
    buf_puts(&path, "/refs/main");
    if (file_read(path.data, REF_BYTES_MAX, &ref, &ignored) == 0 && ref.len) {
        ref.data[strcspn(ref.data, " \r\n")] = '\0';
        path.len = base;
        buf_printf(&path, "/snapshots/%s", ref.data);
        if (*ref.data && *ref.data != '.' && !ref.data[strspn(ref.data, ID_CHARS)] &&
            is_folder(path.data))
            snapshot = buf_take(&path);
    }
    buf_fini(&path);
    buf_fini(&ref);
    return snapshot;
}

/* The last component of the path. */
static char *folder_name(const char *path)
{
    char *full = realpath(path, NULL);
    const char *slash = full ? strrchr(full, '/') : NULL;
    char *name = mem_strdup(slash && slash[1] ? slash + 1 : "model");

    free(full);
    return name;
}

static int model_check(const char *path, struct err *err)
{
    char *config = file_join(path, "config.json");
    json_t *json = NULL;
    int rc;

    if (!file_exists(config))
        rc = err_set(err, ERR_NOT_FOUND, "--model-path: %s has no config.json", path);
    else
        rc = json_load_path(config, CONFIG_BYTES_MAX, &json, err);
    json_decref(json);
    free(config);
    return rc;
}

int model_resolve(const char *text, struct model_ref *out, struct err *err)
{
    char *cache;
    int rc = 0;

    memset(out, 0, sizeof *out);
    if (is_folder(text)) {
        out->path = mem_strdup(text);
        out->name = folder_name(text);
        return model_check(text, err);
    }
    if (file_exists(text))
        return err_set(err, ERR_INVALID, "--model-path: %s is a file, not a model folder", text);
    if (!is_hub_id(text))
        return err_set(err, ERR_NOT_FOUND, "--model-path: there is no folder %s", text);
    cache = hub_cache();
    out->path = hub_snapshot(cache, text);
    out->name = mem_strdup(text);
    if (!out->path)
        rc = err_set(err, ERR_UNSUPPORTED,
                     "--model-path: %s is neither a folder nor in the Hugging Face cache %s, and "
                     "downloading is not supported yet",
                     text, cache);
    else
        rc = model_check(out->path, err);
    free(cache);
    return rc;
}

void model_fini(struct model_ref *m)
{
    free(m->path);
    free(m->name);
}

#include "common/json.h"

#include "common/file.h"

#include <stdbool.h>

/* jansson's own bound is 2,048 levels; a request gets fewer, before anything is allocated. */
static int json_check_depth(const char *text, size_t len, int max_depth, struct err *err)
{
    int depth = 0;
    bool in_string = false;

    for (size_t i = 0; i < len; i++) {
        char c = text[i];

        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > max_depth)
                return err_set(err, ERR_LIMIT, "JSON nested deeper than %d levels", max_depth);
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return 0;
}

int json_parse(const char *text, size_t len, int max_depth, json_t **out, struct err *err)
{
    json_error_t je;
    int rc = json_check_depth(text, len, max_depth, err);

    *out = NULL;
    if (rc)
        return rc;
    *out = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &je);
    if (!*out)
        return err_set(err, ERR_INVALID, "invalid JSON at line %d column %d: %.200s", je.line,
                       je.column, je.text);
    return 0;
}

int json_load_path(const char *path, size_t max_bytes, json_t **out, struct err *err)
{
    struct buf text = {0};
    int rc = file_read(path, max_bytes, &text, err);

    *out = NULL;
    if (!rc) {
        rc = json_parse(text.data, text.len, JSON_DEPTH_FILE, out, err);
        if (rc)
            (void)err_prefix(err, "%s", path);
    }
    buf_fini(&text);
    return rc;
}

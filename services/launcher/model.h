/* Which model a name means. */
#ifndef PHALANX_LAUNCHER_MODEL_H
#define PHALANX_LAUNCHER_MODEL_H

#include "common/err.h"

struct model_ref {
    char *path; /* a folder with a config.json */
    char *name; /* for /v1/models: the folder's name or the hub id */
};

/* text: a folder, or a hub id "org/name" that lies in the Hugging Face cache (HF_HUB_CACHE,
 * HF_HOME, ~/.cache/huggingface). Checks that config.json is there and is JSON. */
int model_resolve(const char *text, struct model_ref *out, struct err *err);
void model_fini(struct model_ref *m);

#endif

#include "services/worker/models.h"

#include <string.h>

extern const struct model_kind model_llama, model_mistral, model_qwen2, model_qwen3;

static const struct model_kind *const models[] = {
    &model_llama,
    &model_mistral,
    &model_qwen2,
    &model_qwen3,
};

const struct model_kind *models_find(const char *architecture)
{
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        if (!strcmp(models[i]->architecture, architecture))
            return models[i];
    return NULL;
}

void models_list(struct buf *out)
{
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        buf_printf(out, "%s%s", i ? ", " : "", models[i]->architecture);
}

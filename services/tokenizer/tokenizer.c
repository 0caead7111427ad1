/* Reading a model folder's tokenizer. */
#include "services/tokenizer/tokenizer.h"

#include "common/file.h"
#include "common/json.h"
#include "common/mem.h"
#include "services/tokenizer/scratch.h"
#include "services/tokenizer/unicode.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX (256u << 20)
#define CONFIG_BYTES_MAX (16u << 20)

static const char *const named_tokens[NAMED_MAX] = {"bos_token", "eos_token", "pad_token",
                                                    "unk_token"};

/* --- added tokens --- */

static bool is_blank(const char *s, size_t len)
{
    for (size_t i = 0; i < len;) {
        uint32_t cp;

        i += unicode_read((const unsigned char *)s, len, i, &cp);
        if (!(unicode_flags(cp) & UNICODE_SPACE))
            return false;
    }
    return true;
}

static int added_one(struct tokenizer *t, const json_t *row, struct err *err)
{
    const json_t *content = json_object_get(row, "content");
    const char *text = json_string_value(content);
    size_t len = json_string_length(content);
    struct added_token token = {
        .id = vocab_find(&t->vocab, text, len),
        .single_word = json_is_true(json_object_get(row, "single_word")),
        .lstrip = json_is_true(json_object_get(row, "lstrip")),
        .rstrip = json_is_true(json_object_get(row, "rstrip")),
    };
    bool special = json_is_true(json_object_get(row, "special"));
    const json_t *normalized = json_object_get(row, "normalized");
    struct buf work[2] = {{0}, {0}};
    uint32_t cp;
    int rc = 0;

    if (!len)
        return 0;
    token.single_char = unicode_read((const unsigned char *)text, len, 0, &cp) == len;
    t->vocab.kind[token.id] |= TOKEN_ADDED;
    if (special)
        t->vocab.kind[token.id] |= TOKEN_SPECIAL;
    /* Blank and one-byte contents can not be broken up, nor do they need to be. */
    if (special && len > 1 && !is_blank(text, len))
        added_insert(&t->contents, text, len, token);
    if (normalized ? json_is_true(normalized) : !special) {
        rc = normals_run(&t->normals, &text, &len, true, work, err);
        if (!rc) {
            added_insert(&t->normalized, text, len, token);
            vocab_show(&t->vocab, token.id, text, len);
        }
    } else {
        added_insert(&t->added, text, len, token);
    }
    buf_fini(&work[0]);
    buf_fini(&work[1]);
    return rc;
}

/* Where two contents collide, special tokens win, then the first. */
static int added_load(struct tokenizer *t, const json_t *added, struct err *err)
{
    for (int special = 1; special >= 0; special--)
        for (size_t i = 0; i < json_array_size(added); i++) {
            const json_t *row = json_array_get(added, i);
            int rc = 0;

            if (json_is_true(json_object_get(row, "special")) == (special == 1))
                rc = added_one(t, row, err);
            if (rc)
                return rc;
        }
    return 0;
}

/* --- post-processor --- */

static int template_special(const json_t *def, const char *name, struct ids *ids, uint32_t ids_end,
                            struct err *err)
{
    const json_t *token = json_object_get(json_object_get(def, "special_tokens"), name);
    const json_t *list = json_object_get(token, "ids");

    if (!json_is_array(list))
        return err_set(err, ERR_INVALID, "post_processor: special token %.80s has no ids", name);
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_int_t id = json_integer_value(json_array_get(list, i));

        if (id < 0 || id >= ids_end)
            return err_set(err, ERR_INVALID, "post_processor: %.80s is no id of the vocabulary",
                           name);
        ids_push(ids, (uint32_t)id);
    }
    return 0;
}

static int template_load(struct tokenizer *t, const json_t *def, struct err *err)
{
    const json_t *single = json_object_get(def, "single");
    struct ids part[2] = {{0}, {0}}; /* in front of the text, behind it */
    int rc = 0, behind = 0;

    for (size_t i = 0; !rc && i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i);
        const json_t *special = json_object_get(item, "SpecialToken");
        const char *sequence =
            json_string_value(json_object_get(json_object_get(item, "Sequence"), "id"));
        const char *name = json_string_value(json_object_get(special, "id"));

        if (name)
            rc = template_special(def, name, &part[behind], t->vocab.count, err);
        else if (sequence && !strcmp(sequence, "A") && !behind)
            behind = 1;
        else
            rc = err_set(err, ERR_UNSUPPORTED, "post_processor: template piece %zu", i);
    }
    if (!rc && !behind)
        rc = err_set(err, ERR_UNSUPPORTED, "post_processor: a template without the text");
    if (!rc) {
        for (size_t i = 0; i < t->prefix.len; i++)
            ids_push(&part[0], t->prefix.data[i]);
        ids_fini(&t->prefix);
        t->prefix = part[0];
        for (size_t i = 0; i < part[1].len; i++)
            ids_push(&t->suffix, part[1].data[i]);
    } else {
        ids_fini(&part[0]);
    }
    ids_fini(&part[1]);
    return rc;
}

static int processor_load(struct tokenizer *t, const json_t *def, struct err *err)
{
    const char *type = json_string_value(json_object_get(def, "type"));

    if (!type)
        return err_set(err, ERR_INVALID, "post_processor without a type");
    if (!strcmp(type, "ByteLevel"))
        return 0; /* offsets only */
    if (!strcmp(type, "TemplateProcessing"))
        return template_load(t, def, err);
    return err_set(err, ERR_UNSUPPORTED, "post_processor %.80s is not supported", type);
}

static int processors_load(struct tokenizer *t, const json_t *def, struct err *err)
{
    const char *type = json_string_value(json_object_get(def, "type"));
    const json_t *list = json_object_get(def, "processors");
    int rc = 0;

    if (!def || json_is_null(def))
        return 0;
    if (!type || strcmp(type, "Sequence") != 0)
        return processor_load(t, def, err);
    for (size_t i = 0; !rc && i < json_array_size(list); i++)
        rc = processor_load(t, json_array_get(list, i), err);
    return rc;
}

/* --- files --- */

static int model_load(struct tokenizer *t, json_t *root, struct err *err)
{
    json_t *model = json_object_get(root, "model");
    const char *type = json_string_value(json_object_get(model, "type"));
    json_t *added = json_object_get(root, "added_tokens");
    int rc;

    if (!json_is_object(model))
        return err_set(err, ERR_INVALID, "no model");
    if (type ? strcmp(type, "BPE") != 0 : !json_object_get(model, "merges"))
        return err_set(err, ERR_UNSUPPORTED, "model %.80s is not supported",
                       type ? type : "without a type");
    rc = normals_load(&t->normals, json_object_get(root, "normalizer"), err);
    if (!rc)
        rc = stages_load(&t->stages, json_object_get(root, "pre_tokenizer"), err);
    if (!rc)
        rc = vocab_load(&t->vocab, json_object_get(model, "vocab"), added, err);
    if (rc)
        return rc;
    (void)json_object_del(model, "vocab"); /* copied, and large */
    rc = bpe_load(&t->bpe, &t->vocab, model, t->stages.bytelevel, err);
    if (rc)
        return rc;
    (void)json_object_del(model, "merges");
    for (size_t i = 0; i < STAGES_MAX; i++)
        t->regexes |= t->stages.list[i].regex || t->normals.list[i].regex;
    rc = added_load(t, added, err);
    if (!rc)
        rc = decoder_load(&t->decoder, &t->vocab, json_object_get(root, "decoder"), err);
    return rc ? rc : processors_load(t, json_object_get(root, "post_processor"), err);
}

/* Llama-style tokenizer classes rule by add_bos_token and add_eos_token, whatever the
 * post-processor of tokenizer.json says. */
static void config_bos(struct tokenizer *t, const json_t *config)
{
    static const char *const classes[] = {"LlamaTokenizer",     "LlamaTokenizerFast",
                                          "CodeLlamaTokenizer", "CodeLlamaTokenizerFast",
                                          "GemmaTokenizer",     "GemmaTokenizerFast"};
    static const char *const fields[] = {"add_bos_token", "add_eos_token"};
    const char *name = json_string_value(json_object_get(config, "tokenizer_class"));
    struct ids *where[] = {&t->prefix, &t->suffix};
    size_t i = 0;

    while (name && i < sizeof classes / sizeof *classes && strcmp(classes[i], name) != 0)
        i++;
    if (!name || i == sizeof classes / sizeof *classes)
        return;
    for (i = 0; i < 2; i++) {
        const json_t *field = json_object_get(config, fields[i]);
        uint32_t id;

        if (!json_is_boolean(field))
            continue;
        ids_fini(where[i]);
        if (json_is_true(field) && t->named[i] && tokenizer_id(t, t->named[i], &id))
            ids_push(where[i], id);
    }
}

static int config_load(struct tokenizer *t, const char *model_dir, struct err *err)
{
    char *path = file_join(model_dir, "tokenizer_config.json");
    json_t *config = NULL;
    int rc = 0;

    if (!file_exists(path))
        goto out;
    rc = json_load_path(path, CONFIG_BYTES_MAX, &config, err);
    if (rc)
        goto out;
    for (size_t i = 0; i < NAMED_MAX; i++) {
        const json_t *value = json_object_get(config, named_tokens[i]);

        if (json_is_object(value))
            value = json_object_get(value, "content");
        if (json_is_string(value))
            t->named[i] = mem_strdup(json_string_value(value));
    }
    config_bos(t, config);
out:
    json_decref(config);
    free(path);
    return rc;
}

static int folder_load(struct tokenizer *t, const char *model_dir, struct err *err)
{
    char *path = file_join(model_dir, "tokenizer.json");
    char *pieces = file_join(model_dir, "tokenizer.model");
    json_t *root = NULL;
    int rc;

    if (!file_exists(path) && file_exists(pieces)) {
        rc = err_set(err, ERR_UNSUPPORTED,
                     "%s: SentencePiece files are not supported, convert it to tokenizer.json",
                     pieces);
        goto out;
    }
    rc = json_load_path(path, FILE_BYTES_MAX, &root, err);
    if (rc)
        goto out;
    rc = model_load(t, root, err);
    if (rc)
        (void)err_prefix(err, "%s", path);
out:
    json_decref(root);
    free(path);
    free(pieces);
    return rc;
}

static struct tokenizer *tokenizer_new(void)
{
    struct tokenizer *t = mem_zalloc(sizeof *t);

    t->pool = mem_array(SCRATCH_POOL, sizeof *t->pool);
    return t;
}

int tokenizer_load(const char *model_dir, struct tokenizer **out, struct err *err)
{
    struct tokenizer *t = tokenizer_new();
    int rc = folder_load(t, model_dir, err);

    *out = NULL;
    if (!rc)
        rc = config_load(t, model_dir, err);
    if (rc)
        tokenizer_free(&t);
    (void)malloc_trim(0); /* the parsed file took far more than what is kept */
    *out = t;
    return rc;
}

int tokenizer_parse(const char *json, size_t len, struct tokenizer **out, struct err *err)
{
    struct tokenizer *t = NULL;
    json_t *root = NULL;
    int rc = json_parse(json, len, JSON_DEPTH_FILE, &root, err);

    if (!rc) {
        t = tokenizer_new();
        rc = model_load(t, root, err);
    }
    if (rc)
        tokenizer_free(&t);
    json_decref(root);
    *out = t;
    return rc;
}

void tokenizer_free(struct tokenizer **self)
{
    struct tokenizer *t = *self;

    if (!t)
        return;
    for (size_t i = 0; i < SCRATCH_POOL; i++) {
        struct scratch *c = atomic_load(t->pool + i);

        if (c)
            scratch_free(c);
    }
    free(t->pool);
    vocab_fini(&t->vocab);
    bpe_fini(&t->bpe);
    added_fini(&t->added);
    added_fini(&t->normalized);
    added_fini(&t->contents);
    normals_fini(&t->normals);
    stages_fini(&t->stages);
    decoder_fini(&t->decoder);
    ids_fini(&t->prefix);
    ids_fini(&t->suffix);
    for (size_t i = 0; i < NAMED_MAX; i++)
        free(t->named[i]);
    free(t);
    *self = NULL;
}

/* --- looking things up --- */

uint32_t tokenizer_size(const struct tokenizer *t)
{
    return t->vocab.count;
}

bool tokenizer_id(const struct tokenizer *t, const char *content, uint32_t *id)
{
    *id = vocab_find(&t->vocab, content, strlen(content));
    return *id != TOKEN_NONE;
}

bool tokenizer_is_special(const struct tokenizer *t, uint32_t id)
{
    return id < t->vocab.count && (t->vocab.kind[id] & TOKEN_SPECIAL);
}

const char *tokenizer_named_token(const struct tokenizer *t, const char *name)
{
    for (size_t i = 0; i < NAMED_MAX; i++)
        if (!strcmp(named_tokens[i], name))
            return t->named[i];
    return NULL;
}

#include "services/tokenizer/chat.h"

#include "common/file.h"
#include "common/mem.h"
#include "services/tokenizer/template/text.h"

#include <stdlib.h>
#include <string.h>

enum { TEMPLATE_BYTES_MAX = 1024 * 1024, CONFIG_BYTES_MAX = 64 * 1024 * 1024 };

/* Values of a request that nest deeper are refused when they are shielded. */
enum { VALUE_DEPTH_MAX = 256 };

/* Put after the final message to find its end in the text; templates that treat a message to be
 * continued in a way of their own look for this very text. */
static const char final_tag[] = "CONTINUE_FINAL_MESSAGE_TAG ";

struct chat {
    const struct tokenizer *tokenizer; /* borrowed */
    struct template *main, *tool_use;  /* owned; either may be NULL */
};

static int template_text(const char *text, size_t len, struct template **out, const char *where,
                         struct err *err)
{
    int rc = template_parse(text, len, out, err);

    return rc < 0 ? err_prefix(err, "%s", where) : 0;
}

/* A list of {name, template}. Other names than the two are for callers that ask by name. */
static int load_named(struct chat *c, const json_t *list, const char *path, struct err *err)
{
    json_t *item;
    size_t i;

    json_array_foreach(list, i, item)
    {
        const char *name = json_string_value(json_object_get(item, "name"));
        const json_t *text = json_object_get(item, "template");
        struct template **slot;
        int rc;

        if (!name || !json_is_string(text))
            return err_set(err, ERR_INVALID,
                           "%s: chat_template[%zu] must have a name and a template", path, i);
        slot = strcmp(name, "default") == 0    ? &c->main
               : strcmp(name, "tool_use") == 0 ? &c->tool_use
                                               : NULL;
        if (!slot || *slot)
            continue;
        rc = template_text(json_string_value(text), json_string_length(text), slot, path, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int load_config(struct chat *c, const char *path, struct err *err)
{
    json_t *config = NULL;
    const json_t *t;
    int rc = json_load_path(path, CONFIG_BYTES_MAX, &config, err);

    if (rc < 0)
        return rc;
    t = json_object_get(config, "chat_template");
    if (json_is_string(t))
        rc = template_text(json_string_value(t), json_string_length(t), &c->main, path, err);
    else if (json_is_array(t))
        rc = load_named(c, t, path, err);
    else if (t && !json_is_null(t))
        rc = err_set(err, ERR_INVALID, "%s: chat_template must be a string or a list", path);
    json_decref(config);
    return rc;
}

int chat_load(const char *model_dir, const struct tokenizer *t, struct chat **out, struct err *err)
{
    char *jinja = file_join(model_dir, "chat_template.jinja");
    char *config = file_join(model_dir, "tokenizer_config.json");
    struct chat *c = mem_zalloc(sizeof *c);
    struct buf text = {0};
    int rc = 0;

    c->tokenizer = t;
    if (file_exists(jinja)) {
        rc = file_read(jinja, TEMPLATE_BYTES_MAX, &text, err);
        if (rc == 0)
            rc = template_text(text.data ? text.data : "", text.len, &c->main, jinja, err);
    } else if (file_exists(config)) {
        rc = load_config(c, config, err);
    }
    buf_fini(&text);
    free(config);
    free(jinja);
    if (rc < 0)
        chat_free(&c);
    *out = c;
    return rc;
}

void chat_free(struct chat **self)
{
    if (!*self)
        return;
    template_free(&(*self)->main);
    template_free(&(*self)->tool_use);
    free(*self);
    *self = NULL;
}

static json_t *shield_string(const struct tokenizer *t, const char *text, size_t len)
{
    struct buf b = {0};
    json_t *out;

    tokenizer_shield(t, text, len, &b);
    out = json_stringn_nocheck(b.data ? b.data : "", b.len);
    buf_fini(&b);
    return out;
}

static int shield_value(const struct tokenizer *t, json_t *v, int depth, json_t **out,
                        struct err *err);

static int shield_object(const struct tokenizer *t, json_t *v, int depth, json_t *out,
                         struct err *err)
{
    const char *key;
    json_t *item;
    struct buf name = {0};
    int rc = 0;

    json_object_foreach(v, key, item)
    {
        json_t *shielded = NULL;

        rc = shield_value(t, item, depth, &shielded, err);
        if (rc < 0)
            break;
        buf_clear(&name);
        tokenizer_shield(t, key, strlen(key), &name);
        json_object_set_new_nocheck(out, name.data ? name.data : "", shielded);
    }
    buf_fini(&name);
    return rc;
}

/* A copy of v whose strings and keys hold no special token. */
static int shield_value(const struct tokenizer *t, json_t *v, int depth, json_t **out,
                        struct err *err)
{
    json_t *item;
    size_t i;
    int rc = 0;

    *out = NULL;
    if (depth > VALUE_DEPTH_MAX)
        return err_set(err, ERR_LIMIT, "a value of the request nests deeper than %d",
                       VALUE_DEPTH_MAX);
    if (json_is_string(v)) {
        *out = shield_string(t, json_string_value(v), json_string_length(v));
    } else if (json_is_object(v)) {
        *out = json_object();
        rc = shield_object(t, v, depth + 1, *out, err);
    } else if (json_is_array(v)) {
        *out = json_array();
        json_array_foreach(v, i, item)
        {
            json_t *shielded = NULL;

            rc = shield_value(t, item, depth + 1, &shielded, err);
            if (rc < 0)
                break;
            json_array_append_new(*out, shielded);
        }
    } else {
        *out = json_incref(v);
    }
    if (rc < 0) {
        json_decref(*out);
        *out = NULL;
    }
    return rc;
}

/* Sets vars[name] to a shielded copy of v, to null when v is NULL. */
static int set_shielded(const struct chat *c, json_t *vars, const char *name, json_t *v,
                        struct err *err)
{
    json_t *shielded = json_null();
    int rc = v ? shield_value(c->tokenizer, v, 0, &shielded, err) : 0;

    if (rc == 0)
        json_object_set_new_nocheck(vars, name, shielded);
    return rc;
}

static int set_kwargs(const struct chat *c, json_t *vars, json_t *kwargs, struct err *err)
{
    static const char *const own[] = {"messages", "tools", "add_generation_prompt",
                                      "continue_final_message"};
    const char *key;
    json_t *item;

    if (kwargs && !json_is_object(kwargs) && !json_is_null(kwargs))
        return err_set(err, ERR_INVALID, "chat_template_kwargs must be an object");
    json_object_foreach(kwargs, key, item)
    {
        struct buf name = {0};
        int rc;

        for (size_t i = 0; i < sizeof own / sizeof *own; i++) {
            if (strcmp(key, own[i]) == 0)
                return err_set(err, ERR_INVALID,
                               "chat_template_kwargs must not set '%s': the request has a field "
                               "of its own for it",
                               key);
        }
        tokenizer_shield(c->tokenizer, key, strlen(key), &name);
        rc = set_shielded(c, vars, name.data ? name.data : "", item, err);
        buf_fini(&name);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int build_vars(const struct chat *c, const struct chat_request *request, json_t *vars,
                      struct err *err)
{
    static const char *const tokens[] = {"bos_token", "eos_token", "pad_token", "unk_token"};
    int rc;

    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
        const char *content = tokenizer_named_token(c->tokenizer, tokens[i]);

        if (content)
            json_object_set_new_nocheck(vars, tokens[i], json_string_nocheck(content));
    }
    json_object_set_new(vars, "documents", json_null());
    json_object_set_new(vars, "add_generation_prompt",
                        json_boolean(request->add_generation_prompt));
    rc = set_shielded(c, vars, "messages", request->messages, err);
    if (rc == 0)
        rc = set_shielded(c, vars, "tools", request->tools, err);
    return rc < 0 ? rc : set_kwargs(c, vars, request->template_kwargs, err);
}

static json_t *tagged(const json_t *text)
{
    struct buf b = {0};
    json_t *out;

    buf_append(&b, json_string_value(text), json_string_length(text));
    buf_puts(&b, final_tag);
    out = json_stringn_nocheck(b.data, b.len);
    buf_fini(&b);
    return out;
}

/* Puts the tag behind the text of the last message. */
static int tag_final(json_t *messages, struct err *err)
{
    json_t *message = json_array_get(messages, json_array_size(messages) - 1);
    json_t *content = json_object_get(message, "content");

    if (json_is_string(content)) {
        json_object_set_new_nocheck(message, "content", tagged(content));
        return 0;
    }
    for (size_t i = json_array_size(content); i-- > 0;) {
        json_t *part = json_array_get(content, i);
        const json_t *text = json_object_get(part, "text");

        if (json_is_string(text)) {
            json_object_set_new_nocheck(part, "text", tagged(text));
            return 0;
        }
    }
    return err_set(err, ERR_INVALID,
                   "continue_final_message is set but the final message has no text to continue");
}

/* Cuts text at the tag. When the template trimmed the tag's trailing space, it trims messages, and
 * white space before the tag goes as well. */
static int cut_final(struct buf *text, struct err *err)
{
    const size_t whole = sizeof final_tag - 1, bare = whole - 1;
    size_t at = text->len;

    while (at >= bare && memcmp(text->data + at - bare, final_tag, bare) != 0)
        at--;
    if (at < bare)
        return err_set(err, ERR_INVALID,
                       "continue_final_message is set but the final message does not appear in the "
                       "chat after the chat template was applied");
    at -= bare;
    if (text->len - at < whole || memcmp(text->data + at, final_tag, whole) != 0)
        at = text_strip((struct text){text->data, at}, NULL, TEXT_RIGHT).len;
    text->len = at;
    return 0;
}

static int check_request(const struct chat *c, const struct chat_request *request, struct err *err)
{
    if (!c->main && !(c->tool_use && request->tools))
        return err_set(err, ERR_INVALID,
                       "the model has no chat template: use /v1/completions, or add "
                       "chat_template.jinja to its folder");
    if (!json_is_array(request->messages))
        return err_set(err, ERR_INVALID, "messages must be an array");
    if (request->continue_final_message && request->add_generation_prompt)
        return err_set(err, ERR_INVALID,
                       "continue_final_message and add_generation_prompt exclude each other");
    if (request->continue_final_message && json_array_size(request->messages) == 0)
        return err_set(err, ERR_INVALID,
                       "continue_final_message is set but there is no message to continue");
    return 0;
}

int chat_prompt(const struct chat *c, const struct chat_request *request, struct buf *out,
                struct err *err)
{
    const struct template *t = request->tools && c->tool_use ? c->tool_use : c->main;
    struct buf text = {0};
    json_t *vars = NULL;
    int rc = check_request(c, request, err);

    if (rc < 0)
        return rc;
    vars = json_object();
    rc = build_vars(c, request, vars, err);
    if (rc == 0 && request->continue_final_message)
        rc = tag_final(json_object_get(vars, "messages"), err);
    if (rc == 0)
        rc = template_render(t, vars, request->now, &template_limits_default, &text, err);
    if (rc == 0 && request->continue_final_message)
        rc = cut_final(&text, err);
    if (rc == 0)
        buf_append(out, text.data, text.len);
    buf_fini(&text);
    json_decref(vars);
    return rc;
}

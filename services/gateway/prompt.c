/* Prompts and messages of a request. */
#include "services/gateway/fields.h"

#include "common/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int prompt_set_text(struct params *p, const struct field *f, const json_t *value,
                           struct prompt *out, struct problem *problem)
{
    if (json_string_length(value) > LIMIT_PROMPT_BYTES)
        return field_refuse(p, f, value, "must have at most 8388608 bytes", problem);
    out->text.data = json_string_value(value);
    out->text.len = json_string_length(value);
    return 0;
}

static int prompt_set_ids(struct params *p, const struct field *f, const json_t *list,
                          struct prompt *out, struct problem *problem)
{
    int64_t high = p->context->vocab_size ? (int64_t)p->context->vocab_size - 1 : INT32_MAX;
    size_t count = json_array_size(list);
    char must[96];

    if (!count || count > LIMIT_PROMPT_IDS)
        return field_refuse(p, f, list, "token ids: must be 1 to 1048576", problem);
    (void)snprintf(must, sizeof must, "must be token ids from 0 to %lld", (long long)high);
    out->ids = mem_array(count, sizeof *out->ids);
    for (size_t i = 0; i < count; i++) {
        const json_t *value = json_array_get(list, i);
        int64_t id = 0;

        if (!field_whole(value, &id) || id < 0 || id > high)
            return field_refuse(p, f, value, must, problem);
        out->ids[i] = (uint32_t)id;
    }
    out->ids_count = (uint32_t)count;
    return 0;
}

static void prompts_reset(struct params *p, size_t count)
{
    for (size_t i = 0; i < p->prompts_count; i++)
        free(p->prompts[i].ids);
    free(p->prompts);
    p->prompts = mem_array(count, sizeof *p->prompts);
    p->prompts_count = count;
}

/* A list of strings or of lists of ids; all of one kind, as the first one is. */
static int prompt_list(struct params *p, const struct field *f, const json_t *list, bool text,
                       struct problem *problem)
{
    size_t count = json_array_size(list);

    if (count > LIMIT_PROMPTS)
        return field_refuse(p, f, list, "must be at most 256 prompts", problem);
    prompts_reset(p, count);
    p->prompts_listed = true;
    for (size_t i = 0; i < count; i++) {
        const json_t *value = json_array_get(list, i);
        int rc;

        if (text ? !json_is_string(value) : !json_is_array(value))
            return field_refuse(p, f, value, "prompts of a list must be of one kind", problem);
        rc = text ? prompt_set_text(p, f, value, &p->prompts[i], problem)
                  : prompt_set_ids(p, f, value, &p->prompts[i], problem);
        if (rc)
            return rc;
    }
    return 0;
}

static int prompt_parse(struct params *p, const struct field *f, const json_t *value, bool text,
                        bool ids, struct problem *problem)
{
    const json_t *first = json_array_get(value, 0);

    if (p->prompts)
        return problem_set(problem, 400, "invalid_value", f->name,
                           "text and input_ids exclude each other");
    if (text && json_is_string(value)) {
        prompts_reset(p, 1);
        return prompt_set_text(p, f, value, &p->prompts[0], problem);
    }
    if (text && json_is_string(first))
        return prompt_list(p, f, value, true, problem);
    if (ids && json_is_array(first))
        return prompt_list(p, f, value, false, problem);
    if (ids && json_is_number(first)) {
        prompts_reset(p, 1);
        return prompt_set_ids(p, f, value, &p->prompts[0], problem);
    }
    return field_refuse(p, f, value,
                        !ids    ? "must be a string or a list of strings"
                        : !text ? "must be a list of token ids or a list of such lists"
                                : "must be a string, a list of strings, a list of token ids or a "
                                  "list of such lists",
                        problem);
}

int field_prompt(struct params *p, const struct field *f, const json_t *value,
                 struct problem *problem)
{
    return prompt_parse(p, f, value, true, true, problem);
}

int field_prompt_text(struct params *p, const struct field *f, const json_t *value,
                      struct problem *problem)
{
    return prompt_parse(p, f, value, true, false, problem);
}

int field_prompt_ids(struct params *p, const struct field *f, const json_t *value,
                     struct problem *problem)
{
    return prompt_parse(p, f, value, false, true, problem);
}

static int message_refuse(struct problem *problem, size_t index, const char *member,
                          const char *text)
{
    char name[64];

    (void)snprintf(name, sizeof name, "messages[%zu]%s", index, member);
    return problem_set(problem, 400, "invalid_value", name, "%s: %s", name, text);
}

/* Text parts become one string, a line each. */
static int message_parts(const json_t *parts, size_t index, struct buf *out,
                         struct problem *problem)
{
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i);
        const json_t *type = json_object_get(part, "type");
        const json_t *text = json_object_get(part, "text");
        char what[128], shown[64];

        if (json_is_string(type) && strcmp(json_string_value(type), "text") != 0) {
            (void)snprintf(what, sizeof what, "parts of type %s are not supported, only text",
                           field_show(type, shown));
            return message_refuse(problem, index, ".content", what);
        }
        if (!json_is_string(type) || !json_is_string(text))
            return message_refuse(problem, index, ".content",
                                  "parts must be objects with \"type\": \"text\" and a \"text\"");
        if (i)
            buf_putc(out, '\n');
        buf_append(out, json_string_value(text), json_string_length(text));
    }
    return 0;
}

static bool role_known(const char *role)
{
    static const char *const roles[] = {"system",    "developer", "user",
                                        "assistant", "tool",      "function"};

    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (strcmp(role, roles[i]) == 0)
            return true;
    return false;
}

/* Checks one message and appends it, its content a string (or null). */
static int message_add(const json_t *message, size_t index, json_t *list, struct problem *problem)
{
    const json_t *role = json_object_get(message, "role");
    const json_t *content = json_object_get(message, "content");
    struct buf text = {0};
    json_t *copy;
    int rc;

    if (!json_is_object(message))
        return message_refuse(problem, index, "", "must be an object");
    if (!json_is_string(role) || !role_known(json_string_value(role)))
        return message_refuse(problem, index, ".role",
                              "must be system, developer, user, assistant, tool or function");
    if (json_is_string(content))
        return json_array_append(list, (json_t *)(uintptr_t)message);
    if (!content || json_is_null(content)) {
        if (strcmp(json_string_value(role), "assistant") != 0)
            return message_refuse(problem, index, ".content", "must be a string or text parts");
        return json_array_append(list, (json_t *)(uintptr_t)message);
    }
    if (!json_is_array(content) || !json_array_size(content))
        return message_refuse(problem, index, ".content", "must be a string or text parts");
    rc = message_parts(content, index, &text, problem);
    if (!rc) {
        copy = json_copy((json_t *)(uintptr_t)message);
        (void)json_object_set_new(copy, "content", json_stringn(text.data, text.len));
        rc = json_array_append_new(list, copy);
    }
    buf_fini(&text);
    return rc;
}

int field_messages(struct params *p, const struct field *f, const json_t *value,
                   struct problem *problem)
{
    size_t count = json_array_size(value);
    json_t *list;
    char *dump = NULL;
    int rc = 0;

    if (!json_is_array(value) || !count)
        return field_refuse(p, f, value, "must be a list of at least one message", problem);
    list = json_array();
    for (size_t i = 0; i < count && !rc; i++)
        rc = message_add(json_array_get(value, i), i, list, problem);
    if (!rc)
        dump = json_dumps(list, JSON_COMPACT);
    json_decref(list);
    if (rc)
        return rc;
    if (!dump || strlen(dump) > LIMIT_PROMPT_BYTES) {
        free(dump);
        return field_refuse(p, f, value, "must have at most 8388608 bytes", problem);
    }
    buf_clear(&p->messages);
    buf_puts(&p->messages, dump);
    free(dump);
    prompts_reset(p, 1);
    p->prompts[0].text.data = p->messages.data;
    p->prompts[0].text.len = p->messages.len;
    return 0;
}

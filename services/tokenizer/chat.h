/* The chat side of a model folder: finds its template, turns messages into a prompt. */
#ifndef PHALANX_TOKENIZER_CHAT_H
#define PHALANX_TOKENIZER_CHAT_H

#include "services/tokenizer/template.h"
#include "services/tokenizer/tokenizer.h"

struct chat;

struct chat_request {
    json_t *messages;        /* array of objects; borrowed */
    json_t *tools;           /* array or NULL; borrowed */
    json_t *template_kwargs; /* object or NULL: further variables; borrowed */
    bool add_generation_prompt;
    bool continue_final_message; /* the prompt ends inside the last message */
    int64_t now;                 /* seconds since 1970 */
};

/* chat_template.jinja, else chat_template of tokenizer_config.json (a string, or a list of
 * {name, template}: "default", and "tool_use" when tools are given). A folder without a template
 * is fine: chat_prompt then fails with a line that says so. t is borrowed for the chat's life. */
int chat_load(const char *model_dir, const struct tokenizer *t, struct chat **out, struct err *err);
void chat_free(struct chat **self);

/* Renders the prompt text; every string from the request is shielded (tokenizer_shield), so that
 * users' text never becomes a special token. Encode it with ENCODE_SPLIT_ADDED and without
 * ENCODE_ADD_SPECIAL. */
int chat_prompt(const struct chat *c, const struct chat_request *request, struct buf *out,
                struct err *err);

#endif

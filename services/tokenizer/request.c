#include "services/tokenizer/request.h"

#include "common/json.h"
#include "common/mem.h"
#include "common/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct request *request_new(const struct proto_header *header, const struct proto_generate *g,
                            struct err *err)
{
    struct request *r = mem_zalloc(sizeof *r);
    struct proto_header copy_header;
    void *copy;

    if (proto_encode(header, g, &r->copy, err) ||
        proto_decode(r->copy.data, r->copy.len, &r->arena, &copy_header, &copy, err)) {
        request_free(&r);
        return NULL;
    }
    buf_fini(&r->copy);
    r->generate = *(const struct proto_generate *)copy;
    r->key.rid = header->id;
    r->stops = mem_array(g->stops_count, sizeof *r->stops);
    for (uint32_t i = 0; i < g->stops_count; i++)
        r->stops[i] =
            (struct detok_stop){r->generate.stops[i].text.data, r->generate.stops[i].text.len};
    return r;
}

void request_free(struct request **self)
{
    struct request *r = *self;

    if (!r)
        return;
    for (uint32_t i = 0; r->sequences && i < r->generate.n; i++) {
        detok_fini(&r->sequences[i].detok);
        ids_fini(&r->sequences[i].ids);
    }
    free(r->sequences);
    free(r->stops);
    ids_fini(&r->prompt);
    buf_fini(&r->echo);
    buf_fini(&r->copy);
    proto_arena_fini(&r->arena);
    free(r);
    *self = NULL;
}

static int json_field(struct proto_str text, const char *name, json_t **out, struct err *err)
{
    *out = NULL;
    if (!text.len)
        return 0;
    if (json_parse(text.data, text.len, JSON_DEPTH_REQUEST, out, err))
        return err_prefix(err, "%s", name);
    return 0;
}

static int encode_chat(struct request *r, const struct tokenizer *t, const struct chat *chat,
                       struct err *err)
{
    const struct proto_generate *g = &r->generate;
    struct chat_request c = {.add_generation_prompt = g->add_generation_prompt,
                             .continue_final_message = g->continue_final_message,
                             .now = (int64_t)time(NULL)};
    struct buf prompt = {0};
    int rc;

    if ((rc = json_field(g->text, "messages", &c.messages, err)) ||
        (rc = json_field(g->tools, "tools", &c.tools, err)) ||
        (rc = json_field(g->template_kwargs, "chat_template_kwargs", &c.template_kwargs, err)) ||
        (rc = chat_prompt(chat, &c, &prompt, err)))
        goto out;
    rc = tokenizer_encode(t, prompt.data ? prompt.data : "", prompt.len, ENCODE_SPLIT_ADDED,
                          LIMIT_PROMPT_IDS, &r->prompt, err);
out:
    buf_fini(&prompt);
    json_decref(c.messages);
    json_decref(c.tools);
    json_decref(c.template_kwargs);
    return rc;
}

/* All choices get them: the whole answer is bounded. */
static int check_prompt_logprobs(const struct request *r, struct err *err)
{
    const struct proto_sampling *s = &r->generate.sampling;

    if (!s->prompt_logprobs || s->logprobs < 0)
        return 0;
    if ((uint64_t)r->prompt.len * r->generate.n * (uint64_t)(s->logprobs + 1) <=
        LIMIT_PROMPT_LOGPROBS)
        return 0;
    return err_set(err, ERR_INVALID,
                   "%zu prompt tokens in %u choices with %u log probabilities each: at most %d in "
                   "all",
                   r->prompt.len, r->generate.n, (uint32_t)s->logprobs + 1, LIMIT_PROMPT_LOGPROBS);
}

static int encode_prompt(struct request *r, const struct tokenizer *t, const struct chat *chat,
                         struct err *err)
{
    const struct proto_generate *g = &r->generate;
    int rc = 0;

    switch (g->kind) {
    case PROMPT_TEXT:
        if (!utf8_valid(g->text.data, g->text.len))
            return err_set(err, ERR_INVALID, "prompt is not valid UTF-8");
        rc = tokenizer_encode(t, g->text.data, g->text.len, ENCODE_ADD_SPECIAL | ENCODE_SPLIT_ADDED,
                              LIMIT_PROMPT_IDS, &r->prompt, err);
        if (!rc && g->echo)
            buf_append(&r->echo, g->text.data, g->text.len);
        break;
    case PROMPT_IDS:
        for (uint32_t i = 0; i < g->ids_count; i++)
            ids_push(&r->prompt, g->ids[i]);
        if (g->echo)
            tokenizer_decode(t, g->ids, g->ids_count, g->skip_special_tokens, &r->echo);
        break;
    case PROMPT_CHAT:
        rc = encode_chat(r, t, chat, err);
        break;
    default:
        return err_set(err, ERR_PROTOCOL, "prompt kind %u is not known", g->kind);
    }
    if (!rc && !r->prompt.len)
        rc = err_set(err, ERR_INVALID, "the prompt is empty: it has no tokens");
    return rc ? rc : check_prompt_logprobs(r, err);
}

static void sequences_new(struct request *r, const struct tokenizer *t)
{
    bool continues = false;

    for (size_t i = 0; i < r->prompt.len && !continues; i++)
        continues = !tokenizer_is_special(t, r->prompt.data[i]);
    r->sequences = mem_array(r->generate.n, sizeof *r->sequences);
    r->open = r->generate.n;
    for (uint32_t i = 0; i < r->generate.n; i++) {
        struct sequence *q = &r->sequences[i];

        q->request = r;
        q->choice = i;
        detok_init(&q->detok, t, r->stops, r->generate.stops_count, r->generate.skip_special_tokens,
                   continues);
    }
}

/* The detokenizer sees the tokens that the client has text of, one by one as it did before: it then
 * holds back what it held back, and the text so far must be as long. */
static int sequence_resume(struct sequence *q, const struct proto_resumed *from, struct err *err)
{
    struct buf text = {0};
    int stop = -1;
    size_t len;

    for (uint32_t i = 0; i < from->ids_count && stop < 0; i++) {
        ids_push(&q->ids, from->ids[i]);
        stop = detok_push(&q->detok, &from->ids[i], 1, &text);
    }
    len = text.len + (from->ids_count ? q->request->echo.len : 0);
    buf_fini(&text);
    if (stop >= 0 || len != from->text_bytes)
        return err_set(err, ERR_INTERNAL,
                       "choice %u can not go on: its %u tokens make %zu bytes of text, not %llu",
                       q->choice, from->ids_count, len, (unsigned long long)from->text_bytes);
    q->scored = from->prompt_scored;
    return 0;
}

/* Where each choice stands that another tokenizer had begun. */
static int sequences_resume(struct request *r, struct err *err)
{
    const struct proto_generate *g = &r->generate;

    for (uint32_t i = 0; i < g->resumed_count; i++) {
        const struct proto_resumed *from = &g->resumed[i];
        struct sequence *q = from->choice < g->n ? &r->sequences[from->choice] : NULL;
        int rc;

        if (!q || q->ended || q->ids.len || from->prompt_scored > r->prompt.len)
            return err_set(err, ERR_PROTOCOL, "GENERATE.resumed[%u] is not possible", i);
        q->ended = from->ended;
        r->open -= q->ended;
        rc = q->ended ? 0 : sequence_resume(q, from, err);
        if (rc)
            return rc;
    }
    return r->open ? 0 : err_set(err, ERR_PROTOCOL, "every choice of the request has ended");
}

int request_encode(struct request *r, const struct tokenizer *t, const struct chat *chat,
                   struct err *err)
{
    int rc = encode_prompt(r, t, chat, err);

    if (rc)
        return rc;
    sequences_new(r, t);
    return sequences_resume(r, err);
}

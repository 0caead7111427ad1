/* Text to token ids and back, equal to Hugging Face's `tokenizers` for every tokenizer.json of the
 * Llama-2, Llama-3, Qwen, GPT-2, tekken/o200k, DeepSeek-V3 and Falcon families.
 *
 * A loaded tokenizer is immutable: every function that takes a const pointer may be called from
 * several threads at once. */
#ifndef PHALANX_TOKENIZER_TOKENIZER_H
#define PHALANX_TOKENIZER_TOKENIZER_H

#include "common/buf.h"
#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer;

/* A growable array of token ids; zero-initialise, end with ids_fini. */
struct ids {
    uint32_t *data; /* owned */
    size_t len, cap;
};
void ids_push(struct ids *ids, uint32_t id);
void ids_fini(struct ids *ids);

/* Byte that breaks up special tokens inside text from a user. It is no valid UTF-8, so no user
 * text holds it; tokenizer_shield puts it in, encode drops it after added tokens were looked for.
 */
#define TOKENIZER_SHIELD '\xff'

enum tokenizer_encode_flags {
    ENCODE_ADD_SPECIAL = 1, /* run the post-processor (BOS and the like) */
    ENCODE_SPLIT_ADDED = 2, /* added tokens in the text become their ids; otherwise plain text */
};

/* Reads tokenizer.json (and tokenizer_config.json where present, for add_bos_token and the like) of
 * a model folder. ERR_UNSUPPORTED names the component that is not supported; a folder with only a
 * SentencePiece .model file is refused by name. */
int tokenizer_load(const char *model_dir, struct tokenizer **out, struct err *err);
void tokenizer_free(struct tokenizer **self);

/* Ids of text (valid UTF-8, apart from TOKENIZER_SHIELD bytes), appended to ids. Never more than
 * ids_max ids are produced beyond what fits: ERR_LIMIT then (the message names the limit). Cost is
 * O(n log n) in the length of the text for any text. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, unsigned flags,
                     size_t ids_max, struct ids *ids, struct err *err);

/* The whole sequence as text, appended to out (what `tokenizers` decode gives). Bytes that are no
 * valid UTF-8 become U+FFFD as there. Ids out of range are skipped. skip_special leaves out every
 * special token (the reference shows those whose content its normalizer changes). */
void tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, size_t count,
                      bool skip_special, struct buf *out);

/* Copies text to out with a TOKENIZER_SHIELD inside every substring that is the content of a
 * special token, so that encode with ENCODE_SPLIT_ADDED treats it as plain text. Added tokens that
 * are not special (`</think>`, `<tool_call>`) are vocabulary like any other and left alone: a
 * conversation's earlier replies hold them. Nothing can be done about contents of white space or of
 * one byte. */
void tokenizer_shield(const struct tokenizer *t, const char *text, size_t len, struct buf *out);

/* One more than the largest id (vocabulary and added tokens). */
uint32_t tokenizer_size(const struct tokenizer *t);

/* Id of a token by its exact content; false when there is none. */
bool tokenizer_id(const struct tokenizer *t, const char *content, uint32_t *id);

/* The raw bytes of one token as it appears in running text (" the", a lone byte of a longer UTF-8
 * sequence, "<|im_end|>"), appended to out: for logprobs and for the streaming detokenizer. */
void tokenizer_token_bytes(const struct tokenizer *t, uint32_t id, struct buf *out);

/* True for added tokens marked special. */
bool tokenizer_is_special(const struct tokenizer *t, uint32_t id);

/* Reads what was loaded from tokenizer_config.json: "bos_token", "eos_token", "pad_token",
 * "unk_token" (contents, NULL when absent). Borrowed. */
const char *tokenizer_named_token(const struct tokenizer *t, const char *name);

#endif

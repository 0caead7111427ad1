/* Parts of a loaded tokenizer, shared by the files of this folder. */
#ifndef PHALANX_TOKENIZER_INTERNAL_H
#define PHALANX_TOKENIZER_INTERNAL_H

#include "common/json.h"
#include "services/tokenizer/tokenizer.h"

#include <stdatomic.h>

#define TOKEN_NONE UINT32_MAX
#define TOKENIZER_IDS_MAX (1u << 24) /* ids a file may name */
#define STAGES_MAX 16
#define NAMED_MAX 4
#define SCRATCH_POOL 8

struct scratch;
struct regex;

/* --- vocabulary (vocab.c) --- */

enum token_kind {
    TOKEN_PRESENT = 1,
    TOKEN_MODEL = 2, /* in the model's vocabulary */
    TOKEN_ADDED = 4,
    TOKEN_SPECIAL = 8,
    TOKEN_BYTE = 16, /* <0xXX> under the ByteFallback decoder; raw holds the byte */
};

/* Byte strings by id in one block. */
struct strings {
    char *data;      /* owned, padded by 16 bytes */
    uint32_t *start; /* owned, count + 1 */
    size_t count;
};

/* Text of a token in place of its content. */
struct shown {
    uint32_t id;
    struct buf text;
};

struct vocab {
    struct strings content; /* as in the file */
    uint8_t *kind;          /* owned, count */
    uint32_t *slots;        /* owned: open hash of ids by content */
    uint32_t slots_mask;
    uint32_t count;      /* largest id + 1 */
    struct shown *shown; /* owned: added tokens that are matched in normalised text */
    size_t shown_count;
};

/* model: {content: id}; added: array of added tokens. Decides the ids as the reference does. */
int vocab_load(struct vocab *v, json_t *model, json_t *added, struct err *err);
void vocab_fini(struct vocab *v);
/* Decoding gives this text for id. */
void vocab_show(struct vocab *v, uint32_t id, const char *text, size_t len);
uint32_t vocab_find(const struct vocab *v, const char *content, size_t len); /* TOKEN_NONE */
uint32_t vocab_find_model(const struct vocab *v, const char *content, size_t len);
const char *strings_get(const struct strings *s, uint32_t id, size_t *len);

/* --- the byte-level alphabet (bytelevel.c) --- */

uint32_t bytelevel_char(unsigned char byte);
int bytelevel_byte(uint32_t cp);                                  /* -1: not in the alphabet */
size_t bytelevel_map(const char *s, size_t len, char *out);       /* out: 2 * len; returns bytes */
void bytelevel_unmap(const char *s, size_t len, struct buf *out); /* s itself when it is not all
                                                                     of the alphabet */

/* --- BPE (bpe.c) --- */

struct merge {
    uint64_t pair;   /* left << 32 | right; UINT64_MAX: empty */
    uint64_t result; /* rank << 32 | id */
};

struct bpe {
    struct merge *merges; /* owned: open hash */
    uint32_t merges_mask;
    uint32_t unk; /* TOKEN_NONE */
    bool fuse_unk, byte_fallback, ignore_merges;
    size_t token_max;          /* bytes of the longest token */
    bool bytelevel;            /* words come as bytes, symbols are the byte-level characters */
    bool seams;                /* words may be cut in front of U+2581: no merge crosses there */
    uint32_t byte_id[256];     /* byte-level: symbol of a byte */
    uint32_t fallback_id[256]; /* <0xXX> */
    uint32_t ascii_id[128];
};

int bpe_load(struct bpe *b, const struct vocab *v, json_t *model, bool bytelevel, struct err *err);
void bpe_fini(struct bpe *b);
/* Appends the ids of one word to the scratch's output. */
void bpe_word(const struct tokenizer *t, struct scratch *c, const char *s, size_t len);

/* --- added tokens (added.c) --- */

struct added_token {
    uint32_t id;
    bool single_word, lstrip, rstrip;
    bool single_char; /* the content is one character */
};

struct trie_node {
    uint32_t child, sibling; /* 0: none */
    uint32_t token;          /* index into tokens, TOKEN_NONE */
    unsigned char byte;
};

struct added_set {
    struct added_token *tokens; /* owned */
    size_t tokens_count;
    struct trie_node *nodes; /* owned; node 0 is the root */
    size_t nodes_count, nodes_cap;
    uint32_t root[256]; /* node by first byte, 0: none */
};

struct added_scan {
    const char *text;
    size_t len;
    size_t at;        /* where to look next */
    size_t done;      /* text given out so far */
    size_t space_end; /* end of the run of spaces looked at last */
    bool has_match;
    struct {
        uint32_t id;
        size_t start, end;
    } match;
};

void added_insert(struct added_set *set, const char *content, size_t len, struct added_token token);
void added_fini(struct added_set *set);
/* Length of the longest content at text[i], 0 for none. */
size_t added_match(const struct added_set *set, const char *text, size_t len, size_t i,
                   uint32_t *token);
/* Next split: a piece of text (id TOKEN_NONE) or an added token. False at the end. */
bool added_next(const struct added_set *set, struct added_scan *scan, uint32_t *id, size_t *start,
                size_t *end);

/* --- regular expressions outside the known ones (regex.c) --- */

int regex_new(const char *pattern, size_t len, struct regex **out, struct err *err);
void regex_free(struct regex **self);
/* 1: found, 0: none, negative: a limit was passed. */
int regex_next(const struct regex *r, const char *s, size_t len, size_t from, size_t *start,
               size_t *end);

/* --- normalizers (normalize.c) --- */

enum normal_kind { NORMAL_FORM, NORMAL_PREPEND, NORMAL_REPLACE, NORMAL_STRIP };

struct normal {
    enum normal_kind kind;
    bool compose, compat; /* FORM */
    bool left, right;     /* STRIP */
    struct buf from, to;  /* REPLACE; PREPEND uses to */
    struct regex *regex;  /* REPLACE by pattern; owned */
};

struct normals {
    struct normal list[STAGES_MAX];
    size_t count;
};

int normals_load(struct normals *n, const json_t *def, struct err *err);
void normals_fini(struct normals *n);
/* *s, *len: the text in, the result out (the text itself or in one of the two buffers).
 * prepend: whether Prepend acts. */
int normals_run(const struct normals *n, const char **s, size_t *len, bool prepend,
                struct buf work[2], struct err *err);

/* --- pre-tokenizers (pretokenize.c, scan.c) --- */

enum split_behavior {
    SPLIT_ISOLATED,
    SPLIT_REMOVED,
    SPLIT_MERGED_PREVIOUS,
    SPLIT_MERGED_NEXT,
    SPLIT_CONTIGUOUS
};

/* End of the match at s[i], or i when there is none. i < len. */
typedef size_t (*scan_fn)(const unsigned char *s, size_t len, size_t i);
scan_fn scan_known(const char *pattern, size_t len); /* NULL: not a known pattern */

enum stage_kind { STAGE_SCAN, STAGE_CLASS, STAGE_STRING, STAGE_REGEX, STAGE_PREFIX, STAGE_META };

struct stage {
    enum stage_kind kind;
    enum split_behavior behavior;
    bool invert;
    bool mapped;          /* works on the byte-level characters of the bytes */
    scan_fn scan;         /* SCAN */
    unsigned class_flags; /* CLASS: every code point with one of these flags */
    struct buf string;    /* STRING; PREFIX, META: what is put in front */
    struct regex *regex;  /* REGEX; owned */
    bool meta_first, meta_always;
};

struct stages {
    struct stage list[STAGES_MAX];
    size_t count;
    bool bytelevel; /* a ByteLevel is among them */
};

int stages_load(struct stages *p, const json_t *def, struct err *err);
void stages_fini(struct stages *p);
/* Splits one section of text and hands the words to bpe_word. origin: the section is the start of
 * the whole text. */
void stages_run(const struct tokenizer *t, struct scratch *c, size_t stage, const char *s,
                size_t len, bool origin);

/* --- decoder (decode.c) --- */

struct decoder {
    struct strings raw; /* bytes of each token after the per-token steps */
    size_t raw_max;
    bool lossy; /* ByteLevel: raw may hold parts of UTF-8 sequences */
    bool join;  /* no decoder: tokens are joined by a space */
    bool meta;  /* Metaspace: U+2581 vanishes from the first token */
    struct buf meta_from;
    size_t strip; /* leading strip_text of the whole text to drop, at most */
    struct buf strip_text;
};

struct decode_state {
    struct buf pending; /* bytes whose text is not certain yet */
    size_t strip_left;
    bool first;
};

int decoder_load(struct decoder *d, struct vocab *v, const json_t *def, struct err *err);
void decoder_fini(struct decoder *d);
void decode_start(const struct tokenizer *t, struct decode_state *state, bool continues);
void decode_push(const struct tokenizer *t, struct decode_state *state, const uint32_t *ids,
                 size_t count, bool skip_special, struct buf *out);
void decode_end(const struct tokenizer *t, struct decode_state *state, struct buf *out);

/* --- all of it --- */

/* A tokenizer from the text of a tokenizer.json alone. */
int tokenizer_parse(const char *json, size_t len, struct tokenizer **out, struct err *err);

struct tokenizer {
    struct vocab vocab;
    struct bpe bpe;
    struct added_set added;      /* looked for in the text as it is */
    struct added_set normalized; /* looked for in normalised text */
    struct added_set contents;   /* of special tokens, for the shield */
    struct normals normals;
    struct stages stages;
    struct decoder decoder;
    bool regexes;                    /* PCRE2 is in use: it must not see ill-formed text */
    struct ids prefix, suffix;       /* of the post-processor */
    char *named[NAMED_MAX];          /* bos, eos, pad, unk */
    _Atomic(struct scratch *) *pool; /* owned: SCRATCH_POOL work areas or NULL */
};

/* Everything one encode call writes to; kept in the tokenizer's pool between calls. */
struct scratch {
    struct ids *out;
    size_t out_max; /* out->len may grow up to here */
    size_t ids_max; /* what the caller allowed */
    int rc;         /* first failure; everything after it is a no-op */
    struct err err;
    struct buf plain, shields, work[2], level[STAGES_MAX], word;
    struct cache_entry *cache; /* owned; bpe.c */
    struct symbol *symbols;    /* owned; bpe.c */
    size_t symbols_cap;
    uint64_t *heap; /* owned */
    size_t heap_cap;
};

void scratch_push(struct scratch *c, uint32_t id);
void scratch_fail(struct scratch *c, const struct err *err);

#endif

/* Messages of the bus: structs and one table-driven codec, both from proto/messages.def.
 *
 * Wire: one msgpack array [type, version, epoch, seq, id, field...], fields in the table's order.
 * Numbers are msgpack numbers, STR is bin, U32S and F32S are bin of little-endian elements (so are
 * U64S), REC is an array, RECS an array of arrays. */
#ifndef PHALANX_PROTO_PROTO_H
#define PHALANX_PROTO_PROTO_H

#include "common/buf.h"
#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROTO_VERSION 1

enum proto_prompt_kind { PROMPT_TEXT, PROMPT_IDS, PROMPT_CHAT };
enum proto_finish { FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_ABORT, FINISH_ERROR };

enum proto_type {
    PROTO_NONE,
#define MESSAGE(NAME, name) PROTO_##NAME,
#include "proto/messages.def"
    PROTO_TYPES
};

struct proto_str {
    const char *data; /* not NUL-terminated */
    size_t len;
};

/* Struct members by kind. Arrays: name, and name_count elements. */
#define PROTO_MEMBER_BOOL(name, sub) bool name;
#define PROTO_MEMBER_U32(name, sub) uint32_t name;
#define PROTO_MEMBER_U64(name, sub) uint64_t name;
#define PROTO_MEMBER_I64(name, sub) int64_t name;
#define PROTO_MEMBER_F64(name, sub) double name;
#define PROTO_MEMBER_STR(name, sub) struct proto_str name;
#define PROTO_MEMBER_U32S(name, sub)                                                               \
    uint32_t *name;                                                                                \
    uint32_t name##_count;
#define PROTO_MEMBER_U64S(name, sub)                                                               \
    uint64_t *name;                                                                                \
    uint32_t name##_count;
#define PROTO_MEMBER_F32S(name, sub)                                                               \
    float *name;                                                                                   \
    uint32_t name##_count;
#define PROTO_MEMBER_REC(name, sub) struct proto_##sub name;
#define PROTO_MEMBER_RECS(name, sub)                                                               \
    struct proto_##sub *name;                                                                      \
    uint32_t name##_count;

#define RECORD(name) struct proto_##name {
#define MESSAGE(NAME, name) struct proto_##name {
#define FIELD(kind, name, bound, sub) PROTO_MEMBER_##kind(name, sub)
#define END(name)                                                                                  \
    }                                                                                              \
    ;
#include "proto/messages.def"

struct proto_header {
    enum proto_type type;
    uint64_t epoch; /* of the TP group; messages of another epoch are dropped */
    uint64_t seq;   /* 1, 2, ... on this link and direction; 0: not numbered (HELLO, PING, ...) */
    uint64_t id;    /* request or sequence, 0 where none */
};

/* A string literal or C string as a proto_str. */
struct proto_str proto_str(const char *text);
/* A copy with a NUL at the end (caller frees). */
char *proto_strdup(struct proto_str s);
bool proto_str_is(struct proto_str s, const char *text);

/* Appends the encoding of message (a struct proto_<name> of header->type) to out. A field past its
 * bound is ERR_LIMIT and names message and field; out is then unchanged. */
int proto_encode(const struct proto_header *header, const void *message, struct buf *out,
                 struct err *err);

/* Memory of decoded messages: everything one decode allocates is freed by one call. */
struct proto_arena {
    struct proto_block *blocks;
    size_t bytes;
};
void proto_arena_clear(struct proto_arena *a); /* keeps nothing but one block for reuse */
void proto_arena_fini(struct proto_arena *a);

/* Decodes bytes. On success header is filled and *message points to a struct proto_<name> that
 * lives in the arena. Strings and arrays are copied (aligned): data may be freed at once. Every
 * count is checked against its bound and the bytes that remain before memory is taken.
 * ERR_PROTOCOL names the field. */
int proto_decode(const void *data, size_t len, struct proto_arena *arena,
                 struct proto_header *header, void **message, struct err *err);

/* "GENERATE"; "?" when unknown. */
const char *proto_type_name(enum proto_type type);

/* One line for logs and tests: NAME epoch=1 seq=2 id=3 field=value ..., long values cut. */
void proto_dump(const struct proto_header *header, const void *message, struct buf *out);

/* Hash of messages.def's content (names, kinds, bounds, order): equal schemas, equal hashes. */
uint64_t proto_schema_hash(void);

/* The protocol page (docs/protocol.md) from the table, appended to out. */
void proto_document(struct buf *out);

#endif

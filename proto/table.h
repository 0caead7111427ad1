/* Descriptors of records and messages, made from proto/messages.def. Encoder, decoder, dump and
 * protocol page walk them; none of these knows a message by name. */
#ifndef PHALANX_PROTO_TABLE_H
#define PHALANX_PROTO_TABLE_H

#include "proto/proto.h"

enum field_kind {
    KIND_BOOL,
    KIND_U32,
    KIND_U64,
    KIND_I64,
    KIND_F64,
    KIND_STR,
    KIND_U32S,
    KIND_U64S,
    KIND_F32S,
    KIND_REC,
    KIND_RECS,
    KINDS
};

struct field {
    const char *name;
    enum field_kind kind;
    uint32_t bound;                    /* most bytes or elements */
    size_t offset;                     /* of the value, or of the pointer to the elements */
    size_t count_offset;               /* of the number of elements; arrays only */
    const struct record *(*sub)(void); /* REC and RECS: the record's descriptor */
};

struct record {
    const char *name;
    size_t size; /* of the C struct */
    const struct field *fields;
    uint32_t count; /* of fields */
};

struct message {
    const char *name; /* "GENERATE" */
    const struct record *(*record)(void);
};

#define TABLE_HEADER_FIELDS 5 /* type, version, epoch, seq, id */

/* NULL when type is no message. */
const struct message *table_message(unsigned type);

/* The i-th record that is a part of messages, in the table's order; NULL past the end. */
const struct record *table_record(unsigned i);

const char *table_kind_name(enum field_kind kind);
/* Bytes of one element of U32S, U64S and F32S, on the wire and in memory. */
size_t table_element_size(enum field_kind kind);
/* Fewest bytes a record can take on the wire. */
size_t table_wire_min(const struct record *record);

/* Where a field and its element count lie inside a struct. */
static inline const void *table_at(const void *base, size_t offset)
{
    return (const char *)base + offset;
}

static inline void *table_in(void *base, size_t offset)
{
    return (char *)base + offset;
}

#endif

#include "proto/table.h"

#include <xxhash.h>

#define COUNT_OF_BOOL(name) 0
#define COUNT_OF_U32(name) 0
#define COUNT_OF_U64(name) 0
#define COUNT_OF_I64(name) 0
#define COUNT_OF_F64(name) 0
#define COUNT_OF_STR(name) 0
#define COUNT_OF_REC(name) 0
#define COUNT_OF_U32S(name) offsetof(self, name##_count)
#define COUNT_OF_U64S(name) offsetof(self, name##_count)
#define COUNT_OF_F32S(name) offsetof(self, name##_count)
#define COUNT_OF_RECS(name) offsetof(self, name##_count)

#define record_none NULL

/* One function a record that returns its descriptor: inside it `self` names the struct. */
#define RECORD(name)                                                                               \
    static const struct record *record_##name(void)                                                \
    {                                                                                              \
        typedef struct proto_##name self;                                                          \
        static const struct field fields[] = {
#define MESSAGE(NAME, name) RECORD(name)
#define FIELD(kind, name, bound, sub)                                                              \
    {#name, KIND_##kind, bound, offsetof(self, name), COUNT_OF_##kind(name), record_##sub},
#define END(name)                                                                                  \
    }                                                                                              \
    ;                                                                                              \
    static const struct record r = {#name, sizeof(self), fields,                                   \
                                    sizeof(fields) / sizeof(fields[0])};                           \
    return &r;                                                                                     \
    }
#include "proto/messages.def"

static const struct message messages[PROTO_TYPES] = {
#define MESSAGE(NAME, name) [PROTO_##NAME] = {#NAME, record_##name},
#include "proto/messages.def"
};

static const struct record *(*const records[])(void) = {
#define RECORD(name) record_##name,
#include "proto/messages.def"
};

static const char *const kind_names[KINDS] = {
    [KIND_BOOL] = "BOOL", [KIND_U32] = "U32", [KIND_U64] = "U64",   [KIND_I64] = "I64",
    [KIND_F64] = "F64",   [KIND_STR] = "STR", [KIND_U32S] = "U32S", [KIND_U64S] = "U64S",
    [KIND_F32S] = "F32S", [KIND_REC] = "REC", [KIND_RECS] = "RECS",
};

const struct message *table_message(unsigned type)
{
    return type > PROTO_NONE && type < PROTO_TYPES ? &messages[type] : NULL;
}

const struct record *table_record(unsigned i)
{
    return i < sizeof(records) / sizeof(records[0]) ? records[i]() : NULL;
}

const char *table_kind_name(enum field_kind kind)
{
    return kind_names[kind];
}

size_t table_element_size(enum field_kind kind)
{
    return kind == KIND_U64S ? 8 : 4;
}

size_t table_wire_min(const struct record *record)
{
    size_t bytes = 1; /* the array's head */
    for (uint32_t i = 0; i < record->count; i++) {
        const struct field *f = &record->fields[i];
        bytes += f->kind == KIND_REC ? table_wire_min(f->sub()) : 1;
    }
    return bytes;
}

const char *proto_type_name(enum proto_type type)
{
    const struct message *m = table_message(type);
    return m ? m->name : "?";
}

static void schema_text(const struct record *record, const char *name, struct buf *out)
{
    buf_printf(out, "%s{", name);
    for (uint32_t i = 0; i < record->count; i++) {
        const struct field *f = &record->fields[i];
        buf_printf(out, "%s %s %u %s;", kind_names[f->kind], f->name, f->bound,
                   f->sub ? f->sub()->name : "");
    }
    buf_puts(out, "}");
}

uint64_t proto_schema_hash(void)
{
    struct buf text = {0};
    buf_printf(&text, "%d", PROTO_VERSION);
    for (unsigned i = 0; table_record(i); i++)
        schema_text(table_record(i), table_record(i)->name, &text);
    for (unsigned type = PROTO_NONE + 1; type < PROTO_TYPES; type++)
        schema_text(messages[type].record(), messages[type].name, &text);
    uint64_t hash = XXH64(text.data, text.len, 0);
    buf_fini(&text);
    return hash;
}

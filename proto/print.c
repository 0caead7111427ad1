/* Messages as text: the dump and the protocol page. */
#include "proto/table.h"

#include <inttypes.h>

#define DUMP_BYTES 64
#define DUMP_NUMBERS 16
#define DUMP_RECORDS 8

static void dump_fields(const struct record *record, const void *base, const char *before,
                        struct buf *out);

static void dump_str(const struct proto_str *s, struct buf *out)
{
    const size_t shown = s->len > DUMP_BYTES ? DUMP_BYTES : s->len;
    buf_json_string(out, s->len > 0 ? s->data : "", shown);
    if (shown < s->len)
        buf_printf(out, "...(%zu)", s->len);
}

static void dump_array(const struct field *f, const void *base, struct buf *out)
{
    const uint32_t count = *(const uint32_t *)table_at(base, f->count_offset);
    const char *elements = *(const char *const *)table_at(base, f->offset);
    const uint32_t most = f->kind == KIND_RECS ? DUMP_RECORDS : DUMP_NUMBERS;
    const uint32_t shown = count > most ? most : count;

    buf_putc(out, '[');
    for (uint32_t i = 0; i < shown; i++) {
        if (i > 0)
            buf_putc(out, ',');
        if (f->kind == KIND_U32S) {
            buf_printf(out, "%" PRIu32, ((const uint32_t *)(const void *)elements)[i]);
        } else if (f->kind == KIND_U64S) {
            buf_printf(out, "%" PRIu64, ((const uint64_t *)(const void *)elements)[i]);
        } else if (f->kind == KIND_F32S) {
            buf_printf(out, "%.9g", (double)((const float *)(const void *)elements)[i]);
        } else {
            const struct record *sub = f->sub();
            buf_putc(out, '{');
            dump_fields(sub, elements + i * sub->size, "", out);
            buf_putc(out, '}');
        }
    }
    if (shown < count)
        buf_printf(out, ",...(%" PRIu32 ")", count);
    buf_putc(out, ']');
}

static void dump_value(const struct field *f, const void *base, struct buf *out)
{
    const void *at = table_at(base, f->offset);
    switch (f->kind) {
    case KIND_BOOL:
        buf_puts(out, *(const bool *)at ? "true" : "false");
        break;
    case KIND_U32:
        buf_printf(out, "%" PRIu32, *(const uint32_t *)at);
        break;
    case KIND_U64:
        buf_printf(out, "%" PRIu64, *(const uint64_t *)at);
        break;
    case KIND_I64:
        buf_printf(out, "%" PRId64, *(const int64_t *)at);
        break;
    case KIND_F64:
        buf_printf(out, "%.17g", *(const double *)at);
        break;
    case KIND_STR:
        dump_str(at, out);
        break;
    case KIND_REC:
        buf_putc(out, '{');
        dump_fields(f->sub(), at, "", out);
        buf_putc(out, '}');
        break;
    default:
        dump_array(f, base, out);
        break;
    }
}

static void dump_fields(const struct record *record, const void *base, const char *before,
                        struct buf *out)
{
    for (uint32_t i = 0; i < record->count; i++) {
        const struct field *f = &record->fields[i];
        buf_printf(out, "%s%s=", i > 0 ? " " : before, f->name);
        dump_value(f, base, out);
    }
}

void proto_dump(const struct proto_header *header, const void *message, struct buf *out)
{
    const struct message *m = table_message(header->type);
    buf_printf(out, "%s epoch=%" PRIu64 " seq=%" PRIu64 " id=%" PRIu64,
               proto_type_name(header->type), header->epoch, header->seq, header->id);
    if (m)
        dump_fields(m->record(), message, " ", out);
}

static void document_record(const struct record *record, struct buf *out)
{
    buf_puts(out, "| field | kind | bound |\n|---|---|---|\n");
    for (uint32_t i = 0; i < record->count; i++) {
        const struct field *f = &record->fields[i];
        buf_printf(out, "| %s | %s", f->name, table_kind_name(f->kind));
        if (f->sub)
            buf_printf(out, " [%s](#%s)", f->sub()->name, f->sub()->name);
        if (f->bound > 0)
            buf_printf(out, " | %" PRIu32 " |\n", f->bound);
        else
            buf_puts(out, " | |\n");
    }
    buf_putc(out, '\n');
}

static const char introduction[] =
    "# The bus\n"
    "\n"
    "Made from proto/messages.def, which also says what each field means. `UPDATE_DOCS=1 make "
    "test` "
    "writes\nthis page anew.\n"
    "\n"
    "A message is one msgpack array `[type, version, epoch, seq, id, field...]`: the fields in the "
    "order below.\n"
    "\n"
    "| kind | on the wire | bound |\n"
    "|---|---|---|\n"
    "| BOOL | true or false | |\n"
    "| U32, U64, I64 | integer, in any width | |\n"
    "| F64 | float 64 | |\n"
    "| STR | bin | bytes |\n"
    "| U32S, U64S, F32S | bin of little-endian elements | elements |\n"
    "| REC | array of the record's fields | |\n"
    "| RECS | array of arrays | elements |\n"
    "\n"
    "A count is checked against its bound and against the bytes that remain before memory is "
    "taken. "
    "Bytes\nafter the last field, a missing field or another number of fields make the message "
    "invalid.\n"
    "\n"
    "## Links\n"
    "\n"
    "- The side that binds is a ROUTER, the side that connects a DEALER. One connection carries "
    "one "
    "join: the\n  DEALER's first message is HELLO, the answer is WELCOME or REFUSE. HELLO is said "
    "again at every new\n  connection, until WELCOME comes.\n"
    "- `instance` is drawn at random by each side for the life of a link; `peer` in HELLO is the "
    "other side's,\n  0 at first. When both are known the link goes on where it was: each side "
    "sends again what lies beyond\n  the other's `received`. Otherwise a new link begins and the "
    "old one is down.\n"
    "- `attempt` counts connections, so that a late HELLO of an older connection is ignored.\n"
    "- Every message but HELLO, WELCOME, REFUSE and PING has a sequence number (1, 2, ... for each "
    "direction of\n  a link) and is kept by its sender until `received` of a PING, HELLO or "
    "WELCOME "
    "covers it. Repeats are\n  dropped; a gap ends the link.\n"
    "- PING goes both ways every 200 ms, and sooner after many messages. A side that hears nothing "
    "for the\n  silence time (3 s) reports the link down.\n"
    "- A WELCOME with instance 0 answers a message on a connection that never said HELLO: connect "
    "again.\n"
    "- HELLO is refused when role, schema or an older epoch do not fit; a HELLO of a newer epoch "
    "is "
    "ignored.\n"
    "\n";

void proto_document(struct buf *out)
{
    buf_puts(out, introduction);
    buf_puts(out, "## Messages\n\n");
    for (unsigned type = PROTO_NONE + 1; type < PROTO_TYPES; type++) {
        const struct message *m = table_message(type);
        buf_printf(out, "### %s (%u)\n\n", m->name, type);
        document_record(m->record(), out);
    }
    buf_puts(out, "## Records\n\n");
    for (unsigned i = 0; table_record(i); i++) {
        buf_printf(out, "### %s\n\n", table_record(i)->name);
        document_record(table_record(i), out);
    }
}

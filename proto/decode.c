/* The decoder: walks the descriptors and reads msgpack by hand, because every count must be
 * checked against the bytes that remain before memory is taken for it (msgpack-c's unpacker takes
 * the memory first). Recursion is as deep as records nest in the table. */
#include "proto/arena.h"
#include "proto/table.h"

#include <string.h>

struct reader {
    const unsigned char *at;
    const unsigned char *end;
    struct proto_arena *arena;
    const struct record *record; /* being read, for errors */
    const struct field *field;
    const char *what; /* stands for record and field while they are NULL */
    struct err *err;
};

static int fail(struct reader *r, const char *why)
{
    if (r->field)
        return err_set(r->err, ERR_PROTOCOL, "%s.%s: %s", r->record->name, r->field->name, why);
    return err_set(r->err, ERR_PROTOCOL, "%s: %s", r->what, why);
}

static size_t remaining(const struct reader *r)
{
    return (size_t)(r->end - r->at);
}

/* Big-endian number of width bytes (1, 2, 4, 8) after the tag. */
static int read_big(struct reader *r, size_t width, uint64_t *out)
{
    if (remaining(r) < width)
        return fail(r, "cut short");
    uint64_t value = 0;
    for (size_t i = 0; i < width; i++)
        value = value << 8 | r->at[i];
    r->at += width;
    *out = value;
    return 0;
}

static int read_tag(struct reader *r, unsigned *tag)
{
    if (remaining(r) < 1)
        return fail(r, "cut short");
    *tag = *r->at++;
    return 0;
}

/* Any msgpack integer. negative: *out holds the two's complement of an int64. */
static int read_integer(struct reader *r, uint64_t *out, bool *negative)
{
    unsigned tag = 0;
    int rc = read_tag(r, &tag);
    *negative = false;
    if (rc < 0)
        return rc;
    if (tag <= 0x7f) {
        *out = tag;
        return 0;
    }
    if (tag >= 0xe0) {
        *negative = true;
        *out = (uint64_t)((int64_t)tag - 256);
        return 0;
    }
    if (tag >= 0xcc && tag <= 0xcf)
        return read_big(r, (size_t)1 << (tag - 0xcc), out);
    if (tag < 0xd0 || tag > 0xd3)
        return fail(r, "not an integer");
    const size_t width = (size_t)1 << (tag - 0xd0);
    rc = read_big(r, width, out);
    if (rc < 0)
        return rc;
    const uint64_t sign = (uint64_t)1 << (width * 8 - 1);
    if (*out & sign) {
        *negative = true;
        *out |= ~(sign | (sign - 1));
    }
    return 0;
}

static int read_unsigned(struct reader *r, uint64_t max, uint64_t *out)
{
    bool negative = false;
    int rc = read_integer(r, out, &negative);
    if (rc == 0 && (negative || *out > max))
        return fail(r, "number out of range");
    return rc;
}

static int read_signed(struct reader *r, int64_t *out)
{
    bool negative = false;
    uint64_t value = 0;
    int rc = read_integer(r, &value, &negative);
    if (rc == 0 && !negative && value > INT64_MAX)
        return fail(r, "number out of range");
    *out = (int64_t)value;
    return rc;
}

static int read_double(struct reader *r, double *out)
{
    unsigned tag = 0;
    uint64_t bits = 0;
    int rc = read_tag(r, &tag);
    if (rc == 0 && tag != 0xcb)
        return fail(r, "not a double");
    if (rc == 0)
        rc = read_big(r, 8, &bits);
    if (rc == 0)
        memcpy(out, &bits, sizeof(*out));
    return rc;
}

static int read_bool(struct reader *r, bool *out)
{
    unsigned tag = 0;
    int rc = read_tag(r, &tag);
    if (rc == 0 && tag != 0xc2 && tag != 0xc3)
        return fail(r, "not a boolean");
    *out = tag == 0xc3;
    return rc;
}

static int read_array(struct reader *r, uint64_t *count)
{
    unsigned tag = 0;
    int rc = read_tag(r, &tag);
    if (rc < 0)
        return rc;
    if (tag >= 0x90 && tag <= 0x9f) {
        *count = tag & 0x0f;
        return 0;
    }
    if (tag != 0xdc && tag != 0xdd)
        return fail(r, "not an array");
    return read_big(r, tag == 0xdc ? 2 : 4, count);
}

/* *data points into the message; *len is at most what remains of it. */
static int read_bin(struct reader *r, const unsigned char **data, size_t *len)
{
    unsigned tag = 0;
    uint64_t n = 0;
    int rc = read_tag(r, &tag);
    if (rc == 0 && (tag < 0xc4 || tag > 0xc6))
        return fail(r, "not a byte string");
    if (rc == 0)
        rc = read_big(r, (size_t)1 << (tag - 0xc4), &n);
    if (rc < 0)
        return rc;
    if (n > remaining(r))
        return fail(r, "longer than the message");
    *data = r->at;
    *len = (size_t)n;
    r->at += n;
    return 0;
}

static int read_fields(struct reader *r, const struct record *record, void *base);

static int read_record(struct reader *r, const struct record *record, void *base)
{
    uint64_t count = 0;
    int rc = read_array(r, &count);
    if (rc == 0 && count != record->count)
        return fail(r, "a record with another number of fields");
    return rc < 0 ? rc : read_fields(r, record, base);
}

static int read_str(struct reader *r, const struct field *f, struct proto_str *out)
{
    const unsigned char *data = NULL;
    size_t len = 0;
    int rc = read_bin(r, &data, &len);
    if (rc < 0)
        return rc;
    if (len > f->bound)
        return fail(r, "longer than its bound");
    out->data = "";
    out->len = len;
    if (len > 0) {
        char *copy = arena_take(r->arena, len);
        memcpy(copy, data, len);
        out->data = copy;
    }
    return 0;
}

static int read_numbers(struct reader *r, const struct field *f, void **out, uint32_t *count)
{
    const unsigned char *data = NULL;
    size_t len = 0;
    const size_t size = table_element_size(f->kind);
    int rc = read_bin(r, &data, &len);
    if (rc < 0)
        return rc;
    if (len % size != 0)
        return fail(r, "not a whole number of elements");
    if (len / size > f->bound)
        return fail(r, "more elements than its bound");
    *count = (uint32_t)(len / size);
    *out = NULL;
    if (len > 0) {
        *out = arena_take(r->arena, len);
        memcpy(*out, data, len);
    }
    return 0;
}

static int read_records(struct reader *r, const struct field *f, void **out, uint32_t *count)
{
    const struct record *sub = f->sub();
    uint64_t n = 0;
    int rc = read_array(r, &n);
    if (rc < 0)
        return rc;
    if (n > f->bound)
        return fail(r, "more elements than its bound");
    if (n > remaining(r) / table_wire_min(sub))
        return fail(r, "more elements than the message has bytes for");
    *count = (uint32_t)n;
    *out = n > 0 ? arena_take(r->arena, (size_t)n * sub->size) : NULL;
    for (uint32_t i = 0; i < n && rc == 0; i++)
        rc = read_record(r, sub, (char *)*out + i * sub->size);
    return rc;
}

static int read_field(struct reader *r, const struct field *f, void *base)
{
    void *at = table_in(base, f->offset);
    uint64_t value = 0;
    int rc = 0;
    switch (f->kind) {
    case KIND_BOOL:
        return read_bool(r, at);
    case KIND_U32:
        rc = read_unsigned(r, UINT32_MAX, &value);
        *(uint32_t *)at = (uint32_t)value;
        return rc;
    case KIND_U64:
        return read_unsigned(r, UINT64_MAX, at);
    case KIND_I64:
        return read_signed(r, at);
    case KIND_F64:
        return read_double(r, at);
    case KIND_STR:
        return read_str(r, f, at);
    case KIND_REC:
        return read_record(r, f->sub(), at);
    case KIND_RECS:
        return read_records(r, f, at, table_in(base, f->count_offset));
    default:
        return read_numbers(r, f, at, table_in(base, f->count_offset));
    }
}

static int read_fields(struct reader *r, const struct record *record, void *base)
{
    for (uint32_t i = 0; i < record->count; i++) {
        r->record = record;
        r->field = &record->fields[i];
        int rc = read_field(r, r->field, base);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int read_header(struct reader *r, struct proto_header *header, const struct message **m)
{
    uint64_t count = 0, type = 0, version = 0;
    int rc = read_array(r, &count);
    if (rc == 0)
        rc = read_unsigned(r, UINT32_MAX, &type);
    if (rc == 0)
        rc = read_unsigned(r, UINT32_MAX, &version);
    if (rc < 0)
        return rc;
    if (version != PROTO_VERSION)
        return err_set(r->err, ERR_PROTOCOL, "header: protocol version %u, this side has %d",
                       (unsigned)version, PROTO_VERSION);
    *m = table_message((unsigned)type);
    if (!*m)
        return err_set(r->err, ERR_PROTOCOL, "header: message type %u is unknown", (unsigned)type);
    r->what = (*m)->name;
    if (count != TABLE_HEADER_FIELDS + (*m)->record()->count)
        return fail(r, "another number of fields");
    header->type = (enum proto_type)type;
    rc = read_unsigned(r, UINT64_MAX, &header->epoch);
    if (rc == 0)
        rc = read_unsigned(r, UINT64_MAX, &header->seq);
    if (rc == 0)
        rc = read_unsigned(r, UINT64_MAX, &header->id);
    return rc;
}

int proto_decode(const void *data, size_t len, struct proto_arena *arena,
                 struct proto_header *header, void **message, struct err *err)
{
    struct reader r = {.at = data, .arena = arena, .what = "header", .err = err};
    r.end = r.at + len;
    const struct message *m = NULL;
    int rc = read_header(&r, header, &m);
    if (rc < 0)
        return rc;
    const struct record *record = m->record();
    void *out = arena_take(arena, record->size);
    rc = read_fields(&r, record, out);
    if (rc < 0)
        return rc;
    if (remaining(&r) > 0) {
        r.field = NULL;
        return fail(&r, "bytes after its end");
    }
    *message = out;
    return 0;
}

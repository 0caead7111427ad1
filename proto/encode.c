/* The encoder: walks the descriptors, packs with msgpack-c. */
#include "proto/table.h"

#include <msgpack/pack.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "arrays travel as they lie in memory");

static int append(void *out, const char *data, size_t len)
{
    buf_append(out, data, len);
    return 0;
}

static int pack_bytes(msgpack_packer *p, const void *data, size_t len)
{
    msgpack_pack_bin(p, len);
    return len > 0 ? msgpack_pack_bin_body(p, data, len) : 0;
}

static int pack_record(msgpack_packer *p, const struct record *record, const void *base,
                       struct err *err);

static int over_bound(const struct record *record, const struct field *f, size_t count,
                      struct err *err)
{
    return err_set(err, ERR_LIMIT, "%s.%s: %zu is more than %u", record->name, f->name, count,
                   f->bound);
}

/* STR and the arrays: what has a bound. */
static int pack_bounded(msgpack_packer *p, const struct record *record, const struct field *f,
                        const void *base, struct err *err)
{
    const void *at = table_at(base, f->offset);
    if (f->kind == KIND_STR) {
        const struct proto_str *s = at;
        if (s->len > f->bound)
            return over_bound(record, f, s->len, err);
        return pack_bytes(p, s->data, s->len);
    }

    const uint32_t count = *(const uint32_t *)table_at(base, f->count_offset);
    const char *elements = *(const char *const *)at;
    if (count > f->bound)
        return over_bound(record, f, count, err);
    if (f->kind != KIND_RECS)
        return pack_bytes(p, elements, count * table_element_size(f->kind));

    const struct record *sub = f->sub();
    msgpack_pack_array(p, count);
    for (uint32_t i = 0; i < count; i++) {
        int rc = pack_record(p, sub, elements + i * sub->size, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int pack_field(msgpack_packer *p, const struct record *record, const struct field *f,
                      const void *base, struct err *err)
{
    const void *at = table_at(base, f->offset);
    switch (f->kind) {
    case KIND_BOOL:
        return *(const bool *)at ? msgpack_pack_true(p) : msgpack_pack_false(p);
    case KIND_U32:
        return msgpack_pack_uint32(p, *(const uint32_t *)at);
    case KIND_U64:
        return msgpack_pack_uint64(p, *(const uint64_t *)at);
    case KIND_I64:
        return msgpack_pack_int64(p, *(const int64_t *)at);
    case KIND_F64:
        return msgpack_pack_double(p, *(const double *)at);
    case KIND_REC:
        return pack_record(p, f->sub(), at, err);
    default:
        return pack_bounded(p, record, f, base, err);
    }
}

static int pack_fields(msgpack_packer *p, const struct record *record, const void *base,
                       struct err *err)
{
    for (uint32_t i = 0; i < record->count; i++) {
        int rc = pack_field(p, record, &record->fields[i], base, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int pack_record(msgpack_packer *p, const struct record *record, const void *base,
                       struct err *err)
{
    msgpack_pack_array(p, record->count);
    return pack_fields(p, record, base, err);
}

int proto_encode(const struct proto_header *header, const void *message, struct buf *out,
                 struct err *err)
{
    const struct message *m = table_message(header->type);
    if (!m)
        return err_set(err, ERR_INVALID, "message type %u is unknown", (unsigned)header->type);

    const struct record *record = m->record();
    const size_t start = out->len;
    msgpack_packer p;
    msgpack_packer_init(&p, out, append);
    msgpack_pack_array(&p, TABLE_HEADER_FIELDS + record->count);
    msgpack_pack_uint32(&p, header->type);
    msgpack_pack_uint32(&p, PROTO_VERSION);
    msgpack_pack_uint64(&p, header->epoch);
    msgpack_pack_uint64(&p, header->seq);
    msgpack_pack_uint64(&p, header->id);
    int rc = pack_fields(&p, record, message, err);
    if (rc < 0) {
        out->len = start;
        out->data[start] = '\0';
    }
    return rc;
}

struct proto_str proto_str(const char *text)
{
    return (struct proto_str){text, strlen(text)};
}

bool proto_str_is(struct proto_str s, const char *text)
{
    return s.len == strlen(text) && (s.len == 0 || memcmp(s.data, text, s.len) == 0);
}

/* The bus's decoder on any bytes. What it accepts must survive a second trip unchanged. */
#include "proto/proto.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int holds)
{
    if (!holds)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct proto_arena arena = {0};
    struct proto_header header, again;
    struct buf first = {0}, second = {0};
    struct err err;
    void *message = NULL;

    if (proto_decode(data, size, &arena, &header, &message, &err) == 0) {
        proto_dump(&header, message, &first);
        buf_clear(&first);
        require(proto_encode(&header, message, &first, &err) == 0);
        require(proto_decode(first.data, first.len, &arena, &again, &message, &err) == 0);
        require(proto_encode(&again, message, &second, &err) == 0);
        require(first.len == second.len && memcmp(first.data, second.data, first.len) == 0);
        /* Two decodes: memory follows the bytes that are there, not the counts they claim. */
        require(arena.bytes <= 2 * (65536 + 64 * size));
    }
    proto_arena_fini(&arena);
    buf_fini(&first);
    buf_fini(&second);
    return 0;
}

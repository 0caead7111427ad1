/* How a step's single tokens share the GPU in decode attention on Hopper: every sequence by as many
 * blocks (decode_hopper.cu), or all positions of all sequences evenly (decode_balanced.cu). The
 * first costs less at its edges, the second does not wait for the longest sequence. */
#include "kernels/cuda/cuda.h"

/* Measured on an H200. Nanoseconds of a tile of DECODE_KEYS keys of 128 numbers: where all
 * multiprocessors read, on one of them; where few blocks do, on one. */
#define SHARED_NS 245u
#define ALONE_NS 140u
/* What the second takes longer besides: once, and for a token's heads of one KV head (a unit). */
#define EDGES_NS 9000u
#define UNIT_NS 50u
/* Tiles of a multiprocessor from where on the second is faster for even lengths, too, as long as
 * all units are read at once. */
#define LONG 450u

bool balance_wanted(const struct device *d)
{
    const struct ops_model *m = &d->model;
    uint64_t of_row = ROW_UNITS(m->heads, m->kv_heads);
    uint64_t units = of_row * d->decode_count, most = (uint64_t)d->multiprocessors;
    uint64_t all = 0, longest = 0, waits, edges;

    if (!d->decode_count || !attention_rotates(m->head_dim, d->page_size))
        return false;
    if (d->config.decode != OPS_DECODE_AUTO)
        return d->config.decode == OPS_DECODE_EVEN;
    for (uint32_t i = 0; i < d->decode_count; i++) {
        uint32_t last = d->frame_host.rows[d->frame_host.decode_rows[i]].start;
        uint64_t tiles = last / DECODE_KEYS + 1;

        all += tiles * of_row;
        longest = tiles > longest ? tiles : longest;
    }
    all /= most;
    waits = longest / (units < most ? most / units : 1) * ALONE_NS;
    edges = (EDGES_NS + UNIT_NS * units) * 128 / m->head_dim;
    return (all > LONG && units <= most) || waits > all * SHARED_NS + edges;
}

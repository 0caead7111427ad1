/* How a step's single tokens share the GPU in decode attention on Hopper: every sequence by as many
 * blocks (decode_hopper.cu), or all positions of all sequences evenly (decode_balanced.cu). The
 * first costs less at its edges, the second does not wait for the longest sequence. */
#include "kernels/cuda/cuda.h"

/* Measured on an H200. Nanoseconds of a tile of DECODE_KEYS keys of 128 numbers: where all
 * multiprocessors read, on one of them; where few blocks do, on one. */
#define SHARED_NS 245u
#define ALONE_NS 140u
#define EDGES_NS 10000u /* that the second takes longer besides */
#define LONG 450u       /* tiles of a multiprocessor, from where on the second is as fast anyway */

bool balance_wanted(const struct device *d)
{
    const struct ops_model *m = &d->model;
    uint64_t units = m->kv_heads * ((m->heads / m->kv_heads + DECODE_ROWS - 1) / DECODE_ROWS);
    uint64_t all = 0, longest = 0, blocks, waits;

    if (!d->decode_count || !attention_rotates(m->head_dim, d->page_size))
        return false;
    if (d->config.decode != OPS_DECODE_AUTO)
        return d->config.decode == OPS_DECODE_EVEN;
    for (uint32_t i = 0; i < d->decode_count; i++) {
        uint32_t last = d->frame_host.rows[d->frame_host.decode_rows[i]].start;
        uint64_t tiles = last / DECODE_KEYS + 1;

        all += tiles * units;
        longest = tiles > longest ? tiles : longest;
    }
    all /= (uint64_t)d->multiprocessors;
    blocks = (uint64_t)d->multiprocessors / (d->decode_count * units); /* of a unit */
    waits = longest / (blocks ? blocks : 1) * ALONE_NS;
    return all > LONG ||
           waits * m->head_dim > all * SHARED_NS * m->head_dim + (uint64_t)EDGES_NS * 128;
}

/* What a worker does, whatever computes: load, step, free. One row a device in engines.c: `cpu` and
 * `cuda` run a model through kernels/ops.h, `null` makes up tokens. */
#ifndef PHALANX_WORKER_ENGINE_H
#define PHALANX_WORKER_ENGINE_H

#include "common/err.h"
#include "proto/proto.h"

#include <stdbool.h>
#include <stdint.h>

#define ENGINE_STEPS_MAX 4u /* begun and not ended, of any engine */

struct comm_meet;
struct engine; /* private to the implementation */

struct engine_config {
    const char *model_dir;
    const char *device; /* cpu, cuda, null */
    const char *dtype;  /* auto, bfloat16, float16, float32 */
    bool dummy_weight;
    uint32_t rank, tp_size;
    uint32_t first_device;   /* of rank 0 */
    uint32_t context_length; /* 0: the model's */
    uint32_t page_size;
    double mem_fraction;          /* of the device's memory, for weights and KV pages; 0: 0.9 */
    const struct comm_meet *meet; /* kernels/comm.h; NULL for one rank */
    const char *comm_interface;   /* NULL or "": the backend's choice */
    double dist_timeout_s;
    uint32_t null_step_us;                                     /* device null: what a step takes */
    bool graphs_off, library_all_reduce, symmetric, p2p_check; /* as in struct ops_config */
    uint32_t graph_rows_max;
    /* The scheduler's --max-running-requests and --chunked-prefill-size: a device with memory of
     * its own prepares for such steps before it says how many pages there are. 0 slots: it does
     * not, pages are counted first. */
    uint32_t num_slots;
    int32_t prefill_tokens_max;
};

struct engine_info {
    char device[16];
    uint32_t vocab_size; /* width of the logits */
    uint32_t context_length;
    uint32_t pages_max;
    uint64_t page_bytes, weight_bytes, kv_bytes;
    uint64_t memory_total, memory_unused; /* of a device with memory of its own, else 0 */
    uint64_t workspace_bytes, graph_bytes;
    uint64_t fingerprint; /* of config, layout and version; the same on all ranks */
    uint32_t eos_ids[64];
    uint32_t eos_count;
    bool prompt_logprobs; /* can be computed */
    uint32_t steps_ahead; /* so many may have begun and not ended */
};

struct engine_result {
    const struct proto_sampled *results; /* the engine's, until a step begins or ends */
    uint32_t count;
    uint64_t hash;      /* of the step and its tokens: the same on all ranks */
    uint64_t device_us; /* that the device spent on it; 0: not known */
};

struct engine_kind {
    const char *device;
    int (*load)(const struct engine_config *config, struct engine **out, struct err *err);
    void (*info)(const struct engine *e, struct engine_info *info);
    /* Again, with the same numbers: all slots are closed, the memory stays. */
    int (*kv_alloc)(struct engine *e, uint32_t num_pages, uint32_t num_slots, uint32_t tokens_max,
                    struct err *err);
    /* Begins a step, as messages.def says; everything in it is checked (slots, pages, counts)
     * before it is used. The message need not outlive the call. */
    int (*begin)(struct engine *e, const struct proto_step *step, struct err *err);
    /* Whether another step may begin before the one under way has ended. */
    bool (*room)(const struct engine *e);
    /* Whether `end` would return at once. NULL: it computes the step itself. */
    bool (*ready)(const struct engine *e);
    /* By clock_mono_us, when `ready` will be true if nothing else begins. NULL: not known. */
    int64_t (*due_us)(const struct engine *e);
    /* Waits for the oldest step that has begun. */
    int (*end)(struct engine *e, struct engine_result *result, struct err *err);
    void (*free)(struct engine **self);
};

/* NULL when there is no such device. "auto": cuda when it can be had, else cpu. */
const struct engine_kind *engine_find(const char *device);

#endif

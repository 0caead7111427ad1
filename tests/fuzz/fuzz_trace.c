/* A file as a trace. What is accepted is within the bounds that a run relies on. */
#include "services/bench/workload.h"

#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct workload w;
    struct err err = {0};
    int rc = workload_trace_text(&w, (const char *)bytes, size, 1000, 100000, &err);

    if (rc && !err.msg[0])
        abort();
    for (size_t i = 0; !rc && i < w.count; i++) {
        const struct request *q = &w.requests[i];

        if (!q->input_tokens || !q->output_tokens || q->input_tokens + q->output_tokens > 100000 ||
            q->blocks_at + q->blocks_count > w.blocks_count || q->arrival_us < 0 ||
            (i && q->arrival_us < w.requests[i - 1].arrival_us))
            abort();
    }
    workload_fini(&w);
    return 0;
}

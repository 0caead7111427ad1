/* What is done at start rather than with the first requests: products are tuned, decode steps
 * captured. Before the pool is there, so that its size counts what they take; once more when it is,
 * since the pages' address is in the graphs, which then only change their arguments. */
#include "kernels/cuda/cuda.h"

#define NOTED_TOKENS 2048u /* enough for every product to go through cuBLASLt */
#define BATCHES_MAX 64u

static void progress(const struct ops_warm *w, const char *what, uint32_t done, uint32_t total)
{
    if (w->progress)
        w->progress(w->ctx, what, done, total);
}

/* One step of the slot that is nobody's. */
static int rehearse(struct device *d, const struct ops_warm *w, uint32_t rows, uint32_t tokens,
                    bool cut, bool balanced, struct err *err)
{
    const struct ops_sampled *results;
    uint32_t count;
    int rc = slots_rehearse(d, rows, tokens, cut, balanced, err);

    if (!rc)
        rc = w->forward(w->ctx, err);
    return rc ? rc : cuda_step_end(d, &results, &count, err);
}

/* A prompt and a full batch run once: which products there are is known then, and what is loaded
 * or connected at the first use is there. */
static int products_tune(struct device *d, const struct ops_warm *w, struct err *err)
{
    uint32_t tokens = d->tokens_max < NOTED_TOKENS ? d->tokens_max : NOTED_TOKENS;
    uint32_t rows = (tokens + d->context_max - 1) / d->context_max;
    uint32_t batch = d->num_slots < d->tokens_max ? d->num_slots : d->tokens_max;
    int rc;

    if (rows > d->num_slots)
        rows = d->num_slots;
    if (tokens / rows > d->context_max)
        tokens = rows * d->context_max;
    d->plans_noted = true;
    rc = rehearse(d, w, rows, tokens / rows, false, false, err);
    if (!rc)
        rc = rehearse(d, w, batch, 1, false, false, err);
    d->plans_noted = false;
    return rc ? rc : gemm_tune(d, w, err);
}

/* Batch sizes to capture, rising: the largest of each bucket. */
static uint32_t batches_list(const struct device *d, uint32_t *batches)
{
    uint32_t most = d->config.graph_rows_max ? d->config.graph_rows_max : REPLAY_ROWS_MAX;
    uint32_t count = 0, last = 0;

    if (most > d->num_slots)
        most = d->num_slots;
    if (most > d->tokens_max)
        most = d->tokens_max;
    while (last < most && count < BATCHES_MAX) {
        uint32_t bucket = replay_bucket(d, last + 1);

        batches[count++] = last = bucket < most ? bucket : most;
    }
    return count;
}

/* For requests that cut the vocabulary (top-k, top-p, min-p) and for those that do not, and for
 * either way of decode attention; what penalties and biases need is captured when it is met. */
static int graphs_capture(struct device *d, const struct ops_warm *w, struct err *err)
{
    uint32_t batches[BATCHES_MAX], count = batches_list(d, batches);
    uint32_t cuts = d->nccl ? 1 : 2;
    uint32_t ways = attention_rotates(d->model.head_dim, d->page_size) ? 2 : 1;
    uint32_t kinds = cuts * ways, total = count * kinds;
    struct ops_memory before, after;
    int rc = cuda_memory(d, &before, err);

    if (!rc) /* what a step of one row makes at its first run cannot be made inside a graph */
        rc = rehearse(d, w, 1, 1, false, false, err);
    d->capturing = true;
    for (uint32_t i = 0; i < total && !rc; i++) {
        progress(w, "Capturing graphs", i, total);
        rc = rehearse(d, w, batches[count - 1 - i / kinds], 1, i % cuts != 0, i % kinds >= cuts,
                      err);
    }
    d->capturing = false;
    if (!rc)
        rc = cuda_memory(d, &after, err);
    if (rc)
        return rc;
    progress(w, "Capturing graphs", total, total);
    d->graph_bytes += before.unused > after.unused ? before.unused - after.unused : 0;
    return 0;
}

int cuda_warm(struct device *d, const struct ops_warm *warm, struct err *err)
{
    int rc = 0;

    if (!d->prepared)
        return err_set(err, ERR_INVALID, "cuda: warm: before prepare");
    if (!d->pooled)
        rc = products_tune(d, warm, err);
    return rc || d->config.graphs_off ? rc : graphs_capture(d, warm, err);
}

/* Decode steps as CUDA graphs.
 *
 * In a step of sampled single tokens, operations are only noted down; sample() ends the list. At
 * start (warm.c) lists are captured without being run; one that is new then runs as it is the first
 * time, is captured the second, from then on replayed while the list is the same. Whoever wants to
 * see an activation in the middle makes the list run at once. Batch sizes are rounded up: rows that
 * nobody asked for belong to one slot and one page of their own. */
#include "common/mem.h"
#include "kernels/cuda/cuda.h"

#include <stdlib.h>
#include <string.h>

uint32_t replay_bucket(const struct device *d, uint32_t rows)
{
    uint32_t step = rows <= 8 ? 1 : rows <= 64 ? 8 : rows <= 256 ? 16 : rows <= 1024 ? 64 : 256;
    uint32_t bucket = (rows + step - 1) / step * step;
    uint32_t most = d->num_slots < d->tokens_max ? d->num_slots : d->tokens_max;

    return bucket < most ? bucket : most;
}

void replay_begin(struct device *d)
{
    uint32_t most = d->config.graph_rows_max ? d->config.graph_rows_max : REPLAY_ROWS_MAX;

    d->ops_count = 0;
    d->deferring = !d->config.graphs_off && d->rows_count && d->rows_count <= most &&
                   d->results_count == d->rows_count && d->decode_count == d->rows_count;
}

static int run_all(struct device *d, struct err *err)
{
    for (uint32_t i = 0; i < d->ops_count; i++) {
        int rc = d->ops[i].run(d, &d->ops[i], err);

        if (rc)
            return rc;
    }
    return 0;
}

int replay_flush(struct device *d, struct err *err)
{
    int rc = d->deferring ? run_all(d, err) : 0;

    if (!rc && d->deferring)
        rc = acts_ready(d, err);
    d->deferring = false;
    d->ops_count = 0;
    return rc;
}

int replay_add(struct device *d, const struct op *op, struct err *err)
{
    if (d->deferring && d->ops_count == REPLAY_OPS_MAX) {
        int rc = replay_flush(d, err);

        if (rc)
            return rc;
    }
    if (!d->deferring)
        return op->run(d, op, err);
    d->ops[d->ops_count++] = *op;
    return 0;
}

uint32_t weights_ahead(const struct device *d, const struct op *op, struct span *out, uint32_t most,
                       size_t budget)
{
    size_t offset = (uintptr_t)op - (uintptr_t)d->ops;
    uint32_t count = 0;

    if (offset >= d->ops_count * sizeof *op)
        return 0;
    for (op++; op < d->ops + d->ops_count && count < most && budget >= 16; op++) {
        const struct weight *w = op->w[0];
        size_t bytes;

        if (!w || (w->kind != WEIGHT_MATRIX && w->kind != WEIGHT_GATE_UP))
            continue;
        bytes = (size_t)w->rows * w->cols * 2;
        bytes = (bytes < budget ? bytes : budget) / 16 * 16;
        out[count++] = (struct span){w->data, bytes};
        budget -= bytes;
    }
    return count;
}

void replay_forget(struct device *d)
{
    for (uint32_t i = 0; i < d->replays_count; i++)
        d->replays[i].ops_count = 0;
}

static void graph_free(struct replay *r)
{
    if (r->graph)
        (void)cudaGraphExecDestroy(r->graph);
    free(r->ops);
    memset(r, 0, sizeof *r);
}

void replay_close(struct device *d)
{
    for (uint32_t i = 0; i < d->replays_count; i++)
        graph_free(&d->replays[i]);
    free(d->replays);
    free(d->ops);
}

static struct replay *replay_find(struct device *d)
{
    struct replay *r;

    for (uint32_t i = 0; i < d->replays_count; i++) {
        r = &d->replays[i];
        if (r->rows == d->rows_count && r->adjusted == d->any_adjusted && r->cut == d->any_cut &&
            r->balanced == d->balanced)
            return r;
    }
    if (d->replays_count == REPLAYS_MAX)
        return NULL;
    r = &d->replays[d->replays_count++];
    *r = (struct replay){.rows = d->rows_count,
                         .adjusted = d->any_adjusted,
                         .cut = d->any_cut,
                         .balanced = d->balanced};
    return r;
}

/* The same operations with other addresses keep the graph's memory. */
static cudaError_t instantiate(struct replay *r, cudaGraph_t graph)
{
    cudaGraphExecUpdateResultInfo result;

    if (r->graph) {
        if (cudaGraphExecUpdate(r->graph, graph, &result) == cudaSuccess)
            return cudaSuccess;
        (void)cudaGetLastError();
        (void)cudaGraphExecDestroy(r->graph);
        r->graph = NULL;
    }
    return cudaGraphInstantiate(&r->graph, graph, 0);
}

/* The list as a graph. */
static int capture(struct device *d, struct replay *r, struct err *err)
{
    cudaGraph_t graph = NULL;
    cudaError_t rc = cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal);
    cudaError_t ended;
    int failed;

    if (rc != cudaSuccess)
        return cuda_fail(d, rc, "graph capture", err);
    failed = run_all(d, err);
    if (!failed)
        failed = acts_leave(d, err);
    ended = cudaStreamEndCapture(d->stream, &graph);
    if (!failed && ended == cudaSuccess)
        ended = instantiate(r, graph);
    if (!failed && ended == cudaSuccess)
        ended = cudaGraphUpload(r->graph, d->stream);
    if (graph)
        (void)cudaGraphDestroy(graph);
    if (failed)
        return failed;
    r->current = ended == cudaSuccess;
    return ended == cudaSuccess ? 0 : cuda_fail(d, ended, "graph capture", err);
}

/* r becomes the list's. */
static void replay_note(struct device *d, struct replay *r)
{
    free(r->ops);
    r->ops = mem_array(d->ops_count, sizeof *r->ops);
    memcpy(r->ops, d->ops, d->ops_count * sizeof *d->ops);
    r->ops_count = d->ops_count;
    r->current = false;
}

int replay_end(struct device *d, struct err *err)
{
    struct replay *r;
    bool known;
    cudaError_t rc;

    if (!d->deferring)
        return 0;
    r = replay_find(d);
    known =
        r && r->ops_count == d->ops_count && !memcmp(r->ops, d->ops, d->ops_count * sizeof *d->ops);
    if (r && !known)
        replay_note(d, r);
    if (!r || (!known && !d->capturing))
        return replay_flush(d, err);
    if (!r->current || d->capturing) {
        int failed = capture(d, r, err);

        if (failed)
            return failed;
    }
    d->deferring = false;
    d->ops_count = 0;
    if (d->capturing)
        return 0;
    rc = cudaGraphLaunch(r->graph, d->stream);
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "graph", err);
}

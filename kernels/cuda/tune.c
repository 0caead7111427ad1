/* Choosing algorithms for products: races, and those of earlier starts (tuned.c). */
#include "common/mem.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/tuned.h"

#include <stdlib.h>

#define TRIED_MAX 12
/* Matrices of one shape, in turn: one alone would stay in the L2 cache. */
#define TRIED_WEIGHTS 16
#define SHORT_US 1000.0f /* of such products several runs are timed */

static cublasStatus_t plan_ask(const struct device *d, const struct gemm_plan *p,
                               cublasLtMatmulHeuristicResult_t *tried, int most, int *count)
{
    cublasLtMatmulPreference_t preference = NULL;
    size_t workspace = GEMM_WORKSPACE;
    cublasStatus_t rc = cublasLtMatmulPreferenceCreate(&preference);

    *count = 0;
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasLtMatmulPreferenceSetAttribute(
            preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasLtMatmulAlgoGetHeuristic(d->blas, p->desc, p->w, p->x, p->y, p->y, preference,
                                            most, tried, count);
    if (rc == CUBLAS_STATUS_SUCCESS && !*count)
        rc = CUBLAS_STATUS_NOT_SUPPORTED;
    if (preference)
        (void)cublasLtMatmulPreferenceDestroy(preference);
    return rc;
}

cublasStatus_t plan_guess(const struct device *d, struct gemm_plan *p)
{
    cublasLtMatmulHeuristicResult_t first;
    int count;
    cublasStatus_t rc = plan_ask(d, p, &first, 1, &count);

    if (rc == CUBLAS_STATUS_SUCCESS)
        p->algo = first.algo;
    return rc;
}

/* Matrices of p's shape, q's own first. */
static int weights_like(const struct device *d, const struct gemm_plan *p, const struct product *q,
                        const void **list)
{
    int count = 1;

    list[0] = q->w;
    for (const struct weight *w = d->weights; w && count < TRIED_WEIGHTS; w = w->next)
        if (w->kind != WEIGHT_VECTOR && w->rows == p->n && w->cols == p->k && w->data != q->w)
            list[count++] = w->data;
    return count;
}

static bool runs_queue(const struct device *d, const struct gemm_plan *p,
                       const cublasLtMatmulAlgo_t *algo, const struct product *q,
                       const void *const *weights, int runs)
{
    cublasStatus_t rc = CUBLAS_STATUS_SUCCESS;
    struct product one = *q;

    for (int i = 0; i < runs && rc == CUBLAS_STATUS_SUCCESS; i++) {
        one.w = weights[i];
        rc = plan_run(d, p, algo, &one);
    }
    return rc == CUBLAS_STATUS_SUCCESS;
}

/* The runs as a graph, as they are replayed: the host's launches hide what short ones take. */
static cudaGraphExec_t runs_capture(const struct device *d, const struct gemm_plan *p,
                                    const cublasLtMatmulAlgo_t *algo, const struct product *q,
                                    const void *const *weights, int runs)
{
    cudaGraphExec_t exec = NULL;
    cudaGraph_t graph = NULL;
    bool queued;

    if (cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess)
        return NULL;
    queued = runs_queue(d, p, algo, q, weights, runs);
    if (cudaStreamEndCapture(d->stream, &graph) != cudaSuccess || !queued ||
        cudaGraphInstantiate(&exec, graph, 0) != cudaSuccess)
        exec = NULL;
    if (graph)
        (void)cudaGraphDestroy(graph);
    return exec;
}

/* Microseconds of a run, of those of a graph, or, without one, of the product alone; negative when
 * it cannot run. */
static float runs_time(const struct device *d, const struct gemm_plan *p,
                       const cublasLtMatmulAlgo_t *algo, const struct product *q,
                       cudaGraphExec_t graph, int runs, const cudaEvent_t events[2])
{
    float ms = 0.0f;

    if (cudaEventRecord(events[0], d->stream) != cudaSuccess)
        return -1.0f;
    if (graph ? cudaGraphLaunch(graph, d->stream) != cudaSuccess
              : !runs_queue(d, p, algo, q, &q->w, 1))
        return -1.0f;
    if (cudaEventRecord(events[1], d->stream) != cudaSuccess ||
        cudaEventSynchronize(events[1]) != cudaSuccess ||
        cudaEventElapsedTime(&ms, events[0], events[1]) != cudaSuccess)
        return -1.0f;
    return ms * 1000.0f / (float)runs;
}

/* The second time: the first one warms. */
static float algo_time(const struct device *d, const struct gemm_plan *p,
                       const cublasLtMatmulAlgo_t *algo, const struct product *q,
                       const void *const *weights, int count, const cudaEvent_t events[2])
{
    float us = runs_time(d, p, algo, q, NULL, 1, events);
    cudaGraphExec_t graph = NULL;

    if (us >= 0.0f && us <= SHORT_US) {
        graph = runs_capture(d, p, algo, q, weights, count);
        if (!graph)
            return -1.0f;
        (void)runs_time(d, p, algo, q, graph, count, events);
    }
    if (us >= 0.0f)
        us = runs_time(d, p, algo, q, graph, graph ? count : 1, events);
    if (graph)
        (void)cudaGraphExecDestroy(graph);
    return us;
}

/* The heuristic's first answer is up to twice off for small matrices: the answers are raced. The
 * product's result does not depend on the winner but for rounding. */
cublasStatus_t plan_race(const struct device *d, struct gemm_plan *p, const struct product *q)
{
    cublasLtMatmulHeuristicResult_t tried[TRIED_MAX];
    const void *weights[TRIED_WEIGHTS];
    cudaEvent_t events[2] = {NULL, NULL};
    float best = -1.0f;
    int count, weights_count = weights_like(d, p, q, weights);
    cublasStatus_t rc = plan_ask(d, p, tried, TRIED_MAX, &count);

    if (rc == CUBLAS_STATUS_SUCCESS &&
        (cudaEventCreate(&events[0]) != cudaSuccess || cudaEventCreate(&events[1]) != cudaSuccess))
        rc = CUBLAS_STATUS_INTERNAL_ERROR;
    for (int i = 0; i < count && rc == CUBLAS_STATUS_SUCCESS; i++) {
        float us = algo_time(d, p, &tried[i].algo, q, weights, weights_count, events);

        if (us < 0.0f || (best >= 0.0f && us >= best))
            continue;
        best = us;
        p->algo = tried[i].algo;
    }
    if (rc == CUBLAS_STATUS_SUCCESS && best < 0.0f)
        rc = CUBLAS_STATUS_EXECUTION_FAILED;
    for (int i = 0; i < 2; i++)
        if (events[i])
            (void)cudaEventDestroy(events[i]);
    return rc;
}

/* The products that were noted, each for every number of rows. */
struct tuning {
    struct gemm_plan *plans; /* undescribed */
    uint32_t count;
    struct tuned tuned;
    char *x, *y; /* operands */
};

static uint32_t rows_max(const struct device *d, const struct gemm_plan *p)
{
    uint32_t most = d->tokens_max;

    if (p->wide) /* logits */
        most = d->num_slots;
    if (p->like->kind == WEIGHT_GATE_UP && most > GATE_UP_TOKENS)
        most = GATE_UP_TOKENS;
    return most;
}

static bool shape_known(const struct tuning *t, const struct gemm_plan *p)
{
    for (uint32_t i = 0; i < t->count; i++) {
        const struct gemm_plan *o = &t->plans[i];

        if (o->n == p->n && o->k == p->k && o->y_stride == p->y_stride && o->wide == p->wide &&
            o->bias == p->bias)
            return true;
    }
    return false;
}

static void plans_list(struct device *d, struct tuning *t)
{
    t->plans = mem_array(GEMM_PLANS_MAX, sizeof *t->plans);
    for (uint32_t i = 0; i < d->plans_count; i++) {
        const struct gemm_plan *p = &d->plans[i];
        uint32_t most = rows_max(d, p);

        if (shape_known(t, p))
            continue;
        for (uint32_t m = 1; m <= most && t->count < GEMM_PLANS_MAX; m = rows_bucket(m) + 1) {
            uint32_t end = rows_bucket(m) < most ? rows_bucket(m) : most;

            if (!gemv_suits(p->like, end) && !skinny_suits(p->like, end, p->y_stride))
                t->plans[t->count++] = (struct gemm_plan){.n = p->n,
                                                          .k = p->k,
                                                          .m_max = rows_bucket(m),
                                                          .y_stride = p->y_stride,
                                                          .wide = p->wide,
                                                          .bias = p->bias,
                                                          .like = p->like};
        }
    }
    while (d->plans_count)
        plan_free(&d->plans[--d->plans_count]);
}

static uint32_t plan_rows(const struct device *d, const struct gemm_plan *p)
{
    uint32_t most = rows_max(d, p);

    return p->m_max < most ? p->m_max : most;
}

/* x is filled with values of weights: some algorithms are faster on zeros. */
static int operands_alloc(struct device *d, struct tuning *t, struct err *err)
{
    size_t x = 0, y = 0;
    cudaError_t rc = cudaSuccess;
    int failed;

    for (uint32_t i = 0; i < t->count; i++) {
        const struct gemm_plan *p = &t->plans[i];
        size_t rows = plan_rows(d, p), y_bytes = rows * p->y_stride * (p->wide ? 4 : 2);

        x = rows * p->k * 2 > x ? rows * p->k * 2 : x;
        y = y_bytes > y ? y_bytes : y;
    }
    failed = cuda_alloc(d, x, &t->x, "the tuning of products", err);
    if (!failed)
        failed = cuda_alloc(d, y, &t->y, "the tuning of products", err);
    for (size_t at = 0; at < x && !failed && rc == cudaSuccess;) {
        const struct weight *w = t->plans[0].like;
        size_t part = (size_t)w->rows * w->cols * 2;

        part = part < x - at ? part : x - at;
        rc = cudaMemcpyAsync(t->x + at, w->data, part, cudaMemcpyDeviceToDevice, d->stream);
        at += part;
    }
    return failed || rc == cudaSuccess ? failed : cuda_fail(d, rc, "the tuning of products", err);
}

/* From the cache: false when it is not there, or cuBLASLt does not want it. */
static bool plan_recall(struct device *d, const struct tuning *t, const struct gemm_plan *key)
{
    const struct tuned_entry *e = tuned_find(&t->tuned, d->type, key);
    cublasLtMatmulHeuristicResult_t check;
    struct gemm_plan p = *key;

    if (!e)
        return false;
    p.algo = e->algo;
    if (plan_describe(d, &p, plan_rows(d, &p)) == CUBLAS_STATUS_SUCCESS &&
        cublasLtMatmulAlgoCheck(d->blas, p.desc, p.w, p.x, p.y, p.y, &p.algo, &check) ==
            CUBLAS_STATUS_SUCCESS &&
        check.workspaceSize <= GEMM_WORKSPACE) {
        d->plans[d->plans_count++] = p;
        return true;
    }
    plan_free(&p);
    return false;
}

static int plan_compete(struct device *d, struct tuning *t, const struct gemm_plan *key,
                        struct err *err)
{
    struct gemm_plan p = *key;
    const struct product q = {t->x, p.like->data, p.bias ? p.like->data : NULL, t->y,
                              plan_rows(d, &p)};
    cublasStatus_t rc = plan_describe(d, &p, q.m);

    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = plan_race(d, &p, &q);
    if (rc != CUBLAS_STATUS_SUCCESS) {
        plan_free(&p);
        return blas_fail(d, rc, "an algorithm for a product", q.m, p.n, p.k, err);
    }
    d->plans[d->plans_count++] = p;
    tuned_put(&t->tuned, d->type, &p);
    return 0;
}

static int plans_race(struct device *d, struct tuning *t, const uint32_t *missing, uint32_t count,
                      const struct ops_warm *warm, struct err *err)
{
    int rc = operands_alloc(d, t, err);

    for (uint32_t i = 0; i < count && !rc; i++) {
        if (warm->progress)
            warm->progress(warm->ctx, "Tuning products", i, count);
        rc = plan_compete(d, t, &t->plans[missing[i]], err);
    }
    if (!rc && warm->progress)
        warm->progress(warm->ctx, "Tuning products", count, count);
    (void)cudaStreamSynchronize(d->stream);
    cuda_free(d, t->x);
    cuda_free(d, t->y);
    return rc;
}

/* The cache is locked meanwhile, so that one rank races and the others take what it chose: a rank
 * that starts again computes what it computed before. */
int gemm_tune(struct device *d, const struct ops_warm *warm, struct err *err)
{
    struct tuning t = {0};
    uint32_t *missing = mem_array(GEMM_PLANS_MAX, sizeof *missing), count = 0;
    int rc = 0;

    plans_list(d, &t);
    tuned_open(&t.tuned, d, warm);
    for (uint32_t i = 0; i < t.count; i++)
        if (!plan_recall(d, &t, &t.plans[i]))
            missing[count++] = i;
    if (count) {
        rc = plans_race(d, &t, missing, count, warm, err);
        if (!rc)
            tuned_save(&t.tuned, warm);
    }
    tuned_close(&t.tuned);
    free(t.plans);
    free(missing);
    return rc;
}

/* Matrix products: the matrix-vector kernel for a row or two; on Hopper one of our own for up to
 * SKINNY_ROWS; else cuBLASLt with an algorithm chosen by measuring, once for
 * each shape and range of rows (tune.c). */
#include "kernels/cuda/gemm.h"
#include "common/mem.h"

#include <stdlib.h>

int blas_fail(const struct device *d, cublasStatus_t rc, const char *what, uint32_t m, uint32_t n,
              uint32_t k, struct err *err)
{
    return err_set(err, ERR_INTERNAL, "rank %u, cuda:%u: cuBLASLt: %s of %u x %u x %u: %s",
                   d->config.rank, d->config.device_index, what, m, n, k,
                   cublasLtGetStatusString(rc));
}

int gemm_open(struct device *d, struct err *err)
{
    cublasStatus_t rc = cublasLtCreate(&d->blas);

    if (rc != CUBLAS_STATUS_SUCCESS)
        return blas_fail(d, rc, "opening", 0, 0, 0, err);
    d->plans = mem_array(GEMM_PLANS_MAX, sizeof *d->plans);
    if (tensor_maps() && skinny_setup() != cudaSuccess)
        return cuda_fail(d, cudaGetLastError(), "products", err);
    return cuda_alloc(d, GEMM_WORKSPACE, &d->workspace, "cuBLASLt's workspace", err);
}

void plan_free(struct gemm_plan *p)
{
    if (p->y)
        (void)cublasLtMatrixLayoutDestroy(p->y);
    if (p->x)
        (void)cublasLtMatrixLayoutDestroy(p->x);
    if (p->w)
        (void)cublasLtMatrixLayoutDestroy(p->w);
    if (p->desc)
        (void)cublasLtMatmulDescDestroy(p->desc);
}

void gemm_close(struct device *d)
{
    for (uint32_t i = 0; i < d->plans_count; i++)
        plan_free(&d->plans[i]);
    free(d->plans);
    if (d->blas)
        (void)cublasLtDestroy(d->blas);
}

uint32_t rows_bucket(uint32_t m)
{
    uint32_t step = m == 1 ? 1 : m <= 64 ? 8 : m <= 512 ? 64 : m <= 4096 ? 512 : 4096;

    return (m + step - 1) / step * step;
}

/* In cuBLAS's terms, columns first: y' (n, m) = w' (k, n)^T x' (k, m). */
cublasStatus_t plan_describe(const struct device *d, struct gemm_plan *p, uint32_t m)
{
    cudaDataType_t half = d->type == HALF_BF16 ? CUDA_R_16BF : CUDA_R_16F;
    cublasOperation_t transposed = CUBLAS_OP_T;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    cublasStatus_t rc = cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);

    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                            sizeof transposed);
    if (rc == CUBLAS_STATUS_SUCCESS && p->bias)
        rc = cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                            sizeof epilogue);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasLtMatrixLayoutCreate(&p->w, half, p->k, p->n, p->k);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasLtMatrixLayoutCreate(&p->x, half, p->k, m, p->k);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasLtMatrixLayoutCreate(&p->y, p->wide ? CUDA_R_32F : half, p->n, m, p->y_stride);
    return rc;
}

cudaError_t skinny_run(const struct device *d, enum gemv_out out, uint32_t n, uint32_t k,
                       uint32_t y_stride, const struct product *q)
{
    const struct skinny_product p = {.x = q->x,
                                     .w = q->w,
                                     .bias = q->bias,
                                     .y = q->y,
                                     .m = q->m,
                                     .n = n,
                                     .k = k,
                                     .y_stride = y_stride,
                                     .multiprocessors = (uint32_t)d->multiprocessors};

    return launch_skinny(d->stream, d->type, out, &p);
}

cublasStatus_t plan_run(const struct device *d, const struct gemm_plan *p,
                        const cublasLtMatmulAlgo_t *algo, const struct product *q)
{
    const float one = 1.0f, zero = 0.0f;
    uint64_t cols = q->m;
    cublasStatus_t rc =
        cublasLtMatrixLayoutSetAttribute(p->x, CUBLASLT_MATRIX_LAYOUT_COLS, &cols, sizeof cols);

    if (rc == CUBLAS_STATUS_SUCCESS)
        rc =
            cublasLtMatrixLayoutSetAttribute(p->y, CUBLASLT_MATRIX_LAYOUT_COLS, &cols, sizeof cols);
    if (rc == CUBLAS_STATUS_SUCCESS && p->bias)
        rc = cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &q->bias,
                                            sizeof q->bias);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasLtMatmul(d->blas, p->desc, &one, q->w, p->w, q->x, p->x, &zero, q->y, p->y, q->y,
                            p->y, algo, d->workspace, GEMM_WORKSPACE, d->stream);
    return rc;
}

static struct gemm_plan *plan_find(struct device *d, const struct gemm_plan *key)
{
    for (uint32_t i = 0; i < d->plans_count; i++) {
        struct gemm_plan *p = &d->plans[i];

        if (p->n == key->n && p->k == key->k && p->m_max == key->m_max &&
            p->y_stride == key->y_stride && p->wide == key->wide && p->bias == key->bias)
            return p;
    }
    return NULL;
}

/* Races when that can be: not inside a graph, nor for a product that is to be raced with others. */
static cublasStatus_t plan_choose(const struct device *d, struct gemm_plan *p,
                                  const struct product *q)
{
    return d->plans_noted || d->capturing ? plan_guess(d, p) : plan_race(d, p, q);
}

/* An algorithm that was chosen for other rows of its range may not do for these: chosen anew. */
static cublasStatus_t plan_run_tuned(const struct device *d, struct gemm_plan *p,
                                     const struct product *q)
{
    cublasStatus_t rc = plan_run(d, p, &p->algo, q);

    if (rc != CUBLAS_STATUS_NOT_SUPPORTED && rc != CUBLAS_STATUS_INVALID_VALUE)
        return rc;
    rc = plan_choose(d, p, q);
    return rc == CUBLAS_STATUS_SUCCESS ? plan_run(d, p, &p->algo, q) : rc;
}

static int plan_get(struct device *d, const struct gemm_plan *key, const struct product *q,
                    struct gemm_plan **out, struct err *err)
{
    struct gemm_plan p = *key;
    cublasStatus_t rc;

    *out = plan_find(d, key);
    if (*out)
        return 0;
    if (d->plans_count == GEMM_PLANS_MAX) /* the newest goes: it may be a shape seen once */
        plan_free(&d->plans[--d->plans_count]);
    rc = plan_describe(d, &p, q->m);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = plan_choose(d, &p, q);
    if (rc != CUBLAS_STATUS_SUCCESS) {
        plan_free(&p);
        return blas_fail(d, rc, "an algorithm for a product", q->m, p.n, p.k, err);
    }
    d->plans[d->plans_count] = p;
    *out = &d->plans[d->plans_count++];
    return 0;
}

/* Measured on H200. A small matrix is read as fast as the chain of kernels goes, and gemv makes the
 * norm too; the kernel for few rows is ahead for larger ones, and from three rows on. Without it,
 * one row is gemv's, too, and what is small. */
bool gemv_suits(const struct weight *w, uint32_t m)
{
    bool small = (size_t)w->rows * w->cols <= GEMV_SMALL;

    if (w->cols % 8)
        return false;
    return tensor_maps() && w->cols % 64 == 0 ? small && m <= 2
                                              : m == 1 || (small && m <= GEMV_ROWS);
}

bool skinny_suits(const struct weight *w, uint32_t m, uint32_t y_stride)
{
    return tensor_maps() && m <= SKINNY_ROWS && w->cols % 64 == 0 && w->rows % 8 == 0 &&
           y_stride % 4 == 0;
}

static int launched(const struct device *d, cudaError_t rc, struct err *err)
{
    return rc == cudaSuccess ? 0 : cuda_fail(d, rc, "product of few rows", err);
}

static cudaError_t gemv_run(const struct device *d, enum gemv_out out, const struct gemm_plan *p,
                            const struct product *q)
{
    const struct gemv_args a = {.x = q->x,
                                .w = q->w,
                                .bias = q->bias,
                                .y = q->y,
                                .m = q->m,
                                .n = p->n,
                                .k = p->k,
                                .y_stride = p->y_stride};

    return launch_gemv(d->stream, d->type, out, &a);
}

int gemv(struct device *d, enum gemv_out out, const struct act *x, const struct weight *w,
         const struct weight *bias, void *y, uint32_t y_stride, struct err *err)
{
    struct gemv_args a = {.x = x->data,
                          .w = w->data,
                          .bias = bias ? bias->data : NULL,
                          .y = y,
                          .m = d->tokens_count,
                          .n = out == GEMV_SILU ? w->rows / 2 : w->rows,
                          .k = w->cols,
                          .y_stride = y_stride,
                          .eps = d->model.norm_eps};

    if (x->pending.kind == PENDING_NORM) {
        a.x = NULL;
        a.residual = x->pending.residual->wide;
        a.norm = x->pending.norm[0]->wide;
    }
    return launched(d, launch_gemv(d->stream, d->type, out, &a), err);
}

int gemm(struct device *d, const void *x, uint32_t m, const struct weight *w,
         const struct weight *bias, void *y, uint32_t y_stride, bool wide, struct err *err)
{
    struct gemm_plan key = {.n = w->rows,
                            .k = w->cols,
                            .m_max = rows_bucket(m),
                            .y_stride = y_stride,
                            .wide = wide,
                            .bias = bias != NULL,
                            .like = w};
    struct product q = {x, w->data, bias ? bias->data : NULL, y, m};
    enum gemv_out out = wide ? GEMV_FLOAT : GEMV_HALF;
    struct gemm_plan *p = NULL;
    cublasStatus_t done;
    int rc;

    if (gemv_suits(w, m))
        return launched(d, gemv_run(d, out, &key, &q), err);
    if (skinny_suits(w, m, y_stride))
        return launched(d, skinny_run(d, out, w->rows, w->cols, y_stride, &q), err);
    rc = plan_get(d, &key, &q, &p, err);
    if (rc)
        return rc;
    done = plan_run_tuned(d, p, &q);
    return done == CUBLAS_STATUS_SUCCESS ? 0 : blas_fail(d, done, "product", m, p->n, p->k, err);
}

int gemm_silu(struct device *d, const struct act *x, const struct weight *w, struct act *out,
              struct err *err)
{
    const struct product q = {x->data, w->data, NULL, out->data, d->tokens_count};

    return launched(d, skinny_run(d, GEMV_SILU, w->rows / 2, w->cols, out->width, &q), err);
}

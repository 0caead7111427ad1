/* Whether Hopper's code runs, and what its tensor copy engine is told of arrays in memory. */
#include "kernels/cuda/half.cuh"

/* Has a mark where code for Hopper runs, rather than code that Hopper runs too: where none was
 * built, or the driver was told to compile anew what it runs (CUDA_FORCE_PTX_JIT). */
__global__ void built_kernel(uint32_t *out)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    __shared__ uint32_t mark[32];

    mark[threadIdx.x] = *out;
    __syncthreads();
    *out = mark[31 - threadIdx.x];
#endif
}

static bool hopper_find(void)
{
    struct cudaFuncAttributes kernel;
    int device = 0, major = 0, minor = 0;
    cudaError_t rc = cudaGetDevice(&device);

    if (rc == cudaSuccess)
        rc = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (rc == cudaSuccess)
        rc = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (rc != cudaSuccess || major != 9 || minor != 0)
        return false;
    rc = cudaFuncGetAttributes(&kernel, built_kernel);
    return rc == cudaSuccess && kernel.sharedSizeBytes > 0;
}

int hopper_built(void)
{
    static const bool found = hopper_find();

    return found;
}

typedef decltype(cuTensorMapEncodeTiled) *map_encoder;

static map_encoder encoder_find(void)
{
    cudaDriverEntryPointQueryResult found;
    void *function = NULL;
    cudaError_t rc;

    if (!hopper_built())
        return NULL;
#if CUDART_VERSION >= 12050
    rc = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                          cudaEnableDefault, &found);
#else
    rc = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    if (rc != cudaSuccess || found != cudaDriverEntryPointSuccess)
        return NULL;
    return reinterpret_cast<map_encoder>(function);
}

static map_encoder encoder(void)
{
    static const map_encoder found = encoder_find();

    return found;
}

int tensor_maps(void)
{
    return encoder() != NULL;
}

cudaError_t tensor_map_make(CUtensorMap *out, enum half_type t, const void *data,
                            uint32_t dimensions, const uint32_t *sizes, const uint64_t *strides,
                            const uint32_t *box)
{
    const cuuint32_t steps[TENSOR_DIMENSIONS] = {1, 1, 1};
    cuuint64_t apart[TENSOR_DIMENSIONS] = {}, extents[TENSOR_DIMENSIONS] = {};
    CUresult rc;

    for (uint32_t i = 0; i < dimensions; i++)
        extents[i] = sizes[i];
    for (uint32_t i = 0; i + 1 < dimensions; i++)
        apart[i] = strides[i];
    rc = encoder()(
        out, t == HALF_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        dimensions, const_cast<void *>(data), extents, apart, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return rc == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

#include "kernels/cuda/tensor_map.h"

#include <string.h>

typedef CUresult encode_tiled(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                              const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                              const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                              CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

int tensor_map_open(struct device *d, struct err *err)
{
    enum cudaDriverEntryPointQueryResult found;
    struct cudaDeviceProp p;
    void *encode = NULL;
    cudaError_t rc = cudaGetDeviceProperties(&p, (int)d->config.device_index);

    if (rc == cudaSuccess && p.major == 9)
        rc = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000,
                                              cudaEnableDefault, &found);
    if (rc != cudaSuccess || (p.major == 9 && !encode))
        return cuda_fail(d, rc == cudaSuccess ? cudaErrorSymbolNotFound : rc, "tensor maps", err);
    d->tensor_encode = encode;
    return 0;
}

/* The driver's function comes as a pointer to data. */
static encode_tiled *encoder(const struct device *d)
{
    encode_tiled *f;

    memcpy(&f, &d->tensor_encode, sizeof f);
    return f;
}

cudaError_t tensor_map_make(const struct device *d, struct tensor_map *out, const void *data,
                            uint32_t dimensions, const uint64_t *sizes, const uint32_t *box)
{
    const cuuint32_t steps[TENSOR_DIMENSIONS] = {1, 1, 1, 1, 1};
    cuuint64_t strides[TENSOR_DIMENSIONS], extents[TENSOR_DIMENSIONS], stride = 2;
    CUresult rc;

    for (uint32_t i = 0; i < dimensions; i++) {
        extents[i] = sizes[i];
        stride *= sizes[i];
        strides[i] = stride; /* of the next dimension */
    }
    rc = encoder(d)(&out->map,
                    d->type == HALF_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                         : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                    dimensions, (void *)(uintptr_t)data, extents, strides, box, steps,
                    CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return rc == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

#include "tests/kernels/cuda/peers.h"

#include "kernels/cuda/half.cuh"

typedef half_ops<__nv_bfloat16> ops;

static __device__ uint32_t mix(uint32_t x)
{
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

/* Halves with any sign and mantissa and an exponent from 2^-7 to 2^0. */
static __device__ uint32_t word_of(uint32_t i, uint32_t epoch, uint32_t call, uint32_t rank)
{
    uint32_t x = mix(i ^ mix(epoch * 64 + call) ^ mix(0x51ed270bu * (rank + 1)));

    if (mix(x) % 4 == 0)
        return EMPTY;
    return (x & 0x83ff83ffu) | 0x3c003c00u;
}

static __device__ float2 sum_of(uint32_t i, uint32_t epoch, uint32_t call, uint32_t ranks)
{
    float2 sum = make_float2(0.0f, 0.0f);

    for (uint32_t r = 0; r < ranks; r++) {
        float2 v = ops::widen2(word_of(i, epoch, call, r));

        sum.x += v.x;
        sum.y += v.y;
    }
    return sum;
}

static __device__ uint32_t thread_index(void)
{
    return blockIdx.x * blockDim.x + threadIdx.x;
}

__global__ void fill_kernel(uint32_t *x, uint32_t words, const uint32_t *epoch, uint32_t call,
                            uint32_t rank)
{
    uint32_t i = thread_index();

    if (i < words)
        x[i] = word_of(i, *epoch, call, rank);
}

__global__ void sum_check_kernel(const uint32_t *out, uint32_t words, const uint32_t *epoch,
                                 uint32_t call, uint32_t ranks, uint32_t *wrong)
{
    uint32_t i = thread_index();
    float2 sum;

    if (i >= words)
        return;
    sum = sum_of(i, *epoch, call, ranks);
    if (out[i] != ops::narrow2(sum.x, sum.y))
        atomicAdd(wrong, 1u);
}

__global__ void gather_check_kernel(const uint32_t *out, uint32_t words, const uint32_t *epoch,
                                    uint32_t call, uint32_t ranks, uint32_t *wrong)
{
    uint32_t i = thread_index();

    if (i < words * ranks && out[i] != word_of(i % words, *epoch, call, i / words))
        atomicAdd(wrong, 1u);
}

static __device__ bool apart(float a, float b)
{
    return !(fabsf(a - b) <= 0.01f * fabsf(b) + 1e-6f);
}

/* A block a row, 256 threads. */
__global__ void norm_check_kernel(const float *residual, float *old, const uint32_t *out,
                                  uint32_t width, const uint32_t *epoch, uint32_t call,
                                  uint32_t ranks, int rounded, float eps, uint32_t *wrong)
{
    __shared__ float squares;
    size_t row = (size_t)blockIdx.x * width;
    float mine = 0.0f, scale;

    if (threadIdx.x == 0)
        squares = 0.0f;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < width / 2; i += blockDim.x) {
        float2 v = sum_of((uint32_t)(row / 2) + i, *epoch, call, ranks);
        const float *got = residual + row + 2 * i;

        if (rounded)
            v = ops::widen2(ops::narrow2(v.x, v.y));
        if (old) {
            v.x += old[row + 2 * i];
            v.y += old[row + 2 * i + 1];
            old[row + 2 * i] = v.x;
            old[row + 2 * i + 1] = v.y;
        }
        if (got[0] != v.x || got[1] != v.y)
            atomicAdd(wrong, 1u);
        mine += v.x * v.x + v.y * v.y;
    }
    atomicAdd(&squares, mine);
    __syncthreads();
    scale = rsqrtf(squares / (float)width + eps);
    for (uint32_t i = threadIdx.x; i < width / 2; i += blockDim.x) {
        float2 got = ops::widen2(out[row / 2 + i]);

        if (apart(got.x, residual[row + 2 * i] * scale) ||
            apart(got.y, residual[row + 2 * i + 1] * scale))
            atomicAdd(wrong, 1u);
    }
}

__global__ void delay_kernel(const uint32_t *epoch, uint32_t call, uint32_t rank, uint32_t most_ns)
{
    uint32_t x = mix(mix(*epoch * 64 + call) + rank * 77), wait = x % 3 ? 0 : mix(x) % most_ns;
    uint64_t begin, now;

    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
    do
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    while (now - begin < wait);
}

__global__ void epoch_kernel(uint32_t *epoch)
{
    ++*epoch;
}

__global__ void ping_kernel(volatile uint32_t *mine, volatile uint32_t *theirs, uint32_t turns,
                            int first)
{
    for (uint32_t i = 1; i <= turns; i++) {
        if (first)
            *theirs = i;
        while (*mine < i)
            ;
        if (!first)
            *theirs = i;
    }
}

cudaError_t test_fill(cudaStream_t s, uint32_t *x, uint32_t words, const uint32_t *epoch,
                      uint32_t call, uint32_t rank)
{
    fill_kernel<<<(words + 255) / 256, 256, 0, s>>>(x, words, epoch, call, rank);
    return cudaGetLastError();
}

cudaError_t test_sum_check(cudaStream_t s, const uint32_t *out, uint32_t words,
                           const uint32_t *epoch, uint32_t call, uint32_t ranks, uint32_t *wrong)
{
    sum_check_kernel<<<(words + 255) / 256, 256, 0, s>>>(out, words, epoch, call, ranks, wrong);
    return cudaGetLastError();
}

cudaError_t test_norm_check(cudaStream_t s, const float *residual, float *old, const uint32_t *out,
                            uint32_t rows, uint32_t width, const uint32_t *epoch, uint32_t call,
                            uint32_t ranks, int rounded, float eps, uint32_t *wrong)
{
    norm_check_kernel<<<rows, 256, 0, s>>>(residual, old, out, width, epoch, call, ranks, rounded,
                                           eps, wrong);
    return cudaGetLastError();
}

cudaError_t test_gather_check(cudaStream_t s, const uint32_t *out, uint32_t words,
                              const uint32_t *epoch, uint32_t call, uint32_t ranks, uint32_t *wrong)
{
    gather_check_kernel<<<(words * ranks + 255) / 256, 256, 0, s>>>(out, words, epoch, call, ranks,
                                                                    wrong);
    return cudaGetLastError();
}

cudaError_t test_delay(cudaStream_t s, const uint32_t *epoch, uint32_t call, uint32_t rank,
                       uint32_t most_ns)
{
    delay_kernel<<<1, 1, 0, s>>>(epoch, call, rank, most_ns);
    return cudaGetLastError();
}

cudaError_t test_epoch_next(cudaStream_t s, uint32_t *epoch)
{
    epoch_kernel<<<1, 1, 0, s>>>(epoch);
    return cudaGetLastError();
}

cudaError_t test_ping(cudaStream_t s, uint32_t *mine, uint32_t *theirs, uint32_t turns, int first)
{
    ping_kernel<<<1, 1, 0, s>>>(mine, theirs, turns, first);
    return cudaGetLastError();
}

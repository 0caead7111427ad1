/* Times attention over prompts alone, by the portable kernel and by the one that this GPU and the
 * shape are given, and compares what they leave. Usage: bench_prefill_cuda. Times are microseconds
 * a launch; launch: the host's share of one; floor: causal FLOPs over 800 TFLOP/s; error:
 * ||a - b|| / ||b||, b being the portable kernel's. Ends with 1 where that is more than 1e-2. */
#include "tests/kernels/cuda/ranks.h"

#include "common/clock.h"
#include "common/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE 16u
#define FLOP_PER_S 800e12
#define CALLS 5
#define RUNS 15
#define ERROR_MAX 1e-2

struct shape {
    uint32_t heads, kv_heads, head_dim;
    enum half_type type;
    uint32_t start, count, window; /* of one prompt */
};

static const struct shape shapes[] = {
    {40, 8, 128, HALF_BF16, 0, 128, 0},    {40, 8, 128, HALF_BF16, 0, 1024, 0},
    {40, 8, 128, HALF_BF16, 0, 4096, 0},   {40, 8, 128, HALF_BF16, 0, 8192, 0},
    {40, 8, 128, HALF_BF16, 0, 16384, 0},  {40, 8, 128, HALF_BF16, 8192, 1024, 0},
    {40, 8, 128, HALF_BF16, 8197, 333, 0}, {40, 8, 128, HALF_BF16, 0, 8192, 1000},
    {16, 2, 128, HALF_BF16, 0, 8192, 0},   {16, 8, 128, HALF_F16, 0, 8192, 0},
    {32, 8, 64, HALF_BF16, 0, 8192, 0},
};

struct bench {
    const struct shape *s;
    struct attention_args args;
    cudaStream_t stream;
    void *out[2]; /* of the portable kernel, of the other */
};

/* Halves in +-[1/4, 1) as bf16, in +-[1/8, 1/2) and a little more as f16. */
static void numbers_make(void *out, size_t count, enum half_type type, uint64_t seed)
{
    uint16_t *x = mem_array(count, sizeof *x);

    for (size_t i = 0; i < count; i++) {
        uint32_t bits;

        seed = seed * 6364136223846793005u + 1442695040888963407u;
        bits = (uint32_t)(seed >> 33);
        x[i] = (uint16_t)((bits >> 16 & 1) << 15 |
                          (type == HALF_BF16 ? 0x3e80u + (bits & 255) : 0x3000u + (bits & 2047)));
    }
    CUDA(cudaMemcpy(out, x, count * sizeof *x, cudaMemcpyHostToDevice));
    free(x);
}

static void *device_copy(const void *data, size_t bytes)
{
    void *out;

    CUDA(cudaMalloc(&out, bytes));
    if (data)
        CUDA(cudaMemcpy(out, data, bytes, cudaMemcpyHostToDevice));
    return out;
}

/* Tiles of `rows` rows, as slots.c makes them. */
static void tiles_make(struct bench *b, uint32_t rows)
{
    uint32_t group = b->s->heads / b->s->kv_heads, count = (b->s->count * group + rows - 1) / rows;
    struct frame_tile *tiles = mem_array(count, sizeof *tiles);

    for (uint32_t i = 0; i < count; i++)
        tiles[i] = (struct frame_tile){0, (count - 1 - i) * rows};
    CUDA(cudaFree((void *)(uintptr_t)b->args.tiles));
    b->args.tiles = device_copy(tiles, count * sizeof *tiles);
    b->args.tile_count = count;
    b->args.tile_rows = rows;
    free(tiles);
}

/* One prompt, in shuffled pages. */
static void bench_make(struct bench *b)
{
    const struct shape *s = b->s;
    uint32_t width = (s->heads + 2 * s->kv_heads) * s->head_dim;
    uint32_t pages = (s->start + s->count + PAGE - 1) / PAGE, *list = mem_array(pages, 4);
    size_t pool = (size_t)pages * s->kv_heads * PAGE * s->head_dim;
    size_t out = (size_t)s->count * s->heads * s->head_dim * 2;
    const struct frame_row row = {.start = s->start, .count = s->count};
    void *qkv = device_copy(NULL, (size_t)s->count * width * 2);
    void *kv = device_copy(NULL, 2 * pool * 2);

    for (uint32_t i = 0; i < pages; i++) {
        uint32_t j = (uint32_t)((uint64_t)i * 7919 % (i + 1));

        list[i] = list[j];
        list[j] = i;
    }
    numbers_make(qkv, (size_t)s->count * width, s->type, 1);
    numbers_make(kv, 2 * pool, s->type, 2);
    b->args = (struct attention_args){
        .qkv = qkv,
        .k = kv,
        .v = (char *)kv + pool * 2,
        .rows = device_copy(&row, sizeof row),
        .slot_pages = device_copy(list, (size_t)pages * 4),
        .tokens = s->count,
        .qkv_stride = width,
        .out_stride = s->heads * s->head_dim,
        .heads = s->heads,
        .kv_heads = s->kv_heads,
        .head_dim = s->head_dim,
        .page_size = PAGE,
        .pages_per_slot = pages,
        .pages = pages,
        .window = s->window,
        .scale = 4.0f / sqrtf((float)s->head_dim),
    };
    for (int i = 0; i < 2; i++) {
        CUDA(cudaMalloc(&b->out[i], out));
        CUDA(cudaMemset(b->out[i], 0xff, out)); /* not a number */
    }
    free(list);
}

static void bench_free(struct bench *b)
{
    const void *all[] = {b->args.qkv,   b->args.k, b->args.rows, b->args.slot_pages,
                         b->args.tiles, b->out[0], b->out[1]};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        CUDA(cudaFree((void *)(uintptr_t)all[i]));
}

static int order(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

static double median(double *x, size_t count)
{
    qsort(x, count, sizeof *x, order);
    return x[count / 2];
}

/* Microseconds a launch; *launch_us: of the host. */
static double time_us(const struct bench *b, double *launch_us)
{
    double times[RUNS], launches[RUNS];
    cudaEvent_t begin, end;

    CUDA(cudaEventCreate(&begin));
    CUDA(cudaEventCreate(&end));
    for (int i = -2; i < RUNS; i++) {
        int64_t begin_us;
        float ms = 0;

        CUDA(cudaEventRecord(begin, b->stream));
        begin_us = clock_mono_us();
        for (int k = 0; k < CALLS; k++)
            CUDA(launch_attention_prefill(b->stream, b->s->type, &b->args));
        if (i >= 0)
            launches[i] = (double)(clock_mono_us() - begin_us) / CALLS;
        CUDA(cudaEventRecord(end, b->stream));
        CUDA(cudaEventSynchronize(end));
        CUDA(cudaEventElapsedTime(&ms, begin, end));
        if (i >= 0)
            times[i] = (double)ms * 1e3 / CALLS;
    }
    CUDA(cudaEventDestroy(begin));
    CUDA(cudaEventDestroy(end));
    *launch_us = median(launches, RUNS);
    return median(times, RUNS);
}

static float half_value(uint16_t x, enum half_type type)
{
    uint32_t bits = (uint32_t)x << 16, exponent = x >> 10 & 31, fraction = x & 1023;
    float value;

    memcpy(&value, &bits, 4);
    if (type == HALF_BF16)
        return value;
    if (exponent == 31)
        return NAN;
    value = exponent ? ldexpf((float)(1024 + fraction), (int)exponent - 25)
                     : ldexpf((float)fraction, -24);
    return x >> 15 ? -value : value;
}

static double outputs_apart(const struct bench *b)
{
    size_t count = (size_t)b->s->count * b->s->heads * b->s->head_dim;
    uint16_t *x[2];
    double apart = 0.0, size = 0.0;

    for (int i = 0; i < 2; i++) {
        x[i] = mem_array(count, 2);
        CUDA(cudaMemcpy(x[i], b->out[i], count * 2, cudaMemcpyDeviceToHost));
    }
    for (size_t i = 0; i < count; i++) {
        double good = half_value(x[0][i], b->s->type), other = half_value(x[1][i], b->s->type);

        apart += (other - good) * (other - good);
        size += good * good;
    }
    free(x[0]);
    free(x[1]);
    return sqrt(apart / size);
}

/* Pairs of a token and a key it sees. */
static double pairs_count(const struct shape *s)
{
    double pairs = 0.0;

    for (uint32_t i = 0; i < s->count; i++) {
        uint32_t seen = s->start + i + 1;

        pairs += s->window && seen > s->window ? s->window : seen;
    }
    return pairs;
}

static bool shape_run(const struct shape *s)
{
    struct bench b = {.s = s};
    double us[2], launch_us[2], error, flop = 4.0 * s->head_dim * s->heads * pairs_count(s);

    bench_make(&b);
    CUDA(cudaStreamCreateWithFlags(&b.stream, cudaStreamNonBlocking));
    CUDA(cudaDeviceSynchronize());
    for (int i = 0; i < 2; i++) {
        tiles_make(&b, i ? attention_tile_rows(s->head_dim, PAGE) : PREFILL_ROWS);
        b.args.out = b.out[i];
        us[i] = time_us(&b, &launch_us[i]);
    }
    error = outputs_apart(&b);
    printf("%2u/%u x %3u %s %5u + %5u, window %4u %9.1f %9.1f %9.1f %7.0f %7.0f %7.1f %9.1e\n",
           s->heads, s->kv_heads, s->head_dim, s->type == HALF_BF16 ? "bf16" : " f16", s->start,
           s->count, s->window, flop / FLOP_PER_S * 1e6, us[0], us[1], flop / us[0] * 1e-6,
           flop / us[1] * 1e-6, launch_us[1], error);
    (void)fflush(stdout);
    CUDA(cudaStreamDestroy(b.stream));
    bench_free(&b);
    return error <= ERROR_MAX;
}

int main(void)
{
    bool good = true;

    CUDA(cudaSetDevice(0));
    CUDA(attention_setup());
    printf("tiles of %u rows\n", attention_tile_rows(128, PAGE));
    printf("heads x dim         start + count                  floor  portable    chosen   TFLOP/s "
           "  TFLOP/s  launch     error\n");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        good = shape_run(&shapes[i]) && good;
    return good ? 0 : 1;
}

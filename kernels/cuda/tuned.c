#include "kernels/cuda/tuned.h"

#include "common/clock.h"
#include "common/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#define LOCK_WAIT_US 120000000 /* longer than a rank races */

struct head {
    char magic[8]; /* "phxgemm1" */
    char place[384];
    uint32_t count, reserved;
    uint64_t hash; /* of the entries */
};

static const char magic[8] = {'p', 'h', 'x', 'g', 'e', 'm', 'm', '1'};

static uint64_t hash_of(const void *data, size_t bytes)
{
    const uint8_t *p = data;
    uint64_t hash = 14695981039346656037u; /* FNV-1a */

    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ p[i]) * 1099511628211u;
    return hash;
}

static void say(const struct ops_warm *warm, const char *what, const char *path, const char *why)
{
    char line[4400];

    (void)snprintf(line, sizeof line, "%s %s: %s", what, path, why);
    if (warm->say)
        warm->say(warm->ctx, line);
}

static bool place_find(struct tuned *t, const struct device *d)
{
    struct cudaDeviceProp p;
    char name[64];
    int driver = 0;

    if (cudaGetDeviceProperties(&p, (int)d->config.device_index) != cudaSuccess ||
        cudaDriverGetVersion(&driver) != cudaSuccess)
        return false;
    (void)snprintf(t->place, sizeof t->place,
                   "%s, %d multiprocessors, driver %d, cuBLASLt %zu, %zu", p.name,
                   p.multiProcessorCount, driver, cublasLtGetVersion(), GEMM_WORKSPACE);
    (void)snprintf(name, sizeof name, "products-%016llx",
                   (unsigned long long)hash_of(t->place, strlen(t->place)));
    return cache_path(name, t->path, sizeof t->path);
}

static void lock_take(struct tuned *t)
{
    const struct timespec nap = {0, 10000000};
    int64_t begin = clock_mono_us();
    char path[4300];

    (void)snprintf(path, sizeof path, "%s.lock", t->path);
    t->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    while (t->lock >= 0 && flock(t->lock, LOCK_EX | LOCK_NB)) {
        if (errno != EWOULDBLOCK || clock_mono_us() - begin > LOCK_WAIT_US) {
            (void)close(t->lock);
            t->lock = -1;
            return;
        }
        (void)nanosleep(&nap, NULL);
    }
}

/* NULL: as it should be, or not there; else what is wrong with it. */
static const char *entries_read(struct tuned *t)
{
    FILE *f = fopen(t->path, "rb");
    const char *wrong = NULL;
    struct head head;

    if (!f)
        return errno == ENOENT ? NULL : strerror(errno);
    if (fread(&head, sizeof head, 1, f) != 1 || memcmp(head.magic, magic, sizeof magic) ||
        head.count > TUNED_MAX)
        wrong = "not a file of tuned products";
    else if (memcmp(head.place, t->place, sizeof head.place))
        wrong = "of another GPU, driver or library";
    else if (fread(t->entries, sizeof *t->entries, head.count, f) != head.count ||
             fgetc(f) != EOF || head.hash != hash_of(t->entries, head.count * sizeof *t->entries))
        wrong = "damaged";
    else
        t->count = head.count;
    (void)fclose(f);
    return wrong;
}

void tuned_open(struct tuned *t, const struct device *d, const struct ops_warm *warm)
{
    const char *wrong;

    *t = (struct tuned){.lock = -1};
    t->entries = mem_array(TUNED_MAX, sizeof *t->entries);
    if (!place_find(t, d)) {
        t->path[0] = '\0';
        return;
    }
    lock_take(t);
    wrong = entries_read(t);
    if (wrong)
        say(warm, "Products are tuned anew, without", t->path, wrong);
}

void tuned_close(struct tuned *t)
{
    if (t->lock >= 0)
        (void)close(t->lock);
    free(t->entries);
    *t = (struct tuned){.lock = -1};
}

static bool is_for(const struct tuned_entry *e, enum half_type type, const struct gemm_plan *p)
{
    return e->type == (uint32_t)type && e->n == p->n && e->k == p->k && e->m_max == p->m_max &&
           e->y_stride == p->y_stride && e->wide == p->wide && e->bias == p->bias;
}

const struct tuned_entry *tuned_find(const struct tuned *t, enum half_type type,
                                     const struct gemm_plan *p)
{
    for (uint32_t i = 0; i < t->count; i++)
        if (is_for(&t->entries[i], type, p))
            return &t->entries[i];
    return NULL;
}

void tuned_put(struct tuned *t, enum half_type type, const struct gemm_plan *p)
{
    uint32_t i = 0;

    while (i < t->count && !is_for(&t->entries[i], type, p))
        i++;
    if (i == TUNED_MAX) {
        memmove(t->entries, t->entries + 1, (TUNED_MAX - 1) * sizeof *t->entries);
        i = --t->count;
    }
    if (i == t->count)
        t->count++;
    t->entries[i] = (struct tuned_entry){.type = type,
                                         .n = p->n,
                                         .k = p->k,
                                         .m_max = p->m_max,
                                         .y_stride = p->y_stride,
                                         .wide = p->wide,
                                         .bias = p->bias,
                                         .algo = p->algo};
}

void tuned_save(const struct tuned *t, const struct ops_warm *warm)
{
    struct head head = {.count = t->count};
    char path[4300];
    bool written;
    FILE *f;

    if (!t->path[0])
        return;
    memcpy(head.magic, magic, sizeof magic);
    memcpy(head.place, t->place, sizeof head.place);
    head.hash = hash_of(t->entries, t->count * sizeof *t->entries);
    (void)snprintf(path, sizeof path, "%s.%ld", t->path, (long)getpid());
    f = fopen(path, "wb");
    written = f && fwrite(&head, sizeof head, 1, f) == 1 &&
              fwrite(t->entries, sizeof *t->entries, t->count, f) == t->count;
    if (f && fclose(f))
        written = false;
    if (written && !rename(path, t->path))
        return;
    say(warm, "Tuned products are not kept in", t->path, strerror(errno));
    (void)unlink(path);
}

#include "services/worker/runner.h"

#include "common/clock.h"
#include "common/log.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#include <xxhash.h>

static double megabytes(uint64_t bytes)
{
    return (double)bytes / 1e6;
}

/* GATHERED of the round, into r's memory. */
static int gathered_receive(struct runner *r, uint32_t round, const struct proto_gathered **out,
                            struct err *err)
{
    struct proto_header header;
    void *message;
    int rc;

    proto_arena_clear(&r->gathered_arena);
    buf_fini(&r->gathered);
    if (!mailbox_wait(r->in, &r->gathered))
        return err_set(err, ERR_PEER, "rank %u ends before it has met the others", r->config.rank);
    rc =
        proto_decode(r->gathered.data, r->gathered.len, &r->gathered_arena, &header, &message, err);
    if (rc)
        return rc;
    *out = message;
    if (header.type != PROTO_GATHERED)
        return err_set(err, ERR_PROTOCOL, "%s while the ranks meet", proto_type_name(header.type));
    if ((*out)->round != round || (*out)->blobs_count != r->config.tp_size)
        return err_set(err, ERR_PROTOCOL, "GATHERED of round %u and %u ranks, not %u and %u",
                       (*out)->round, (*out)->blobs_count, round, r->config.tp_size);
    return 0;
}

static int runner_gather(void *ctx, const void *blob, size_t len, struct comm_blob *blobs,
                         struct err *err)
{
    struct runner *r = ctx;
    const struct proto_gathered *all = NULL;
    struct proto_gather mine = {.rank = r->config.rank, .round = r->round++, .blob = {blob, len}};
    int rc = mailbox_push(r->out, PROTO_GATHER, &mine, err);

    if (!rc)
        rc = gathered_receive(r, mine.round, &all, err);
    for (uint32_t i = 0; !rc && i < all->blobs_count; i++) {
        const struct proto_str *bytes = &all->blobs[i].bytes;

        blobs[i] = (struct comm_blob){bytes->data, bytes->len};
        r->communicator = XXH64(bytes->data, bytes->len, r->communicator);
    }
    return rc;
}

static int runner_load(struct runner *r, struct err *err)
{
    int64_t start_us = clock_mono_us();
    struct engine_info info;
    struct proto_loaded loaded;
    int rc = r->kind->load(&r->config, &r->engine, err);

    if (rc)
        return rc;
    r->kind->info(r->engine, &info);
    log_say("Rank %u: loaded in %.2f s, weights %.1f MB, room for %u KV pages of %u tokens (%s)",
            r->config.rank, (double)(clock_mono_us() - start_us) / 1e6,
            megabytes(info.weight_bytes), info.pages_max, r->config.page_size, info.device);
    loaded = (struct proto_loaded){
        .rank = r->config.rank,
        .tp_size = r->config.tp_size,
        .vocab_size = info.vocab_size,
        .context_length = info.context_length,
        .pages_max = info.pages_max,
        .page_size = r->config.page_size,
        .page_bytes = info.page_bytes,
        .weight_bytes = info.weight_bytes,
        .fingerprint = info.fingerprint,
        .eos_ids = info.eos_ids,
        .eos_ids_count = info.eos_count,
        .device = proto_str(info.device),
        .prompt_logprobs = info.prompt_logprobs,
        .communicator = r->communicator,
        .steps_ahead = info.steps_ahead,
    };
    return mailbox_push(r->out, PROTO_LOADED, &loaded, err);
}

static double gigabytes(uint64_t bytes)
{
    return (double)bytes / 1e9;
}

/* Where a device's memory goes. */
static void say_plan(const struct runner *r, const struct engine_info *info, uint32_t num_pages)
{
    uint64_t used = info->memory_total - info->memory_unused;
    uint64_t ours = info->weight_bytes + info->kv_bytes + info->workspace_bytes + info->graph_bytes;

    if (!info->memory_total)
        return;
    log_say(
        "Rank %u: memory: weights %.2f GB, workspace %.2f, graphs %.2f, KV %.2f (%u pages, %llu "
        "tokens), libraries and other programs %.2f, free %.2f of %.2f",
        r->config.rank, gigabytes(info->weight_bytes), gigabytes(info->workspace_bytes),
        gigabytes(info->graph_bytes), gigabytes(info->kv_bytes), num_pages,
        (unsigned long long)num_pages * r->config.page_size,
        used > ours ? gigabytes(used - ours) : 0.0, gigabytes(info->memory_unused),
        gigabytes(info->memory_total));
}

static int runner_kv_alloc(struct runner *r, const struct proto_kv_alloc *m, struct err *err)
{
    struct engine_info info;
    struct proto_kv_ready ready = {.rank = r->config.rank};
    int rc = r->kind->kv_alloc(r->engine, m->num_pages, m->num_slots, m->tokens_max, err);

    if (rc)
        return rc;
    r->kind->info(r->engine, &info);
    log_info("rank=%u kv_pages=%u page_size=%u kv_mb=%.1f", r->config.rank, m->num_pages,
             r->config.page_size, megabytes(info.kv_bytes));
    say_plan(r, &info, m->num_pages);
    ready.kv_bytes = info.kv_bytes;
    return mailbox_push(r->out, PROTO_KV_READY, &ready, err);
}

static int runner_begin(struct runner *r, const struct proto_step *m, struct err *err)
{
    struct begun *b = &r->begun[r->begun_count];
    int rc;

    *b = (struct begun){m->step, clock_mono_us()};
    rc = r->kind->begin(r->engine, m, err);
    r->begun_count += !rc;
    return rc;
}

/* The oldest step that has begun. */
static int runner_end(struct runner *r, struct err *err)
{
    const struct begun b = r->begun[0];
    struct engine_result result;
    struct proto_step_done done = {.step = b.step, .rank = r->config.rank};
    int rc;

    r->doing = "ending a step: computing, or waiting for the other ranks";
    rc = r->kind->end(r->engine, &result, err);
    if (rc)
        return rc;
    memmove(r->begun, r->begun + 1, --r->begun_count * sizeof *r->begun);
    done.hash = result.hash;
    done.elapsed_us =
        result.device_us ? result.device_us : (uint64_t)(clock_mono_us() - b.start_us);
    if (r->config.rank == 0) {
        /* Encoding only reads; the message's struct serves both directions. */
        done.results = (struct proto_sampled *)(uintptr_t)result.results;
        done.results_count = result.count;
    }
    return mailbox_push(r->out, PROTO_STEP_DONE, &done, err);
}

static int runner_take(struct runner *r, struct proto_arena *arena, const struct buf *bytes,
                       struct err *err)
{
    struct proto_header header;
    void *message;
    int rc = proto_decode(bytes->data, bytes->len, arena, &header, &message, err);

    if (rc)
        return rc;
    r->doing = header.type == PROTO_STEP ? "beginning a step" : "taking KV pages";
    if (header.type == PROTO_KV_ALLOC)
        return runner_kv_alloc(r, message, err);
    if (header.type == PROTO_STEP)
        return runner_begin(r, message, err);
    return err_set(err, ERR_PROTOCOL, "%s is not for a worker", proto_type_name(header.type));
}

/* The next message, as soon as the engine has room for a step; false: end a step instead, which is
 * ready or has to be computed here. A step that comes while others compute is queued behind them at
 * once, so that the device never waits for it: it comes before an end only when the device may have
 * nothing else. */
static bool runner_receive(struct runner *r, struct buf *bytes, bool *closed)
{
    r->doing = r->begun_count ? "waiting for the device" : "waiting for work";
    if (!r->begun_count) {
        *closed = !mailbox_wait(r->in, bytes);
        return true;
    }
    for (;;) {
        bool room = r->begun_count < ENGINE_STEPS_MAX && r->kind->room(r->engine);
        bool ready = !r->kind->ready || r->kind->ready(r->engine);

        if (ready && r->begun_count > 1)
            return false;
        if (room && mailbox_poll(r->in, bytes))
            return true;
        if (ready)
            return false;
        if (!r->kind->due_us)
            (void)sched_yield();
        else if (!room)
            return false; /* `end` waits */
        else if (mailbox_wait_until(r->in, bytes, r->kind->due_us(r->engine)))
            return true;
    }
}

static void *runner_main(void *ctx)
{
    struct runner *r = ctx;
    struct proto_arena arena = {0};
    struct proto_rank_failed failed = {.rank = r->config.rank};
    struct buf bytes = {0};
    struct err err = {0};
    int rc = runner_load(r, &err);

    while (!rc) {
        bool closed = false;

        if (!runner_receive(r, &bytes, &closed)) {
            rc = runner_end(r, &err);
            continue;
        }
        if (closed)
            break;
        rc = runner_take(r, &arena, &bytes, &err);
        buf_fini(&bytes);
        proto_arena_clear(&arena);
    }
    proto_arena_fini(&arena);
    if (rc) {
        failed.reason = proto_str(err.msg);
        (void)mailbox_push(r->out, PROTO_RANK_FAILED, &failed, &err);
    }
    return NULL;
}

int runner_start(struct runner *r, struct err *err)
{
    r->meet = (struct comm_meet){runner_gather, r};
    r->config.meet = &r->meet;
    errno = pthread_create(&r->thread, NULL, runner_main, r);
    return errno ? err_errno(err, ERR_INTERNAL, "engine thread") : 0;
}

bool runner_stop(struct runner *r, int wait_ms)
{
    struct timespec until;

    mailbox_close(r->in);
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)wait_ms * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    if (pthread_clockjoin_np(r->thread, NULL, CLOCK_MONOTONIC, &until))
        return false;
    r->kind->free(&r->engine);
    buf_fini(&r->gathered);
    proto_arena_fini(&r->gathered_arena);
    return true;
}

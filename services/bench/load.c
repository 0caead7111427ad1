#include "services/bench/load.h"

#include "common/clock.h"
#include "common/mem.h"
#include "services/bench/body.h"
#include "services/bench/http.h"
#include "services/bench/progress.h"
#include "services/bench/reply.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define SEND_BATCH 32 /* requests sent before replies are looked at again */
#define PROGRESS_MS 200
#define GET_BYTES_MAX (1u << 20)
#define GET_STALL_US 10000000

struct load {
    const struct load_plan *plan;
    struct results *results;
    uv_loop_t loop;
    uv_timer_t pump;
    uv_timer_t paint;
    uv_signal_t interrupt;
    struct http *http;
    struct progress progress;
    uint32_t *ids; /* scratch: one prompt */
    struct buf body;
    struct flight *flights; /* unfinished */
    size_t next, running, finished;
    uint64_t chunks;
    int64_t start_us;
    bool over;
};

struct flight {
    struct load *load;
    struct flight *prev, *next;
    struct reply reply;
};

static void load_pump(struct load *l);

static int64_t load_now(const struct load *l)
{
    return clock_mono_us() - l->start_us;
}

/* ---- a request in flight ---- */

static bool on_body(void *ctx, int status, const char *data, size_t len)
{
    struct flight *f = ctx;
    uint32_t before = f->reply.sample->chunks;
    bool more = reply_feed(&f->reply, status, data, len, load_now(f->load));

    f->load->chunks += f->reply.sample->chunks - before;
    return more;
}

static void flight_free(struct flight *f)
{
    struct load *l = f->load;

    if (f->prev)
        f->prev->next = f->next;
    else
        l->flights = f->next;
    if (f->next)
        f->next->prev = f->prev;
    reply_fini(&f->reply);
    free(f);
}

static void load_end(struct load *l)
{
    if (l->over)
        return;
    l->over = true;
    l->results->duration_us = load_now(l);
    http_close(l->http);
    uv_close((uv_handle_t *)&l->pump, NULL);
    uv_close((uv_handle_t *)&l->paint, NULL);
    uv_close((uv_handle_t *)&l->interrupt, NULL);
}

static void on_end(void *ctx, int status, const char *reason)
{
    struct flight *f = ctx;
    struct load *l = f->load;

    reply_end(&f->reply, status, reason, load_now(l), l->results);
    flight_free(f);
    l->running--;
    l->finished++;
    if (l->finished == l->results->count)
        load_end(l);
    else
        load_pump(l);
}

static const struct http_handler handler = {.body = on_body, .end = on_end};

/* ---- sending ---- */

static void load_send(struct load *l)
{
    const struct load_plan *p = l->plan;
    const struct request *q = &p->workload->requests[l->next];
    struct sample *s = &l->results->samples[l->next];
    struct flight *f = mem_zalloc(sizeof *f);
    struct buf bytes = {0};

    buf_clear(&l->body);
    prompt_ids(p->workload, l->next, p->config->seed, p->run, p->vocab, l->ids);
    body_write(p->config, p->model, l->ids, q->input_tokens, q->output_tokens, &l->body);
    target_request(p->target, "POST", p->config->path, &l->body, &bytes);
    f->load = l;
    f->next = l->flights;
    if (f->next)
        f->next->prev = f;
    l->flights = f;
    s->input_asked = q->input_tokens;
    s->output_asked = q->output_tokens;
    s->start_us = load_now(l);
    reply_init(&f->reply, p->config->shape, s);
    l->next++;
    l->running++;
    if (l->running > l->results->peak)
        l->results->peak = l->running;
    http_send(l->http, &bytes, &handler, f);
}

static void on_pump(uv_timer_t *timer)
{
    load_pump(timer->data);
}

/* Sends what is due, and comes back when the next one is. */
static void load_pump(struct load *l)
{
    const struct load_plan *p = l->plan;
    int64_t now_us = load_now(l);
    int64_t wait_us;

    for (int sent = 0; sent < SEND_BATCH; sent++) {
        if (l->next == l->results->count || l->running >= p->limit || p->due_us[l->next] > now_us)
            break;
        load_send(l);
    }
    if (l->next == l->results->count || l->running >= p->limit)
        return; /* a reply's end calls again */
    wait_us = p->due_us[l->next] - load_now(l);
    uv_update_time(&l->loop);
    (void)uv_timer_start(&l->pump, on_pump, wait_us > 0 ? (uint64_t)(wait_us + 999) / 1000 : 0, 0);
}

/* ---- the loop ---- */

static void on_paint(uv_timer_t *timer)
{
    struct load *l = timer->data;
    size_t failed = 0;

    for (size_t i = 0; i < l->results->reasons_count; i++)
        failed += l->results->reasons[i].count;
    progress_paint(&l->progress, l->finished, failed, l->running, l->chunks, load_now(l));
}

static void on_interrupt(uv_signal_t *interrupt, int number)
{
    struct load *l = interrupt->data;

    (void)number;
    l->results->interrupted = true;
    load_end(l);
}

static void load_start(struct load *l)
{
    uint32_t longest = 1;

    for (size_t i = 0; i < l->plan->workload->count; i++)
        if (l->plan->workload->requests[i].input_tokens > longest)
            longest = l->plan->workload->requests[i].input_tokens;
    l->ids = mem_array(longest, sizeof *l->ids);
    l->http = mem_alloc(sizeof *l->http);
    http_init(l->http, &l->loop, l->plan->target, l->plan->config->stall_us);
    (void)uv_timer_init(&l->loop, &l->pump);
    (void)uv_timer_init(&l->loop, &l->paint);
    (void)uv_signal_init(&l->loop, &l->interrupt);
    l->pump.data = l->paint.data = l->interrupt.data = l;
    (void)uv_signal_start(&l->interrupt, on_interrupt, SIGINT);
    progress_init(&l->progress, l->plan->progress, l->results->count);
    if (l->plan->progress)
        (void)uv_timer_start(&l->paint, on_paint, PROGRESS_MS, PROGRESS_MS);
    (void)uv_timer_start(&l->pump, on_pump, 0, 0);
    l->start_us = clock_mono_us();
}

static int64_t cpu_us(void)
{
    struct rusage u;

    (void)getrusage(RUSAGE_SELF, &u);
    return (int64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000 + u.ru_utime.tv_usec +
           u.ru_stime.tv_usec;
}

int load_run(const struct load_plan *plan, struct results *results, struct err *err)
{
    struct load *l = mem_zalloc(sizeof *l);
    int rc;

    results_init(results, plan->workload->count);
    for (size_t i = 0; i < results->count; i++)
        results->samples[i].due_us = plan->due_us[i];
    l->plan = plan;
    l->results = results;
    rc = uv_loop_init(&l->loop);
    if (rc) {
        free(l);
        return err_set(err, ERR_INTERNAL, "libuv: %s", uv_strerror(rc));
    }
    results->cpu_us = -cpu_us();
    load_start(l);
    (void)uv_run(&l->loop, UV_RUN_DEFAULT);
    results->cpu_us += cpu_us();
    (void)uv_loop_close(&l->loop);
    progress_end(&l->progress);
    while (l->flights)
        flight_free(l->flights);
    buf_fini(&l->body);
    free(l->http);
    free(l->ids);
    free(l);
    return 0;
}

/* ---- one GET ---- */

struct get {
    struct http http;
    struct buf *out;
    int status;
    struct err err;
};

static bool get_on_body(void *ctx, int status, const char *data, size_t len)
{
    struct get *g = ctx;

    (void)status;
    if (g->out->len + len > GET_BYTES_MAX)
        return false;
    buf_append(g->out, data, len);
    return true;
}

static void get_on_end(void *ctx, int status, const char *reason)
{
    struct get *g = ctx;

    g->status = status;
    if (reason)
        (void)err_set(&g->err, ERR_IO, "%s", *reason ? reason : "the reply is too long");
    http_close(&g->http);
}

static const struct http_handler get_handler = {.body = get_on_body, .end = get_on_end};

int load_get(const struct target *target, const char *path, struct buf *out, int *status,
             struct err *err)
{
    struct get *g = mem_zalloc(sizeof *g);
    struct buf bytes = {0};
    uv_loop_t loop;
    int rc = uv_loop_init(&loop);

    if (rc) {
        free(g);
        return err_set(err, ERR_INTERNAL, "libuv: %s", uv_strerror(rc));
    }
    g->out = out;
    http_init(&g->http, &loop, target, GET_STALL_US);
    target_request(target, "GET", path, NULL, &bytes);
    http_send(&g->http, &bytes, &get_handler, g);
    (void)uv_run(&loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&loop);
    rc = g->err.code;
    *status = g->status;
    if (rc)
        (void)err_set(err, rc, "%s%s: %s", target->base, path, g->err.msg);
    free(g);
    return rc;
}

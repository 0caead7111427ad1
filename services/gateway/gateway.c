#include "services/gateway/gateway.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "proto/launcher_link.h"
#include "services/gateway/call.h"
#include "services/gateway/conn.h"
#include "services/gateway/defaults.h"

#include <errno.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_BUF_BYTES 65536
#define BACKLOG 1024

uint64_t gateway_random(struct gateway *gw)
{
    uint64_t z = gw->random += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* ---- the loop's callbacks ---- */

static void on_connection(uv_stream_t *listener, int status)
{
    if (!status)
        conn_accept(listener->data);
}

static void on_flush(uv_prepare_t *handle)
{
    struct gateway *gw = handle->data;

    while (gw->dirty) {
        struct conn *c = gw->dirty;

        gw->dirty = c->dirty_next;
        c->dirty = false;
        conn_flush(c);
    }
}

static void on_tick(uv_timer_t *handle)
{
    struct gateway *gw = handle->data;
    int64_t now_us = clock_mono_us();

    for (struct conn *c = gw->conns; c; c = c->next)
        conn_tick(c, now_us);
}

static void close_handle(uv_handle_t *handle)
{
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

/* The time of a polite end is over, or nothing is left to wait for. */
static void gateway_finish(struct gateway *gw)
{
    for (struct conn *c = gw->conns; c; c = c->next)
        conn_drop(c, "the server ends");
    backend_close(&gw->backend);
    if (gw->launcher)
        bus_close(&gw->launcher);
    close_handle((uv_handle_t *)&gw->tick);
    close_handle((uv_handle_t *)&gw->deadline);
    close_handle((uv_handle_t *)&gw->flush);
    close_handle((uv_handle_t *)&gw->sigterm);
    close_handle((uv_handle_t *)&gw->sigint);
}

static void on_deadline(uv_timer_t *handle)
{
    struct gateway *gw = handle->data;

    for (struct conn *c = gw->conns; c; c = c->next)
        if (conn_unsent(c) && c->since_us + HTTP_STOP_MS_MAX * INT64_C(1000) > clock_mono_us())
            return; /* an answer is still on its way */
    gateway_finish(gw);
}

void gateway_stop(struct gateway *gw, int exit_code)
{
    struct problem problem = {0};

    if (gw->stopping)
        return;
    gw->stopping = true;
    gw->exit_code = exit_code;
    close_handle((uv_handle_t *)&gw->listener);
    (void)problem_set(&problem, 503, "shutting_down", NULL, "the server is shutting down");
    for (struct conn *c = gw->conns; c; c = c->next) {
        c->keep_alive = false;
        if (c->call)
            call_fail(c->call, &problem);
        else if (c->state == CONN_READ)
            conn_drop(c, "the server ends");
        c->since_us = clock_mono_us();
    }
    (void)uv_timer_start(&gw->deadline, on_deadline, 20, 20);
}

/* Somebody still gets an answer: a call runs, bytes are on their way, or a request that had begun
 * to arrive is about to be refused. */
static bool conn_needed(const struct conn *c, int64_t now_us)
{
    return c->call || c->state == CONN_BUSY || (c->state != CONN_CLOSED && conn_unsent(c)) ||
           (c->state == CONN_READ && now_us - c->since_us < HTTP_STOP_MS_MAX * INT64_C(1000));
}

static void on_drain(uv_timer_t *handle)
{
    struct gateway *gw = handle->data;
    int64_t now_us = clock_mono_us();

    if (now_us > gw->drain_until_us) {
        log_warn("calls=%zu \"--drain-timeout is over\"", gw->calls_count);
        gateway_stop(gw, 0);
        return;
    }
    for (struct conn *c = gw->conns; c; c = c->next)
        if (conn_needed(c, now_us))
            return;
    gateway_stop(gw, 0);
}

/* A polite end: nobody new comes in, what runs is finished. */
static void gateway_drain(struct gateway *gw)
{
    int64_t now_us = clock_mono_us();

    gw->draining = true;
    gw->drain_until_us = now_us + (int64_t)(options_float(gw->options, OPT_DRAIN_TIMEOUT) * 1e6);
    close_handle((uv_handle_t *)&gw->listener);
    for (struct conn *c = gw->conns; c; c = c->next) {
        c->keep_alive = false;
        if (c->state != CONN_READ)
            continue;
        c->since_us = now_us;
        if (!c->fresh && !c->http.started && !conn_unsent(c))
            conn_drop(c, "the server ends");
    }
    log_info("calls=%zu connections=%zu \"draining\"", gw->calls_count, gw->conns_count);
    (void)uv_timer_start(&gw->deadline, on_drain, 0, HTTP_DRAIN_MS);
}

/* The first SIGTERM drains; a second one, or SIGINT, ends at once. */
static void on_signal(uv_signal_t *handle, int number)
{
    struct gateway *gw = handle->data;

    log_info("signal=%d \"ending\"", number);
    if (number == SIGTERM && !gw->draining)
        gateway_drain(gw);
    else
        gateway_stop(gw, 0);
}

/* ---- start ---- */

/* Several gateways listen on one port: the kernel spreads connections among them. */
static int port_share(struct gateway *gw, int family)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int on = 1;

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on)) {
        int code = uv_translate_sys_error(errno);

        if (fd >= 0)
            (void)close(fd);
        return code;
    }
    return uv_tcp_open(&gw->listener, fd);
}

static int gateway_bind(struct gateway *gw, struct err *err)
{
    const char *host = options_str(gw->options, OPT_HOST);
    int port = (int)options_int(gw->options, OPT_PORT);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    char service[16];
    int rc;

    (void)snprintf(gw->address, sizeof gw->address, strchr(host, ':') ? "[%.253s]:%d" : "%.253s:%d",
                   host, port);
    (void)snprintf(service, sizeof service, "%d", port);
    rc = getaddrinfo(host, service, &hints, &found);
    if (rc)
        return err_set(err, ERR_INVALID, "--host %s: %s", host, gai_strerror(rc));
    rc = options_int(gw->options, OPT_NUM_GATEWAY) > 1 ? port_share(gw, found->ai_family) : 0;
    if (!rc)
        rc = uv_tcp_bind(&gw->listener, found->ai_addr, 0);
    freeaddrinfo(found);
    if (!rc)
        rc = uv_listen((uv_stream_t *)&gw->listener, BACKLOG, on_connection);
    if (rc == UV_EADDRINUSE)
        return err_set(err, ERR_BUSY, "port %d of %s is in use (--port)", port, host);
    if (rc)
        return err_set(err, ERR_IO, "can not listen on %s: %s", gw->address, uv_strerror(rc));
    return 0;
}

/* As many connections as the descriptors allow, the soft limit raised to the hard one. */
static size_t connections_max(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit))
        return 1024;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur == RLIM_INFINITY)
        return 1048576;
    return limit.rlim_cur > 2 * HTTP_FDS_RESERVED ? (size_t)limit.rlim_cur - HTTP_FDS_RESERVED
                                                  : HTTP_FDS_RESERVED / 4;
}

/* --served-model-name, or the folder's name, or the hub id as it is. */
static char *model_name(const struct options *o)
{
    const char *name = options_str(o, OPT_SERVED_MODEL_NAME);
    const char *path = options_str(o, OPT_MODEL_PATH);
    size_t len = strlen(path), start;

    if (name[0])
        return mem_strdup(name);
    while (len > 1 && path[len - 1] == '/')
        len--;
    if (!len)
        return mem_strdup("default");
    for (start = len; start > 0 && path[start - 1] != '/';)
        start--;
    return mem_strndup(path + start, len - start);
}

static void settings_read(struct gateway *gw)
{
    const struct options *o = gw->options;
    const char *model_dir = options_str(o, OPT_MODEL_PATH);
    uint64_t hash = 0xcbf29ce484222325u;

    gw->api_key = options_str(o, OPT_API_KEY)[0] ? options_str(o, OPT_API_KEY) : NULL;
    gw->model = model_name(o);
    for (const char *at = PHALANX_VERSION; *at; at++)
        hash = (hash ^ (unsigned char)*at) * 0x100000001b3u;
    for (const char *at = gw->model; *at; at++)
        hash = (hash ^ (unsigned char)*at) * 0x100000001b3u;
    (void)snprintf(gw->fingerprint, sizeof gw->fingerprint, "fp_%010llx",
                   (unsigned long long)(hash & 0xffffffffffu));
    gw->created_s = clock_wall_us() / 1000000;
    gw->request_us_max = (int64_t)(options_float(o, OPT_REQUEST_TIMEOUT) * 1e6);
    gw->queued_max = (uint32_t)options_int(o, OPT_MAX_QUEUED_REQUESTS);
    gw->recovery_queue_max = (size_t)options_int(o, OPT_RECOVERY_QUEUE);
    gw->conns_max = connections_max();
    gw->health_only = gw->announced = options_bool(o, OPT_HEALTH_ONLY);
    gw->context.model = gw->model;
    gw->context.priorities = strcmp(options_str(o, OPT_SCHEDULE_POLICY), "priority") == 0;
    defaults_init(&gw->context.defaults);
    if (model_dir[0])
        defaults_load(model_dir, &gw->context.defaults);
    if (getrandom(&gw->random, sizeof gw->random, 0) != (ssize_t)sizeof gw->random)
        gw->random = (uint64_t)clock_wall_us();
}

static void handles_init(struct gateway *gw)
{
    (void)uv_tcp_init(&gw->loop, &gw->listener);
    (void)uv_timer_init(&gw->loop, &gw->tick);
    (void)uv_timer_init(&gw->loop, &gw->deadline);
    (void)uv_prepare_init(&gw->loop, &gw->flush);
    (void)uv_signal_init(&gw->loop, &gw->sigterm);
    (void)uv_signal_init(&gw->loop, &gw->sigint);
    gw->listener.data = gw->tick.data = gw->deadline.data = gw->flush.data = gw;
    gw->sigterm.data = gw->sigint.data = gw;
    (void)uv_timer_start(&gw->tick, on_tick, HTTP_TICK_MS, HTTP_TICK_MS);
    (void)uv_prepare_start(&gw->flush, on_flush);
    (void)uv_signal_start(&gw->sigterm, on_signal, SIGTERM);
    (void)uv_signal_start(&gw->sigint, on_signal, SIGINT);
}

static int gateway_open(struct gateway *gw, struct err *err)
{
    const struct options *o = gw->options;
    const char *endpoint = options_str(o, OPT_TOKENIZER_ENDPOINT);
    const char *name = options_str(o, OPT_NAME)[0] ? options_str(o, OPT_NAME) : "gateway-0";
    struct bus_config link = {
        .loop = &gw->loop,
        .role = "gateway",
        .name = name,
        .silence_ms_max = (int64_t)(options_float(o, OPT_HEARTBEAT_TIMEOUT) * 1000),
    };
    struct bus_security security;
    int rc;

    if (!endpoint[0])
        return err_set(err, ERR_INVALID, "--tokenizer-endpoint is required");
    rc = bus_security_init(&security, o, err);
    if (!rc)
        rc = gateway_bind(gw, err);
    if (!rc)
        rc = backend_open(gw, endpoint, &security, name, link.silence_ms_max, err);
    if (!rc)
        rc = launcher_link_open(&link, options_str(o, OPT_CONTROL_ENDPOINT), &gw->launcher, err);
    bus_security_fini(&security);
    return rc;
}

int gateway_run(const struct options *options, struct err *err)
{
    struct gateway *gw = mem_zalloc(sizeof *gw);
    int exit_code;

    gw->options = options;
    TAILQ_INIT(&gw->waiting);
    gw->read_buf = mem_alloc(READ_BUF_BYTES);
    (void)uv_loop_init(&gw->loop);
    handles_init(gw);
    settings_read(gw);
    gw->exit_code = 1;
    if (gateway_open(gw, err)) {
        close_handle((uv_handle_t *)&gw->listener);
        gateway_finish(gw);
    }
    (void)uv_run(&gw->loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&gw->loop);
    backend_fini(&gw->backend);
    buf_fini(&gw->scratch);
    exit_code = gw->exit_code;
    free(gw->read_buf);
    free(gw->model);
    free(gw);
    return exit_code;
}

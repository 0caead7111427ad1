/* Links: two ends in one loop, a proxy that cuts connections, peers that restart, stall or lie. */
#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "proto/bus.h"
#include "proto/bus_socket.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#define GUARD_MS 60000 /* a test that hangs fails after so long */
#define ABSENT_MS 400  /* what is not to come is waited for so long */

/* One end of a link and what happened to it. */
struct end {
    struct bus *bus;
    struct bus_peer *peer;
    int ups, downs, refusals;
    char reason[600];
    uint64_t next;    /* id of the next message, when checked */
    uint64_t wrong;   /* messages that were not `next` */
    uint64_t got;     /* messages */
    uint64_t stop_at; /* leave the loop when got reaches it */
    int stop_ups, stop_downs;
    bool close_on_message, send_on_up;
    uv_loop_t *loop;
};

static char folder[] = "/tmp/phalanx-test-bus-XXXXXX";

static int folder_make(void **state)
{
    (void)state;
    log_init("test", LOG_ERROR); /* warnings about strangers are expected here */
    return mkdtemp(folder) ? 0 : -1;
}

static int folder_remove(void **state)
{
    char command[128];
    (void)state;
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    return system(command);
}

static const char *endpoint(const char *name)
{
    static char text[128];
    snprintf(text, sizeof(text), "ipc://%s/%s", folder, name);
    return text;
}

static void on_up(void *ctx, struct bus_peer *peer)
{
    struct end *e = ctx;
    e->peer = peer;
    e->ups++;
    e->next = 0;
    if (e->send_on_up) {
        const struct proto_abort m = {.reason = proto_str("up")};
        assert_int_equal(bus_send(peer, PROTO_ABORT, 0, &m, NULL), 0);
    }
    if (e->ups == e->stop_ups)
        uv_stop(e->loop);
}

static void on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                       const void *message)
{
    struct end *e = ctx;
    (void)message;
    assert_ptr_equal(peer, e->peer);
    assert_true(header->type > PROTO_PING);
    if (header->id != e->next++)
        e->wrong++;
    e->got++;
    if (e->got == e->stop_at)
        uv_stop(e->loop);
    if (e->close_on_message)
        bus_close(&e->bus);
}

static void on_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct end *e = ctx;
    assert_ptr_equal(peer, e->peer);
    e->peer = NULL;
    e->downs++;
    snprintf(e->reason, sizeof(e->reason), "%s", reason);
    if (e->downs == e->stop_downs)
        uv_stop(e->loop);
}

static void on_refused(void *ctx, const char *reason)
{
    struct end *e = ctx;
    e->refusals++;
    snprintf(e->reason, sizeof(e->reason), "%s", reason);
    uv_stop(e->loop);
}

static struct bus_config config_of(struct end *e, uv_loop_t *loop, const char *role,
                                   const char *name, const char *where)
{
    e->loop = loop;
    return (struct bus_config){.loop = loop,
                               .role = role,
                               .name = name,
                               .endpoint = where,
                               .accepts = "gateway,tokenizer",
                               .on = {on_up, on_message, on_down, on_refused},
                               .ctx = e};
}

static void end_bind(struct end *e, uv_loop_t *loop, const char *where)
{
    struct err err = {0};
    struct bus_config c = config_of(e, loop, "scheduler", "scheduler-0", where);
    if (bus_bind(&c, &e->bus, &err) != 0)
        fail_msg("bind: %s", err.msg);
}

static void end_connect(struct end *e, uv_loop_t *loop, const char *where)
{
    struct err err = {0};
    struct bus_config c = config_of(e, loop, "tokenizer", "tokenizer-0", where);
    if (bus_connect(&c, &e->bus, &err) != 0)
        fail_msg("connect: %s", err.msg);
}

static void on_guard(uv_timer_t *timer)
{
    (void)timer;
    fail_msg("nothing more happened");
}

/* Runs the loop until a callback stops it. */
static void run(uv_loop_t *loop)
{
    uv_timer_t guard;
    uv_timer_init(loop, &guard);
    uv_timer_start(&guard, on_guard, GUARD_MS, 0);
    uv_run(loop, UV_RUN_DEFAULT);
    uv_close((uv_handle_t *)&guard, NULL);
    uv_run(loop, UV_RUN_NOWAIT);
}

static void on_pause(uv_timer_t *timer)
{
    uv_stop(timer->loop);
}

static void run_ms(uv_loop_t *loop, uint64_t ms)
{
    uv_timer_t timer;
    uv_timer_init(loop, &timer);
    uv_timer_start(&timer, on_pause, ms, 0);
    uv_run(loop, UV_RUN_DEFAULT);
    uv_close((uv_handle_t *)&timer, NULL);
    uv_run(loop, UV_RUN_NOWAIT);
}

static void loop_end(uv_loop_t *loop)
{
    uv_run(loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(loop), 0);
}

static void send_one(struct end *e, uint64_t id)
{
    struct err err = {0};
    const struct proto_abort m = {.reason = proto_str("a reason")};
    if (bus_send(e->peer, PROTO_ABORT, id, &m, &err) != 0)
        fail_msg("send %d: %s", (int)id, err.msg);
}

/* Both up, whichever comes first. */
static void pair_up(struct end *a, struct end *b, uv_loop_t *loop)
{
    a->stop_ups = a->ups + 1;
    b->stop_ups = b->ups + 1;
    while (!a->peer || !b->peer)
        run(loop);
}

static void test_order_both_ways(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0}, b = {0};
    end_bind(&a, &loop, endpoint("order"));
    end_connect(&b, &loop, endpoint("order"));
    pair_up(&a, &b, &loop);
    assert_string_equal(bus_peer_name(a.peer), "tokenizer-0");
    assert_string_equal(bus_peer_role(a.peer), "tokenizer");
    assert_string_equal(bus_peer_name(b.peer), "scheduler-0");
    assert_string_equal(bus_peer_role(b.peer), "scheduler");
    assert_ptr_equal(bus_next_peer(a.bus, NULL), a.peer);
    assert_null(bus_next_peer(a.bus, a.peer));

    a.stop_at = b.stop_at = 20000;
    for (uint64_t i = 0; i < 20000; i++) {
        send_one(&a, i);
        send_one(&b, i);
    }
    while (a.got < 20000 || b.got < 20000)
        run(&loop);
    assert_int_equal(a.wrong + b.wrong, 0);
    run_ms(&loop, 300);
    assert_int_equal(a.got, 20000);
    assert_int_equal(b.got, 20000);
    assert_int_equal(a.downs + b.downs, 0);
    bus_close(&a.bus);
    bus_close(&b.bus);
    loop_end(&loop);
}

static void test_connects_before_bind(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0}, b = {0};
    end_connect(&b, &loop, endpoint("late"));
    run_ms(&loop, 500);
    assert_int_equal(b.ups, 0);
    end_bind(&a, &loop, endpoint("late"));
    pair_up(&a, &b, &loop);
    bus_close(&a.bus);
    bus_close(&b.bus);
    loop_end(&loop);
}

/* ---- a proxy between two ends, whose connections can be cut or muted ---- */

#define PROXY_PAIRS 256

struct proxy_pair {
    struct proxy *proxy;
    uv_pipe_t client, server;
    uv_connect_t connect;
    bool muted; /* swallows what comes */
    int open;
};

struct proxy {
    uv_loop_t *loop;
    uv_pipe_t listener;
    char target[128];
    struct proxy_pair *pairs[PROXY_PAIRS]; /* all that ever were; NULL once closed */
    int count;
    int cuts;
    uv_timer_t timer;
};

static void on_pair_closed(uv_handle_t *handle)
{
    struct proxy_pair *pair = handle->data;
    if (--pair->open == 0)
        free(pair);
}

static void pair_close(struct proxy_pair *pair)
{
    for (int i = 0; i < pair->proxy->count; i++) {
        if (pair->proxy->pairs[i] == pair)
            pair->proxy->pairs[i] = NULL;
    }
    if (!uv_is_closing((uv_handle_t *)&pair->client))
        uv_close((uv_handle_t *)&pair->client, on_pair_closed);
    if (!uv_is_closing((uv_handle_t *)&pair->server))
        uv_close((uv_handle_t *)&pair->server, on_pair_closed);
}

static void on_proxy_alloc(uv_handle_t *handle, size_t size, uv_buf_t *buf)
{
    (void)handle;
    *buf = uv_buf_init(mem_alloc(size), (unsigned)size);
}

struct proxy_write {
    uv_write_t write;
    char *data;
};

static void on_proxy_written(uv_write_t *write, int status)
{
    struct proxy_write *w = (struct proxy_write *)(void *)write;
    (void)status;
    free(w->data);
    free(w);
}

static void on_proxy_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *buf)
{
    struct proxy_pair *pair = stream->data;
    if (count <= 0 || pair->muted) {
        free(buf->base);
        if (count < 0)
            pair_close(pair);
        return;
    }
    uv_pipe_t *other = (void *)stream == (void *)&pair->client ? &pair->server : &pair->client;
    struct proxy_write *w = mem_zalloc(sizeof(*w));
    w->data = buf->base;
    const uv_buf_t out = uv_buf_init(buf->base, (unsigned)count);
    if (uv_write(&w->write, (uv_stream_t *)other, &out, 1, on_proxy_written) < 0)
        on_proxy_written(&w->write, -1);
}

static void on_proxy_connected(uv_connect_t *connect, int status)
{
    struct proxy_pair *pair = connect->data;
    if (uv_is_closing((uv_handle_t *)&pair->client))
        return;
    if (status < 0) {
        pair_close(pair);
        return;
    }
    uv_read_start((uv_stream_t *)&pair->client, on_proxy_alloc, on_proxy_read);
    uv_read_start((uv_stream_t *)&pair->server, on_proxy_alloc, on_proxy_read);
}

static void on_proxy_connection(uv_stream_t *listener, int status)
{
    struct proxy *proxy = listener->data;
    assert_int_equal(status, 0);
    assert_true(proxy->count < PROXY_PAIRS);
    struct proxy_pair *pair = mem_zalloc(sizeof(*pair));
    pair->proxy = proxy;
    pair->open = 2;
    uv_pipe_init(proxy->loop, &pair->client, 0);
    uv_pipe_init(proxy->loop, &pair->server, 0);
    pair->client.data = pair->server.data = pair->connect.data = pair;
    proxy->pairs[proxy->count++] = pair;
    assert_int_equal(uv_accept(listener, (uv_stream_t *)&pair->client), 0);
    uv_pipe_connect(&pair->connect, &pair->server, proxy->target, on_proxy_connected);
}

static void proxy_cut(struct proxy *proxy)
{
    for (int i = 0; i < proxy->count; i++) {
        if (proxy->pairs[i]) {
            proxy->cuts++;
            pair_close(proxy->pairs[i]);
        }
    }
}

/* The connections there are carry nothing any more, but stay open. */
static void proxy_mute(struct proxy *proxy)
{
    for (int i = 0; i < proxy->count; i++) {
        if (proxy->pairs[i])
            proxy->pairs[i]->muted = true;
    }
}

static void on_proxy_timer(uv_timer_t *timer)
{
    proxy_cut(timer->data);
}

static void proxy_open(struct proxy *proxy, uv_loop_t *loop, const char *name, const char *target)
{
    char path[128];
    *proxy = (struct proxy){.loop = loop};
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    snprintf(proxy->target, sizeof(proxy->target), "%s/%s", folder, target);
    uv_pipe_init(loop, &proxy->listener, 0);
    uv_timer_init(loop, &proxy->timer);
    proxy->listener.data = proxy->timer.data = proxy;
    assert_int_equal(uv_pipe_bind(&proxy->listener, path), 0);
    assert_int_equal(uv_listen((uv_stream_t *)&proxy->listener, 16, on_proxy_connection), 0);
}

static void proxy_close(struct proxy *proxy)
{
    uv_close((uv_handle_t *)&proxy->listener, NULL);
    uv_close((uv_handle_t *)&proxy->timer, NULL);
    proxy_cut(proxy);
}

/* Sends in portions, so that connections are cut in the middle of the stream. */
static void feed(struct end *a, struct end *b, uv_loop_t *loop, uint64_t total)
{
    a->stop_at = b->stop_at = total;
    for (uint64_t i = 0; i < total; i++) {
        send_one(a, i);
        send_one(b, i);
        if (i % 100 == 99)
            run_ms(loop, 5);
    }
    while (a->got < total || b->got < total)
        run(loop);
}

static void test_connection_cut(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0}, b = {0};
    struct proxy proxy;
    proxy_open(&proxy, &loop, "cut-proxy", "cut");
    end_bind(&a, &loop, endpoint("cut"));
    end_connect(&b, &loop, endpoint("cut-proxy"));
    pair_up(&a, &b, &loop);
    uv_timer_start(&proxy.timer, on_proxy_timer, 130, 130);
    feed(&a, &b, &loop, 20000);
    assert_int_equal(a.wrong + b.wrong, 0);
    assert_int_equal(a.downs + b.downs, 0);
    assert_true(proxy.cuts >= 3);
    uv_timer_stop(&proxy.timer);
    run_ms(&loop, 500);
    assert_true(a.got == 20000 && b.got == 20000);
    bus_close(&a.bus);
    bus_close(&b.bus);
    proxy_close(&proxy);
    loop_end(&loop);
}

/* The connection stays but carries nothing: what was sent meanwhile is sent again by another. */
static void test_connection_swallows(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0}, b = {0};
    struct proxy proxy;
    proxy_open(&proxy, &loop, "mute-proxy", "mute");
    end_bind(&a, &loop, endpoint("mute"));
    end_connect(&b, &loop, endpoint("mute-proxy"));
    pair_up(&a, &b, &loop);
    a.stop_at = b.stop_at = 3;
    for (uint64_t i = 0; i < 3; i++) {
        if (i == 1)
            proxy_mute(&proxy);
        send_one(&a, i);
        send_one(&b, i);
        run_ms(&loop, 300);
    }
    while (a.got < 3 || b.got < 3)
        run(&loop);
    assert_int_equal(a.wrong + b.wrong + (uint64_t)a.downs + (uint64_t)b.downs, 0);
    assert_true(proxy.count >= 2);
    bus_close(&a.bus);
    bus_close(&b.bus);
    proxy_close(&proxy);
    loop_end(&loop);
}

static void test_connecting_side_restarts(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {.send_on_up = true}, b = {0}, again = {0};
    end_bind(&a, &loop, endpoint("restart"));
    end_connect(&b, &loop, endpoint("restart"));
    pair_up(&a, &b, &loop);
    for (uint64_t i = 1; i < 100; i++)
        send_one(&a, i);
    bus_close(&b.bus);
    end_connect(&again, &loop, endpoint("restart"));
    a.stop_ups = 0;
    again.stop_at = 1;
    run(&loop);
    assert_int_equal(a.ups, 2);
    assert_int_equal(a.downs, 1);
    assert_string_equal(a.reason, "restarted");
    run_ms(&loop, 300);
    assert_int_equal(again.ups, 1);
    assert_int_equal(again.got, 1); /* nothing that was meant for the old one */
    bus_close(&a.bus);
    bus_close(&again.bus);
    loop_end(&loop);
}

static void test_binding_side_restarts(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0}, b = {.send_on_up = true}, again = {.send_on_up = true};
    end_bind(&a, &loop, endpoint("rebind"));
    end_connect(&b, &loop, endpoint("rebind"));
    pair_up(&a, &b, &loop);
    for (uint64_t i = 1; i < 100; i++)
        send_one(&b, i);
    bus_close(&a.bus);
    run_ms(&loop, 300);
    end_bind(&again, &loop, endpoint("rebind"));
    b.stop_ups = b.ups + 1;
    b.stop_at = b.got + 1;
    again.stop_at = 1;
    while (b.ups < 2 || again.got < 1 || b.got < 1)
        run(&loop);
    assert_int_equal(b.downs, 1);
    assert_string_equal(b.reason, "restarted");
    run_ms(&loop, 300);
    assert_true(again.got == 1 && b.got == 1 && again.wrong + b.wrong == 0);
    assert_int_equal(again.downs, 0);
    bus_close(&again.bus);
    bus_close(&b.bus);
    loop_end(&loop);
}

static void test_closed_inside_callback(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {.close_on_message = true, .stop_at = 1}, b = {0};
    end_bind(&a, &loop, endpoint("inside"));
    end_connect(&b, &loop, endpoint("inside"));
    pair_up(&a, &b, &loop);
    for (uint64_t i = 0; i < 10; i++)
        send_one(&b, i);
    run(&loop);
    run_ms(&loop, 300);
    assert_null(a.bus);
    assert_int_equal(a.got, 1);
    bus_close(&b.bus);
    loop_end(&loop);
}

/* More bytes than the window of a link lets out at once. */
static void test_large_messages(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {.stop_at = 12}, b = {0};
    end_bind(&a, &loop, endpoint("large"));
    end_connect(&b, &loop, endpoint("large"));
    pair_up(&a, &b, &loop);
    const struct proto_submit m = {.prompt = mem_array(1048576, 4), .prompt_count = 1048576};
    for (uint64_t i = 0; i < 12; i++)
        assert_int_equal(bus_send(b.peer, PROTO_SUBMIT, i, &m, NULL), 0);
    while (a.got < 12)
        run(&loop);
    assert_int_equal(a.wrong, 0);
    free(m.prompt);
    bus_close(&a.bus);
    bus_close(&b.bus);
    loop_end(&loop);
}

/* ---- a peer made by hand ---- */

struct raw {
    void *context, *socket;
};

static void raw_open(struct raw *raw, int type, const char *where)
{
    const int linger = 0, wait = 20000;
    raw->context = zmq_ctx_new();
    raw->socket = zmq_socket(raw->context, type);
    zmq_setsockopt(raw->socket, ZMQ_LINGER, &linger, sizeof(linger));
    zmq_setsockopt(raw->socket, ZMQ_RCVTIMEO, &wait, sizeof(wait));
    if (type == ZMQ_DEALER)
        assert_int_equal(zmq_connect(raw->socket, where), 0);
    else
        assert_int_equal(zmq_bind(raw->socket, where), 0);
}

static void raw_close(struct raw *raw)
{
    zmq_close(raw->socket);
    zmq_ctx_term(raw->context);
}

static void raw_send(struct raw *raw, const struct proto_header *header, const void *message)
{
    struct buf b = {0};
    assert_int_equal(proto_encode(header, message, &b, NULL), 0);
    assert_int_equal(zmq_send(raw->socket, b.data, b.len, 0), (int)b.len);
    buf_fini(&b);
}

static void raw_hello(struct raw *raw, struct proto_hello hello)
{
    const struct proto_header header = {.type = PROTO_HELLO};
    hello.role = hello.role.data ? hello.role : proto_str("gateway");
    hello.name = hello.name.data ? hello.name : proto_str("raw-0");
    hello.version = proto_str("9.9.9");
    hello.schema = hello.schema ? hello.schema : proto_schema_hash();
    hello.instance = 5;
    hello.attempt = hello.attempt ? hello.attempt : 1;
    raw_send(raw, &header, &hello);
}

static void raw_abort(struct raw *raw, uint64_t seq, uint64_t id)
{
    const struct proto_header header = {.type = PROTO_ABORT, .seq = seq, .id = id};
    const struct proto_abort m = {.reason = proto_str("raw")};
    raw_send(raw, &header, &m);
}

/* Turns the loop until a message of the type arrives at the raw peer, and dumps it (of a REFUSE:
 * the reason). False: none came in wait_ms. */
static bool raw_wait(struct raw *raw, uv_loop_t *loop, enum proto_type type, int wait_ms,
                     struct buf *dump)
{
    const int64_t end = clock_mono_us() + wait_ms * INT64_C(1000);
    char data[4096];
    bool found = false;
    while (!found && clock_mono_us() < end) {
        run_ms(loop, 10);
        int len;
        while (!found && (len = zmq_recv(raw->socket, data, sizeof(data), ZMQ_DONTWAIT)) >= 0) {
            struct proto_arena arena = {0};
            struct proto_header header;
            void *message = NULL;
            assert_int_equal(proto_decode(data, (size_t)len, &arena, &header, &message, NULL), 0);
            found = header.type == type;
            buf_clear(dump);
            if (header.type == PROTO_REFUSE) {
                const struct proto_refuse *refuse = message;
                buf_append(dump, refuse->reason.data, refuse->reason.len);
            } else {
                proto_dump(&header, message, dump);
            }
            proto_arena_fini(&arena);
        }
    }
    return found;
}

static void expect_refused(struct end *a, uv_loop_t *loop, struct proto_hello hello,
                           const char *reason)
{
    struct raw raw;
    struct buf dump = {0};
    raw_open(&raw, ZMQ_DEALER, endpoint("refuse"));
    raw_hello(&raw, hello);
    assert_true(raw_wait(&raw, loop, PROTO_REFUSE, GUARD_MS, &dump));
    if (!strstr(dump.data, reason))
        fail_msg("not %s: %s", reason, dump.data);
    /* Not listened to any more, whatever it says. */
    hello = (struct proto_hello){.attempt = 2};
    raw_hello(&raw, hello);
    assert_int_equal(a->ups, 0);
    raw_close(&raw);
    buf_fini(&dump);
}

static void test_refusals(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0};
    end_bind(&a, &loop, endpoint("refuse"));
    expect_refused(&a, &loop, (struct proto_hello){.schema = 1}, "9.9.9 (schema 0000000000000001)");
    expect_refused(&a, &loop, (struct proto_hello){.schema = 1}, PHALANX_VERSION);
    expect_refused(&a, &loop, (struct proto_hello){.role = proto_str("worker")}, "role worker");
    expect_refused(&a, &loop, (struct proto_hello){.role = proto_str("gate")}, "role gate");
    expect_refused(&a, &loop, (struct proto_hello){.name = proto_str("a b")}, "not a word");
    expect_refused(&a, &loop, (struct proto_hello){.name = proto_str("")}, "not a word");
    run_ms(&loop, 100);
    assert_int_equal(a.ups, 0);
    bus_close(&a.bus);
    loop_end(&loop);
}

/* A zombie of an older epoch is told to end; one of a newer epoch waits for its bus. */
static void test_epochs(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0}, old = {0}, new = {0}, next = {0};
    struct bus_config c = config_of(&a, &loop, "scheduler", "scheduler-0", endpoint("epoch"));
    c.epoch = 3;
    assert_int_equal(bus_bind(&c, &a.bus, NULL), 0);
    c = config_of(&old, &loop, "gateway", "gateway-0", endpoint("epoch"));
    c.epoch = 2;
    assert_int_equal(bus_connect(&c, &old.bus, NULL), 0);
    run(&loop);
    assert_int_equal(old.refusals, 1);
    assert_non_null(strstr(old.reason, "epoch 2"));
    assert_non_null(strstr(old.reason, "3"));
    c = config_of(&new, &loop, "gateway", "gateway-0", endpoint("epoch"));
    c.epoch = 4;
    assert_int_equal(bus_connect(&c, &new.bus, NULL), 0);
    run_ms(&loop, 500);
    assert_int_equal(new.refusals + new.ups + a.ups, 0);
    bus_close(&a.bus);
    run_ms(&loop, 300);
    c = config_of(&next, &loop, "scheduler", "scheduler-0", endpoint("epoch"));
    c.epoch = 4;
    assert_int_equal(bus_bind(&c, &next.bus, NULL), 0);
    pair_up(&next, &new, &loop);
    assert_int_equal(new.refusals, 0);
    bus_close(&next.bus);
    bus_close(&new.bus);
    bus_close(&old.bus);
    loop_end(&loop);
}

static void test_too_many_peers(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0}, b = {0}, one = {0};
    struct bus_config c = config_of(&a, &loop, "scheduler", "scheduler-0", endpoint("many"));
    c.peers_max = 1;
    assert_int_equal(bus_bind(&c, &a.bus, NULL), 0);
    end_connect(&b, &loop, endpoint("many"));
    pair_up(&a, &b, &loop);
    c = config_of(&one, &loop, "tokenizer", "tokenizer-1", endpoint("many"));
    assert_int_equal(bus_connect(&c, &one.bus, NULL), 0);
    run(&loop);
    assert_int_equal(one.refusals, 1);
    assert_int_equal(a.ups, 1);
    bus_close(&a.bus);
    bus_close(&b.bus);
    bus_close(&one.bus);
    loop_end(&loop);
}

/* Strangers' bytes disturb nobody who is in. */
static void test_garbage_from_a_stranger(void **state)
{
    (void)state;
    static const char *const junk[] = {"",
                                       "x",
                                       "GET / HTTP/1.1",
                                       "\x96\x04\x01\x00\x00\x00",
                                       "\xff\xff\xff\xff\xff",
                                       "\xdd\xff\xff\xff\xff"};
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0}, b = {0};
    struct buf dump = {0};
    end_bind(&a, &loop, endpoint("junk"));
    end_connect(&b, &loop, endpoint("junk"));
    pair_up(&a, &b, &loop);
    for (size_t i = 0; i < sizeof(junk) / sizeof(junk[0]); i++) {
        struct raw raw;
        raw_open(&raw, ZMQ_DEALER, endpoint("junk"));
        zmq_send(raw.socket, junk[i], strlen(junk[i]), 0);
        for (int more = 0; more < 100; more++)
            zmq_send(raw.socket, junk[i], strlen(junk[i]), more % 7 ? ZMQ_SNDMORE : 0);
        zmq_send(raw.socket, "", 0, 0);
        assert_true(raw_wait(&raw, &loop, PROTO_REFUSE, GUARD_MS, &dump));
        assert_non_null(strstr(dump.data, "do not decode"));
        if (i == 0) /* one answer only */
            assert_false(raw_wait(&raw, &loop, PROTO_REFUSE, ABSENT_MS, &dump));
        raw_close(&raw);
    }
    a.stop_at = 1;
    send_one(&b, 0);
    while (a.got < 1)
        run(&loop);
    assert_int_equal(a.downs + b.downs, 0);
    assert_int_equal(a.ups, 1);
    bus_close(&a.bus);
    bus_close(&b.bus);
    buf_fini(&dump);
    loop_end(&loop);
}

/* A peer that is in and then breaks the rules is down, with the reason. */
static void test_peer_breaks_protocol(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    for (int how = 0; how < 6; how++) {
        struct end a = {.stop_downs = 1};
        struct raw raw;
        struct buf dump = {0};
        char where[32];
        snprintf(where, sizeof(where), "break-%d", how);
        const struct proto_ping ping = {.received = 1};
        const struct proto_header control = {.type = PROTO_PING};
        const struct proto_header numbered = {.type = PROTO_PING, .seq = 4};
        static const char *const reasons[] = {"message 5 after 3",     "never sent",
                                              "do not decode",         "PING is out of place",
                                              "HELLO is out of place", "ABORT is out of place"};
        end_bind(&a, &loop, endpoint(where));
        raw_open(&raw, ZMQ_DEALER, endpoint(where));
        raw_hello(&raw, (struct proto_hello){0});
        assert_true(raw_wait(&raw, &loop, PROTO_WELCOME, GUARD_MS, &dump));
        raw_abort(&raw, 1, 0);
        raw_abort(&raw, 2, 1);
        raw_abort(&raw, 1, 77); /* repeats are dropped */
        raw_abort(&raw, 2, 77);
        raw_abort(&raw, 3, 2);
        if (how == 0)
            raw_abort(&raw, 5, 3);
        else if (how == 1)
            raw_send(&raw, &control, &ping);
        else if (how == 2)
            zmq_send(raw.socket, "junk", 4, 0);
        else if (how == 3)
            raw_send(&raw, &numbered, &ping);
        else if (how == 4)
            raw_hello(&raw, (struct proto_hello){.attempt = 2});
        else
            raw_abort(&raw, 0, 3);
        run(&loop);
        assert_int_equal(a.got, 3);
        assert_int_equal(a.wrong, 0);
        if (!strstr(a.reason, reasons[how]))
            fail_msg("not %s: %s", reasons[how], a.reason);
        raw_close(&raw);
        bus_close(&a.bus);
        buf_fini(&dump);
    }
    loop_end(&loop);
}

/* A server that talks nonsense does not hurt who connects to it. */
static void test_garbage_from_the_server(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end b = {0};
    struct raw raw;
    raw_open(&raw, ZMQ_ROUTER, endpoint("nonsense"));
    end_connect(&b, &loop, endpoint("nonsense"));
    unsigned hellos = 0;
    for (int i = 0; i < 60; i++) {
        char route[256], data[1024];
        run_ms(&loop, 50);
        int len = zmq_recv(raw.socket, route, sizeof(route), ZMQ_DONTWAIT);
        if (len < 0)
            continue;
        assert_true(zmq_recv(raw.socket, data, sizeof(data), 0) > 0);
        hellos++;
        zmq_send(raw.socket, route, (size_t)len, ZMQ_SNDMORE);
        zmq_send(raw.socket, "nonsense", 8, hellos % 2 ? ZMQ_SNDMORE : 0);
        if (hellos % 2)
            zmq_send(raw.socket, "more", 4, 0);
    }
    assert_true(hellos >= 2); /* it goes on trying */
    assert_int_equal(b.ups + b.downs, 0);
    raw_close(&raw);
    bus_close(&b.bus);
    loop_end(&loop);
}

/* A raw peer comes back: what it gets again depends on what it says of the link. */
static void test_what_is_sent_again(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0};
    struct raw raw;
    struct buf dump = {0};
    end_bind(&a, &loop, endpoint("again"));
    raw_open(&raw, ZMQ_DEALER, endpoint("again"));
    raw_hello(&raw, (struct proto_hello){.attempt = 1});
    assert_true(raw_wait(&raw, &loop, PROTO_WELCOME, GUARD_MS, &dump));
    const uint64_t theirs = strtoull(strstr(dump.data, "instance=") + 9, NULL, 10);
    assert_true(theirs != 0);
    for (uint64_t i = 0; i < 3; i++)
        send_one(&a, i);
    assert_true(raw_wait(&raw, &loop, PROTO_ABORT, GUARD_MS, &dump));
    raw_close(&raw);

    /* It never got the WELCOME: everything, whatever it claims to have received. */
    raw_open(&raw, ZMQ_DEALER, endpoint("again"));
    raw_hello(&raw, (struct proto_hello){.attempt = 2, .received = 3});
    assert_true(raw_wait(&raw, &loop, PROTO_ABORT, GUARD_MS, &dump));
    assert_non_null(strstr(dump.data, "seq=1 id=0"));
    raw_close(&raw);

    /* It knows the link and has two. */
    raw_open(&raw, ZMQ_DEALER, endpoint("again"));
    raw_hello(&raw, (struct proto_hello){.attempt = 3, .peer = theirs, .received = 2});
    assert_true(raw_wait(&raw, &loop, PROTO_ABORT, GUARD_MS, &dump));
    assert_non_null(strstr(dump.data, "seq=3 id=2"));
    raw_close(&raw);
    assert_int_equal(a.ups, 1);
    assert_int_equal(a.downs, 0);

    /* It means a link that is not there: a new one, with nothing in it. */
    raw_open(&raw, ZMQ_DEALER, endpoint("again"));
    raw_hello(&raw, (struct proto_hello){.attempt = 4, .peer = theirs + 1, .received = 9});
    assert_true(raw_wait(&raw, &loop, PROTO_WELCOME, GUARD_MS, &dump));
    assert_false(raw_wait(&raw, &loop, PROTO_ABORT, ABSENT_MS, &dump));
    assert_int_equal(a.ups, 2);
    assert_int_equal(a.downs, 1);
    raw_close(&raw);
    bus_close(&a.bus);
    buf_fini(&dump);
    loop_end(&loop);
}

/* Who speaks without a HELLO is told to connect again, once. */
static void test_no_hello(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0};
    struct raw raw;
    struct buf dump = {0};
    end_bind(&a, &loop, endpoint("unknown"));
    raw_open(&raw, ZMQ_DEALER, endpoint("unknown"));
    raw_abort(&raw, 1, 0);
    raw_abort(&raw, 2, 0);
    assert_true(raw_wait(&raw, &loop, PROTO_WELCOME, GUARD_MS, &dump));
    assert_non_null(strstr(dump.data, "instance=0 "));
    assert_false(raw_wait(&raw, &loop, PROTO_WELCOME, ABSENT_MS, &dump));
    assert_int_equal(a.ups, 0);
    assert_int_equal(a.got, 0);
    raw_close(&raw);
    bus_close(&a.bus);
    buf_fini(&dump);
    loop_end(&loop);
}

/* A server by hand: takes one message, fills route. */
static void server_take(struct raw *raw, uv_loop_t *loop, enum proto_type type,
                        struct bus_route *route, struct proto_hello *hello)
{
    const int64_t end = clock_mono_us() + GUARD_MS * INT64_C(1000);
    char data[1024];
    int len = -1;
    while (clock_mono_us() < end) {
        run_ms(loop, 10);
        struct proto_arena arena = {0};
        struct proto_header header = {0};
        void *message = NULL;
        len = zmq_recv(raw->socket, route->data, sizeof(route->data), ZMQ_DONTWAIT);
        if (len < 0)
            continue;
        route->len = (uint8_t)len;
        len = zmq_recv(raw->socket, data, sizeof(data), 0);
        assert_true(len > 0);
        assert_int_equal(proto_decode(data, (size_t)len, &arena, &header, &message, NULL), 0);
        const bool found = header.type == type;
        if (found && hello)
            *hello = *(const struct proto_hello *)message; /* its numbers; the strings go */
        proto_arena_fini(&arena);
        if (found)
            return;
    }
    fail_msg("no %s came", proto_type_name(type));
}

static void server_welcome(struct raw *raw, const struct bus_route *route, uint64_t instance,
                           uint64_t received)
{
    const struct proto_header header = {.type = PROTO_WELCOME};
    const struct proto_welcome w = {.role = proto_str("scheduler"),
                                    .name = proto_str("raw"),
                                    .instance = instance,
                                    .received = received};
    zmq_send(raw->socket, route->data, route->len, ZMQ_SNDMORE);
    raw_send(raw, &header, &w);
}

/* Told that its connection is unknown, the connecting side comes by a new one and goes on. */
static void test_told_to_connect_again(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end b = {.stop_ups = 1};
    struct raw raw;
    struct bus_route route, other;
    struct proto_hello first, second;
    raw_open(&raw, ZMQ_ROUTER, endpoint("told"));
    end_connect(&b, &loop, endpoint("told"));
    server_take(&raw, &loop, PROTO_HELLO, &route, &first);
    assert_true(first.instance != 0 && first.peer == 0 && first.received == 0);
    server_welcome(&raw, &route, 77, 0);
    run(&loop);
    send_one(&b, 0);
    server_take(&raw, &loop, PROTO_ABORT, &route, NULL);
    server_welcome(&raw, &route, 0, 0);
    server_take(&raw, &loop, PROTO_HELLO, &other, &second);
    assert_true(second.instance == first.instance && second.peer == 77);
    assert_true(second.attempt > first.attempt);
    assert_true(route.len != other.len || memcmp(route.data, other.data, route.len) != 0);
    server_welcome(&raw, &other, 77, 0);
    server_take(&raw, &loop, PROTO_ABORT, &other, NULL); /* not acknowledged, so sent again */
    assert_int_equal(b.ups, 1);
    assert_int_equal(b.downs, 0);
    raw_close(&raw);
    bus_close(&b.bus);
    loop_end(&loop);
}

/* The loop's signal handlers stay, through new connections too. */
static void test_signals_are_left_alone(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end b = {0};
    struct sigaction ours = {.sa_handler = SIG_IGN}, before, now;
    assert_int_equal(sigaction(SIGINT, &ours, &before), 0);
    struct raw raw;
    struct bus_route route;
    raw_open(&raw, ZMQ_ROUTER, endpoint("signals"));
    end_connect(&b, &loop, endpoint("signals"));
    server_take(&raw, &loop, PROTO_HELLO, &route, NULL);
    server_welcome(&raw, &route, 0, 0);
    server_take(&raw, &loop, PROTO_HELLO, &route, NULL);
    assert_int_equal(sigaction(SIGINT, &before, &now), 0);
    assert_true(now.sa_handler == SIG_IGN);
    raw_close(&raw);
    bus_close(&b.bus);
    loop_end(&loop);
}

/* A peer that acknowledges nothing: what is kept for it has a bound, and it is the sender that is
 * told. A late HELLO of an older connection changes nothing. */
static void test_kept_is_bounded(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0};
    struct raw raw, late;
    struct buf dump = {0};
    struct err err = {0};
    struct bus_config c = config_of(&a, &loop, "scheduler", "scheduler-0", endpoint("kept"));
    c.kept_bytes_max = 100000;
    c.silence_ms_max = GUARD_MS; /* the raw peer does not ping */
    assert_int_equal(bus_bind(&c, &a.bus, &err), 0);
    raw_open(&raw, ZMQ_DEALER, endpoint("kept"));
    raw_hello(&raw, (struct proto_hello){.attempt = 2});
    assert_true(raw_wait(&raw, &loop, PROTO_WELCOME, GUARD_MS, &dump));
    uint64_t sent = 0;
    int rc = 0;
    const struct proto_abort m = {.reason = proto_str("kept")};
    while ((rc = bus_send(a.peer, PROTO_ABORT, sent, &m, &err)) == 0)
        sent++;
    assert_int_equal(rc, ERR_BUSY);
    assert_true(sent > 100 && sent < 100000 / 20);

    raw_open(&late, ZMQ_DEALER, endpoint("kept"));
    raw_hello(&late, (struct proto_hello){.attempt = 1});
    assert_false(raw_wait(&late, &loop, PROTO_WELCOME, ABSENT_MS, &dump));
    assert_int_equal(a.ups, 1);

    const struct proto_header header = {.type = PROTO_PING};
    const struct proto_ping ping = {.received = sent};
    raw_send(&raw, &header, &ping);
    run_ms(&loop, 300);
    assert_int_equal(bus_send(a.peer, PROTO_ABORT, sent, &m, &err), 0);
    raw_close(&late);
    raw_close(&raw);
    bus_close(&a.bus);
    buf_fini(&dump);
    loop_end(&loop);
}

static void test_bounds_of_a_message(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0}, b = {0};
    struct err err = {0};
    struct bus_config c = config_of(&a, &loop, "scheduler", "scheduler-0", endpoint("size"));
    c.message_max = 4000;
    assert_int_equal(bus_bind(&c, &a.bus, &err), 0);
    end_connect(&b, &loop, endpoint("size"));
    pair_up(&a, &b, &loop);
    uint32_t ids[10000] = {0};
    const struct proto_submit m = {.prompt = ids, .prompt_count = 10000};
    assert_int_equal(bus_send(a.peer, PROTO_SUBMIT, 0, &m, &err), ERR_LIMIT);
    const struct proto_failed f = {.message = {(const char *)ids, 2049}};
    assert_int_equal(bus_send(a.peer, PROTO_FAILED, 0, &f, &err), ERR_LIMIT);
    assert_non_null(strstr(err.msg, "failed.message"));
    assert_int_equal(bus_send(a.peer, PROTO_HELLO, 0, &m, &err), ERR_INVALID);
    /* The other side may send so much; this one never takes it, and that is said. */
    b.stop_downs = 1;
    assert_int_equal(bus_send(b.peer, PROTO_SUBMIT, 0, &m, &err), 0);
    run(&loop);
    assert_non_null(strstr(b.reason, "nothing gets through"));
    assert_int_equal(a.got, 0);
    bus_close(&a.bus);
    bus_close(&b.bus);
    loop_end(&loop);
}

/* ---- endpoints ---- */

static int try_bind(struct end *e, uv_loop_t *loop, const char *where)
{
    struct err err = {0};
    struct bus_config c = config_of(e, loop, "scheduler", "scheduler-0", where);
    return bus_bind(&c, &e->bus, &err);
}

static int listen_tcp(unsigned *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, len), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &len), 0);
    *port = ntohs(address.sin_port);
    return fd;
}

static void test_endpoints(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0}, b = {0};
    char path[256], tcp[64];
    unsigned port = 0;
    assert_int_equal(try_bind(&a, &loop, endpoint("busy")), 0);
    assert_int_equal(try_bind(&b, &loop, endpoint("busy")), ERR_BUSY);
    assert_null(b.bus);
    end_connect(&b, &loop, endpoint("busy"));
    pair_up(&a, &b, &loop); /* the first one still has it */
    bus_close(&b.bus);
    bus_close(&a.bus);

    /* What a dead process left behind is taken over; a file that is no socket is not. */
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/left", folder);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    close(fd);
    assert_int_equal(try_bind(&a, &loop, endpoint("left")), 0);
    bus_close(&a.bus);
    snprintf(path, sizeof(path), "%s/file", folder);
    fd = open(path, O_CREAT | O_WRONLY, 0600);
    close(fd);
    assert_int_equal(try_bind(&a, &loop, endpoint("file")), ERR_INVALID);
    assert_int_equal(access(path, F_OK), 0);

    fd = listen_tcp(&port);
    snprintf(tcp, sizeof(tcp), "tcp://127.0.0.1:%u", port);
    assert_int_equal(try_bind(&a, &loop, tcp), ERR_BUSY);
    close(fd);
    assert_int_equal(try_bind(&a, &loop, tcp), 0);
    end_connect(&b, &loop, tcp);
    pair_up(&a, &b, &loop);
    bus_close(&a.bus);
    bus_close(&b.bus);

    static const char *const remote[] = {"tcp://0.0.0.0:5000",   "tcp://*:5000",
                                         "tcp://10.0.0.1:5000",  "tcp://[::]:5000",
                                         "tcp://127.evil.com:1", "tcp://node-1:5000",
                                         "ipc://relative",       "inproc://x",
                                         "pgm://eth0;1.1.1.1:1", ""};
    for (size_t i = 0; i < sizeof(remote) / sizeof(remote[0]); i++)
        assert_int_equal(try_bind(&a, &loop, remote[i]), ERR_UNSUPPORTED);
    static const char *const wrong[] = {
        "tcp://127.0.0.1",   "tcp://127.0.0.1:",   "tcp://127.0.0.1:*",
        "tcp://127.0.0.1:0", "tcp://127.0.0.1:1x", "tcp://127.0.0.1:65536"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        assert_int_equal(try_bind(&a, &loop, wrong[i]), ERR_INVALID);
    char deep[300];
    snprintf(deep, sizeof(deep), "ipc:///%0200d", 1);
    assert_int_equal(try_bind(&a, &loop, deep), ERR_INVALID);
    assert_int_equal(try_bind(&a, &loop, "ipc:///nonexistent/folder/x"), ERR_IO);
    loop_end(&loop);
}

/* ---- another process that is stopped ---- */

static void echo_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                         const void *message)
{
    (void)ctx;
    if (bus_send(peer, header->type, header->id, message, NULL) != 0)
        _exit(1);
}

static void echo_up(void *ctx, struct bus_peer *peer)
{
    (void)ctx;
    (void)peer;
}

static void echo_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    (void)ctx;
    (void)peer;
    (void)reason;
}

/* `test_bus echo ENDPOINT bind|connect`: sends back whatever comes, until it is killed. */
static int echo_main(const char *where, bool binds)
{
    uv_loop_t loop;
    struct bus *bus = NULL;
    log_init("echo", LOG_ERROR);
    uv_loop_init(&loop);
    const struct bus_config c = {.loop = &loop,
                                 .role = binds ? "scheduler" : "tokenizer",
                                 .name = "echo",
                                 .endpoint = where,
                                 .accepts = "tokenizer",
                                 .on = {echo_up, echo_message, echo_down, NULL}};
    if ((binds ? bus_bind(&c, &bus, NULL) : bus_connect(&c, &bus, NULL)) < 0)
        return 1;
    uv_run(&loop, UV_RUN_DEFAULT);
    return 0;
}

static pid_t echo_start(const char *where, const char *side)
{
    char path[] = "/proc/self/exe";
    char *arguments[] = {path, mem_strdup("echo"), mem_strdup(where), mem_strdup(side), NULL};
    pid_t pid = fork();
    if (pid == 0) {
        execv(path, arguments);
        _exit(127);
    }
    for (int i = 1; i < 4; i++)
        free(arguments[i]);
    return pid;
}

static void echo_end(pid_t pid)
{
    int status = 0;
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
}

/* 20,000 messages there and back while the other process stops for up to longer than ZeroMQ's
 * heartbeat allows, so that connections break: none lost, none twice, in order. */
static void stalls(const char *name, bool bind)
{
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {.stop_at = 20000};
    if (bind)
        end_bind(&a, &loop, endpoint(name));
    pid_t pid = echo_start(endpoint(name), bind ? "connect" : "bind");
    if (!bind)
        end_connect(&a, &loop, endpoint(name));
    a.stop_ups = 1;
    run(&loop);
    uint64_t sent = 0;
    for (int round = 0; round < 5; round++) {
        kill(pid, SIGSTOP);
        for (int i = 0; i < 20; i++) {
            for (int k = 0; k < 200; k++)
                send_one(&a, sent++);
            run_ms(&loop, round < 3 ? 10 : 70);
            if (i == 15)
                kill(pid, SIGCONT);
        }
    }
    while (a.got < 20000)
        run(&loop);
    assert_int_equal(sent, 20000);
    assert_int_equal(a.wrong, 0);
    assert_int_equal(a.downs, 0);
    run_ms(&loop, 300);
    assert_int_equal(a.got, 20000);
    echo_end(pid);
    bus_close(&a.bus);
    loop_end(&loop);
}

static void test_stalls_of_the_binding_side(void **state)
{
    (void)state;
    stalls("stall-bind", false);
}

static void test_stalls_of_the_connecting_side(void **state)
{
    (void)state;
    stalls("stall-connect", true);
}

/* Down when silent for too long, up again afterwards as a new link; then killed and started. */
static void silence(const char *name, bool bind)
{
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0};
    struct bus_config c =
        config_of(&a, &loop, bind ? "scheduler" : "tokenizer", "self", endpoint(name));
    c.silence_ms_max = 700;
    assert_int_equal(bind ? bus_bind(&c, &a.bus, NULL) : 0, 0);
    pid_t pid = echo_start(endpoint(name), bind ? "connect" : "bind");
    assert_int_equal(bind ? 0 : bus_connect(&c, &a.bus, NULL), 0);
    a.stop_ups = 1;
    run(&loop);
    kill(pid, SIGSTOP);
    a.stop_downs = 1;
    send_one(&a, 0);
    run(&loop);
    assert_string_equal(a.reason, "silent for 700 ms");
    kill(pid, SIGCONT);
    a.stop_ups = 2;
    run(&loop);
    send_one(&a, 0);
    a.stop_at = a.got + 1;
    run(&loop);
    assert_int_equal(a.wrong, 0);
    echo_end(pid);
    a.stop_downs = 2;
    run(&loop);
    pid = echo_start(endpoint(name), bind ? "connect" : "bind");
    a.stop_ups = 3;
    run(&loop);
    send_one(&a, 0);
    a.stop_at = a.got + 1;
    run(&loop);
    assert_int_equal(a.wrong, 0);
    echo_end(pid);
    bus_close(&a.bus);
    loop_end(&loop);
}

static void test_silence_of_the_binding_side(void **state)
{
    (void)state;
    silence("silent-bind", false);
}

static void test_silence_of_the_connecting_side(void **state)
{
    (void)state;
    silence("silent-connect", true);
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "echo") == 0)
        return echo_main(argv[2], strcmp(argv[3], "bind") == 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_both_ways),
        cmocka_unit_test(test_connects_before_bind),
        cmocka_unit_test(test_connection_cut),
        cmocka_unit_test(test_connection_swallows),
        cmocka_unit_test(test_connecting_side_restarts),
        cmocka_unit_test(test_binding_side_restarts),
        cmocka_unit_test(test_closed_inside_callback),
        cmocka_unit_test(test_large_messages),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_epochs),
        cmocka_unit_test(test_too_many_peers),
        cmocka_unit_test(test_garbage_from_a_stranger),
        cmocka_unit_test(test_peer_breaks_protocol),
        cmocka_unit_test(test_garbage_from_the_server),
        cmocka_unit_test(test_what_is_sent_again),
        cmocka_unit_test(test_no_hello),
        cmocka_unit_test(test_told_to_connect_again),
        cmocka_unit_test(test_signals_are_left_alone),
        cmocka_unit_test(test_kept_is_bounded),
        cmocka_unit_test(test_bounds_of_a_message),
        cmocka_unit_test(test_endpoints),
        cmocka_unit_test(test_stalls_of_the_binding_side),
        cmocka_unit_test(test_stalls_of_the_connecting_side),
        cmocka_unit_test(test_silence_of_the_binding_side),
        cmocka_unit_test(test_silence_of_the_connecting_side),
    };
    return cmocka_run_group_tests(tests, folder_make, folder_remove);
}

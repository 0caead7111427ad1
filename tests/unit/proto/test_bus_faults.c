/* Links over connections that break or carry nothing, and processes that stop. */
#include "tests/unit/proto/bus_ends.h"

/* ---- a proxy between two ends, whose connections can be cut or muted ---- */

#define PROXY_PAIRS 256

struct proxy_pair {
    struct proxy *proxy;
    uv_pipe_t client, server;
    uv_connect_t connect;
    bool muted[2]; /* swallows what comes from the client, from the server */
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
    const bool up = (void *)stream == (void *)&pair->client;
    if (count <= 0 || pair->muted[up ? 0 : 1]) {
        free(buf->base);
        if (count < 0)
            pair_close(pair);
        return;
    }
    uv_pipe_t *other = up ? &pair->server : &pair->client;
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

/* The connections there are carry nothing any more from the client, from the server, but stay
 * open. */
static void proxy_mute(struct proxy *proxy, bool client, bool server)
{
    for (int i = 0; i < proxy->count; i++) {
        if (proxy->pairs[i]) {
            proxy->pairs[i]->muted[0] = client;
            proxy->pairs[i]->muted[1] = server;
        }
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

/* The connection stays but carries nothing, or nothing from one side: what was sent meanwhile is
 * sent again by another. */
static void swallows(const char *name, bool client, bool server)
{
    char by[32];
    snprintf(by, sizeof(by), "%s-proxy", name);
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0}, b = {0};
    struct proxy proxy;
    proxy_open(&proxy, &loop, by, name);
    end_bind(&a, &loop, endpoint(name));
    end_connect(&b, &loop, endpoint(by));
    pair_up(&a, &b, &loop);
    a.stop_at = b.stop_at = 3;
    for (uint64_t i = 0; i < 3; i++) {
        if (i == 1)
            proxy_mute(&proxy, client, server);
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

static void test_connection_swallows(void **state)
{
    (void)state;
    swallows("mute", true, true);
}

static void test_connection_swallows_from_one_side(void **state)
{
    (void)state;
    swallows("mute-up", true, false);
    swallows("mute-down", false, true);
}

/* ---- another process that is stopped ---- */

/* 20,000 messages there and back while the other process stops for up to longer than a connection
 * may be quiet, so that links go on by new ones: none lost, none twice, in order. */
static void stalls(const char *name, bool bind)
{
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {.stop_at = 20000};
    if (bind)
        end_bind(&a, &loop, endpoint(name));
    pid_t pid = echo_start(endpoint(name), bind ? "connect" : "bind", "0");
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
    pid_t pid = echo_start(endpoint(name), bind ? "connect" : "bind", "0");
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
    pid = echo_start(endpoint(name), bind ? "connect" : "bind", "0");
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
    if (argc == 5 && strcmp(argv[1], "echo") == 0)
        return echo_main(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_connection_cut),
        cmocka_unit_test(test_connection_swallows),
        cmocka_unit_test(test_connection_swallows_from_one_side),
        cmocka_unit_test(test_stalls_of_the_binding_side),
        cmocka_unit_test(test_stalls_of_the_connecting_side),
        cmocka_unit_test(test_silence_of_the_binding_side),
        cmocka_unit_test(test_silence_of_the_connecting_side),
    };
    return cmocka_run_group_tests(tests, folder_make, folder_remove);
}

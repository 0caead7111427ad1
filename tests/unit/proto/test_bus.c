/* Links between two ends that behave: order, restarts, ends, bounds, endpoints. */
#include "tests/unit/proto/bus_ends.h"

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
    assert_string_equal(a.reason, "ended");
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

/* The connecting side closes its end: it is gone at once, not after a silence. */
static void test_end_is_said(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {.stop_downs = 1}, b = {0};
    struct bus_config c = config_of(&a, &loop, "scheduler", "scheduler-0", endpoint("bye"));
    c.silence_ms_max = 2 * GUARD_MS;
    assert_int_equal(bus_bind(&c, &a.bus, NULL), 0);
    end_connect(&b, &loop, endpoint("bye"));
    pair_up(&a, &b, &loop);
    send_one(&b, 0);
    bus_close(&b.bus);
    run(&loop);
    assert_int_equal(a.got, 1);
    assert_string_equal(a.reason, "ended");
    bus_close(&a.bus);
    loop_end(&loop);
}

/* Who does not run reads nothing: only when it has hung up is the other side's word settled. */
static void test_refusal_is_read(void **state)
{
    (void)state;
    uv_loop_t loops[2];
    struct end a = {0}, b = {0};
    uv_loop_init(&loops[0]);
    uv_loop_init(&loops[1]);
    end_bind(&a, &loops[0], endpoint("settled"));
    end_connect(&b, &loops[1], endpoint("settled"));
    for (int turn = 0; !b.ups || !a.ups; turn ^= 1)
        run_ms(&loops[turn], 10);
    assert_true(bus_settled(a.bus));
    bus_refuse(a.peer, "not wanted");
    run_ms(&loops[0], 600);
    assert_false(bus_settled(a.bus));
    run(&loops[1]);
    assert_int_equal(b.refusals, 1);
    assert_non_null(strstr(b.reason, "not wanted"));
    while (!bus_settled(a.bus))
        run_ms(&loops[0], 50);
    bus_close(&a.bus);
    bus_close(&b.bus);
    loop_end(&loops[0]);
    loop_end(&loops[1]);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_both_ways),
        cmocka_unit_test(test_connects_before_bind),
        cmocka_unit_test(test_connecting_side_restarts),
        cmocka_unit_test(test_binding_side_restarts),
        cmocka_unit_test(test_closed_inside_callback),
        cmocka_unit_test(test_large_messages),
        cmocka_unit_test(test_end_is_said),
        cmocka_unit_test(test_refusal_is_read),
        cmocka_unit_test(test_too_many_peers),
        cmocka_unit_test(test_bounds_of_a_message),
        cmocka_unit_test(test_endpoints),
    };
    return cmocka_run_group_tests(tests, folder_make, folder_remove);
}

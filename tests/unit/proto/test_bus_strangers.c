/* Peers made by hand: strangers, liars, and what a join says on the wire. */
#include "tests/unit/proto/bus_ends.h"

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
    struct end first = {0};
    end_bind(&first, &loop, endpoint("signals-first"));
    assert_int_equal(sigaction(SIGTERM, &ours, &before), 0);
    assert_true(before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN);
    struct raw raw;
    struct bus_route route;
    raw_open(&raw, ZMQ_ROUTER, endpoint("signals"));
    end_connect(&b, &loop, endpoint("signals"));
    server_take(&raw, &loop, PROTO_HELLO, &route, NULL);
    server_welcome(&raw, &route, 0, 0);
    server_take(&raw, &loop, PROTO_HELLO, &route, NULL);
    assert_int_equal(sigaction(SIGTERM, &before, &now), 0);
    assert_true(now.sa_handler == SIG_IGN);
    bus_close(&first.bus);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_garbage_from_a_stranger),
        cmocka_unit_test(test_peer_breaks_protocol),
        cmocka_unit_test(test_garbage_from_the_server),
        cmocka_unit_test(test_what_is_sent_again),
        cmocka_unit_test(test_no_hello),
        cmocka_unit_test(test_told_to_connect_again),
        cmocka_unit_test(test_signals_are_left_alone),
        cmocka_unit_test(test_kept_is_bounded),
    };
    return cmocka_run_group_tests(tests, folder_make, folder_remove);
}

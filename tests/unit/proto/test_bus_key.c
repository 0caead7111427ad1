/* Who has the cluster key gets in, nobody else gets anything, and the wire shows no clear text. */
#include "tests/unit/proto/bus_ends.h"

#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>

static const char *tcp_endpoint(uint16_t port)
{
    static char text[64];
    snprintf(text, sizeof(text), "tcp://127.0.0.1:%u", port);
    return text;
}

static int listen_any(uint16_t *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    assert_int_equal(listen(fd, 8), 0);
    *port = ntohs(a.sin_port);
    return fd;
}

static uint16_t free_port(void)
{
    uint16_t port;
    close(listen_any(&port));
    return port;
}

static struct bus_security new_key(void)
{
    struct bus_security s = {.keyed = true};
    struct buf text = {0};
    assert_int_equal(bus_key_generate(&text, NULL), 0);
    assert_int_equal(bus_key_parse(text.data, &s.key, NULL), 0);
    buf_fini(&text);
    return s;
}

static void open_end(struct end *e, uv_loop_t *loop, bool bind, uint16_t port,
                     const struct bus_security *security)
{
    struct err err = {0};
    struct bus_config c = config_of(e, loop, bind ? "scheduler" : "tokenizer",
                                    bind ? "scheduler-0" : "tokenizer-0", tcp_endpoint(port));
    c.security = security;
    if ((bind ? bus_bind(&c, &e->bus, &err) : bus_connect(&c, &e->bus, &err)) != 0)
        fail_msg("%s", err.msg);
}

/* ---- keys as text ---- */

static void test_text(void **state)
{
    (void)state;
    struct buf a = {0}, b = {0};
    struct bus_key one, two;
    struct err err;
    assert_int_equal(bus_key_generate(&a, NULL), 0);
    assert_int_equal(bus_key_generate(&b, NULL), 0);
    assert_string_not_equal(a.data, b.data);
    assert_int_equal(a.len, strlen("phalanx-key-1:") + 128 + 1);
    assert_int_equal(bus_key_parse(a.data, &one, &err), 0);
    assert_string_not_equal(one.server_secret, one.client_secret);
    assert_string_not_equal(one.server_public, one.server_secret);
    assert_int_equal(strlen(one.client_public), 40);

    buf_clear(&b);
    buf_printf(&b, " \n%.*s \t\r\n", (int)a.len - 1, a.data);
    assert_int_equal(bus_key_parse(b.data, &two, &err), 0);
    assert_memory_equal(&one, &two, sizeof(one));

    for (size_t cut = 0; cut < a.len - 1; cut++) {
        buf_clear(&b);
        buf_append(&b, a.data, cut);
        buf_append(&b, "", 1);
        assert_int_equal(bus_key_parse(b.data, &two, &err), ERR_INVALID);
    }
    static const char *const tails[] = {"0", " 00", "g"};
    for (size_t i = 0; i < 3; i++) {
        buf_clear(&b);
        buf_printf(&b, "%.*s%s", (int)a.len - 1, a.data, tails[i]);
        assert_int_equal(bus_key_parse(b.data, &two, &err), ERR_INVALID);
    }
    a.data[40] = 'x';
    assert_int_equal(bus_key_parse(a.data, &two, &err), ERR_INVALID);
    assert_null(strstr(err.msg, a.data + 50)); /* no part of a key in a message */
    buf_fini(&a);
    buf_fini(&b);
}

static int security_of(struct bus_security *s, struct err *err, int argc, const char *const *words)
{
    struct options o;
    char *argv[8] = {mem_strdup("test")};
    for (int i = 0; i < argc; i++)
        argv[i + 1] = mem_strdup(words[i]);
    int rc = options_parse(&o, 's', argc + 1, argv, err);
    if (rc == 0)
        rc = bus_security_init(s, &o, err);
    options_fini(&o);
    for (int i = 0; i <= argc; i++)
        free(argv[i]);
    return rc;
}

static void test_options(void **state)
{
    (void)state;
    char path[128], flag[160];
    struct bus_security s;
    struct err err = {0};
    struct buf text = {0};
    snprintf(path, sizeof(path), "%s/key", folder);
    snprintf(flag, sizeof(flag), "--cluster-key-file=%s", path);
    const char *const words[] = {flag, "--insecure-bus"};

    assert_int_equal(security_of(&s, &err, 0, NULL), 0);
    assert_false(s.keyed || s.insecure);
    assert_int_equal(security_of(&s, &err, 1, words), ERR_NOT_FOUND);
    assert_int_equal(bus_key_generate(&text, NULL), 0);
    FILE *f = fopen(path, "w");
    assert_true(f && fwrite(text.data, 1, text.len, f) == text.len && fclose(f) == 0);
    static const struct {
        mode_t mode;
        int rc;
    } modes[] = {{0600, 0},           {0400, 0},           {0640, 0},          {0440, 0},
                 {0644, ERR_INVALID}, {0620, ERR_INVALID}, {0604, ERR_INVALID}};
    for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++) {
        assert_int_equal(chmod(path, modes[i].mode), 0);
        assert_int_equal(security_of(&s, &err, 1, words), modes[i].rc);
    }
    assert_int_equal(chmod(path, 0600), 0);
    assert_int_equal(security_of(&s, &err, 1, words), 0);
    assert_true(s.keyed && !s.insecure);
    assert_int_equal(security_of(&s, &err, 2, words), ERR_INVALID);
    assert_int_equal(setenv("PHALANX_CLUSTER_KEY", text.data, 1), 0);
    assert_int_equal(security_of(&s, &err, 1, words), ERR_INVALID);
    assert_int_equal(security_of(&s, &err, 0, NULL), 0);
    assert_true(s.keyed);
    assert_int_equal(setenv("PHALANX_CLUSTER_KEY", "secret-password", 1), 0);
    assert_int_equal(security_of(&s, &err, 0, NULL), ERR_INVALID);
    assert_non_null(strstr(err.msg, "PHALANX_CLUSTER_KEY"));
    assert_null(strstr(err.msg, "secret-password"));
    unsetenv("PHALANX_CLUSTER_KEY");
    const char *const naked[] = {"--cluster-key=abc"};
    assert_int_equal(security_of(&s, &err, 1, naked), ERR_INVALID);
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(security_of(&s, &err, 1, words), ERR_INVALID);
    buf_fini(&text);
}

/* ---- where a bus may be ---- */

static void test_addresses(void **state)
{
    (void)state;
    const struct bus_security none = {0}, insecure = {.insecure = true}, keyed = new_key();
    static const struct {
        const char *endpoint;
        bool bind;
        int none, insecure, keyed;
    } rows[] = {
        {"tcp://127.0.0.1:5000", true, 0, 0, 0},
        {"tcp://localhost:5000", false, 0, 0, 0},
        {"tcp://10.0.0.1:5000", true, ERR_UNSUPPORTED, 0, 0},
        {"tcp://10.0.0.1:5000", false, ERR_UNSUPPORTED, 0, 0},
        {"tcp://scheduler:5000", false, ERR_UNSUPPORTED, 0, 0},
        {"tcp://127.evil.com:5000", false, ERR_UNSUPPORTED, 0, 0},
        {"tcp://*:5000", true, ERR_UNSUPPORTED, ERR_UNSUPPORTED, 0},
        {"tcp://0.0.0.0:5000", true, ERR_UNSUPPORTED, ERR_UNSUPPORTED, 0},
        {"tcp://0:5000", true, ERR_UNSUPPORTED, ERR_UNSUPPORTED, 0},
        {"tcp://[::]:5000", true, ERR_UNSUPPORTED, ERR_UNSUPPORTED, 0},
        {"tcp://*:5000", false, ERR_INVALID, ERR_INVALID, ERR_INVALID},
        {"tcp://0.0.0.0:5000", false, ERR_INVALID, ERR_INVALID, ERR_INVALID},
        {"tcp://:5000", true, ERR_INVALID, ERR_INVALID, ERR_INVALID},
        {"tcp://10.0.0.1:0", true, ERR_INVALID, ERR_INVALID, ERR_INVALID},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        const char *e = rows[i].endpoint;
        assert_int_equal(socket_check_endpoint(e, &none, rows[i].bind, NULL), rows[i].none);
        assert_int_equal(socket_check_endpoint(e, &insecure, rows[i].bind, NULL), rows[i].insecure);
        assert_int_equal(socket_check_endpoint(e, &keyed, rows[i].bind, NULL), rows[i].keyed);
    }
}

/* ---- links ---- */

static void test_link(void **state)
{
    (void)state;
    const struct bus_security key = new_key();
    const uint16_t port = free_port();
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0}, b = {0}, again = {0};
    open_end(&b, &loop, false, port, &key);
    open_end(&a, &loop, true, port, &key);
    pair_up(&a, &b, &loop);
    a.stop_at = b.stop_at = 5000;
    for (uint64_t i = 0; i < 5000; i++) {
        send_one(&a, i);
        send_one(&b, i);
    }
    while (a.got < 5000 || b.got < 5000)
        run(&loop);
    assert_int_equal(a.wrong + b.wrong, 0);

    const struct proto_submit m = {.prompt = mem_array(1048576, 4), .prompt_count = 1048576};
    a.stop_at = 5003;
    for (uint64_t i = 5000; i < 5003; i++)
        assert_int_equal(bus_send(b.peer, PROTO_SUBMIT, i, &m, NULL), 0);
    while (a.got < 5003)
        run(&loop);
    assert_int_equal(a.wrong, 0);
    free(m.prompt);

    bus_close(&b.bus);
    open_end(&again, &loop, false, port, &key);
    pair_up(&a, &again, &loop);
    bus_close(&a.bus);
    bus_close(&again.bus);
    loop_end(&loop);
}

/* Whichever side lacks the key, nothing is up; the right one gets in at the same time. */
static void test_other_keys(void **state)
{
    (void)state;
    const struct bus_security key = new_key(), other = new_key(), none = {0};
    struct bus_security half = key; /* knows whom it talks to, but has another key of its own */
    memcpy(half.key.client_public, other.key.client_public, BUS_KEY_Z85);
    memcpy(half.key.client_secret, other.key.client_secret, BUS_KEY_Z85);
    const struct bus_security *const wrong[] = {&other, &none, &half};
    for (size_t i = 0; i < 3; i++) {
        const uint16_t port = free_port();
        uv_loop_t loop;
        uv_loop_init(&loop);
        struct end a = {0}, bad = {0}, good = {0};
        open_end(&a, &loop, true, port, &key);
        open_end(&bad, &loop, false, port, wrong[i]);
        run_ms(&loop, ABSENT_MS);
        assert_int_equal(a.ups + bad.ups, 0);
        open_end(&good, &loop, false, port, &key);
        pair_up(&a, &good, &loop);
        run_ms(&loop, ABSENT_MS);
        assert_int_equal(a.ups, 1);
        assert_int_equal(bad.ups + a.downs, 0);
        bus_close(&a.bus);
        bus_close(&bad.bus);
        bus_close(&good.bus);
        loop_end(&loop);
    }
    const uint16_t port = free_port();
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end open = {0}, b = {0};
    open_end(&open, &loop, true, port, &none);
    open_end(&b, &loop, false, port, &key);
    run_ms(&loop, 2 * ABSENT_MS);
    assert_int_equal(open.ups + b.ups, 0); /* who has a key says nothing to one without */
    bus_close(&open.bus);
    bus_close(&b.bus);
    loop_end(&loop);
}

/* Two buses of one process, with keys of their own: the one thread that lets in knows none. */
static void test_two_keys_in_one_process(void **state)
{
    (void)state;
    const struct bus_security keys[2] = {new_key(), new_key()};
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a[2] = {0}, b[2] = {0};
    for (int i = 0; i < 2; i++) {
        const uint16_t port = free_port();
        open_end(&a[i], &loop, true, port, &keys[i]);
        open_end(&b[i], &loop, false, port, &keys[i]);
    }
    for (int i = 0; i < 2; i++)
        pair_up(&a[i], &b[i], &loop);
    for (int i = 0; i < 2; i++) {
        bus_close(&a[i].bus);
        bus_close(&b[i].bus);
    }
    loop_end(&loop);
}

/* ---- strangers with a ZeroMQ of their own ---- */

static void *stranger_open(void *context, uint16_t port, int mechanism, const struct bus_key *key)
{
    char public[BUS_KEY_Z85], secret[BUS_KEY_Z85];
    const int linger = 0;
    void *s = zmq_socket(context, ZMQ_DEALER);
    assert_non_null(s);
    zmq_setsockopt(s, ZMQ_LINGER, &linger, sizeof(linger));
    if (mechanism == ZMQ_PLAIN) {
        zmq_setsockopt(s, ZMQ_PLAIN_USERNAME, "admin", 5);
        zmq_setsockopt(s, ZMQ_PLAIN_PASSWORD, "admin", 5);
    } else if (mechanism == ZMQ_CURVE) {
        assert_int_equal(zmq_curve_keypair(public, secret), 0);
        zmq_setsockopt(s, ZMQ_CURVE_SERVERKEY, key->server_public, 40);
        zmq_setsockopt(s, ZMQ_CURVE_PUBLICKEY, public, 40);
        zmq_setsockopt(s, ZMQ_CURVE_SECRETKEY, secret, 40);
    }
    assert_int_equal(zmq_connect(s, tcp_endpoint(port)), 0);
    return s;
}

/* A HELLO as an honest tokenizer would say it. */
static void stranger_say_hello(void *socket)
{
    const struct proto_hello hello = {.role = proto_str("tokenizer"),
                                      .name = proto_str("tokenizer-9"),
                                      .version = proto_str(PHALANX_VERSION),
                                      .schema = proto_schema_hash(),
                                      .instance = 1,
                                      .attempt = 1};
    const struct proto_header header = {.type = PROTO_HELLO};
    struct buf bytes = {0};
    assert_int_equal(proto_encode(&header, &hello, &bytes, NULL), 0);
    zmq_send(socket, bytes.data, bytes.len, ZMQ_DONTWAIT);
    buf_fini(&bytes);
}

static void strangers_try(uint16_t port, uv_loop_t *loop, const struct bus_key *key, bool welcome)
{
    static const int mechanisms[] = {ZMQ_NULL, ZMQ_PLAIN, ZMQ_CURVE};
    void *context = zmq_ctx_new();
    for (size_t i = 0; i < (welcome ? 1 : 3); i++) {
        void *s = stranger_open(context, port, mechanisms[i], key);
        stranger_say_hello(s);
        run_ms(loop, ABSENT_MS);
        zmq_msg_t msg;
        zmq_msg_init(&msg);
        assert_int_equal(zmq_msg_recv(&msg, s, ZMQ_DONTWAIT) > 0, welcome);
        zmq_msg_close(&msg);
        zmq_close(s);
    }
    zmq_ctx_term(context);
}

static void test_strangers(void **state)
{
    (void)state;
    const struct bus_security key = new_key(), none = {0};
    const uint16_t ports[2] = {free_port(), free_port()};
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end open = {0}, closed = {0};
    open_end(&open, &loop, true, ports[0], &none);
    open_end(&closed, &loop, true, ports[1], &key);
    strangers_try(ports[0], &loop, &key.key, true); /* the stranger speaks well enough */
    strangers_try(ports[1], &loop, &key.key, false);
    assert_int_equal(open.ups, 1);
    assert_int_equal(closed.ups, 0);
    bus_close(&open.bus);
    bus_close(&closed.bus);
    loop_end(&loop);
}

/* ---- the wire ---- */

#define TAP_MAX (1u << 20)

struct tap {
    int listener, stop[2];
    uint16_t port, target;
    pthread_t thread;
    size_t len;
    char *bytes; /* of both directions */
};

/* False: one side has closed. */
static bool tap_pass(struct tap *t, int from, int to)
{
    char buffer[4096];
    const ssize_t n = read(from, buffer, sizeof(buffer));
    if (n <= 0 || t->len + (size_t)n > TAP_MAX)
        return false;
    memcpy(t->bytes + t->len, buffer, (size_t)n);
    t->len += (size_t)n;
    return write(to, buffer, (size_t)n) == n;
}

static void *tap_run(void *ctx)
{
    struct tap *t = ctx;
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons(t->target),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int in = accept(t->listener, NULL, NULL), out = socket(AF_INET, SOCK_STREAM, 0);
    bool open = connect(out, (struct sockaddr *)&to, sizeof(to)) == 0;
    while (open) {
        struct pollfd fds[3] = {{in, POLLIN, 0}, {out, POLLIN, 0}, {t->stop[0], POLLIN, 0}};
        if (poll(fds, 3, -1) < 0 || fds[2].revents)
            break;
        open =
            (!fds[0].revents || tap_pass(t, in, out)) && (!fds[1].revents || tap_pass(t, out, in));
    }
    close(in);
    close(out);
    return NULL;
}

/* What a listener between the two sees of one message each way. */
static void listen_in(struct tap *t, const struct bus_security *security)
{
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {.stop_at = 1}, b = {.stop_at = 1};
    t->target = free_port();
    t->listener = listen_any(&t->port);
    t->bytes = mem_alloc(TAP_MAX);
    t->len = 0;
    assert_int_equal(pipe(t->stop), 0);
    assert_int_equal(pthread_create(&t->thread, NULL, tap_run, t), 0);
    open_end(&a, &loop, true, t->target, security);
    open_end(&b, &loop, false, t->port, security);
    pair_up(&a, &b, &loop);
    send_one(&a, 0);
    send_one(&b, 0);
    while (a.got < 1 || b.got < 1)
        run(&loop);
    bus_close(&a.bus);
    bus_close(&b.bus);
    loop_end(&loop);
    close(t->stop[1]);
    pthread_join(t->thread, NULL);
    close(t->stop[0]);
    close(t->listener);
}

static void test_wire(void **state)
{
    (void)state;
    static const char *const words[] = {"tokenizer-0", "scheduler-0", "a reason", PHALANX_VERSION};
    const struct bus_security key = new_key(), none = {0};
    struct tap t;
    listen_in(&t, &none);
    for (size_t i = 0; i < 4; i++)
        assert_non_null(memmem(t.bytes, t.len, words[i], strlen(words[i])));
    free(t.bytes);
    listen_in(&t, &key);
    assert_true(t.len > 500);
    assert_non_null(memmem(t.bytes, t.len, "CURVE", 5));
    for (size_t i = 0; i < 4; i++)
        assert_null(memmem(t.bytes, t.len, words[i], strlen(words[i])));
    free(t.bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),       cmocka_unit_test(test_options),
        cmocka_unit_test(test_addresses),  cmocka_unit_test(test_link),
        cmocka_unit_test(test_other_keys), cmocka_unit_test(test_two_keys_in_one_process),
        cmocka_unit_test(test_strangers),  cmocka_unit_test(test_wire),
    };
    return cmocka_run_group_tests(tests, folder_make, folder_remove);
}

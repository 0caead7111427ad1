/* Epochs: who is let in, who is refused while it is up, and that nothing of the past arrives. */
#include "tests/unit/proto/bus_ends.h"

static void bind_epoch(struct end *e, uv_loop_t *loop, const char *where, uint64_t epoch)
{
    struct bus_config c = config_of(e, loop, "scheduler", "scheduler-0", where);
    c.epoch = epoch;
    assert_int_equal(bus_bind(&c, &e->bus, NULL), 0);
}

static void connect_epoch(struct end *e, uv_loop_t *loop, const char *where, uint64_t epoch)
{
    struct bus_config c = config_of(e, loop, "tokenizer", "tokenizer-0", where);
    c.epoch = epoch;
    assert_int_equal(bus_connect(&c, &e->bus, NULL), 0);
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

/* Messages on their way when the epoch ends never arrive, and the name is free at once. */
static void test_epoch_ends(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0}, b = {0}, next = {0};
    bind_epoch(&a, &loop, endpoint("ends"), 3);
    connect_epoch(&b, &loop, endpoint("ends"), 3);
    pair_up(&a, &b, &loop);
    for (uint64_t i = 0; i < 100; i++)
        send_one(&b, i);
    bus_set_epoch(a.bus, 4, "rank 1 is lost");
    a.peer = NULL;
    assert_int_equal(bus_epoch(a.bus), 4);
    assert_null(bus_next_peer(a.bus, NULL));
    run(&loop);
    assert_int_equal(b.refusals, 1);
    assert_non_null(strstr(b.reason, "rank 1 is lost"));
    connect_epoch(&next, &loop, endpoint("ends"), 4);
    pair_up(&a, &next, &loop);
    next.stop_at = a.stop_at = 1;
    send_one(&a, 0);
    send_one(&next, 0);
    while (a.got < 1 || next.got < 1)
        run(&loop);
    run_ms(&loop, ABSENT_MS);
    assert_int_equal(a.got, 1);
    assert_int_equal(a.wrong + (uint64_t)a.downs, 0);
    bus_close(&a.bus);
    bus_close(&b.bus);
    bus_close(&next.bus);
    loop_end(&loop);
}

/* A process that was stopped while its epoch ended, with messages in hand, is refused when it goes
 * on; what it answers never arrives. `epoch` is that of the zombie: 0 takes part in any, once. */
static void zombie(const char *where, const char *epoch)
{
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {.stop_ups = 1};
    int status = 0;
    bind_epoch(&a, &loop, where, 3);
    pid_t pid = echo_start(where, "connect", epoch);
    run(&loop);
    kill(pid, SIGSTOP);
    for (uint64_t i = 0; i < 100; i++)
        send_one(&a, i);
    run_ms(&loop, 1500); /* longer than ZeroMQ keeps the connection */
    bus_set_epoch(a.bus, 4, "over");
    a.peer = NULL;
    kill(pid, SIGCONT);
    while (waitpid(pid, &status, WNOHANG) == 0)
        run_ms(&loop, 20);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), ECHO_REFUSED);
    assert_int_equal(a.got, 0);
    assert_int_equal(a.ups, 1);
    bus_close(&a.bus);
    loop_end(&loop);
}

static void test_zombie(void **state)
{
    (void)state;
    zombie(endpoint("zombie"), "3");
}

static void test_zombie_of_any_epoch(void **state)
{
    (void)state;
    zombie(endpoint("zombie-any"), "0");
}

/* Epoch 0 takes part in the first epoch it is welcomed in, and in no later one. */
static void test_epoch_adopted(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {.stop_at = 1}, b = {.stop_at = 1}, next = {0};
    connect_epoch(&b, &loop, endpoint("adopt"), 0);
    assert_int_equal(bus_epoch(b.bus), 0);
    bind_epoch(&a, &loop, endpoint("adopt"), 5);
    pair_up(&a, &b, &loop);
    assert_int_equal(bus_epoch(b.bus), 5);
    send_one(&a, 0);
    send_one(&b, 0);
    while (a.got < 1 || b.got < 1)
        run(&loop);
    b.stop_downs = 1;
    bus_close(&a.bus);
    run(&loop);
    run_ms(&loop, 300); /* until the endpoint is free */
    bind_epoch(&next, &loop, endpoint("adopt"), 6);
    run(&loop);
    assert_int_equal(b.refusals, 1);
    assert_non_null(strstr(b.reason, "epoch 5"));
    assert_int_equal(next.ups, 0);
    bus_close(&b.bus);
    bus_close(&next.bus);
    loop_end(&loop);
}

static void on_epoch_noted(void *ctx, uint64_t epoch)
{
    struct end *e = ctx;
    e->next = epoch;
    uv_stop(e->loop);
}

static void on_epoch_taken(void *ctx, uint64_t epoch)
{
    struct end *e = ctx;
    e->peer = NULL;
    bus_set_epoch(e->bus, epoch, "a later one has come");
}

static void later_epoch(const char *where, bool at_once)
{
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0}, b = {0}, later = {0};
    struct bus_config c = config_of(&a, &loop, "scheduler", "scheduler-0", where);
    c.epoch = 3;
    c.on.on_epoch = at_once ? on_epoch_taken : on_epoch_noted;
    assert_int_equal(bus_bind(&c, &a.bus, NULL), 0);
    connect_epoch(&b, &loop, where, 3);
    pair_up(&a, &b, &loop);
    connect_epoch(&later, &loop, where, 5);
    if (!at_once) {
        run(&loop);
        assert_int_equal(a.next, 5);
        run_ms(&loop, ABSENT_MS);
        assert_int_equal(a.ups + later.ups + b.refusals, 1 + 0 + 0);
        bus_set_epoch(a.bus, 5, "a later one has come");
        a.peer = NULL;
    }
    a.stop_ups = 2;
    later.stop_ups = 1;
    while (a.ups < 2 || !later.peer || b.refusals < 1)
        run(&loop);
    assert_int_equal(bus_epoch(a.bus), 5);
    assert_int_equal(later.refusals, 0);
    assert_ptr_equal(bus_next_peer(a.bus, NULL), a.peer);
    assert_null(bus_next_peer(a.bus, a.peer));
    bus_close(&a.bus);
    bus_close(&b.bus);
    bus_close(&later.bus);
    loop_end(&loop);
}

static void test_later_epoch_waits(void **state)
{
    (void)state;
    later_epoch(endpoint("later"), false);
}

static void test_later_epoch_at_once(void **state)
{
    (void)state;
    later_epoch(endpoint("at-once"), true);
}

static void refuse_on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                              const void *message)
{
    struct end *e = ctx;
    (void)header;
    (void)message;
    e->got++;
    e->peer = NULL;
    bus_refuse(peer, "of another model");
}

/* One peer is refused, inside of its own message; a new process may have its name. */
static void test_refuse(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {0}, b = {0}, next = {0};
    struct bus_config c = config_of(&a, &loop, "scheduler", "scheduler-0", endpoint("refuse"));
    c.on.on_message = refuse_on_message;
    assert_int_equal(bus_bind(&c, &a.bus, NULL), 0);
    end_connect(&b, &loop, endpoint("refuse"));
    pair_up(&a, &b, &loop);
    send_one(&b, 0);
    send_one(&b, 1);
    while (b.refusals < 1)
        run(&loop);
    assert_non_null(strstr(b.reason, "of another model"));
    assert_int_equal(b.downs, 1);
    assert_int_equal(a.got, 1);
    assert_int_equal(a.downs, 0);
    assert_null(bus_next_peer(a.bus, NULL));
    end_connect(&next, &loop, endpoint("refuse"));
    pair_up(&a, &next, &loop);
    bus_close(&a.bus);
    bus_close(&b.bus);
    bus_close(&next.bus);
    loop_end(&loop);
}

/* The refusal is lost with the connection: said again when the peer comes back. */
static void test_refuse_of_the_absent(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {.stop_ups = 1};
    int status = 0;
    end_bind(&a, &loop, endpoint("absent"));
    pid_t pid = echo_start(endpoint("absent"), "connect", "0");
    run(&loop);
    kill(pid, SIGSTOP);
    run_ms(&loop, 1500); /* longer than ZeroMQ keeps the connection */
    bus_refuse(a.peer, "over");
    a.peer = NULL;
    kill(pid, SIGCONT);
    while (waitpid(pid, &status, WNOHANG) == 0)
        run_ms(&loop, 20);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), ECHO_REFUSED);
    assert_int_equal(a.ups, 1);
    bus_close(&a.bus);
    loop_end(&loop);
}

static void on_any_up(void *ctx, struct bus_peer *peer)
{
    struct end *e = ctx;
    (void)peer;
    if (++e->ups == e->stop_ups)
        uv_stop(e->loop);
}

static void on_first_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct end *e = ctx;
    assert_string_equal(reason, "restarted");
    e->downs++;
    bus_refuse(peer, "gone anyway");
    bus_set_epoch(e->bus, 4, "one is lost, all are");
    uv_stop(e->loop);
}

/* One comes back as a new process: the end of the old one is the end of the epoch, so that all
 * are refused, and the new one too. */
static void test_epoch_ends_in_on_down(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct end a = {.stop_ups = 2};
    struct bus_config c = config_of(&a, &loop, "scheduler", "scheduler-0", endpoint("both"));
    struct end b = {0}, other = {0};
    c.epoch = 3;
    c.on.on_up = on_any_up;
    c.on.on_down = on_first_down;
    assert_int_equal(bus_bind(&c, &a.bus, NULL), 0);
    connect_epoch(&b, &loop, endpoint("both"), 3);
    c = config_of(&other, &loop, "tokenizer", "tokenizer-1", endpoint("both"));
    c.epoch = 3;
    assert_int_equal(bus_connect(&c, &other.bus, NULL), 0);
    run(&loop);
    struct end again = {0};
    connect_epoch(&again, &loop, endpoint("both"), 3);
    while (again.refusals + b.refusals + other.refusals < 3)
        run(&loop);
    assert_int_equal(a.downs, 1);
    assert_int_equal(a.ups, 2);
    assert_null(bus_next_peer(a.bus, NULL));
    bus_close(&a.bus);
    bus_close(&b.bus);
    bus_close(&other.bus);
    bus_close(&again.bus);
    loop_end(&loop);
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "echo") == 0)
        return echo_main(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_epochs),
        cmocka_unit_test(test_epoch_ends),
        cmocka_unit_test(test_zombie),
        cmocka_unit_test(test_zombie_of_any_epoch),
        cmocka_unit_test(test_epoch_adopted),
        cmocka_unit_test(test_later_epoch_waits),
        cmocka_unit_test(test_later_epoch_at_once),
        cmocka_unit_test(test_refuse),
        cmocka_unit_test(test_refuse_of_the_absent),
        cmocka_unit_test(test_epoch_ends_in_on_down),
    };
    return cmocka_run_group_tests(tests, folder_make, folder_remove);
}

/* Launchers of several nodes in one process, over loopback. */
#include "services/launcher/nodes.h"

#include "common/log.h"
#include "common/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GUARD_MS 20000 /* a test that hangs fails after so long */
#define ENDS 4

/* One launcher's link and what happened to it. */
struct end {
    struct nodes *nodes;
    struct node_place place;
    struct node_self self;
    struct options options;
    struct bus_security security;
    int completes, parted, started, killed, downs, ends;
    bool failed, ready;
    uint64_t epoch;
    uint32_t first, count;
    char endpoint[128], reason[700], state[300];
};

struct world {
    uv_loop_t loop;
    uv_timer_t guard;
    uint16_t port;
    struct end ends[ENDS];
    bool expired;
};

static void on_complete(void *ctx)
{
    struct end *e = ctx;

    e->completes++;
}

static void on_rank_down(void *ctx, uint32_t replica, uint64_t epoch, const char *reason)
{
    struct end *e = ctx;

    assert_int_equal(replica, 0);
    e->downs++;
    e->epoch = epoch;
    (void)snprintf(e->reason, sizeof e->reason, "%s", reason);
}

static void on_start(void *ctx, const struct node_ranks *ranks)
{
    struct end *e = ctx;

    e->started++;
    e->epoch = ranks->epoch;
    e->first = ranks->first;
    e->count = ranks->count;
    (void)snprintf(e->endpoint, sizeof e->endpoint, "%s", ranks->endpoint);
}

static void on_kill(void *ctx, uint32_t replica, uint64_t epoch)
{
    struct end *e = ctx;

    assert_int_equal(replica, 0);
    e->killed++;
    e->epoch = epoch;
}

static void on_state(void *ctx, bool ready, const char *reason)
{
    struct end *e = ctx;

    e->ready = ready;
    (void)snprintf(e->state, sizeof e->state, "%s", reason);
}

static void on_parted(void *ctx, const char *reason)
{
    struct end *e = ctx;

    e->parted++;
    (void)snprintf(e->reason, sizeof e->reason, "%s", reason);
}

static void on_end(void *ctx, bool failed, const char *reason)
{
    struct end *e = ctx;

    e->ends++;
    e->failed = failed;
    (void)snprintf(e->reason, sizeof e->reason, "%s", reason);
}

static const struct nodes_callbacks callbacks = {.on_complete = on_complete,
                                                 .on_rank_down = on_rank_down,
                                                 .on_start = on_start,
                                                 .on_kill = on_kill,
                                                 .on_state = on_state,
                                                 .on_parted = on_parted,
                                                 .on_end = on_end};

static void on_guard(uv_timer_t *timer)
{
    struct world *w = timer->data;

    w->expired = true;
}

static struct world *world_new(void)
{
    struct world *w = mem_zalloc(sizeof *w);
    struct err err;

    (void)uv_loop_init(&w->loop);
    (void)uv_timer_init(&w->loop, &w->guard);
    w->guard.data = w;
    (void)uv_timer_start(&w->guard, on_guard, GUARD_MS, 0);
    assert_int_equal(node_free_port("127.0.0.1", &w->port, &err), 0);
    return w;
}

static void end_close(struct end *e)
{
    if (e->nodes)
        nodes_close(&e->nodes);
}

static void world_free(struct world *w)
{
    for (int i = 0; i < ENDS; i++)
        end_close(&w->ends[i]);
    uv_close((uv_handle_t *)&w->guard, NULL);
    (void)uv_run(&w->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&w->loop), 0);
    for (int i = 0; i < ENDS; i++)
        options_fini(&w->ends[i].options);
    free(w);
}

/* Runs until *value is at least `least`. */
static void run_until(struct world *w, const int *value, int least)
{
    while (*value < least && !w->expired)
        (void)uv_run(&w->loop, UV_RUN_ONCE);
    assert_true(*value >= least);
}

/* Options of serve: common ones, those of this test. */
static int end_options(struct world *w, struct end *e, const char *more, struct err *err)
{
    char line[512], *save = NULL;
    char program[] = "serve", *argv[32] = {program};
    int argc = 1;

    (void)snprintf(line, sizeof line,
                   "--model-path=/m --tp-size=4 --dist-init-addr=127.0.0.1:%u "
                   "--heartbeat-timeout=1 %s",
                   (unsigned)w->port, more);
    for (char *word = strtok_r(line, " ", &save); word && argc < 31;
         word = strtok_r(NULL, " ", &save))
        argv[argc++] = word;
    options_fini(&e->options);
    return options_parse(&e->options, 'S', argc, argv, err);
}

/* A launcher with these options. */
static int end_open(struct world *w, int index, const char *more, uint64_t model, struct err *err)
{
    struct end *e = &w->ends[index];
    struct nodes_config config = {.loop = &w->loop,
                                  .place = &e->place,
                                  .self = &e->self,
                                  .security = &e->security,
                                  .heartbeat_timeout_s = 1.0,
                                  .on = callbacks,
                                  .ctx = e};
    int rc = end_options(w, e, more, err);

    if (!rc)
        rc = node_place_init(&e->place, &e->options, err);
    if (rc)
        return rc;
    node_self_init(&e->self, &e->place, &e->options, model);
    return nodes_open(&config, &e->nodes, err);
}

static void opened(struct world *w, int index, const char *more)
{
    struct err err = {0};

    if (end_open(w, index, more, 7, &err))
        fail_msg("%s", err.msg);
}

static void has(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("\"%s\" is not in \"%s\"", part, text);
}

/* ---- all is well ---- */

static void test_group(void **state)
{
    struct world *w = world_new();

    (void)state;
    opened(w, 1, "--nnodes 2 --node-rank 1"); /* the order does not matter */
    opened(w, 0, "--nnodes 2 --node-rank 0");
    run_until(w, &w->ends[0].completes, 1);
    assert_true(nodes_complete(w->ends[0].nodes));
    nodes_start(w->ends[0].nodes, 0, 1, "tcp://127.0.0.1:7");
    run_until(w, &w->ends[1].started, 1);
    assert_int_equal(w->ends[1].epoch, 1);
    assert_int_equal(w->ends[1].first, 2);
    assert_int_equal(w->ends[1].count, 2);
    assert_string_equal(w->ends[1].endpoint, "tcp://127.0.0.1:7");
    nodes_rank_down(w->ends[1].nodes, 0, 1, "worker-3 was killed");
    run_until(w, &w->ends[0].downs, 1);
    assert_int_equal(w->ends[0].epoch, 1);
    has(w->ends[0].reason, "worker-3 was killed on node 1 (");
    nodes_kill(w->ends[0].nodes, 0, 4);
    run_until(w, &w->ends[1].killed, 1);
    assert_int_equal(w->ends[1].epoch, 4);
    nodes_state(w->ends[0].nodes, true, "");
    nodes_end(w->ends[0].nodes, false, "it was stopped");
    run_until(w, &w->ends[1].ends, 1);
    assert_true(w->ends[1].ready);
    assert_false(w->ends[1].failed);
    has(w->ends[1].reason, "node 0 ends all nodes: it was stopped");
    world_free(w);
}

/* A node that goes says so; its place waits for it. */
static void test_again(void **state)
{
    struct world *w = world_new();
    struct err err = {0};

    (void)state;
    opened(w, 0, "--nnodes 3 --tp-size 6 --node-rank 0");
    opened(w, 1, "--nnodes 3 --tp-size 6 --node-rank 1");
    opened(w, 2, "--nnodes 3 --tp-size 6 --node-rank 2");
    run_until(w, &w->ends[0].completes, 1);
    nodes_end(w->ends[2].nodes, false, "SIGTERM");
    run_until(w, &w->ends[0].parted, 1);
    has(w->ends[0].reason, "node 2 (");
    has(w->ends[0].reason, "ended: SIGTERM");
    assert_false(nodes_complete(w->ends[0].nodes));
    end_close(&w->ends[2]);
    opened(w, 2, "--nnodes 3 --tp-size 6 --node-rank 2");
    run_until(w, &w->ends[0].completes, 2);
    /* One that vanishes without a word is missed, too. */
    end_close(&w->ends[1]);
    run_until(w, &w->ends[0].parted, 2);
    has(w->ends[0].reason, "node 1 (");
    opened(w, 1, "--nnodes 3 --tp-size 6 --node-rank 1");
    run_until(w, &w->ends[0].completes, 3);
    /* And so is node 0. */
    end_close(&w->ends[0]);
    run_until(w, &w->ends[1].parted, 1);
    while (end_open(w, 0, "--nnodes 3 --tp-size 6 --node-rank 0", 7, &err) == ERR_BUSY)
        (void)uv_run(&w->loop, UV_RUN_ONCE); /* the port is let go of a moment later */
    run_until(w, &w->ends[0].completes, 4);
    world_free(w);
}

static void on_pause(uv_timer_t *timer)
{
    *(int *)timer->data = 1;
}

static void run_for(struct world *w, uint64_t ms)
{
    uv_timer_t timer;
    int over = 0;

    (void)uv_timer_init(&w->loop, &timer);
    timer.data = &over;
    (void)uv_timer_start(&timer, on_pause, ms, 0);
    run_until(w, &over, 1);
    uv_close((uv_handle_t *)&timer, NULL);
    (void)uv_run(&w->loop, UV_RUN_NOWAIT);
}

/* A node is back before it was noticed that its predecessor is gone: it waits for the place. */
static void test_soon_again(void **state)
{
    struct world *w = world_new();

    (void)state;
    opened(w, 0, "--nnodes 2 --node-rank 0");
    opened(w, 1, "--nnodes 2 --node-rank 1");
    run_until(w, &w->ends[0].completes, 1);
    opened(w, 2, "--nnodes 2 --node-rank 1");
    run_for(w, 500);
    end_close(&w->ends[1]);
    run_until(w, &w->ends[0].completes, 2);
    assert_int_equal(w->ends[0].parted, 1);
    assert_int_equal(w->ends[2].ends, 0);
    nodes_start(w->ends[0].nodes, 0, 2, "tcp://127.0.0.1:7");
    run_until(w, &w->ends[2].started, 1);
    world_free(w);
}

/* ---- who does not fit ---- */

static void test_duplicate(void **state)
{
    struct world *w = world_new();

    (void)state;
    opened(w, 0, "--nnodes 2 --node-rank 0");
    opened(w, 1, "--nnodes 2 --node-rank 1");
    run_until(w, &w->ends[0].completes, 1);
    opened(w, 2, "--nnodes 2 --node-rank 1");
    run_until(w, &w->ends[2].ends, 1);
    assert_true(w->ends[2].failed);
    has(w->ends[2].reason, "--node-rank 1 is taken by node 1 (");
    assert_int_equal(w->ends[0].ends + w->ends[1].ends + w->ends[0].parted, 0);
    assert_true(nodes_complete(w->ends[0].nodes));
    world_free(w);
}

/* Node 0 and one that differs: both end, with these words. */
static void differs(const char *zero, const char *one, uint64_t model, const char *words)
{
    struct world *w = world_new();
    struct err err = {0};

    opened(w, 0, zero);
    if (end_open(w, 1, one, model, &err))
        fail_msg("%s", err.msg);
    run_until(w, &w->ends[0].ends, 1);
    run_until(w, &w->ends[1].ends, 1);
    has(w->ends[0].reason, words);
    has(w->ends[1].reason, words);
    has(w->ends[1].reason, "node 0 refuses this node");
    assert_true(w->ends[0].failed && w->ends[1].failed);
    world_free(w);
}

static void test_differs(void **state)
{
    (void)state;
    differs("--nnodes 2 --node-rank 0", "--nnodes 4 --node-rank 1", 7,
            "was started with --nnodes 4, node 0 with 2");
    differs("--nnodes 2 --node-rank 0", "--nnodes 2 --node-rank 1", 8,
            "has another model than node 0: config.json, tokenizer.json or headers of the weights "
            "differ (fingerprint 0000000000000008, not 0000000000000007)");
    differs("--nnodes 2 --node-rank 0", "--nnodes 2 --node-rank 1 --page-size 32 --dtype float32",
            7,
            "was started with --dtype float32 --page-size 32, node 0 with --dtype auto "
            "--page-size 16");
    differs("--nnodes 2 --node-rank 0", "--nnodes 2 --node-rank 1 --dp-size 2", 7,
            "was started with --dp-size 2, node 0 with --dp-size 1");
}

/* What the options of an honest launcher can not say. */
static void test_agree(void **state)
{
    struct world *w = world_new();
    struct proto_node_join join;
    struct err err = {0};

    (void)state;
    opened(w, 0, "--nnodes 2 --node-rank 0");
    opened(w, 1, "--nnodes 2 --node-rank 1");
    join = w->ends[1].self.join;
    assert_int_equal(node_agree(&w->ends[0].self, &join, &err), 0);
    join.version = proto_str("99.1");
    assert_int_equal(node_agree(&w->ends[0].self, &join, &err), ERR_INVALID);
    has(err.msg, "runs Phalanx 99.1, node 0 runs " PHALANX_VERSION);
    join = w->ends[1].self.join;
    join.node = 2;
    assert_int_equal(node_agree(&w->ends[0].self, &join, &err), ERR_INVALID);
    has(err.msg, "node 2 (");
    has(err.msg, "--node-rank is out of range, the other nodes are 1 to 1");
    join.node = 0;
    assert_int_equal(node_agree(&w->ends[0].self, &join, &err), ERR_INVALID);
    join = w->ends[1].self.join;
    join.options_count--;
    assert_int_equal(node_agree(&w->ends[0].self, &join, &err), ERR_INVALID);
    has(err.msg, "(none)");
    join = w->ends[1].self.join;
    w->ends[0].self.join.address = proto_str("10.0.0.1");
    assert_int_equal(node_agree(&w->ends[0].self, &join, &err), ERR_INVALID);
    has(err.msg, "gives a loopback address for its ranks, which no other node reaches");
    world_free(w);
}

/* ---- who does not come ---- */

static void test_deadline(void **state)
{
    struct world *w = world_new();

    (void)state;
    opened(w, 0, "--nnodes 3 --tp-size 6 --node-rank 0 --dist-timeout 1.5");
    opened(w, 1, "--nnodes 3 --tp-size 6 --node-rank 1");
    run_until(w, &w->ends[0].ends, 1);
    run_until(w, &w->ends[1].ends, 1);
    has(w->ends[0].reason, "node 2 did not come to 127.0.0.1:");
    has(w->ends[0].reason, "within 1.5 s (--dist-timeout)");
    has(w->ends[1].reason, "node 0 ends all nodes: node 2 did not come");
    has(w->ends[1].state, "waiting for node 2");
    assert_true(w->ends[0].failed && w->ends[1].failed);
    world_free(w);
}

static void test_nobody(void **state)
{
    struct world *w = world_new();

    (void)state;
    opened(w, 1, "--nnodes 2 --node-rank 1 --dist-timeout 1");
    run_until(w, &w->ends[1].ends, 1);
    has(w->ends[1].reason, "no answer from node 0 at 127.0.0.1:");
    has(w->ends[1].reason, "it is a loopback address: node 0 would be on this machine");
    has(w->ends[1].reason, "gave up after 1 s (--dist-timeout)");
    world_free(w);
}

/* Another key looks like nobody, on both sides. */
static void test_key(void **state)
{
    struct world *w = world_new();
    struct err err = {0};

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct buf text = {0};

        assert_int_equal(bus_key_generate(&text, &err), 0);
        assert_int_equal(bus_key_parse(text.data, &w->ends[i].security.key, &err), 0);
        w->ends[i].security.keyed = true;
        buf_fini(&text);
    }
    opened(w, 0, "--nnodes 2 --node-rank 0 --dist-timeout 2");
    opened(w, 1, "--nnodes 2 --node-rank 1 --dist-timeout 1");
    run_until(w, &w->ends[1].ends, 1);
    run_until(w, &w->ends[0].ends, 1);
    has(w->ends[1].reason, "nobody is there, or its cluster key is another");
    has(w->ends[0].reason, "node 1 did not come");
    world_free(w);
}

static void test_port_in_use(void **state)
{
    struct world *w = world_new();
    struct err err = {0};

    (void)state;
    opened(w, 0, "--nnodes 2 --node-rank 0");
    assert_int_equal(end_open(w, 1, "--nnodes 2 --node-rank 0", 7, &err), ERR_BUSY);
    has(err.msg, "--dist-init-addr 127.0.0.1:");
    has(err.msg, "is in use by another program");
    world_free(w);
}

/* ---- options and interfaces ---- */

static void refused(const char *more, const char *words)
{
    struct world *w = world_new();
    struct err err = {0};

    assert_int_equal(end_open(w, 0, more, 7, &err), ERR_INVALID);
    has(err.msg, words);
    world_free(w);
}

static void test_options(void **state)
{
    (void)state;
    refused("--nnodes 2 --node-rank 2", "--node-rank 2: with --nnodes 2 it is 0 to 1");
    refused("--nnodes 3", "--tp-size 4 can not be spread evenly over --nnodes 3");
    refused("--nnodes 2 --dist-init-addr=", "--dist-init-addr is missing");
    refused("--nnodes 2 --dist-init-addr=10.0.0.1", "--dist-init-addr 10.0.0.1: it is HOST:PORT");
    refused("--nnodes 2 --dist-init-addr=10.0.0.1:70000", "a port from 1 to 65535");
    refused("--nnodes 2 --dist-init-addr=0.0.0.0:5000", "one address of node 0, not all");
    refused("--nnodes 2 --dist-init-addr=192.0.2.1:5000",
            "192.0.2.1 is no address of this machine, and node 0 binds it");
    refused("--nnodes 2 --dist-interface nope0",
            "--dist-interface nope0: this node has no such interface");
}

static void test_environment(void **state)
{
    struct world *w = world_new();
    struct end *e = &w->ends[0];
    struct err err = {0};

    (void)state;
    (void)setenv("NCCL_TIMEOUT", "17", 1);
    assert_int_equal(end_options(w, e, "--nnodes 2", &err), 0);
    assert_int_equal(node_place_init(&e->place, &e->options, &err), 0);
    assert_true(e->place.timeout_s == 17.0);
    assert_int_equal(end_options(w, e, "--nnodes 2 --dist-timeout 5", &err), 0);
    assert_int_equal(node_place_init(&e->place, &e->options, &err), 0);
    assert_true(e->place.timeout_s == 5.0);
    (void)setenv("NCCL_TIMEOUT", "soon", 1);
    assert_int_equal(end_options(w, e, "--nnodes 2", &err), ERR_INVALID);
    has(err.msg, "NCCL_TIMEOUT");
    (void)unsetenv("NCCL_TIMEOUT");
    (void)setenv("NCCL_SOCKET_IFNAME", "nope,lo", 1);
    assert_int_equal(end_options(w, e, "--nnodes 2", &err), 0);
    assert_int_equal(node_place_init(&e->place, &e->options, &err), 0);
    assert_string_equal(e->place.interface, "lo");
    assert_string_equal(e->place.address, "127.0.0.1");
    (void)setenv("NCCL_SOCKET_IFNAME", "=l", 1);
    assert_int_equal(end_options(w, e, "--nnodes 2", &err), 0);
    assert_int_equal(node_place_init(&e->place, &e->options, &err), ERR_INVALID);
    has(err.msg, "--dist-interface =l: this node has no such interface");
    has(err.msg, "lo 127.0.0.1");
    (void)unsetenv("NCCL_SOCKET_IFNAME");
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_group),      cmocka_unit_test(test_again),
        cmocka_unit_test(test_soon_again), cmocka_unit_test(test_duplicate),
        cmocka_unit_test(test_differs),    cmocka_unit_test(test_agree),
        cmocka_unit_test(test_deadline),   cmocka_unit_test(test_nobody),
        cmocka_unit_test(test_key),        cmocka_unit_test(test_port_in_use),
        cmocka_unit_test(test_options),    cmocka_unit_test(test_environment),
    };

    (void)unsetenv("NCCL_TIMEOUT");
    (void)unsetenv("NCCL_SOCKET_IFNAME");
    (void)unsetenv("GLOO_SOCKET_IFNAME");
    log_init("test", LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

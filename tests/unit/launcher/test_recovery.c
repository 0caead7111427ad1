/* The launcher's side of epochs: real processes that only sleep, and a scheduler that is played by
 * a link to the control endpoint. */
#include "services/launcher/recovery.h"

#include "common/clock.h"
#include "common/file.h"
#include "common/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define RANKS 2
#define WAIT_US 10000000

struct fixture {
    char dir[64];
    struct options options;
    struct model_ref model;
    struct rundir run;
    struct commands commands;
    uv_loop_t loop;
    uv_timer_t wake;
    struct supervisor children;
    struct control control;
    struct recovery recovery;
    char *worker_endpoint;
    struct bus *bus; /* the scheduler's end */
    struct bus_peer *launcher;
    uint64_t heard_epoch; /* of the last GROUP_DOWN */
    char heard_reason[256];
    int fatal, lost;
};

/* ---- callbacks ---- */

static void on_fatal(void *ctx, const char *why)
{
    assert_true(*why);
    ((struct fixture *)ctx)->fatal++;
}

static void on_lost(void *ctx)
{
    ((struct fixture *)ctx)->lost++;
}

static void on_drained(void *ctx)
{
    (void)ctx;
}

static void on_end(void *ctx, const struct child *child, const char *how)
{
    recovery_child_ended(&((struct fixture *)ctx)->recovery, child, how);
}

static void on_signal(void *ctx, int number)
{
    (void)ctx;
    (void)number;
}

static void on_group_down(void *ctx, int replica, uint64_t epoch, const char *reason)
{
    recovery_group_down(&((struct fixture *)ctx)->recovery, replica, epoch, reason);
}

static void on_linked(void *ctx, const struct bus_peer *peer)
{
    recovery_linked(&((struct fixture *)ctx)->recovery, peer);
}

static void on_silent(void *ctx, const struct bus_peer *peer, const char *reason)
{
    recovery_silent(&((struct fixture *)ctx)->recovery, peer, reason);
}

static void on_status(void *ctx)
{
    recovery_status(&((struct fixture *)ctx)->recovery);
}

static void on_reader(void *ctx, struct bus_peer *peer)
{
    (void)ctx;
    (void)peer;
}

static void on_up(void *ctx, struct bus_peer *peer)
{
    ((struct fixture *)ctx)->launcher = peer;
}

static void on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                       const void *message)
{
    struct fixture *f = ctx;
    const struct proto_group_down *m = message;

    (void)peer;
    assert_int_equal(header->type, PROTO_GROUP_DOWN);
    f->heard_epoch = m->epoch;
    (void)snprintf(f->heard_reason, sizeof f->heard_reason, "%.*s", (int)m->reason.len,
                   m->reason.data);
}

static void on_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    (void)ctx;
    (void)peer;
    (void)reason;
    fail();
}

/* ---- a server of sleepers ---- */

static const char *const programs[] = {"phalanx-gateway", "phalanx-tokenizer", "phalanx-scheduler",
                                       "phalanx-worker"};
#define PROGRAMS (sizeof programs / sizeof *programs)

static void write_program(const struct fixture *f, const char *name)
{
    char *path = file_join(f->dir, name);
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    (void)fputs("#!/bin/sh\nexec sleep 1000\n", file);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path, 0700), 0);
    free(path);
}

static void connect_scheduler(struct fixture *f)
{
    char *endpoint = rundir_endpoints(&f->run, "control", 0, 1);
    struct control_callbacks on = {on_group_down, on_linked, on_silent, on_status, on_reader};
    struct bus_config bus = {
        .loop = &f->loop,
        .role = "scheduler",
        .name = "scheduler-0",
        .endpoint = endpoint,
        .silence_ms_max = 60000,
        .on = {.on_up = on_up, .on_message = on_message, .on_down = on_down},
        .ctx = f,
    };
    struct err err = {0};

    assert_int_equal(control_open(&f->control, &f->loop, endpoint, 60000, &on, f, &err), 0);
    assert_int_equal(bus_connect(&bus, &f->bus, &err), 0);
    free(endpoint);
}

static void on_wake(uv_timer_t *timer)
{
    (void)timer;
}

static void init_recovery(struct fixture *f)
{
    struct recovery *r = &f->recovery;
    struct group_config group = {.commands = &f->commands,
                                 .children = &f->children,
                                 .last_rank = RANKS - 1,
                                 .worker_endpoint = f->worker_endpoint};

    recovery_init(r, &f->loop);
    r->commands = &f->commands;
    r->children = &f->children;
    r->control = &f->control;
    r->on = (struct recovery_callbacks){
        .on_fatal = on_fatal, .on_lost = on_lost, .on_drained = on_drained};
    r->ctx = f;
    r->gateways = r->tokenizers = r->replicas_count = 1;
    group_configure(&r->replicas[0].group, &group);
}

static int setup(void **state)
{
    static const struct supervisor_callbacks on = {.on_end = on_end, .on_signal = on_signal};
    char program[] = "phalanx serve";
    char *argv[] = {program, NULL};
    struct fixture *f = mem_zalloc(sizeof *f);
    struct err err = {0};

    *state = f;
    (void)snprintf(f->dir, sizeof f->dir, "/tmp/phalanx-recovery-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    for (size_t i = 0; i < PROGRAMS; i++)
        write_program(f, programs[i]);
    assert_int_equal(options_parse(&f->options, 'S', 1, argv, &err), 0);
    f->model = (struct model_ref){mem_strdup("/none"), mem_strdup("none")};
    assert_int_equal(rundir_init(&f->run, f->dir, 1, &err), 0);
    f->commands = (struct commands){&f->options, &f->model, &f->run, mem_strdup(f->dir)};
    f->worker_endpoint = rundir_endpoints(&f->run, "workers", 0, 1);
    assert_int_equal(uv_loop_init(&f->loop), 0);
    (void)uv_timer_init(&f->loop, &f->wake);
    (void)uv_timer_start(&f->wake, on_wake, 10, 10);
    assert_int_equal(supervisor_init(&f->children, &f->loop, &on, f, &err), 0);
    init_recovery(f);
    connect_scheduler(f);
    assert_int_equal(recovery_start(&f->recovery, &err), 0);
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    bus_close(&f->bus);
    control_close(&f->control);
    supervisor_stop(&f->children, 3000);
    supervisor_fini(&f->children);
    recovery_fini(&f->recovery);
    uv_close((uv_handle_t *)&f->wake, NULL);
    (void)uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    rundir_fini(&f->run);
    commands_fini(&f->commands);
    model_fini(&f->model);
    options_fini(&f->options);
    free(f->worker_endpoint);
    for (size_t i = 0; i < PROGRAMS; i++) {
        char *path = file_join(f->dir, programs[i]);

        assert_int_equal(unlink(path), 0);
        free(path);
    }
    assert_int_equal(rmdir(f->dir), 0); /* rundir_fini has left nothing of ours */
    free(f);
    return 0;
}

/* ---- what happens ---- */

static struct child *find(struct fixture *f, const char *name)
{
    struct child *child = NULL;

    while ((child = supervisor_next(&f->children, child)))
        if (strcmp(child->name, name) == 0)
            return child;
    return NULL;
}

/* Both ranks of an epoch, and none of another. */
static bool ranks_run(struct fixture *f, uint64_t epoch)
{
    const struct child *child = NULL;
    int n = 0;

    while ((child = supervisor_next(&f->children, child))) {
        if (child->role != CHILD_WORKER)
            continue;
        if (child->epoch != epoch)
            return false;
        n++;
    }
    return n == RANKS;
}

#define run_until(f, condition)                                                                    \
    do {                                                                                           \
        int64_t end_us = clock_mono_us() + WAIT_US;                                                \
        while (!(condition) && clock_mono_us() < end_us)                                           \
            (void)uv_run(&(f)->loop, UV_RUN_ONCE);                                                 \
        assert_true(condition);                                                                    \
    } while (0)

static void say_group_down(struct fixture *f, uint64_t epoch)
{
    struct proto_group_down m = {.epoch = epoch, .reason = proto_str("rank 1 came apart")};

    assert_int_equal(bus_send(f->launcher, PROTO_GROUP_DOWN, 0, &m, NULL), 0);
}

static void say_ready(struct fixture *f, uint64_t epoch)
{
    struct proto_status m = {.replica = {.epoch = epoch, .ready = true}};

    assert_int_equal(bus_send(f->launcher, PROTO_STATUS, 0, &m, NULL), 0);
}

/* ---- tests ---- */

static void test_launcher_sees_it_first(void **state)
{
    struct fixture *f = *state;
    pid_t scheduler;
    char how[64];

    run_until(f, f->launcher);
    assert_true(recovery_ready(&f->recovery));
    assert_false(recovery_ready(&f->recovery)); /* no news */
    scheduler = find(f, "scheduler-0")->pid;
    (void)kill(find(f, "worker-0")->pid, SIGSTOP); /* goes all the same */
    (void)snprintf(how, sizeof how, "worker-1 (pid %d) was killed by signal 9 (Killed)",
                   (int)find(f, "worker-1")->pid);
    (void)kill(find(f, "worker-1")->pid, SIGKILL);
    run_until(f, f->heard_epoch);
    assert_int_equal(f->heard_epoch, 1);
    assert_string_equal(f->heard_reason, how);
    run_until(f, ranks_run(f, 2));
    assert_int_equal(f->lost, 1);
    assert_int_equal(find(f, "scheduler-0")->pid, scheduler);
    assert_int_equal(f->fatal, 0);
}

static void test_scheduler_sees_it_first(void **state)
{
    struct fixture *f = *state;

    run_until(f, f->launcher);
    (void)recovery_ready(&f->recovery);
    say_group_down(f, 1);
    run_until(f, ranks_run(f, 2));
    say_group_down(f, 1); /* known */
    say_group_down(f, 7); /* it has been further */
    run_until(f, ranks_run(f, 8));
    assert_int_equal(f->lost, 2);
    assert_int_equal(f->recovery.replicas[0].group_restarts.count, 2);
    assert_int_equal(f->heard_epoch, 0); /* it need not be told */
}

static pid_t pid_of(struct fixture *f, const char *name)
{
    const struct child *child = find(f, name);

    return child ? child->pid : 0;
}

/* Another scheduler, with that epoch. */
static bool scheduler_runs(struct fixture *f, pid_t before, uint64_t epoch)
{
    const struct child *child = find(f, "scheduler-0");

    return child && child->pid != before && child->epoch == epoch;
}

/* Ranks that had a scheduler that was ready wait for the next one, once. */
static void test_ranks_outlive_a_scheduler(void **state)
{
    struct fixture *f = *state;
    pid_t ranks[RANKS], scheduler;

    run_until(f, f->launcher);
    (void)recovery_ready(&f->recovery);
    say_ready(f, 1);
    run_until(f, control_ready(&f->control, 0, 1));
    scheduler = pid_of(f, "scheduler-0");
    ranks[0] = pid_of(f, "worker-0");
    ranks[1] = pid_of(f, "worker-1");
    (void)kill(scheduler, SIGKILL);
    run_until(f, scheduler_runs(f, scheduler, 1));
    assert_true(ranks_run(f, 1));
    assert_true(pid_of(f, "worker-0") == ranks[0] && pid_of(f, "worker-1") == ranks[1]);
    scheduler = pid_of(f, "scheduler-0");
    (void)kill(scheduler, SIGKILL);
    run_until(f, scheduler_runs(f, scheduler, 2));
    run_until(f, ranks_run(f, 2));
    assert_int_equal(f->fatal, 0);
}

/* They were loaded, but the next scheduler does not say that they are there. */
static void test_ranks_that_do_not_come(void **state)
{
    struct fixture *f = *state;
    pid_t scheduler;

    run_until(f, f->launcher);
    (void)recovery_ready(&f->recovery);
    say_ready(f, 1);
    run_until(f, control_ready(&f->control, 0, 1));
    scheduler = pid_of(f, "scheduler-0");
    (void)kill(scheduler, SIGKILL);
    run_until(f, scheduler_runs(f, scheduler, 1));
    f->recovery.replicas[0].join_until_us = 1; /* the time is over */
    scheduler = pid_of(f, "scheduler-0");
    run_until(f, ranks_run(f, 2));
    assert_int_equal(pid_of(f, "scheduler-0"), scheduler);
}

/* One whose link is down gets a moment to end or to come back. */
static void test_silent_child(void **state)
{
    struct fixture *f = *state;
    pid_t scheduler;

    run_until(f, f->launcher);
    (void)recovery_ready(&f->recovery);
    run_until(f, find(f, "scheduler-0")->link);
    scheduler = pid_of(f, "scheduler-0");
    recovery_silent(&f->recovery, find(f, "scheduler-0")->link, "nothing was heard");
    assert_true(find(f, "scheduler-0")->silent);
    run_until(f, scheduler_runs(f, scheduler, 2));
}

/* Ready again: an answer, and the scheduler's word for the epoch that runs. In any order. */
static void test_ready_again(void **state)
{
    struct fixture *f = *state;

    run_until(f, f->launcher);
    (void)recovery_ready(&f->recovery);
    say_ready(f, 1);
    say_group_down(f, 1);
    run_until(f, f->lost == 1);
    (void)recovery_ready(&f->recovery);
    assert_true(f->recovery.lost_us); /* what was said of epoch 1 means nothing */
    say_ready(f, 2);
    run_until(f, !f->recovery.lost_us);
    say_group_down(f, 2);
    say_ready(f, 3);
    run_until(f, control_ready(&f->control, 0, 3));
    assert_true(f->recovery.lost_us);
    (void)recovery_ready(&f->recovery);
    assert_false(f->recovery.lost_us);
}

static void test_group_restarts_have_a_bound(void **state)
{
    struct fixture *f = *state;

    run_until(f, f->launcher);
    (void)recovery_ready(&f->recovery);
    for (uint64_t epoch = 1; epoch <= RESTARTS_MAX + 1; epoch++)
        say_group_down(f, epoch);
    run_until(f, f->fatal);
    assert_int_equal(f->recovery.replicas[0].epoch, RESTARTS_MAX + 1);
    assert_int_equal(f->lost, RESTARTS_MAX);
}

/* A node is gone: no ranks until it is back, whoever else dies or speaks meanwhile. */
static void test_held_until_released(void **state)
{
    struct fixture *f = *state;

    run_until(f, f->launcher);
    (void)recovery_ready(&f->recovery);
    recovery_hold(&f->recovery, "node 1 is gone");
    run_until(f, f->heard_epoch == 1);
    assert_string_equal(f->heard_reason, "node 1 is gone");
    run_until(f, !find(f, "worker-0") && !find(f, "worker-1"));
    say_group_down(f, 2);
    run_until(f, f->recovery.replicas[0].epoch == 3);
    assert_int_equal(f->lost, 2);
    recovery_release(&f->recovery);
    run_until(f, ranks_run(f, 3));
    assert_int_equal(f->fatal, 0);
}

static void test_nothing_starts_again_before_readiness(void **state)
{
    struct fixture *f = *state;

    run_until(f, f->launcher);
    say_group_down(f, 1);
    run_until(f, f->fatal);
    (void)kill(find(f, "gateway-0")->pid, SIGKILL);
    run_until(f, !find(f, "gateway-0"));
    recovery_hold(&f->recovery, "node 1 is gone");
    assert_int_equal(f->fatal, 1);
    assert_int_equal(f->lost, 0);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_launcher_sees_it_first),
        TEST(test_scheduler_sees_it_first),
        TEST(test_ready_again),
        TEST(test_ranks_outlive_a_scheduler),
        TEST(test_ranks_that_do_not_come),
        TEST(test_silent_child),
        TEST(test_group_restarts_have_a_bound),
        TEST(test_held_until_released),
        TEST(test_nothing_starts_again_before_readiness),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

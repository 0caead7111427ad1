/* The worker process without a model, against a scheduler played by the test. */
#include "services/worker/worker.h"

#include "common/log.h"
#include "proto/bus.h"
#include "services/worker/engine_null.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define SEED 99
#define TOKENS 5

struct play {
    uv_loop_t loop;
    uv_timer_t timer; /* looks whether the worker has ended */
    uv_timer_t limit; /* a hang becomes a failure */
    struct bus_config config;
    struct bus *bus;
    struct bus_peer *peer;
    pid_t pid;
    int status;
    bool ended;
    bool bad_step;    /* send a step that can not be */
    bool leave;       /* go away once it has all tokens, and come again */
    bool leave_early; /* go away before it is loaded */
    bool hold_loaded; /* SIGTERM once it is loaded */
    uint64_t steps;
    uint32_t tokens[TOKENS], tokens_count;
    bool loaded, ready, hung;
    char failure[512];
};

static void message_send(struct play *p, enum proto_type type, const void *message)
{
    struct err err;

    if (bus_send(p->peer, type, 0, message, &err))
        (void)fprintf(stderr, "send: %s\n", err.msg);
}

static void send_step(struct play *p)
{
    uint32_t prompt[] = {1, 2, 3}, pages[] = {0, 1};
    struct proto_slot_open opened = {
        .slot = p->bad_step ? 7 : 0,
        .tokens = prompt,
        .tokens_count = 3,
        .sampling = {.top_p = 1, .repetition_penalty = 1, .seed = SEED, .logprobs = 2}};
    struct proto_slot_pages page = {.pages = pages, .pages_count = 2};
    struct proto_row row = {0, 0, 3, true};
    struct proto_step step = {.step = ++p->steps, .rows = &row, .rows_count = 1};

    if (p->steps == 1) {
        step.opened = &opened;
        step.pages = &page;
        step.opened_count = step.pages_count = 1;
    } else {
        row = (struct proto_row){0, 3 + (uint32_t)p->steps - 2, 1, true};
    }
    message_send(p, PROTO_STEP, &step);
}

static void on_step_done(struct play *p, const struct proto_step_done *m)
{
    if (m->step != p->steps || m->results_count != 1 || m->results[0].logprob_count != 1 ||
        m->results[0].logprob[0].top_count != 2 || !m->hash)
        return;
    p->tokens[p->tokens_count++] = m->results[0].id;
    if (p->tokens_count < TOKENS) {
        send_step(p);
    } else if (p->leave) {
        p->leave = p->loaded = p->ready = false;
        p->tokens_count = 0;
        p->steps = 0;
        memset(p->tokens, 0, sizeof p->tokens);
        bus_close(&p->bus); /* its slot is still open */
    } else {
        (void)kill(p->pid, SIGTERM);
    }
}

static void on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                       const void *message)
{
    const struct proto_kv_alloc alloc = {.num_pages = 8, .num_slots = 2, .tokens_max = 16};
    const struct proto_rank_failed *failed = message;
    struct play *p = ctx;

    p->peer = peer;
    if (header->type == PROTO_LOADED) {
        p->loaded = true;
        if (p->hold_loaded)
            (void)kill(p->pid, SIGTERM);
        else
            message_send(p, PROTO_KV_ALLOC, &alloc);
    } else if (header->type == PROTO_KV_READY) {
        p->ready = true;
        send_step(p);
    } else if (header->type == PROTO_STEP_DONE) {
        on_step_done(p, message);
    } else if (header->type == PROTO_RANK_FAILED) {
        (void)snprintf(p->failure, sizeof p->failure, "%.*s", (int)failed->reason.len,
                       failed->reason.data);
    }
}

static void on_up(void *ctx, struct bus_peer *peer)
{
    struct play *p = ctx;

    p->peer = peer;
    if (p->leave_early)
        bus_close(&p->bus);
}

static void on_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    (void)ctx;
    (void)peer;
    (void)reason;
}

static void play_end(struct play *p)
{
    uv_close((uv_handle_t *)&p->timer, NULL);
    uv_close((uv_handle_t *)&p->limit, NULL);
    bus_close(&p->bus);
}

static void on_timer(uv_timer_t *timer)
{
    struct play *p = timer->data;

    if (waitpid(p->pid, &p->status, WNOHANG) == p->pid) {
        p->ended = true;
        /* What it said last may still be on its way. */
        for (int i = 0; i < 100 && uv_run(&p->loop, UV_RUN_NOWAIT); i++)
            (void)usleep(1000);
        play_end(p);
    } else if (!p->bus && !p->leave_early) {
        (void)bus_bind(&p->config, &p->bus, NULL); /* until the endpoint is free */
    }
}

static void on_limit(uv_timer_t *timer)
{
    struct play *p = timer->data;

    p->hung = true;
    (void)kill(p->pid, SIGKILL);
}

/* What the child runs: this executable anew, so that nothing of the bus's libraries is shared. */
static int worker_main(char **argv)
{
    struct worker_config config = {
        .name = "worker-0",
        .endpoint = argv[2],
        .epoch = 3,
        .heartbeat_timeout_s = 1,
        .engine =
            {.model_dir = "", .device = argv[3], .dtype = "auto", .tp_size = 1, .page_size = 4},
    };

    log_init("worker-0", LOG_ERROR + 1);
    return worker_run(&config);
}

/* Runs the worker in a process of its own; returns its exit status. */
static int play(struct play *p, const char *accepts, const char *device)
{
    char dir[] = "/tmp/phalanx-test-XXXXXX", endpoint[64], command[64];
    struct err err;

    assert_non_null(mkdtemp(dir));
    (void)snprintf(endpoint, sizeof endpoint, "ipc://%s/s", dir);
    p->config = (struct bus_config){
        .loop = &p->loop,
        .role = "scheduler",
        .name = "scheduler-0",
        .endpoint = endpoint,
        .accepts = accepts,
        .epoch = 3,
        .on = {.on_up = on_up, .on_message = on_message, .on_down = on_down},
        .ctx = p,
    };
    p->pid = fork();
    if (p->pid == 0) {
        (void)execl("/proc/self/exe", "test_worker", "worker", endpoint, device, (char *)NULL);
        _exit(127);
    }
    assert_int_equal(uv_loop_init(&p->loop), 0);
    if (bus_bind(&p->config, &p->bus, &err))
        fail_msg("%s", err.msg);
    p->timer.data = p->limit.data = p;
    (void)uv_timer_init(&p->loop, &p->timer);
    (void)uv_timer_init(&p->loop, &p->limit);
    (void)uv_timer_start(&p->timer, on_timer, 20, 20);
    (void)uv_timer_start(&p->limit, on_limit, 30000, 0);
    (void)uv_run(&p->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&p->loop), 0);
    (void)snprintf(command, sizeof command, "rm -rf %s", dir);
    assert_int_equal(system(command), 0);
    assert_false(p->hung);
    assert_true(p->ended && WIFEXITED(p->status));
    return WEXITSTATUS(p->status);
}

static void steps_are_answered_and_sigterm_ends_well(void **state)
{
    struct play p = {0};

    (void)state;
    assert_int_equal(play(&p, "worker", "null"), 0);
    assert_int_equal(p.tokens_count, TOKENS);
    for (uint32_t i = 0; i < TOKENS; i++)
        assert_int_equal(p.tokens[i], null_token(SEED, i, NULL_VOCAB_SIZE, NULL, 0));
    assert_string_equal(p.failure, "");
}

static void a_bad_step_ends_the_rank(void **state)
{
    struct play p = {.bad_step = true};

    (void)state;
    assert_int_equal(play(&p, "worker", "null"), 1);
    assert_string_equal(p.failure, "step 1: slot 7, there are 2");
}

static void a_load_that_fails_ends_it(void **state)
{
    struct play p = {0};

    (void)state;
    assert_int_equal(play(&p, "worker", "cpu"), 1); /* no model, no config.json */
    assert_false(p.loaded);
}

/* The next scheduler finds it loaded, and with no sequence of the one before. */
static void it_outlives_its_scheduler(void **state)
{
    struct play p = {.leave = true};

    (void)state;
    assert_int_equal(play(&p, "worker", "null"), 0);
    assert_true(p.loaded && p.ready);
    assert_int_equal(p.tokens_count, TOKENS);
    for (uint32_t i = 0; i < TOKENS; i++)
        assert_int_equal(p.tokens[i], null_token(SEED, i, NULL_VOCAB_SIZE, NULL, 0));
}

static void before_it_is_loaded_it_does_not(void **state)
{
    struct play p = {.leave_early = true};

    (void)state;
    assert_int_equal(play(&p, "worker", "cpu"), 1);
    assert_false(p.loaded);
}

static void sigterm_while_it_waits(void **state)
{
    struct play p = {.hold_loaded = true};

    (void)state;
    assert_int_equal(play(&p, "worker", "null"), 0);
    assert_true(p.loaded && !p.ready);
}

static void refused_it_ends(void **state)
{
    struct play p = {0};

    (void)state;
    assert_int_equal(play(&p, "tokenizer", "null"), 1);
    assert_false(p.loaded);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_are_answered_and_sigterm_ends_well),
        cmocka_unit_test(a_bad_step_ends_the_rank),
        cmocka_unit_test(a_load_that_fails_ends_it),
        cmocka_unit_test(it_outlives_its_scheduler),
        cmocka_unit_test(before_it_is_loaded_it_does_not),
        cmocka_unit_test(sigterm_while_it_waits),
        cmocka_unit_test(refused_it_ends),
    };

    if (argc == 4 && !strcmp(argv[1], "worker"))
        return worker_main(argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

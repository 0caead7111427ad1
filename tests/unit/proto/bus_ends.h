/* One or two ends of a link in one loop, and what happened to them: shared by the tests of the bus.
 */
#ifndef PHALANX_TESTS_BUS_ENDS_H
#define PHALANX_TESTS_BUS_ENDS_H

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
#include <sys/prctl.h>
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

static inline int folder_make(void **state)
{
    (void)state;
    log_init("test", LOG_ERROR); /* warnings about strangers are expected here */
    return mkdtemp(folder) ? 0 : -1;
}

static inline int folder_remove(void **state)
{
    char command[128];
    (void)state;
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    return system(command);
}

static inline const char *endpoint(const char *name)
{
    static char text[128];
    snprintf(text, sizeof(text), "ipc://%s/%s", folder, name);
    return text;
}

static inline void on_up(void *ctx, struct bus_peer *peer)
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

static inline void on_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
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

static inline void on_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    struct end *e = ctx;
    assert_ptr_equal(peer, e->peer);
    e->peer = NULL;
    e->downs++;
    snprintf(e->reason, sizeof(e->reason), "%s", reason);
    if (e->downs == e->stop_downs)
        uv_stop(e->loop);
}

static inline void on_refused(void *ctx, const char *reason)
{
    struct end *e = ctx;
    e->refusals++;
    snprintf(e->reason, sizeof(e->reason), "%s", reason);
    uv_stop(e->loop);
}

static inline struct bus_config config_of(struct end *e, uv_loop_t *loop, const char *role,
                                          const char *name, const char *where)
{
    e->loop = loop;
    return (struct bus_config){.loop = loop,
                               .role = role,
                               .name = name,
                               .endpoint = where,
                               .accepts = "gateway,tokenizer",
                               .on = {on_up, on_message, on_down, on_refused, NULL},
                               .ctx = e};
}

static inline void end_bind(struct end *e, uv_loop_t *loop, const char *where)
{
    struct err err = {0};
    struct bus_config c = config_of(e, loop, "scheduler", "scheduler-0", where);
    if (bus_bind(&c, &e->bus, &err) != 0)
        fail_msg("bind: %s", err.msg);
}

static inline void end_connect(struct end *e, uv_loop_t *loop, const char *where)
{
    struct err err = {0};
    struct bus_config c = config_of(e, loop, "tokenizer", "tokenizer-0", where);
    if (bus_connect(&c, &e->bus, &err) != 0)
        fail_msg("connect: %s", err.msg);
}

static inline void on_guard(uv_timer_t *timer)
{
    (void)timer;
    fail_msg("nothing more happened");
}

/* Runs the loop until a callback stops it. */
static inline void run(uv_loop_t *loop)
{
    uv_timer_t guard;
    uv_timer_init(loop, &guard);
    uv_timer_start(&guard, on_guard, GUARD_MS, 0);
    uv_run(loop, UV_RUN_DEFAULT);
    uv_close((uv_handle_t *)&guard, NULL);
    uv_run(loop, UV_RUN_NOWAIT);
}

static inline void on_pause(uv_timer_t *timer)
{
    uv_stop(timer->loop);
}

static inline void run_ms(uv_loop_t *loop, uint64_t ms)
{
    uv_timer_t timer;
    uv_timer_init(loop, &timer);
    uv_timer_start(&timer, on_pause, ms, 0);
    uv_run(loop, UV_RUN_DEFAULT);
    uv_close((uv_handle_t *)&timer, NULL);
    uv_run(loop, UV_RUN_NOWAIT);
}

static inline void loop_end(uv_loop_t *loop)
{
    uv_run(loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(loop), 0);
}

static inline void send_one(struct end *e, uint64_t id)
{
    struct err err = {0};
    const struct proto_abort m = {.reason = proto_str("a reason")};
    if (bus_send(e->peer, PROTO_ABORT, id, &m, &err) != 0)
        fail_msg("send %d: %s", (int)id, err.msg);
}

/* Both up, whichever comes first. */
static inline void pair_up(struct end *a, struct end *b, uv_loop_t *loop)
{
    a->stop_ups = a->ups + 1;
    b->stop_ups = b->ups + 1;
    while (!a->peer || !b->peer)
        run(loop);
}

/* ---- another process, to be stopped or killed ---- */

static inline void echo_message(void *ctx, struct bus_peer *peer, const struct proto_header *header,
                                const void *message)
{
    (void)ctx;
    if (bus_send(peer, header->type, header->id, message, NULL) != 0)
        _exit(1);
}

static inline void echo_up(void *ctx, struct bus_peer *peer)
{
    (void)ctx;
    (void)peer;
}

static inline void echo_down(void *ctx, struct bus_peer *peer, const char *reason)
{
    (void)ctx;
    (void)peer;
    (void)reason;
}

#define ECHO_REFUSED 7 /* status of an echo that was refused */

static inline void echo_refused(void *ctx, const char *reason)
{
    (void)ctx;
    (void)reason;
    _exit(ECHO_REFUSED);
}

/* `echo ENDPOINT bind|connect EPOCH`: sends back whatever comes, until it is killed or refused. */
static inline int echo_main(char **argv)
{
    const bool binds = strcmp(argv[3], "bind") == 0;
    uv_loop_t loop;
    struct bus *bus = NULL;
    log_init("echo", LOG_ERROR);
    uv_loop_init(&loop);
    const struct bus_config c = {.loop = &loop,
                                 .role = binds ? "scheduler" : "tokenizer",
                                 .name = "echo",
                                 .endpoint = argv[2],
                                 .accepts = "tokenizer",
                                 .epoch = strtoull(argv[4], NULL, 10),
                                 .on = {echo_up, echo_message, echo_down, echo_refused, NULL}};
    if ((binds ? bus_bind(&c, &bus, NULL) : bus_connect(&c, &bus, NULL)) < 0)
        return 1;
    uv_run(&loop, UV_RUN_DEFAULT);
    return 0;
}

static inline pid_t echo_start(const char *where, const char *side, const char *epoch)
{
    char path[] = "/proc/self/exe";
    char *arguments[] = {
        path, mem_strdup("echo"), mem_strdup(where), mem_strdup(side), mem_strdup(epoch), NULL};
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves no stopped process behind */
        execv(path, arguments);
        _exit(127);
    }
    for (int i = 1; i < 5; i++)
        free(arguments[i]);
    return pid;
}

static inline void echo_end(pid_t pid)
{
    int status = 0;
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
}

#endif

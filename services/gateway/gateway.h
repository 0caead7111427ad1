/* The HTTP server: a listening socket, its connections, one loop. */
#ifndef PHALANX_GATEWAY_GATEWAY_H
#define PHALANX_GATEWAY_GATEWAY_H

#include "common/metrics.h"
#include "common/options.h"
#include "services/gateway/backend.h"
#include "services/gateway/params.h"

#include <sys/queue.h>
#include <uv.h>

struct call;
struct conn;

struct gateway {
    uv_loop_t loop;
    uv_tcp_t listener;
    uv_timer_t tick;     /* all deadlines */
    uv_timer_t deadline; /* of the end after a signal */
    uv_prepare_t flush;  /* what a turn of the loop wrote leaves at its end */
    uv_signal_t sigterm, sigint;
    const struct options *options; /* borrowed */
    const char *api_key;           /* NULL: none needed */
    char *model;                   /* served name */
    char fingerprint[24];          /* system_fingerprint */
    char address[300];             /* "127.0.0.1:1919" */
    int64_t created_s;
    int64_t request_us_max;
    uint32_t queued_max;
    struct params_context context;
    struct metrics metrics;
    struct backend backend;
    struct bus *launcher; /* NULL: there is none */
    struct conn *conns;   /* list of all */
    struct conn *dirty;   /* list of those with bytes to send */
    size_t conns_count, conns_max;
    size_t bodies_bytes;        /* memory of unfinished bodies */
    size_t calls_count;         /* being answered */
    size_t choices_open;        /* of all calls */
    size_t kept_bytes;          /* of the messages of all calls */
    TAILQ_HEAD(, call) waiting; /* calls with parts that wait for a tokenizer, oldest first */
    size_t queued_count;        /* new ones among them */
    size_t recovery_queue_max;
    uint64_t random;    /* state of gateway_random */
    struct buf scratch; /* one event or body while it is rendered */
    char *read_buf;     /* shared by all connections: each read is consumed at once */
    bool announced;     /* "ready" was said once */
    bool health_only;   /* another node serves: see routes.c */
    bool stopping;
    bool draining; /* nobody new is let in; calls that run are finished */
    int64_t drain_until_us;
    int exit_code;
};

/* Binds, connects to the tokenizer, serves until SIGINT, or until SIGTERM and the end of the calls
 * that run then; returns the exit code. Errors of the start are left in err. */
int gateway_run(const struct options *options, struct err *err);

/* Ends the loop with this exit code: connections are told, then closed. */
void gateway_stop(struct gateway *gw, int exit_code);

/* A number nobody else has drawn; for ids, not for secrets. */
uint64_t gateway_random(struct gateway *gw);

#endif

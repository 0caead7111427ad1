/* The allow-list: ZeroMQ's authentication protocol (rfc.zeromq.org/spec/27), one list of one key.
 *
 * The list is the socket's ZAP domain, so that the thread needs to know nothing and one serves all
 * sockets of the process. It ends with ZeroMQ's context, at the end of the process. */
#include "common/clock.h"
#include "common/log.h"
#include "proto/bus_key.h"

#include <czmq.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <zmq.h>

#define ZAP_ENDPOINT "inproc://zeromq.zap.01"
#define COMPLAINT_US 1000000 /* at most one line in so long */
#define FRAME_MAX 255

enum { ZAP_VERSION, ZAP_ID, ZAP_DOMAIN, ZAP_ADDRESS, ZAP_IDENTITY, ZAP_MECHANISM, ZAP_KEY };
#define ZAP_FRAMES 7

struct zap_frame {
    size_t len;
    char data[FRAME_MAX + 1]; /* with a NUL behind it */
};

struct zap_request {
    struct zap_frame frames[ZAP_FRAMES];
    size_t count; /* more than there is room for: no request of ours */
};

/* False: the context ends. */
static bool zap_receive(void *socket, struct zap_request *r)
{
    zmq_msg_t msg;
    bool more = true;

    memset(r, 0, sizeof *r);
    (void)zmq_msg_init(&msg);
    while (more) {
        if (zmq_msg_recv(&msg, socket, 0) < 0) {
            if (zmq_errno() == EINTR)
                continue;
            break;
        }
        const size_t len = zmq_msg_size(&msg);
        if (r->count < ZAP_FRAMES && len <= FRAME_MAX) {
            struct zap_frame *f = &r->frames[r->count];
            memcpy(f->data, zmq_msg_data(&msg), len);
            f->len = len;
        }
        r->count++;
        more = zmq_msg_more(&msg) != 0;
    }
    (void)zmq_msg_close(&msg);
    return !more;
}

static bool zap_allows(const struct zap_request *r)
{
    const struct zap_frame *domain = &r->frames[ZAP_DOMAIN], *key = &r->frames[ZAP_KEY];
    char text[BUS_KEY_Z85];

    return r->count == ZAP_FRAMES && strcmp(r->frames[ZAP_MECHANISM].data, "CURVE") == 0 &&
           key->len == 32 && domain->len == BUS_KEY_Z85 - 1 &&
           zmq_z85_encode(text, (const uint8_t *)key->data, 32) && strcmp(text, domain->data) == 0;
}

static bool zap_reply(void *socket, const struct zap_request *r, bool allowed)
{
    const struct zap_frame *id = &r->frames[ZAP_ID];
    const char *code = allowed ? "200" : "400";

    return zmq_send(socket, "1.0", 3, ZMQ_SNDMORE) >= 0 &&
           zmq_send(socket, id->data, id->len, ZMQ_SNDMORE) >= 0 &&
           zmq_send(socket, code, 3, ZMQ_SNDMORE) >= 0 &&
           zmq_send(socket, NULL, 0, ZMQ_SNDMORE) >= 0 && /* status text: nothing to a stranger */
           zmq_send(socket, NULL, 0, ZMQ_SNDMORE) >= 0 && zmq_send(socket, NULL, 0, 0) >= 0;
}

static void *zap_run(void *socket)
{
    struct zap_request request;
    int64_t complained_us = clock_mono_us() - COMPLAINT_US;

    while (zap_receive(socket, &request)) {
        const bool allowed = zap_allows(&request);
        const int64_t now_us = clock_mono_us();

        if (!allowed && now_us - complained_us >= COMPLAINT_US) {
            complained_us = now_us;
            log_warn("address=%s \"refused: not our cluster key\"",
                     request.frames[ZAP_ADDRESS].data);
        }
        if (!zap_reply(socket, &request, allowed))
            break;
    }
    (void)zmq_close(socket);
    return NULL;
}

/* Signals stay with the loop's thread. */
static int zap_thread(void *socket)
{
    sigset_t all, before;
    pthread_attr_t attr;
    pthread_t thread;
    int rc;

    (void)sigfillset(&all);
    (void)pthread_attr_init(&attr);
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&thread, &attr, zap_run, socket);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attr);
    return rc;
}

int bus_zap_start(struct err *err)
{
    void *socket = zmq_socket(zsys_init(), ZMQ_REP);
    int none = 0;

    if (!socket)
        return err_set(err, ERR_NOMEM, "no ZeroMQ socket for authentication");
    (void)zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none);
    if (zmq_bind(socket, ZAP_ENDPOINT)) {
        const int why = zmq_errno();

        (void)zmq_close(socket);
        /* Only this file binds that name: it runs already. */
        return why == EADDRINUSE
                   ? 0
                   : err_set(err, ERR_INTERNAL, ZAP_ENDPOINT ": %s", zmq_strerror(why));
    }
    if (zap_thread(socket)) {
        (void)zmq_close(socket);
        return err_set(err, ERR_NOMEM, "no thread for authentication");
    }
    return 0;
}

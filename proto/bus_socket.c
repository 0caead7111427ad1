#include "proto/bus_socket.h"

#include "common/mem.h"
#include "proto/bus_uv.h"

#include <czmq.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/* More than the window of a link, so that a send never finds the queue full. */
#define QUEUE_MESSAGES 10000
#define RECONNECT_MS 50
#define RECONNECT_MS_MAX 500
#define HANDSHAKE_MS 10000 /* a connection that has not said who it is by then is closed */
/* The kernel's probes of a tcp connection, in seconds: one whose other end is gone is closed. */
#define PROBE_IDLE_S 10
#define PROBE_INTERVAL_S 5
#define PROBES 4

struct bus_socket {
    zsock_t *zsock;
    void *raw;
    uv_poll_t *poll;
    bool stirred;
};

/* Room for the frames around a message: its size is checked before it is taken in. */
#define MESSAGE_SLACK 1024

static bool is_loopback(const char *host, size_t len)
{
    return (len == 9 && memcmp(host, "localhost", 9) == 0) ||
           (len == 5 && memcmp(host, "[::1]", 5) == 0) ||
           (len > 4 && memcmp(host, "127.", 4) == 0 && strspn(host, "0123456789.") >= len);
}

static bool is_wildcard(const char *host, size_t len)
{
    return (len == 1 && *host == '*') || (len == 4 && memcmp(host, "[::]", 4) == 0) ||
           (len > 0 && strspn(host, "0.") >= len);
}

/* Whether the host, of len bytes, may be reached or bound. */
static int check_host(const char *endpoint, const char *host, size_t len,
                      const struct bus_security *security, bool bind, struct err *err)
{
    if (len == 0)
        return err_set(err, ERR_INVALID, "endpoint %s: needs a host", endpoint);
    if (is_wildcard(host, len) && !bind)
        return err_set(err, ERR_INVALID, "endpoint %s: no address to connect to", endpoint);
    if (security->keyed || is_loopback(host, len))
        return 0;
    if (security->insecure && !is_wildcard(host, len))
        return 0;
    return err_set(err, ERR_UNSUPPORTED,
                   security->insecure
                       ? "endpoint %s: without a cluster key it must name one address"
                       : "endpoint %s: not loopback: that needs a cluster key (`phalanx keygen`, "
                         "--cluster-key-file)",
                   endpoint);
}

static bool is_tcp(const char *endpoint)
{
    return strncmp(endpoint, "tcp://", 6) == 0;
}

static int check_tcp(const char *endpoint, const char *address, const struct bus_security *security,
                     bool bind, struct err *err)
{
    const char *port = strrchr(address, ':');
    char *end = NULL;
    const unsigned long number = port ? strtoul(port + 1, &end, 10) : 0;
    if (!port || port[1] < '0' || port[1] > '9' || *end || number < 1 || number > 65535)
        return err_set(err, ERR_INVALID, "endpoint %s: needs a port (1..65535)", endpoint);
    return check_host(endpoint, address, (size_t)(port - address), security, bind, err);
}

int socket_check_endpoint(const char *endpoint, const struct bus_security *security, bool bind,
                          struct err *err)
{
    if (is_tcp(endpoint))
        return check_tcp(endpoint, endpoint + 6, security, bind, err);
    if (strncmp(endpoint, "ipc:///", 7) != 0)
        return err_set(err, ERR_UNSUPPORTED, "endpoint %s: neither ipc:///path nor tcp://host:port",
                       endpoint);
    const size_t path_max = sizeof(((struct sockaddr_un *)0)->sun_path) - 1;
    if (strlen(endpoint + 6) > path_max)
        return err_set(err, ERR_INVALID, "endpoint %s: path is longer than %zu bytes", endpoint,
                       path_max);
    return 0;
}

/* ZeroMQ unlinks the path it binds to, whoever listens there. So we ask first: only a socket left
 * behind by a dead process refuses the connection. */
static int check_ipc_free(const char *endpoint, struct err *err)
{
    const char *path = endpoint + 6;
    struct stat st;
    if (lstat(path, &st) != 0)
        return 0;
    if (!S_ISSOCK(st.st_mode))
        return err_set(err, ERR_INVALID, "endpoint %s: there is a file that is no socket",
                       endpoint);

    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_errno(err, ERR_IO, "endpoint %s", endpoint);
    int rc = connect(fd, (const struct sockaddr *)&address, sizeof(address));
    const bool dead = rc < 0 && (errno == ECONNREFUSED || errno == ENOENT);
    close(fd);
    return dead ? 0 : err_set(err, ERR_BUSY, "endpoint %s: in use by another process", endpoint);
}

/* No heartbeats of ZeroMQ's: libzmq 4.3.4 aborts (out_event: !_io_error) when one is due on a
 * socket that has stopped reading, as it does in closing, and whose peer has gone. The bus has its
 * own. */
static zsock_t *socket_make(bool router, size_t message_max)
{
    /* czmq would install signal handlers with its first socket; signals are the loop's business.
     * zsys_handler_set(NULL) is no way to say so: called again, it undoes the loop's handlers. */
    setenv("ZSYS_SIGHANDLER", "false", 1);
    zsock_t *s = zsock_new(router ? ZMQ_ROUTER : ZMQ_DEALER);
    if (!s)
        return NULL;
    const size_t most = message_max + MESSAGE_SLACK;
    zsock_set_immediate(s, 1);
    zsock_set_sndhwm(s, QUEUE_MESSAGES);
    zsock_set_rcvhwm(s, QUEUE_MESSAGES);
    zsock_set_maxmsgsize(s, most > INT_MAX ? INT_MAX : (int)most);
    zsock_set_reconnect_ivl(s, RECONNECT_MS);
    zsock_set_reconnect_ivl_max(s, RECONNECT_MS_MAX);
    zsock_set_handshake_ivl(s, HANDSHAKE_MS);
    zsock_set_tcp_keepalive(s, 1);
    zsock_set_tcp_keepalive_idle(s, PROBE_IDLE_S);
    zsock_set_tcp_keepalive_intvl(s, PROBE_INTERVAL_S);
    zsock_set_tcp_keepalive_cnt(s, PROBES);
    /* No ROUTER_HANDOVER: peers set no routing id, every connection gets a fresh one, and a
     * stranger can not take over another's by claiming it. */
    if (router)
        zsock_set_router_mandatory(s, 1);
    return s;
}

static bool set_text(void *raw, int option, const char *text)
{
    return zmq_setsockopt(raw, option, text, strlen(text)) == 0;
}

/* Before bind or connect. */
static int socket_encrypt(void *raw, bool router, const struct bus_key *key, struct err *err)
{
    bool done;
    if (router) {
        const int rc = bus_zap_start(err);
        if (rc < 0)
            return rc;
        const int on = 1;
        done = zmq_setsockopt(raw, ZMQ_CURVE_SERVER, &on, sizeof(on)) == 0 &&
               set_text(raw, ZMQ_CURVE_SECRETKEY, key->server_secret) &&
               set_text(raw, ZMQ_ZAP_DOMAIN, key->client_public);
    } else {
        done = set_text(raw, ZMQ_CURVE_SERVERKEY, key->server_public) &&
               set_text(raw, ZMQ_CURVE_PUBLICKEY, key->client_public) &&
               set_text(raw, ZMQ_CURVE_SECRETKEY, key->client_secret);
    }
    return done ? 0
                : err_set(err, ERR_UNSUPPORTED, "this ZeroMQ has no CURVE: %s",
                          zmq_strerror(zmq_errno()));
}

int socket_open(uv_loop_t *loop, bool router, const char *endpoint,
                const struct bus_security *security, size_t message_max, struct bus_socket **out,
                struct err *err)
{
    int rc = socket_check_endpoint(endpoint, security, router, err);
    if (rc == 0 && router && strncmp(endpoint, "ipc://", 6) == 0)
        rc = check_ipc_free(endpoint, err);
    if (rc < 0)
        return rc;

    struct bus_socket *self = mem_zalloc(sizeof(*self));
    self->zsock = socket_make(router, message_max);
    if (!self->zsock) {
        rc = err_set(err, ERR_NOMEM, "endpoint %s: no ZeroMQ socket", endpoint);
        goto out;
    }
    self->raw = zsock_resolve(self->zsock);
    if (strchr(endpoint, '['))
        zsock_set_ipv6(self->zsock, 1);
    if (security->keyed && is_tcp(endpoint)) {
        rc = socket_encrypt(self->raw, router, &security->key, err);
        if (rc < 0)
            goto out;
    }
    if ((router ? zsock_bind(self->zsock, "%s", endpoint)
                : zsock_connect(self->zsock, "%s", endpoint)) < 0) {
        const int why = zmq_errno();
        rc = err_set(err, why == EADDRINUSE ? ERR_BUSY : ERR_IO, "endpoint %s: %s", endpoint,
                     zmq_strerror(why));
        goto out;
    }
    self->stirred = true;
    rc = bus_uv_watch(loop, (int)zsock_fd(self->zsock), &self->stirred, &self->poll, err);
out:
    if (rc < 0)
        socket_close(&self, 0);
    *out = self;
    return rc;
}

void socket_close(struct bus_socket **self, int linger_ms)
{
    struct bus_socket *s = *self;
    *self = NULL;
    if (!s)
        return;
    bus_uv_unwatch(&s->poll);
    if (s->zsock)
        zsock_set_linger(s->zsock, linger_ms);
    zsock_destroy(&s->zsock);
    free(s);
}

bool socket_stirred(const struct bus_socket *self)
{
    return self->stirred;
}

bool socket_connected(struct bus_socket *self)
{
    return (zsock_events(self->zsock) & ZMQ_POLLOUT) != 0;
}

/* Receives and forgets the frames that are left of a message. */
static void skip_frames(struct bus_socket *self, zmq_msg_t *msg)
{
    while (zmq_msg_more(msg) && zmq_msg_recv(msg, self->raw, ZMQ_DONTWAIT) >= 0)
        ;
}

enum socket_result socket_receive(struct bus_socket *self, struct bus_route *from, zmq_msg_t *msg)
{
    if (from) {
        if (zmq_msg_recv(msg, self->raw, ZMQ_DONTWAIT) < 0) {
            self->stirred = false;
            return SOCKET_NOTHING;
        }
        const size_t len = zmq_msg_size(msg);
        from->len = (uint8_t)(len < sizeof(from->data) ? len : sizeof(from->data));
        memcpy(from->data, zmq_msg_data(msg), from->len);
        if (!zmq_msg_more(msg))
            return SOCKET_MALFORMED;
    }
    if (zmq_msg_recv(msg, self->raw, ZMQ_DONTWAIT) < 0) {
        self->stirred = from != NULL;
        return from ? SOCKET_MALFORMED : SOCKET_NOTHING;
    }
    if (zmq_msg_more(msg)) {
        skip_frames(self, msg);
        return SOCKET_MALFORMED;
    }
    return SOCKET_DONE;
}

enum socket_result socket_send(struct bus_socket *self, const struct bus_route *to, zmq_msg_t *msg)
{
    self->stirred = true;
    if (to && zmq_send(self->raw, to->data, to->len, ZMQ_DONTWAIT | ZMQ_SNDMORE) < 0)
        return zmq_errno() == EHOSTUNREACH ? SOCKET_GONE : SOCKET_NOTHING;

    zmq_msg_t copy;
    zmq_msg_init(&copy);
    enum socket_result result = SOCKET_NOTHING;
    if (zmq_msg_copy(&copy, msg) == 0 && zmq_msg_send(&copy, self->raw, ZMQ_DONTWAIT) >= 0)
        result = SOCKET_DONE;
    zmq_msg_close(&copy);
    return result;
}

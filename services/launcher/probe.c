#include "services/launcher/probe.h"

#include "common/clock.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define ATTEMPT_US 2000000 /* /health/ready is answered at once */
#define TOKEN_US 30000000  /* a token may have to wait for others */
#define STEP_MS 10

static const char *const requests[] = {
    [PROBE_READY] = "GET /health/ready HTTP/1.1\r\nHost: localhost\r\n"
                    "Connection: close\r\n\r\n",
    [PROBE_TOKEN] = "GET /health_generate HTTP/1.1\r\nHost: localhost\r\n"
                    "Connection: close\r\n\r\n",
};

int probe_init(struct probe *p, const char *host, int port, struct err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    char service[8];
    int rc;

    memset(p, 0, sizeof *p);
    p->fd = -1;
    (void)snprintf(service, sizeof service, "%d", port);
    rc = getaddrinfo(host, service, &hints, &found);
    if (rc)
        return err_set(err, ERR_INVALID, "--host: '%.64s': %s", host, gai_strerror(rc));
    memcpy(&p->address, found->ai_addr, found->ai_addrlen);
    p->address_len = found->ai_addrlen;
    freeaddrinfo(found);
    return 0;
}

static void probe_close(struct probe *p)
{
    if (p->fd >= 0)
        (void)close(p->fd);
    p->fd = -1;
}

int probe_port_free(const struct probe *p, const char *host, int port, struct err *err)
{
    int fd = socket(p->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int on = 1;
    int rc = 0;

    if (fd < 0)
        return err_errno(err, ERR_IO, "socket");
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (const struct sockaddr *)&p->address, p->address_len)) {
        if (errno == EADDRINUSE)
            rc = err_set(err, ERR_BUSY, "%s:%d is in use by another program, choose another --port",
                         host, port);
        else
            rc = err_errno(err, ERR_IO, "cannot bind %s:%d", host, port);
    }
    (void)close(fd);
    return rc;
}

/* 0.0.0.0 and :: are no addresses to connect to. */
static void to_loopback(struct sockaddr_storage *address)
{
    if (address->ss_family == AF_INET) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)address;

        if (v4->sin_addr.s_addr == htonl(INADDR_ANY))
            v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    } else if (address->ss_family == AF_INET6) {
        struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)address;

        if (IN6_IS_ADDR_UNSPECIFIED(&v6->sin6_addr))
            v6->sin6_addr = in6addr_loopback;
    }
}

static void probe_end_attempt(struct probe *p)
{
    probe_close(p);
    p->next_us = clock_mono_us() + PROBE_PERIOD_MS * 1000;
}

static void probe_begin_attempt(struct probe *p)
{
    struct sockaddr_storage address = p->address;

    to_loopback(&address);
    p->sent = false;
    p->reply_len = 0;
    p->next_us = clock_mono_us() + (p->kind == PROBE_TOKEN ? TOKEN_US : ATTEMPT_US);
    p->fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (p->fd < 0 ||
        (connect(p->fd, (struct sockaddr *)&address, p->address_len) && errno != EINPROGRESS))
        probe_end_attempt(p);
}

static void probe_read(struct probe *p)
{
    static const char ok[] = "HTTP/1.1 200";
    ssize_t n = recv(p->fd, p->reply + p->reply_len, sizeof ok - 1 - p->reply_len, 0);

    if (n > 0)
        p->reply_len += (size_t)n;
    else if (n == 0 || errno != EAGAIN)
        probe_end_attempt(p);
    if (p->reply_len < sizeof ok - 1)
        return;
    probe_end_attempt(p);
    if (memcmp(p->reply, ok, sizeof ok - 1) != 0)
        return;
    probe_stop(p);
    p->on_ready(p->ctx);
}

static void probe_step(uv_timer_t *timer)
{
    struct probe *p = timer->data;
    const char *request = requests[p->kind];

    if (p->fd < 0) {
        if (clock_mono_us() >= p->next_us)
            probe_begin_attempt(p);
    } else if (clock_mono_us() >= p->next_us) {
        probe_end_attempt(p);
    } else if (p->sent) {
        probe_read(p);
    } else if (send(p->fd, request, strlen(request), MSG_NOSIGNAL) == (ssize_t)strlen(request)) {
        p->sent = true;
    } else if (errno != EAGAIN) {
        probe_end_attempt(p);
    }
}

void probe_start(struct probe *p, uv_loop_t *loop, enum probe_kind kind, probe_fn *on_ready,
                 void *ctx)
{
    probe_close(p);
    p->next_us = 0;
    p->kind = kind;
    p->on_ready = on_ready;
    p->ctx = ctx;
    if (!p->timer.data)
        (void)uv_timer_init(loop, &p->timer);
    p->timer.data = p;
    (void)uv_timer_start(&p->timer, probe_step, 0, STEP_MS);
}

void probe_stop(struct probe *p)
{
    probe_close(p);
    if (p->timer.data)
        (void)uv_timer_stop(&p->timer);
}

void probe_fini(struct probe *p)
{
    probe_stop(p);
    if (p->timer.data)
        uv_close((uv_handle_t *)&p->timer, NULL);
    p->timer.data = NULL;
}

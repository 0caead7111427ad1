/* The ZeroMQ sockets of the bus: options, endpoints, single messages without blocking. */
#ifndef PHALANX_PROTO_BUS_SOCKET_H
#define PHALANX_PROTO_BUS_SOCKET_H

#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>
#include <zmq.h>

/* Names one connection of a ROUTER. Given by ZeroMQ, another one for every connection. */
struct bus_route {
    uint8_t len;
    uint8_t data[255];
};

struct bus_socket;

/* ERR_INVALID, or ERR_UNSUPPORTED for what would leave this machine. */
int socket_check_endpoint(const char *endpoint, struct err *err);

/* A ROUTER bound to endpoint (ERR_BUSY: in use) or a DEALER that connects to it. */
int socket_open(uv_loop_t *loop, bool router, const char *endpoint, size_t message_max,
                struct bus_socket **out, struct err *err);

/* What was sent and is not on its way yet goes on for linger_ms. *self = NULL; NULL is allowed. */
void socket_close(struct bus_socket **self, int linger_ms);

/* False: nothing has come since a receive found nothing, and nothing was sent, which may take in
 * what came. Then a receive would find nothing again, at the price of two system calls. */
bool socket_stirred(const struct bus_socket *self);

/* DEALER: there is a connection (and the window of the link keeps it from being full). */
bool socket_connected(struct bus_socket *self);

enum socket_result {
    SOCKET_NOTHING, /* nothing to receive; or not sent now, try later */
    SOCKET_DONE,
    SOCKET_GONE,     /* send: that connection is no more */
    SOCKET_MALFORMED /* receive: not one frame; from is filled, msg is empty */
};

/* msg is initialised by the caller and closed by it. from: ROUTER only. */
enum socket_result socket_receive(struct bus_socket *self, struct bus_route *from, zmq_msg_t *msg);

/* Sends another reference to msg's content; msg stays the caller's. to: ROUTER only. */
enum socket_result socket_send(struct bus_socket *self, const struct bus_route *to, zmq_msg_t *msg);

#endif

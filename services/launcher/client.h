/* HTTP requests to a Phalanx server (libcurl), ended early by SIGINT. */
#ifndef PHALANX_LAUNCHER_CLIENT_H
#define PHALANX_LAUNCHER_CLIENT_H

#include "common/buf.h"
#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>

struct client; /* one connection, kept open between requests */

/* key may be "". signal_fd: a signalfd that becomes readable when the user interrupts. */
int client_new(const char *host, int port, const char *key, int signal_fd, struct client **out,
               struct err *err);
void client_free(struct client **self);

/* Called with each event of a stream (what stands behind "data: "), without [DONE]. */
typedef void client_event_fn(void *ctx, const char *data, size_t len);

/* GET: the body is appended to out. A status other than 200 is an error with the server's message.
 */
int client_get(struct client *c, const char *path, struct buf *out, struct err *err);

/* POST of a JSON body whose answer is a stream of events. ERR_TIMEOUT: interrupted. */
int client_stream(struct client *c, const char *path, const char *body, client_event_fn *on_event,
                  void *ctx, struct err *err);

#endif

/* The cluster key: what processes on tcp know each other by.
 *
 * A key is two CurveZMQ secret keys, one of those who bind and one of those who connect; both sides
 * know both. Who connects must know the binder's public key, and who binds lets in one public key
 * alone: the one that belongs to the other secret. As text:
 *   phalanx-key-1:<128 hexadecimal digits> */
#ifndef PHALANX_PROTO_BUS_KEY_H
#define PHALANX_PROTO_BUS_KEY_H

#include "common/buf.h"
#include "common/err.h"
#include "common/options.h"

#include <stdbool.h>

#define BUS_KEY_Z85 41 /* a key of 32 bytes as ZeroMQ writes it, with its NUL */

struct bus_key {
    char server_public[BUS_KEY_Z85], server_secret[BUS_KEY_Z85];
    char client_public[BUS_KEY_Z85], client_secret[BUS_KEY_Z85];
};

/* How tcp endpoints of a bus are protected. All zero: loopback only, not encrypted. */
struct bus_security {
    bool keyed;    /* CURVE with `key`; any address */
    bool insecure; /* without a key: any address but a wildcard, not encrypted */
    struct bus_key key;
};

/* From --cluster-key-file, PHALANX_CLUSTER_KEY and --insecure-bus. ERR_INVALID when they contradict
 * each other, when the file may be read by others, or when it holds no key. */
int bus_security_init(struct bus_security *s, const struct options *o, struct err *err);
void bus_security_fini(struct bus_security *s); /* forgets the key */

/* White space around the text is allowed. */
int bus_key_parse(const char *text, struct bus_key *out, struct err *err);

/* Appends a new key and a newline. */
int bus_key_generate(struct buf *out, struct err *err);

/* Who answers when ZeroMQ asks whether a connection may enter; one a process, started with the
 * first call. The sockets' ZAP domain must be the one public key that is let in. */
int bus_zap_start(struct err *err);

#endif

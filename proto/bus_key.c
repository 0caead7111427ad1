#include "proto/bus_key.h"

#include "common/file.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <zmq.h>

#define KEY_PREFIX "phalanx-key-1:"
#define KEY_BYTES 32
#define KEY_HEX ((size_t)4 * KEY_BYTES)
#define KEY_FILE_MAX 4096

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static bool hex_read(const char *hex, uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const int high = hex_digit(hex[2 * i]);
        const int low = high < 0 ? -1 : hex_digit(hex[2 * i + 1]);

        if (low < 0)
            return false;
        bytes[i] = (uint8_t)(high * 16 + low);
    }
    return true;
}

/* ZeroMQ's two forms of a secret key and its public one. */
static int key_pair(const uint8_t *bytes, char *public, char *secret, struct err *err)
{
    if (!zmq_z85_encode(secret, bytes, KEY_BYTES) || zmq_curve_public(public, secret))
        return err_set(err, ERR_UNSUPPORTED, "this ZeroMQ has no CURVE: %s",
                       zmq_strerror(zmq_errno()));
    return 0;
}

int bus_key_parse(const char *text, struct bus_key *out, struct err *err)
{
    static const char blank[] = " \t\r\n";
    uint8_t bytes[2 * KEY_BYTES];
    const char *hex = text + strspn(text, blank);
    int rc = 0;

    memset(out, 0, sizeof *out);
    if (strncmp(hex, KEY_PREFIX, strlen(KEY_PREFIX)) == 0)
        hex += strlen(KEY_PREFIX);
    else
        rc = ERR_INVALID;
    if (rc || !hex_read(hex, bytes, sizeof bytes) || hex[KEY_HEX + strspn(hex + KEY_HEX, blank)])
        rc = err_set(err, ERR_INVALID,
                     "no cluster key: it is " KEY_PREFIX " and %zu hexadecimal digits, made by "
                     "`phalanx keygen`",
                     KEY_HEX);
    if (!rc)
        rc = key_pair(bytes, out->server_public, out->server_secret, err);
    if (!rc)
        rc = key_pair(bytes + KEY_BYTES, out->client_public, out->client_secret, err);
    explicit_bzero(bytes, sizeof bytes);
    return rc;
}

int bus_key_generate(struct buf *out, struct err *err)
{
    uint8_t bytes[2 * KEY_BYTES];

    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        return err_errno(err, ERR_IO, "no random numbers");
    buf_puts(out, KEY_PREFIX);
    for (size_t i = 0; i < sizeof bytes; i++)
        buf_printf(out, "%02x", bytes[i]);
    buf_putc(out, '\n');
    explicit_bzero(bytes, sizeof bytes);
    return 0;
}

/* A group may read it (secrets of an orchestrator arrive so), nobody else. */
static int key_check_mode(const char *path, struct err *err)
{
    struct stat st;

    if (stat(path, &st))
        return err_errno(err, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "--cluster-key-file %s",
                         path);
    if (st.st_mode & 037)
        return err_set(
            err, ERR_INVALID,
            "--cluster-key-file %s has mode %04o, others may read or change it: chmod 600 it", path,
            (unsigned)(st.st_mode & 07777));
    return 0;
}

static int key_read(const char *path, struct bus_key *out, struct err *err)
{
    struct buf text = {0};
    int rc = key_check_mode(path, err);

    if (!rc) {
        rc = file_read(path, KEY_FILE_MAX, &text, err);
        if (!rc)
            rc = bus_key_parse(text.data ? text.data : "", out, err);
        if (rc)
            (void)err_prefix(err, "--cluster-key-file %s", path);
    }
    if (text.data)
        explicit_bzero(text.data, text.len);
    buf_fini(&text);
    return rc;
}

int bus_security_init(struct bus_security *s, const struct options *o, struct err *err)
{
    const char *path = options_str(o, OPT_CLUSTER_KEY_FILE);
    const char *text = options_str(o, OPT_CLUSTER_KEY);
    int rc = 0;

    memset(s, 0, sizeof *s);
    s->insecure = options_bool(o, OPT_INSECURE_BUS);
    s->keyed = *path || *text;
    if (*path && *text)
        return err_set(err, ERR_INVALID,
                       "--cluster-key-file and PHALANX_CLUSTER_KEY are both given: which one?");
    if (s->keyed && s->insecure)
        return err_set(err, ERR_INVALID, "--insecure-bus and a cluster key exclude each other");
    if (*path)
        rc = key_read(path, &s->key, err);
    else if (*text && bus_key_parse(text, &s->key, err))
        rc = err_prefix(err, "PHALANX_CLUSTER_KEY");
    return rc;
}

void bus_security_fini(struct bus_security *s)
{
    explicit_bzero(s, sizeof *s);
}

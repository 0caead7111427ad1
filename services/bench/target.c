#include "services/bench/target.h"

#include "common/mem.h"

#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PORT_HTTP 80

/* Name and port of "host", "host:port" or "[v6]:port"; *port stays when there is none. */
static char *split_authority(const char *text, size_t len, int *port, struct err *err)
{
    const char *end = text + len;
    const char *close = *text == '[' ? memchr(text, ']', len) : NULL;
    const char *colon = memchr(close ? close : text, ':', (size_t)(end - (close ? close : text)));
    const char *name = close ? text + 1 : text;
    const char *name_end = close ? close : colon ? colon : end;
    char digits[8];

    if (colon) {
        size_t n = (size_t)(end - colon - 1);

        (void)snprintf(digits, sizeof digits, "%.*s", (int)(n < 7 ? n : 7), colon + 1);
        *port = atoi(digits);
        if (n < 1 || n > 5 || strspn(digits, "0123456789") != n || *port < 1 || *port > 65535) {
            (void)err_set(err, ERR_INVALID, "--base-url: '%.*s' is no port from 1 to 65535",
                          (int)(n < 64 ? n : 64), colon + 1);
            return NULL;
        }
    }
    if (name_end == name) {
        (void)err_set(err, ERR_INVALID, "--base-url: there is no host in it");
        return NULL;
    }
    return mem_strndup(name, (size_t)(name_end - name));
}

/* Host and prefix from the URL. */
static int read_url(struct target *t, const char *url, char **host, int *port, struct err *err)
{
    static const char scheme[] = "http://";
    const char *authority = url + sizeof scheme - 1;
    size_t len, path_len;

    if (strncmp(url, "https://", 8) == 0)
        return err_set(err, ERR_UNSUPPORTED, "--base-url: https is not supported, only http");
    if (strncmp(url, scheme, sizeof scheme - 1) != 0)
        return err_set(err, ERR_INVALID, "--base-url: '%.100s' does not begin with http://", url);
    len = strcspn(authority, "/?#");
    path_len = strlen(authority + len);
    for (const char *c = url; *c; c++)
        if (*c <= ' ' || *c == 0x7f || *c == '?' || *c == '#' || *c == '@')
            return err_set(err, ERR_INVALID, "--base-url: '%.100s' is not http://host:port/path",
                           url);
    while (path_len && authority[len + path_len - 1] == '/')
        path_len--;
    if (path_len >= 3 && memcmp(authority + len + path_len - 3, "/v1", 3) == 0)
        path_len -= 3;
    *port = PORT_HTTP;
    t->prefix = mem_strndup(authority + len, path_len);
    *host = split_authority(authority, len, port, err);
    return *host ? 0 : ERR_INVALID;
}

static int look_up(struct target *t, const char *host, int port, struct err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    char service[8];
    int rc;

    (void)snprintf(service, sizeof service, "%d", port);
    rc = getaddrinfo(host, service, &hints, &found);
    if (rc)
        return err_set(err, ERR_INVALID, "host '%.100s': %s", host, gai_strerror(rc));
    memcpy(&t->address, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return 0;
}

int target_init(struct target *t, const char *url, const char *host, int port, const char *key,
                struct err *err)
{
    struct buf text = {0};
    char *name = NULL;
    int rc = 0;

    memset(t, 0, sizeof *t);
    t->key = mem_strdup(key);
    for (const char *c = key; *c; c++)
        if (*c <= ' ' || *c == 0x7f)
            return err_set(err, ERR_INVALID, "--api-key: it has a blank or a control character");
    if (*url) {
        rc = read_url(t, url, &name, &port, err);
    } else {
        t->prefix = mem_strdup("");
        name = mem_strdup(host);
    }
    if (!rc)
        rc = look_up(t, name, port, err);
    if (!rc) {
        buf_printf(&text, strchr(name, ':') ? "[%s]:%d" : "%s:%d", name, port);
        t->authority = buf_take(&text);
        buf_printf(&text, "http://%s%s", t->authority, t->prefix);
        t->base = buf_take(&text);
    }
    free(name);
    return rc;
}

void target_fini(struct target *t)
{
    free(t->base);
    free(t->authority);
    free(t->prefix);
    free(t->key);
    memset(t, 0, sizeof *t);
}

void target_request(const struct target *t, const char *method, const char *path,
                    const struct buf *body, struct buf *out)
{
    buf_printf(out, "%s %s%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: phalanx-bench\r\n", method,
               t->prefix, path, t->authority);
    if (*t->key)
        buf_printf(out, "Authorization: Bearer %s\r\n", t->key);
    if (!body) {
        buf_puts(out, "\r\n");
        return;
    }
    buf_printf(out, "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n", body->len);
    buf_append(out, body->data, body->len);
}

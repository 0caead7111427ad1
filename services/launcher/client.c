#include "services/launcher/client.h"

#include "common/json.h"
#include "common/mem.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define BODY_BYTES_MAX (1u << 20)
#define EVENT_BYTES_MAX (1u << 20)
#define CONNECT_MS_MAX 5000L

struct client {
    CURLM *multi;
    CURL *easy;
    struct curl_slist *headers;
    char *base; /* http://host:port */
    int signal_fd;
    struct buf body; /* of an answer that is no stream; the unfinished line of one that is */
    client_event_fn *on_event;
    void *ctx;
    bool too_long;
};

int client_new(const char *host, int port, const char *key, int signal_fd, struct client **out,
               struct err *err)
{
    struct client *c = mem_zalloc(sizeof *c);
    struct buf text = {0};

    *out = c;
    c->signal_fd = signal_fd;
    buf_printf(&text, strchr(host, ':') ? "http://[%s]:%d" : "http://%s:%d", host, port);
    c->base = buf_take(&text);
    c->headers = curl_slist_append(NULL, "Content-Type: application/json");
    if (*key) {
        buf_printf(&text, "Authorization: Bearer %s", key);
        c->headers = curl_slist_append(c->headers, text.data);
        buf_fini(&text);
    }
    c->easy = curl_easy_init();
    c->multi = curl_multi_init();
    if (!c->easy || !c->multi || !c->headers)
        return err_set(err, ERR_NOMEM, "libcurl could not start");
    return 0;
}

void client_free(struct client **self)
{
    struct client *c = *self;

    if (!c)
        return;
    curl_easy_cleanup(c->easy);
    (void)curl_multi_cleanup(c->multi);
    curl_slist_free_all(c->headers);
    buf_fini(&c->body);
    free(c->base);
    free(c);
    *self = NULL;
}

/* ---- answers ---- */

/* Hands over each complete line that begins with "data: ". */
static void client_take_lines(struct client *c)
{
    size_t start = 0;

    for (;;) {
        char *line = c->body.data + start;
        char *end = memchr(line, '\n', c->body.len - start);
        size_t len;

        if (!end)
            break;
        start += (size_t)(end - line) + 1;
        len = (size_t)(end - line);
        if (len && line[len - 1] == '\r')
            len--;
        if (len < 6 || memcmp(line, "data: ", 6) != 0)
            continue;
        if (len != 12 || memcmp(line + 6, "[DONE]", 6) != 0)
            c->on_event(c->ctx, line + 6, len - 6);
    }
    buf_consume(&c->body, start);
}

static size_t client_on_data(char *data, size_t size, size_t count, void *ctx)
{
    struct client *c = ctx;
    long status = 0;

    (void)size; /* 1, by libcurl's contract */
    (void)curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
    buf_append(&c->body, data, count);
    if (c->on_event && status == 200)
        client_take_lines(c);
    if (c->body.len > (c->on_event ? EVENT_BYTES_MAX : BODY_BYTES_MAX)) {
        c->too_long = true;
        return 0;
    }
    return count;
}

/* The message in {"error":{"message":...}}, or the status alone. */
static int client_refused(const struct client *c, long status, struct err *err)
{
    json_t *json = NULL;
    const char *message = NULL;

    if (c->body.len && !json_parse(c->body.data, c->body.len, JSON_DEPTH_REQUEST, &json, NULL))
        message = json_string_value(json_object_get(json_object_get(json, "error"), "message"));
    if (message)
        (void)err_set(err, ERR_PEER, "%.400s", message);
    else
        (void)err_set(err, ERR_PEER, "the server answered with status %ld", status);
    json_decref(json);
    return ERR_PEER;
}

/* ---- requests ---- */

static bool client_interrupted(struct client *c)
{
    struct signalfd_siginfo info;

    return read(c->signal_fd, &info, sizeof info) == (ssize_t)sizeof info;
}

/* Runs the transfer to its end; ERR_TIMEOUT when SIGINT came first. */
static int client_wait(struct client *c, CURLcode *result, struct err *err)
{
    struct curl_waitfd extra = {.fd = c->signal_fd, .events = CURL_WAIT_POLLIN};
    CURLMsg *message;
    int running = 1;
    int left;

    while (running) {
        if (curl_multi_perform(c->multi, &running))
            return err_set(err, ERR_INTERNAL, "libcurl failed");
        if (running && curl_multi_poll(c->multi, &extra, 1, 1000, NULL))
            return err_set(err, ERR_INTERNAL, "libcurl failed");
        if (running && client_interrupted(c))
            return err_set(err, ERR_TIMEOUT, "interrupted");
    }
    message = curl_multi_info_read(c->multi, &left);
    *result = message ? message->data.result : CURLE_OK;
    return 0;
}

static int client_request(struct client *c, const char *path, const char *body, struct err *err)
{
    char reason[CURL_ERROR_SIZE] = "";
    struct buf url = {0};
    CURLcode result = CURLE_OK;
    long status = 0;
    int rc;

    buf_clear(&c->body);
    c->too_long = false;
    buf_printf(&url, "%s%s", c->base, path);
    curl_easy_reset(c->easy); /* the connection stays */
    (void)curl_easy_setopt(c->easy, CURLOPT_URL, url.data);
    (void)curl_easy_setopt(c->easy, CURLOPT_PROXY, "");
    (void)curl_easy_setopt(c->easy, CURLOPT_NOSIGNAL, 1L);
    (void)curl_easy_setopt(c->easy, CURLOPT_CONNECTTIMEOUT_MS, CONNECT_MS_MAX);
    (void)curl_easy_setopt(c->easy, CURLOPT_HTTPHEADER, c->headers);
    (void)curl_easy_setopt(c->easy, CURLOPT_ERRORBUFFER, reason);
    (void)curl_easy_setopt(c->easy, CURLOPT_WRITEFUNCTION, client_on_data);
    (void)curl_easy_setopt(c->easy, CURLOPT_WRITEDATA, c);
    if (body)
        (void)curl_easy_setopt(c->easy, CURLOPT_POSTFIELDS, body);
    (void)curl_multi_add_handle(c->multi, c->easy);
    rc = client_wait(c, &result, err);
    (void)curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
    (void)curl_multi_remove_handle(c->multi, c->easy); /* closes it when it is unfinished */
    if (!rc && c->too_long)
        rc = err_set(err, ERR_LIMIT, "the answer of %s is too long", c->base);
    else if (!rc && result)
        rc = err_set(err, ERR_IO, "%s: %s", c->base, *reason ? reason : curl_easy_strerror(result));
    else if (!rc && status != 200)
        rc = client_refused(c, status, err);
    (void)curl_easy_setopt(c->easy, CURLOPT_ERRORBUFFER, NULL);
    buf_fini(&url);
    return rc;
}

int client_get(struct client *c, const char *path, struct buf *out, struct err *err)
{
    int rc;

    c->on_event = NULL;
    rc = client_request(c, path, NULL, err);
    if (!rc)
        buf_append(out, c->body.data, c->body.len);
    return rc;
}

int client_stream(struct client *c, const char *path, const char *body, client_event_fn *on_event,
                  void *ctx, struct err *err)
{
    c->on_event = on_event;
    c->ctx = ctx;
    return client_request(c, path, body, err);
}

#include "services/gateway/routes.h"

#include "services/gateway/auth.h"
#include "services/gateway/reply.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

/* To add an endpoint: a file route_x.c and a row. */
static const struct route routes[] = {
    {"/v1/completions", false, false, HTTP_POST, route_completions},
    {"/v1/chat/completions", false, false, HTTP_POST, route_chat},
    {"/generate", false, false, HTTP_POST, route_generate},
    {"/v1/models", false, false, HTTP_GET, route_models},
    {"/v1/models/", true, false, HTTP_GET, route_model},
    {"/health", false, true, HTTP_GET, route_health},
    {"/health/live", false, true, HTTP_GET, route_live},
    {"/health/ready", false, true, HTTP_GET, route_health},
    {"/health_generate", false, true, HTTP_GET, route_health_generate},
    {"/flush_cache", false, false, HTTP_POST, route_flush_cache},
    {"/metrics", false, false, HTTP_GET, route_metrics},
    {"/version", false, false, HTTP_GET, route_version},
};

#define PATH_MAX_BYTES 1024

static int hex(char c)
{
    return isdigit((unsigned char)c)    ? c - '0'
           : isxdigit((unsigned char)c) ? tolower((unsigned char)c) - 'a' + 10
                                        : -1;
}

/* The path of a target: without scheme and host, without query, %XX decoded. False when it is no
 * path, or has NULs or broken escapes. */
static bool path_read(const struct http_parser *p, char path[static PATH_MAX_BYTES])
{
    const char *at = p->target.present ? p->head.data + p->target.at : "";
    const char *end = at + p->target.len;
    size_t used = 0;

    if (end - at > 7 && strncasecmp(at, "http://", 7) == 0)
        for (at += 7; at < end && *at != '/';)
            at++;
    if (at == end || *at != '/')
        return false;
    for (; at < end && *at != '?' && *at != '#'; at++) {
        int ch = (unsigned char)*at;

        if (ch == '%') {
            if (end - at < 3 || hex(at[1]) < 0 || hex(at[2]) < 0)
                return false;
            ch = hex(at[1]) * 16 + hex(at[2]);
            at += 2;
        }
        if (!ch || used + 1 >= PATH_MAX_BYTES)
            return false;
        path[used++] = (char)ch;
    }
    path[used] = '\0';
    return true;
}

static const struct route *route_find(const char *path, const char **rest)
{
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        const struct route *r = &routes[i];
        size_t len = strlen(r->path);

        if (r->below ? strncmp(path, r->path, len) == 0 && path[len] : strcmp(path, r->path) == 0) {
            *rest = path + len;
            return r;
        }
    }
    return NULL;
}

static int check_key(struct conn *c, struct problem *problem)
{
    size_t len;
    const char *value = http_parser_field(&c->http, HTTP_FIELD_AUTHORIZATION, &len);

    if (!c->gw->api_key || auth_matches(value, len, c->gw->api_key))
        return 0;
    return problem_set(problem, 401, "invalid_api_key", NULL, "%s",
                       value ? "Incorrect API key provided"
                             : "No API key provided: send Authorization: Bearer KEY");
}

/* POST bodies are JSON; a missing Content-Type is taken for it. */
static int check_type(const struct conn *c, struct problem *problem)
{
    size_t len;
    const char *value = http_parser_field(&c->http, HTTP_FIELD_CONTENT_TYPE, &len);
    const char *semicolon = value ? memchr(value, ';', len) : NULL;

    if (semicolon)
        len = (size_t)(semicolon - value);
    while (value && len && (value[len - 1] == ' ' || value[len - 1] == '\t'))
        len--;
    if (value && len && (len != 16 || strncasecmp(value, "application/json", 16) != 0))
        return problem_set(problem, 415, NULL, NULL,
                           "Content-Type is \"%.*s\": must be application/json",
                           (int)(len < 64 ? len : 64), value);
    value = http_parser_field(&c->http, HTTP_FIELD_CONTENT_ENCODING, &len);
    if (value && (len != 8 || strncasecmp(value, "identity", 8) != 0))
        return problem_set(problem, 415, NULL, NULL, "Content-Encoding is \"%.*s\": must be absent",
                           (int)(len < 64 ? len : 64), value);
    return 0;
}

/* --health-only: requests are node 0's business. */
static bool route_is_here(const struct gateway *gw, const struct route *r)
{
    return !gw->health_only || r->handle == route_health || r->handle == route_live ||
           r->handle == route_metrics || r->handle == route_version;
}

/* Finds the row of a request whose method is not OPTIONS. */
static const struct route *route_check(struct conn *c, struct problem *problem, const char **allow,
                                       char path[static PATH_MAX_BYTES], const char **rest)
{
    const struct route *r = path_read(&c->http, path) ? route_find(path, rest) : NULL;

    if ((!r || !r->is_open) && check_key(c, problem))
        return NULL;
    if (!r) {
        (void)problem_set(problem, 404, "not_found", NULL, "no such path");
        return NULL;
    }
    if (!route_is_here(c->gw, r)) {
        (void)problem_set(problem, 404, "not_found", NULL,
                          "this node answers /health alone: node 0 serves");
        return NULL;
    }
    if (c->method != r->method && !(r->method == HTTP_GET && c->method == HTTP_HEAD)) {
        *allow =
            r->method == HTTP_GET ? "Allow: GET, HEAD, OPTIONS\r\n" : "Allow: POST, OPTIONS\r\n";
        (void)problem_set(problem, 405, "method_not_allowed", NULL, "%s is for %s", r->path,
                          r->method == HTTP_GET ? "GET" : "POST");
        return NULL;
    }
    if (r->method == HTTP_POST && c->gw->draining) {
        (void)problem_set(problem, 503, "shutting_down", NULL, "the server is shutting down");
        return NULL;
    }
    return r->method == HTTP_POST && check_type(c, problem) ? NULL : r;
}

int routes_check(struct conn *c, struct problem *problem, const char **allow)
{
    char path[PATH_MAX_BYTES];
    const char *rest;

    return c->method == HTTP_OPTIONS || route_check(c, problem, allow, path, &rest) ? 0 : -1;
}

/* The fields a browser asks leave for, if they look like field names. */
static void allow_headers(const struct conn *c, struct buf *out)
{
    size_t len;
    const char *asked = http_parser_field(&c->http, HTTP_FIELD_CORS_HEADERS, &len);

    for (size_t i = 0; asked && i < len; i++)
        if (!isalnum((unsigned char)asked[i]) && !strchr("-_, ", asked[i]))
            asked = NULL;
    buf_puts(out, "Access-Control-Allow-Headers: ");
    if (asked && len && len <= 1024)
        buf_append(out, asked, len);
    else
        buf_puts(out, "Authorization, Content-Type, X-Request-Id");
    buf_puts(out, "\r\n");
}

static void answer_options(struct conn *c)
{
    char path[PATH_MAX_BYTES];
    const char *rest;
    const struct route *r = path_read(&c->http, path) ? route_find(path, &rest) : NULL;
    const char *methods = !r                      ? "GET, HEAD, POST, OPTIONS"
                          : r->method == HTTP_GET ? "GET, HEAD, OPTIONS"
                                                  : "POST, OPTIONS";
    struct buf extra = {0};
    size_t len;

    buf_printf(&extra, "Allow: %s\r\n", methods);
    if (c->cors && http_parser_field(&c->http, HTTP_FIELD_CORS_METHOD, &len)) {
        buf_printf(&extra, "Access-Control-Allow-Methods: %s\r\nAccess-Control-Max-Age: 86400\r\n",
                   methods);
        allow_headers(c, &extra);
    }
    reply_send(c, &(struct reply){.status = 204, .extra = extra.data});
    buf_fini(&extra);
}

static void answer_problem(struct conn *c, const struct problem *problem, const char *allow)
{
    struct buf body = {0};
    struct reply r = {.status = problem->status, .type = "application/json", .extra = allow};

    problem_render(problem, &body);
    r.data = body.data;
    r.len = body.len;
    reply_send(c, &r);
    buf_fini(&body);
}

void routes_dispatch(struct conn *c)
{
    struct problem problem = {0};
    const char *allow = NULL, *rest = "";
    char path[PATH_MAX_BYTES];
    const struct route *r;

    if (c->method == HTTP_OPTIONS) {
        answer_options(c);
        return;
    }
    r = route_check(c, &problem, &allow, path, &rest);
    if (r)
        r->handle(c, rest);
    else
        answer_problem(c, &problem, allow);
}

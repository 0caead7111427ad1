#include "services/gateway/problem.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int problem_set(struct problem *p, int status, const char *code, const char *param, const char *fmt,
                ...)
{
    va_list ap;

    p->status = status;
    (void)snprintf(p->code, sizeof p->code, "%s", code ? code : "");
    (void)snprintf(p->param, sizeof p->param, "%s", param ? param : "");
    va_start(ap, fmt);
    (void)vsnprintf(p->message, sizeof p->message, fmt, ap);
    va_end(ap);
    return -1;
}

static const char *problem_type(int status)
{
    if (status == 429)
        return "rate_limit_error";
    if (status >= 500)
        return "server_error";
    return "invalid_request_error";
}

static void render_member(struct buf *out, const char *name, const char *text)
{
    buf_printf(out, ",\"%s\":", name);
    if (text[0])
        buf_json_string(out, text, strlen(text));
    else
        buf_puts(out, "null");
}

void problem_render(const struct problem *p, struct buf *out)
{
    buf_puts(out, "{\"error\":{\"message\":");
    buf_json_string(out, p->message, strlen(p->message));
    buf_printf(out, ",\"type\":\"%s\"", problem_type(p->status));
    render_member(out, "param", p->param);
    render_member(out, "code", p->code);
    buf_puts(out, "}}");
}

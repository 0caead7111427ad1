#include "services/launcher/status.h"

#include "common/json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* "3.2s", "7m05s", "2h09m", "12d04h" */
static void duration(uint64_t us, char *text, size_t size)
{
    uint64_t s = us / 1000000;

    if (s < 60)
        (void)snprintf(text, size, "%.1fs", (double)us / 1e6);
    else if (s < 3600)
        (void)snprintf(text, size, "%" PRIu64 "m%02" PRIu64 "s", s / 60, s % 60);
    else if (s < 86400)
        (void)snprintf(text, size, "%" PRIu64 "h%02" PRIu64 "m", s / 3600, s / 60 % 60);
    else
        (void)snprintf(text, size, "%" PRIu64 "d%02" PRIu64 "h", s / 86400, s / 3600 % 24);
}

static uint32_t ranks_there(const struct proto_replica_status *r)
{
    return (uint32_t)__builtin_popcountll(r->ranks);
}

static void process_row(const struct proto_process_status *p, struct buf *out)
{
    char up[32];

    duration(p->uptime_us, up, sizeof up);
    buf_printf(out, "%-16.*s %8u %8s %9" PRIu64 " %8.1f MiB\n", (int)p->name.len, p->name.data,
               p->pid, up, p->restarts, (double)p->memory_bytes / 1048576);
}

static void replica_row(const struct proto_replica_status *r, struct buf *out)
{
    uint32_t used = r->pages_total - r->pages_free;
    char ranks[32], pages[32];

    (void)snprintf(ranks, sizeof ranks, "%u/%u", ranks_there(r), r->tp_size);
    (void)snprintf(pages, sizeof pages, "%u/%u", used, r->pages_total);
    buf_printf(out, "%-8u %6" PRIu64 " %7s %16s %7u %7u  %.*s\n", r->replica, r->epoch, ranks,
               pages, r->running, r->waiting, r->ready ? 5 : (int)r->reason.len,
               r->ready ? "ready" : r->reason.data);
}

void status_table(const struct proto_node_status *m, struct buf *out)
{
    char up[32];

    duration(m->uptime_us, up, sizeof up);
    buf_printf(out, "Phalanx %.*s: %.*s, %s, up %s\n\n", (int)m->version.len, m->version.data,
               (int)m->model.len, m->model.data, m->ready ? "ready" : "not ready", up);
    buf_printf(out, "%-16s %8s %8s %9s %12s\n", "PROCESS", "PID", "UP", "RESTARTS", "MEMORY");
    for (uint32_t i = 0; i < m->processes_count; i++)
        process_row(&m->processes[i], out);
    buf_printf(out, "\n%-8s %6s %7s %16s %7s %7s  %s\n", "REPLICA", "EPOCH", "RANKS",
               "KV PAGES USED", "RUNNING", "WAITING", "STATE");
    for (uint32_t i = 0; i < m->replicas_count; i++)
        replica_row(&m->replicas[i], out);
}

/* Not every name is UTF-8, all JSON is. */
static json_t *text_json(struct proto_str s)
{
    json_t *text = json_stringn(s.len ? s.data : "", s.len);

    return text ? text : json_string("?");
}

static json_t *process_json(const struct proto_process_status *p)
{
    return json_pack("{s:o, s:I, s:f, s:I, s:I}", "name", text_json(p->name), "pid",
                     (json_int_t)p->pid, "uptime_s", (double)p->uptime_us / 1e6, "restarts",
                     (json_int_t)p->restarts, "memory_bytes", (json_int_t)p->memory_bytes);
}

static json_t *replica_json(const struct proto_replica_status *r)
{
    json_t *ranks = json_array();

    for (uint32_t i = 0; i < r->tp_size && i < 64; i++)
        (void)json_array_append_new(ranks, json_boolean(r->ranks >> i & 1));
    return json_pack("{s:I, s:I, s:b, s:o, s:o, s:I, s:I, s:I, s:I}", "replica",
                     (json_int_t)r->replica, "epoch", (json_int_t)r->epoch, "ready", (int)r->ready,
                     "reason", text_json(r->reason), "ranks", ranks, "pages_total",
                     (json_int_t)r->pages_total, "pages_free", (json_int_t)r->pages_free, "running",
                     (json_int_t)r->running, "waiting", (json_int_t)r->waiting);
}

void status_json(const struct proto_node_status *m, struct buf *out)
{
    json_t *processes = json_array(), *replicas = json_array();
    json_t *all;
    char *text;

    for (uint32_t i = 0; i < m->processes_count; i++)
        (void)json_array_append_new(processes, process_json(&m->processes[i]));
    for (uint32_t i = 0; i < m->replicas_count; i++)
        (void)json_array_append_new(replicas, replica_json(&m->replicas[i]));
    all = json_pack("{s:o, s:o, s:b, s:f, s:o, s:o}", "version", text_json(m->version), "model",
                    text_json(m->model), "ready", (int)m->ready, "uptime_s",
                    (double)m->uptime_us / 1e6, "processes", processes, "replicas", replicas);
    text = json_dumps(all, JSON_INDENT(2));
    buf_puts(out, text ? text : "{}");
    buf_puts(out, "\n");
    free(text);
    json_decref(all);
}

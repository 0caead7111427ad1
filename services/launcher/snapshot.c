#include "services/launcher/snapshot.h"

#include "common/clock.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Resident bytes; 0 when it has just ended. */
static uint64_t memory_of(pid_t pid)
{
    char path[64];
    uint64_t pages = 0;
    FILE *file;

    (void)snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
    file = fopen(path, "re");
    if (!file)
        return 0;
    if (fscanf(file, "%*u %" SCNu64, &pages) != 1)
        pages = 0;
    (void)fclose(file);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t restarts_of(const struct recovery *r, const struct child *child)
{
    switch (child->role) {
    case CHILD_GATEWAY:
        return r->gateway_restarts[child->index].count;
    case CHILD_TOKENIZER:
        return r->tokenizer_restarts[child->index].count;
    case CHILD_SCHEDULER:
        return r->replicas[child->replica].scheduler_restarts.count;
    case CHILD_WORKER:
        return child->epoch - 1;
    }
    return 0;
}

/* As a request meets them, and then by number. */
static int by_place(const void *a, const void *b)
{
    const struct child *x = *(const struct child *const *)a, *y = *(const struct child *const *)b;

    if (x->role != y->role)
        return x->role < y->role ? -1 : 1;
    return x->replica != y->replica ? x->replica - y->replica : x->index - y->index;
}

static void take_processes(struct snapshot *s, struct recovery *r, int64_t now_us)
{
    const struct child *list[CHILDREN_MAX];
    const struct child *child = NULL;
    uint32_t n = 0;

    while ((child = supervisor_next(r->children, child)))
        list[n++] = child;
    qsort(list, n, sizeof *list, by_place);
    s->processes[0] = (struct proto_process_status){
        .name = proto_str("launcher"),
        .pid = (uint32_t)getpid(),
        .uptime_us = (uint64_t)(now_us - r->start_us),
        .memory_bytes = memory_of(getpid()),
    };
    for (uint32_t i = 0; i < n; i++)
        s->processes[i + 1] = (struct proto_process_status){
            .name = proto_str(list[i]->name),
            .pid = (uint32_t)list[i]->pid,
            .uptime_us = (uint64_t)(now_us - list[i]->started_us),
            .restarts = restarts_of(r, list[i]),
            .memory_bytes = memory_of(list[i]->pid),
        };
    s->message.processes = s->processes;
    s->message.processes_count = n + 1;
}

/* A scheduler that says nothing yet is known by its epoch. */
static void take_replicas(struct snapshot *s, const struct recovery *r)
{
    for (int i = 0; i < r->replicas_count; i++) {
        const struct control_link *link = &r->control->links[i];

        s->replicas[i] = link->status;
        s->replicas[i].replica = (uint32_t)i;
        s->replicas[i].epoch = r->replicas[i].epoch;
        s->replicas[i].ready = control_ready(r->control, i, r->replicas[i].epoch);
        s->replicas[i].reason = proto_str(link->peer ? link->reason : "starting");
    }
    s->message.replicas = s->replicas;
    s->message.replicas_count = (uint32_t)r->replicas_count;
}

void snapshot_take(struct snapshot *s, struct recovery *r)
{
    int64_t now_us = clock_mono_us();

    s->message = (struct proto_node_status){
        .version = proto_str(PHALANX_VERSION),
        .model = proto_str(commands_served_name(r->commands)),
        .ready = r->started && !r->lost_us && !r->draining,
        .uptime_us = (uint64_t)(now_us - r->start_us),
    };
    take_processes(s, r, now_us);
    take_replicas(s, r);
}
